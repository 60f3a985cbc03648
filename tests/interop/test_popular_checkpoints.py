"""The small checkpoints that people really use open with transformers' logits, ids, special tokens and defaults, write
the same text, are evaluated, trained onward and exported; and what we write of them transformers opens again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from popular import SAMPLING, SHAPES, publish
from published_forms import TEXT

from tiny_transformer.cli import run
from tiny_transformer.generation.rows import Generation
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.text import encode_prompt
from tiny_transformer.interop.gguf.exporting import export_gguf
from tiny_transformer.interop.hf import import_hf
from tiny_transformer.models import end_token_ids, load_model, save_model
from tiny_transformer.tokenizers import load_tokenizer

pytestmark = pytest.mark.slow
CLOSE = {"rtol": 0, "atol": 2e-5}
TEXTS = [
    "Once upon a time, the café had 12345 cups",
    " leading and trailing ",
    "   many   spaces\n\n\tand 你好 🦊 naïve e\u0301",
    "it's she'LL (don't) 3.14, a1b2!",
    "a <tool_call> b <think> c </think>",
    "",
]


@pytest.fixture(scope="module")
def transformers():
    module = pytest.importorskip("transformers")
    module.utils.logging.disable_progress_bar()
    module.utils.logging.set_verbosity_error()
    return module


@pytest.fixture(scope="module", params=SHAPES)
def opened(request, transformers, tmp_path_factory):
    """name, the published directory, ours, transformers' model of the published one."""
    root = tmp_path_factory.mktemp("popular")
    theirs = publish(request.param, root / "theirs", transformers)
    import_hf(root / "theirs", root / "ours")
    return request.param, root / "theirs", root / "ours", theirs


@torch.no_grad()
def test_logits_are_theirs_and_stay_theirs(opened, transformers):
    name, _, ours, theirs = opened
    ids = torch.randint(0, 600, (2, 90), generator=torch.Generator().manual_seed(1))
    expected = theirs(ids).logits
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(load_model(ours)(ids), expected, **CLOSE)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(ours, output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(again.eval()(ids).logits, expected, **CLOSE)
    if name == "Llama-3.2-1B":  # the scaling shows
        plain = load_model(ours)
        plain.model.rope_scaling = None
        assert (plain(ids) - expected).abs().max() > 1e-2


def test_ids_special_tokens_and_templates_are_theirs(opened, transformers):
    _, published, ours, _ = opened
    theirs, saved = (transformers.AutoTokenizer.from_pretrained(path) for path in (published, ours))
    tokenizer = load_tokenizer(ours)
    for text in TEXTS:
        ids = saved(text)["input_ids"]
        assert encode_prompt(tokenizer, text) == (ids or [tokenizer.end_id]), text
        # 5's LlamaTokenizer builds a normalizer of its own, which puts no space before one; 4.57 follows the file.
        if not (text.startswith(" ") and type(theirs).__name__ == "LlamaTokenizer"):
            assert theirs(text)["input_ids"] == ids, text
        assert saved.decode(ids) == theirs.decode(ids)
    for key in ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens"):
        if getattr(theirs, key, None) is not None:
            assert getattr(saved, key) == getattr(theirs, key), key
    limit = json.loads((ours / "config.json").read_text())["max_position_embeddings"]
    assert saved.model_max_length == min(theirs.model_max_length, limit)
    if theirs.chat_template:
        chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "there"}]
        rendered = [each.apply_chat_template(chat, tokenize=False) for each in (theirs, saved)]
        assert rendered[0] == rendered[1] and "there" in rendered[0]


def test_ids_are_theirs_in_transformers_4_57_too(opened, repository):
    old = repository / ".cache" / "transformers-4.57"
    if not (old / "transformers").is_dir():
        pytest.skip("transformers 4.57 is not installed beside the environment (make test does it)")
    _, published, ours, _ = opened
    code = (
        "import json, sys; from transformers import AutoTokenizer, logging; logging.set_verbosity_error()\n"
        "print(json.dumps([[AutoTokenizer.from_pretrained(path)(text)['input_ids'] for text in json.loads(sys.argv[1])]"
        " for path in sys.argv[2:]]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(old), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, json.dumps(TEXTS), str(published), str(ours)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs, saved = json.loads(done.stdout.splitlines()[-1])
    tokenizer = load_tokenizer(ours)
    assert saved == theirs
    assert [encode_prompt(tokenizer, text) for text in TEXTS] == [ids or [tokenizer.end_id] for ids in theirs]


def test_defaults_for_writing_are_kept(opened):
    name, published, ours, _ = opened
    before, after = (json.loads((path / "generation_config.json").read_text()) for path in (published, ours))
    kept = {key: value for key, value in before.items() if value is not None and key != "transformers_version"}
    assert after.items() >= kept.items() and kept.keys() >= SAMPLING.get(name, {}).keys()
    end = before["eos_token_id"]
    assert end_token_ids(ours) == (end if isinstance(end, list) else [end])


def test_the_same_greedy_text(opened, transformers):
    _, _, ours, theirs = opened
    tokenizer, model = load_tokenizer(ours), load_model(ours)
    prompt = encode_prompt(tokenizer, "Once upon a time")
    greedy = {"do_sample": False, "max_new_tokens": 12, "temperature": None, "top_p": None, "top_k": None}
    expected = theirs.generate(torch.tensor([prompt]), **greedy, repetition_penalty=1.0, pad_token_id=0)[0].tolist()
    settings = SamplingConfig(temperature=0, max_new_tokens=12)
    written = [step[0] for step in Generation(model, [prompt], settings, end_ids=end_token_ids(ours))]
    assert [*prompt, *written] == expected


def test_it_is_evaluated_trained_onward_and_exported(opened, transformers, tmp_path, monkeypatch, capsys):
    name, published, ours, _ = opened
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(
        "<|endoftext|>\n".join(f"{TEXT}{i}\n{TEXT * 2}" for i in range(60)), encoding="utf-8"
    )
    prepare = ["prepare", "--source", "text.txt", "--tokenizer", str(ours), "--seq_len", "32", "--out_dir", "d"]
    assert run(prepare) == 0, capsys.readouterr()
    assert run(["evaluate", str(ours), "--data_dir", "d"]) == 0, capsys.readouterr()
    assert "bits per byte" in capsys.readouterr().out
    train_onward(ours, tmp_path / "trained")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "trained").eval()
    ids = torch.randint(0, 600, (2, 20), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, load_model(tmp_path / "trained")(ids), **CLOSE)
    assert run(["export", str(ours), "--gguf", "f32", "--out", "m.gguf"]) == 0, capsys.readouterr()
    keys = gguf_keys(tmp_path / "m.gguf")
    told, generation = (
        json.loads((published / file).read_text()) for file in ("tokenizer_config.json", "generation_config.json")
    )
    assert keys.get("tokenizer.chat_template") == told.get("chat_template")
    ends = generation["eos_token_id"]
    assert keys["tokenizer.ggml.eos_token_id"] == (ends[0] if isinstance(ends, list) else ends)
    if "pad_token_id" in generation:
        assert keys["tokenizer.ggml.padding_token_id"] == generation["pad_token_id"]
    assert keys["tokenizer.ggml.add_bos_token"] == (name in ("TinyLlama-1.1B", "Llama-3.2-1B"))
    assert keys["general.size_label"].endswith("K")


def train_onward(directory: Path, out: Path) -> None:
    """A few updates on one batch."""
    model, tokenizer = load_model(directory).train(), load_tokenizer(directory)
    ids = torch.tensor([tokenizer.encode(TEXT)[:40]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    out.mkdir()
    save_model(model, out, eos_token_id=tokenizer.end_id)
    tokenizer.save(out)


def gguf_keys(path: Path) -> dict:
    gguf = pytest.importorskip("gguf")
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def test_export_writes_the_rope_factors_of_llama_3(transformers, tmp_path):
    gguf = pytest.importorskip("gguf")
    publish("Llama-3.2-1B", tmp_path / "m", transformers)
    export_gguf(tmp_path / "m", tmp_path / "m.gguf", kind="f32")
    factors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}["rope_freqs.weight"]
    assert factors.shape == (8,) and factors[0] == 1 and factors[-1] == 32  # fast pairs stay, slow ones are divided
    assert (factors[1:] >= factors[:-1]).all()
