"""`evaluate_checkpoints`: the perplexity of each target as the model alone would score it, the best checkpoint first;
`eval_val`: `evaluate` with the data of a config."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tiny_transformer.cli import run
from tiny_transformer.config.schema import DataConfig
from tiny_transformer.config.shapes import Qwen3Config
from tiny_transformer.data.prepare.command import prepare
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.evaluation.paired import Difference, Interval
from tiny_transformer.evaluation.ranking import rank_checkpoints, read_cases, show_ranking
from tiny_transformer.models import build_model
from tiny_transformer.models.checkpoint import save_model
from tiny_transformer.models.open import open_checkpoint
from tiny_transformer.tokenizers import make_tokenizer

CASES = [("The sky is", "blue"), ("Two and two are", "four"), ("A hen lays an", "egg")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints with weights of their own, in `a`, `b` and `c`."""
    root, tokenizer = tmp_path_factory.mktemp("ranking"), make_tokenizer("byte")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen3Config(**sizes, intermediate_size=48, max_position_embeddings=64, vocab_size=tokenizer.vocab_size)
    for seed, name in enumerate("abc"):
        (root / name).mkdir()
        save_model(build_model(config, seed=seed), root / name, eos_token_id=tokenizer.end_id)
        tokenizer.save(root / name)
    rows = "".join(f"- {{prompt: {prompt}, target: {target}}}\n" for prompt, target in CASES)
    (root / "cases.yaml").write_text(rows, encoding="utf-8")
    return root


def perplexity(path: Path) -> float:
    """By the plain way: one text after the other, in float64."""
    opened, nats = open_checkpoint(path, device="cpu", dtype=torch.float64), []
    for prompt, target in CASES:
        before, ids = opened.tokenizer.encode(prompt), opened.tokenizer.encode(f"{prompt} {target}")
        logits = opened.model(torch.tensor([ids]))[0].log_softmax(-1)
        nats.append(-sum(logits[i - 1, ids[i]].item() for i in range(len(before), len(ids))))
    return math.exp(sum(nats) / len(nats))


def test_the_likeliest_targets_come_first(models: Path) -> None:
    ranked = rank_checkpoints([models / "?"], models / "cases.yaml", "auto", "cpu")
    expected = sorted((perplexity(models / name), name) for name in "abc")
    assert [one.checkpoint.name for one in ranked] == [name for _, name in expected]
    assert [one.result.perplexity for one in ranked] == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert [one.result.num_items for one in ranked] == [3, 3, 3]


def test_the_command_prints_them(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--checkpoints", str(models / "?"), "--cases", str(models / "cases.yaml"), "--tokenizer", "byte"]
    assert run(["evaluate_checkpoints", *words]) == ExitCode.OK
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].split("  ")[0] == "checkpoint" and shown.count("of 3") == 3


@pytest.mark.parametrize(("low", "is_said"), [(0.1, True), (-0.1, False)])
def test_a_ranking_says_that_it_knows_nothing_of_seeds(models: Path, low: float, is_said: bool) -> None:
    best, other, *_ = rank_checkpoints([models / "?"], models / "cases.yaml", "auto", "cpu")
    text = io.StringIO()
    console = Console(file=text, width=200)
    show_ranking([best, other._replace(behind=Difference(Interval(0.5, low, 1.0)))], console)
    shown = text.getvalue()
    assert ("worse" in shown) == is_said and ("other seeds of the same configs may rank otherwise" in shown) == is_said


def test_a_checkpoint_that_is_named_twice_is_ranked_once(models: Path) -> None:
    (models / "best").symlink_to("a")
    assert len(rank_checkpoints([models / "a", models / "best"], models / "cases.yaml", "auto", "cpu")) == 1


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[]", "there is no case in it"),
        ("cases: 3", "there is no case in it"),
        ("- {prompt: a}", "case 1 is not a prompt and a target"),
        ("- {prompt: a, target: b}\n- {prompt: a, target: 1945}", "case 2 is not a prompt and a target"),
        ("- [a", "not a case file"),
    ],
)
def test_a_bad_case_file_is_refused(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_cases(tmp_path / "c.yaml")
    assert what in caught.value.what and "prompt" in (caught.value.remedy or "")


def test_no_case_file_and_another_tokenizer_are_refused(models: Path) -> None:
    with pytest.raises(UserError, match="no such case file"):
        read_cases(models / "none.yaml")
    with pytest.raises(UserError) as caught:
        rank_checkpoints([models / "a"], models / "cases.yaml", "char", "cpu")
    assert "tokenizer" in caught.value.what


def test_the_cases_of_the_project_are_cases(repository: Path) -> None:
    items = read_cases(repository / "cases/wiki_basics.yaml")
    assert len(items) == 10 and items[0].pairs == (("The capital of France is", " Paris"),)


def test_eval_val_measures_on_the_data_of_a_config(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The directory it names, else the one that training would take; a second name of the data is refused."""
    monkeypatch.chdir(tmp_path)
    prepare(DataConfig(source="stories", max_bytes=20_000, tokenizer="byte", seq_len=32), "data/plain")
    (tmp_path / "plain.yaml").write_text("model: {max_position_embeddings: 64}\ndata: {seq_len: 32}\n")
    (tmp_path / "named.yaml").write_text("data: {data_dir: data/plain, seq_len: 32}\n")
    (tmp_path / "none.yaml").write_text("data: {seq_len: 32}\n")
    words = ["eval_val", "--ckpt", str(models / "a"), "--tokenizer", "byte", "--json"]
    shown = []
    for name in (["--data_dir", "data/plain"], ["--config", "plain.yaml"], ["--config", "named.yaml"]):
        assert run([*words, *name]) == ExitCode.OK
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2] and '"split": "val"' in shown[0]
    assert run([*words, "--config", "none.yaml"]) == ExitCode.USAGE
    assert "data/none, the data of this config, is not prepared" in capsys.readouterr().err
    assert run([*words, "--config", "plain.yaml", "--data_dir", "data/plain"]) == ExitCode.USAGE
    assert "both name the data" in capsys.readouterr().err
    assert run([*words[:-2], "char", "--config", "plain.yaml"]) == ExitCode.USAGE
    assert "tokenizer" in capsys.readouterr().err
