"""llama.cpp itself opens what we export: the same logits, the same greedy tokens, the same ids for the same text.

It is built once, beside the environment, by `make llama-cpp`, and runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from published_forms import FORMS, write_tokenizer
from safetensors.numpy import load_file

from tiny_transformer.config.shapes import LlamaConfig, Olmo2Config, Qwen3Config, Qwen3NextConfig
from tiny_transformer.interop.gguf.exporting import export_gguf
from tiny_transformer.models import build_model, load_model, save_model
from tiny_transformer.tokenizers import load_tokenizer, make_tokenizer

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.slow

TEXT = "Once upon a time there was a little cat who sat on 12 mats. It's 'fine', she'LL say! " * 30
STRINGS = [
    "Once upon a time",
    "  two  spaces\n\n\tand a tab \r\n end ",
    "It's she'LL don't 'quoted'",
    "12345 3.14 a1b2",
    "Zoë said: 你好! 🦊 naïve",
    "<|endoftext|> is text here",
    "!?... --- ___ ((x))",
]
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_theta": 5000.0,
}
NEXT = {**SHAPE, "num_hidden_layers": 4, "head_dim": 32, "linear_key_head_dim": 32, "linear_value_head_dim": 32}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}
PATTERN = ("full_attention", "linear_attention", "linear_attention", "full_attention")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
# shape, tokenizer
MODELS = {
    "llama": (LlamaConfig(**SHAPE), "bpe"),
    "llama-untied-bias-wide": (
        LlamaConfig(**SHAPE, tie_word_embeddings=False, attention_bias=True, head_dim=32),
        "bpe",
    ),
    "llama-layernorm": (LlamaConfig(**SHAPE, norm_type="layernorm"), "bpe"),
    "llama-idle-window": (LlamaConfig(**SHAPE, sliding_window=128), "bpe"),
    "llama-llama3": (LlamaConfig(**SHAPE, head_dim=32, rope_scaling=LLAMA3), "bpe"),
    "llama-linear": (LlamaConfig(**SHAPE, rope_scaling={"rope_type": "linear", "factor": 3.0}), "bpe"),
    "qwen2": (LlamaConfig(**SHAPE, qkv_bias=True), "bpe"),
    "qwen3-yarn": (Qwen3Config(**SHAPE, head_dim=32, rope_scaling=YARN), "bpe"),
    "olmo2": (Olmo2Config(**SHAPE), "bpe"),
    "qwen3": (Qwen3Config(**SHAPE), "bpe"),
    "qwen3-untied-wide": (Qwen3Config(**SHAPE, head_dim=32, tie_word_embeddings=False), "byte"),
    "next": (Qwen3NextConfig(**NEXT, **EXPERTS, linear_num_value_heads=6, num_nextn_predict_layers=1), "bpe"),
    "next-pattern-untied": (
        Qwen3NextConfig(**NEXT, **EXPERTS, layer_types=PATTERN, partial_rotary_factor=0.5, tie_word_embeddings=False),
        "bpe",
    ),
    "next-dense": (Qwen3NextConfig(**NEXT, num_experts=0, linear_num_value_heads=6), "bpe"),
}
KINDS = ("f32", "f16", "q8_0", "q4_0")
NUM_GREEDY = 40

DEFAULTS = """
import llama_cpp.llama_cpp as library
defaults = library.llama_model_default_params
def params():  # weights repacked for AMX end the process on machines that announce it and may not use it
    found = defaults()
    found.use_extra_bufts = False
    return found
library.llama_model_default_params = params
"""
RUN_ALL = """
import json, sys, numpy
from pathlib import Path
from llama_cpp import Llama
from safetensors.numpy import save_file
root = Path(sys.argv[1])
job = json.loads((root / "job.json").read_text())
logits, ids = {}, {}
for path in sorted(root.glob("*.gguf")):
    exact = {"type_k": 0, "type_v": 0, "n_threads": 1, "n_threads_batch": 1}  # type 0: keys and values in f32
    llama = Llama(str(path), n_ctx=128, logits_all=True, verbose=False, **exact)
    llama.eval(job["ids"])
    logits[path.stem] = llama.scores[: len(job["ids"])].copy()
    llama.reset()
    llama.eval(job["ids"][:5])
    greedy = []
    for _ in range(job["num_greedy"]):
        greedy.append(int(llama.scores[llama.n_tokens - 1].argmax()))
        llama.eval(greedy[-1:])
    texts = [llama.tokenize(text.encode(), add_bos=False, special=False) for text in job["strings"]]
    ids[path.stem] = {"greedy": greedy, "texts": texts, "end": llama.token_eos()}
save_file(logits, root / "logits.safetensors")
(root / "ids.json").write_text(json.dumps(ids))
"""


@pytest.fixture(scope="module")
def ran(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, dict]:
    """Every model in every kind, run by llama.cpp: the folder, its logits, its ids."""
    library = repository / ".cache" / "llama-cpp"
    if not (library / "llama_cpp").is_dir():
        pytest.skip("llama.cpp is not built beside the environment (make llama-cpp does it)")
    root = tmp_path_factory.mktemp("gguf")
    for name, (config, tokenizer) in MODELS.items():
        directory = root / name
        directory.mkdir()
        model = build_model(config, seed=0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.empty(parameter.shape).normal_(0, 0.15, generator=generator))
        save_model(model, directory)
        size = {"vocab_size": 290} if tokenizer == "bpe" else {}
        make_tokenizer(tokenizer, texts=[TEXT], **size).save(directory)
        for kind in KINDS:
            export_gguf(directory, root / f"{name}-{kind}.gguf", kind=kind)
    ids = torch.randint(0, 250, (60,), generator=torch.Generator().manual_seed(2)).tolist()
    job = {"ids": ids, "num_greedy": NUM_GREEDY, "strings": STRINGS}
    (root / "job.json").write_text(json.dumps(job))
    run_llama_cpp(library, RUN_ALL, root)
    return root, load_file(root / "logits.safetensors"), json.loads((root / "ids.json").read_text())


def run_llama_cpp(library: Path, code: str, root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(library), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DEFAULTS + code, str(root)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


PUBLISHED = """
import json, sys
from pathlib import Path
from llama_cpp import Llama
root = Path(sys.argv[1])
job = json.loads((root / "job.json").read_text())
found = {}
for path in sorted(root.glob("*.gguf")):
    llama = Llama(str(path), n_ctx=128, verbose=False, n_threads=1)
    texts = [llama.tokenize(text.encode(), add_bos=True, special=False) for text in job]
    metadata = llama.metadata
    found[path.stem] = {
        "texts": texts, "end": llama.token_eos(), "begin": llama.token_bos(),
        "words": [llama.detokenize(ids[1:] if metadata["tokenizer.ggml.add_bos_token"] == "true" else ids).decode()
                  for ids in texts],
        "template": metadata.get("tokenizer.chat_template"),
    }
(root / "found.json").write_text(json.dumps(found))
"""


def test_published_forms_of_tokenizers_get_our_ids(repository, tmp_path):
    """With the template's begin token; TinyLlama's pieces too, which GGUF keeps by scores."""
    library = repository / ".cache" / "llama-cpp"
    if not (library / "llama_cpp").is_dir():
        pytest.skip("llama.cpp is not built beside the environment (make llama-cpp does it)")
    strings = [
        *STRINGS,
        " leading",
        "   many   spaces here ",
        "a <tool_call> b",
        "naïve café 🦊",
        "",
        "aaaa ----- ____",
    ]
    strings = [text for text in strings if "<|" not in text]
    (tmp_path / "job.json").write_text(json.dumps(strings))
    for name in FORMS:
        (tmp_path / name).mkdir()
        model = build_model(LlamaConfig(**{**SHAPE, "vocab_size": 704}), seed=0)
        write_tokenizer(name, tmp_path / name)
        end = load_tokenizer(tmp_path / name).end_id
        save_model(model, tmp_path / name, eos_token_id=end)
        export_gguf(tmp_path / name, tmp_path / f"{name}.gguf")
    run_llama_cpp(library, PUBLISHED, tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    for name in FORMS:
        tokenizer, answer = load_tokenizer(tmp_path / name), found[name]
        begin = [] if tokenizer.begin_id is None else [tokenizer.begin_id]
        for text, ids in zip(strings, answer["texts"], strict=True):
            assert ids == begin + tokenizer.encode(text), (name, text)
        assert answer["end"] == tokenizer.end_id
        assert answer["template"] == FORMS[name]()[1].get("chat_template")


def ours(root: Path, name: str, kind: str):
    """Our model, its matrices rounded to what the file holds."""
    model = load_model(root / name)
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if kind != "f32" and parameter.ndim == 2 and ".mlp.gate." not in part and "expert_gate" not in part:
                words = "embed" in part or "lm_head" in part
                dtype = gguf.GGMLQuantizationType["Q8_0" if kind == "q4_0" and words else kind.upper()]
                rounded = gguf.dequantize(gguf.quantize(parameter.numpy(), dtype), dtype)
                parameter.copy_(torch.from_numpy(rounded.astype(np.float32)))
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_logits_in_f32_are_ours(ran, name):
    root, logits, _ = ran
    ids = torch.tensor([json.loads((root / "job.json").read_text())["ids"]])
    expected = ours(root, name, "f32")(ids)[0].numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits[f"{name}-f32"], expected, rtol=0, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["f32", "f16"])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_ours(ran, name, kind):
    root, _, ids = ran
    model = ours(root, name, kind)
    written = json.loads((root / "job.json").read_text())["ids"][:5]
    for _ in range(NUM_GREEDY):
        written.append(int(model(torch.tensor([written]))[0, -1].argmax()))
    assert ids[f"{name}-{kind}"]["greedy"] == written[5:]
    assert len(set(written[5:])) > 2


@pytest.mark.parametrize(("kind", "share"), [("f16", 0.01), ("q8_0", 0.04), ("q4_0", 0.5)])
@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("next")])
def test_fewer_bits_stay_near(ran, name, kind, share):
    _, logits, _ = ran
    exact = logits[f"{name}-f32"]
    error = np.sqrt(np.mean((logits[f"{name}-{kind}"] - exact) ** 2))
    assert 0 < error < share * exact.std()


@torch.no_grad()
@pytest.mark.parametrize(("kind", "share"), [("f16", 0.01), ("q8_0", 0.3), ("q4_0", 0.3)])
@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("next")])
def test_a_hybrid_of_fewer_bits_is_ours_with_the_weights_of_the_file(ran, name, kind, share):
    """These, untrained, magnify what is small: 0.4 % of noise on the weights moves logits by up to 0.2 of their spread,
    the four bits of q4_0 by 0.8. So they are compared with our model of the same rounded weights; what remains is that
    llama.cpp rounds activations to eight bits too.
    """
    root, logits, _ = ran
    ids = torch.tensor([json.loads((root / "job.json").read_text())["ids"]])
    expected = ours(root, name, kind)(ids)[0].numpy()
    error = np.sqrt(np.mean((logits[f"{name}-{kind}"] - expected) ** 2))
    assert 0 < error < share * expected.std()


@pytest.mark.parametrize("name", MODELS)
def test_texts_get_our_ids(ran, name):
    root, _, ids = ran
    tokenizer = load_tokenizer(root / name)
    for text, found in zip(STRINGS, ids[f"{name}-f32"]["texts"], strict=True):
        assert found == tokenizer.encode(text), text
    assert ids[f"{name}-f32"]["end"] == tokenizer.end_id
