"""`generate --log_attention`: the weights of the text that was written, with its tokens, bounded and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tiny_transformer.cli import run
from tiny_transformer.config.shapes import Qwen3Config
from tiny_transformer.errors import ExitCode
from tiny_transformer.generation.rows import Generation
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.inspection import attention_file
from tiny_transformer.inspection.observe import _AttentionMode
from tiny_transformer.layers.attention import attention_weights
from tiny_transformer.models import build_model
from tiny_transformer.models.checkpoint import save_model
from tiny_transformer.models.open import open_checkpoint
from tiny_transformer.tokenizers import make_tokenizer

PROMPT = "A fox $ran\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the model `m` in it."""
    tokenizer = make_tokenizer("byte")
    config = Qwen3Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        vocab_size=tokenizer.vocab_size,
    )
    (tmp_path / "m").mkdir()
    save_model(build_model(config, seed=0), tmp_path / "m", eos_token_id=tokenizer.end_id)
    tokenizer.save(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def generate(*words: str) -> int:
    fixed = ["--ckpt", "m", "--prompt", PROMPT, "--max_new_tokens", "6", "--temperature", "0", "--device", "cpu"]
    return run(["generate", *fixed, *words])


def stepwise() -> tuple[list[torch.Tensor], list[int]]:
    """Each block's weights as they are computed while the text is written, token by token through the cache."""
    opened = open_checkpoint("m", device="cpu")
    ids = opened.tokenizer.encode(PROMPT)
    rows: dict[int, list[torch.Tensor]] = {}

    def keep(block: int, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, out: torch.Tensor):
        rows.setdefault(block, []).append(attention_weights(query=query, key=key, mask=mask)[0])
        return out

    settings = SamplingConfig(max_new_tokens=6, temperature=0)
    with _AttentionMode(opened.model, keep):
        new = [step[0] for step in Generation(opened.model, [ids], settings) if step[0] is not None]
    width = len(ids) + len(new) - 1
    pad = torch.nn.functional.pad
    padded = [torch.cat([pad(one, (0, width - one.shape[-1])) for one in of_block], 1) for of_block in rows.values()]
    return padded, ids + new


def test_the_file_holds_the_weights_of_the_writing(home: Path) -> None:
    assert generate("--log_attention") == ExitCode.OK
    expected, ids = stepwise()
    with safe_open(home / "attention.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["attention.0", "attention.1"]
        metadata, found = file.metadata(), [file.get_tensor(f"attention.{block}") for block in (0, 1)]
    assert json.loads(metadata["ids"]) == ids and "".join(json.loads(metadata["tokens"])).startswith(PROMPT)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == (4, len(ids), len(ids)) and one.dtype == torch.float32
        torch.testing.assert_close(one[:, :-1, :-1], other, atol=1e-6, rtol=0)
        torch.testing.assert_close(one.sum(-1), torch.ones(4, len(ids)), atol=1e-6, rtol=0)
        assert (one.triu(1) == 0).all()


def test_of_a_long_text_the_first_tokens_are_kept_and_that_is_said(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attention_file, "MAX_BYTES", 4 * 2 * 4 * 5**2)
    assert generate("--log_attention") == ExitCode.OK
    assert "of the first 5 of 17 tokens" in capsys.readouterr().err
    with safe_open(home / "attention.safetensors", "pt") as file:
        assert file.get_tensor("attention.0").shape == (4, 5, 5)


def test_the_picture_needs_matplotlib(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attention_file.importlib.util, "find_spec", lambda name: None)
    assert generate("--plot") == ExitCode.USAGE
    assert "pip install matplotlib" in capsys.readouterr().err
    assert not (home / "attention.safetensors").exists()


@pytest.mark.slow
def test_the_picture_is_drawn(home: Path) -> None:
    pytest.importorskip("matplotlib")
    assert generate("--plot") == ExitCode.OK
    assert (home / "attention.png").read_bytes().startswith(b"\x89PNG") and (home / "attention.safetensors").exists()


@pytest.mark.parametrize("words", [["--interactive"], ["--num_samples", "2"]])
def test_several_texts_are_refused(home: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "--ckpt", "m", "--log_attention", *words]) == ExitCode.USAGE
    assert "--log_attention and --plot are for one text" in capsys.readouterr().err


@pytest.fixture
def asking(home: Path) -> Path:
    """The model stands in a run whose config asks for attention weights and for drafts."""
    (home / "runs/r").mkdir(parents=True)
    (home / "m").rename(home / "runs/r/model")
    settings = "advanced: {log_attention: true, speculative_sampling: true}\n"
    (home / "runs/r/config.yaml").write_text(settings, encoding="utf-8")
    (home / "prompts.txt").write_text("A\n", encoding="utf-8")
    return home


def test_the_config_of_a_run_asks_for_it(asking: Path) -> None:
    home = asking
    assert run(["generate", "--ckpt", "runs/r/model", "--prompt", "A", "--max_new_tokens", "2"]) == ExitCode.OK
    assert (home / "attention.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("chat A", {"log_attention", "sample_drafter"}),
        ("generate --prompts prompts.txt", {"log_attention", "sample_drafter"}),
        ("generate --prompt A --num_samples 2", {"log_attention"}),
        ("generate --prompt A", set()),
    ],
)
def test_what_a_config_asks_of_one_text_is_said_to_be_left_out_elsewhere(
    asking: Path, words: str, keys: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words.split(), "--ckpt", "runs/r/model", "--max_new_tokens", "2"]) == ExitCode.OK
    told = capsys.readouterr().err
    assert {key for key in ("log_attention", "sample_drafter") if f"training.{key} of the run's config" in told} == keys
    assert (asking / "attention.safetensors").exists() == (not keys)
