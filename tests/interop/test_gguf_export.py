"""GGUF files: every key and every tensor as the published reader of the format finds them."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from published_forms import write_tokenizer

from tiny_transformer.config.shapes import LlamaConfig, Olmo2Config, Qwen3Config
from tiny_transformer.errors import UserError
from tiny_transformer.interop.gguf.exporting import default_file_name, export_gguf
from tiny_transformer.interop.gguf.importing import import_gguf
from tiny_transformer.interop.gguf.pieces import BYTE, UNKNOWN
from tiny_transformer.interop.gguf.tokenizer import CONTROL, NORMAL, UNUSED
from tiny_transformer.interop.llama2c import import_llama2c
from tiny_transformer.models import build_model, load_model, save_model
from tiny_transformer.tokenizers import load_tokenizer, make_tokenizer
from tiny_transformer.tokenizers.load import chat_templates

gguf = pytest.importorskip("gguf")

TEXT = "Once upon a time there was a little cat who sat on 12 mats. It's 'fine', she'LL say! " * 30
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "rope_theta": 5000.0,
    "rms_norm_eps": 3e-6,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "llama untied bias": LlamaConfig(**SHAPE, tie_word_embeddings=False, attention_bias=True),
    "llama layernorm": LlamaConfig(**SHAPE, norm_type="layernorm"),
    "llama wide window": LlamaConfig(**SHAPE, sliding_window=48),
    "olmo2": Olmo2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "qwen3 untied head_dim": Qwen3Config(**SHAPE, head_dim=32, tie_word_embeddings=False),
}
# Hugging Face's names and the format's, written out from the format's own description.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OLMO2 = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}


def save(config, directory: Path, tokenizer: str = "bpe", dtype: torch.dtype = torch.float32) -> Path:
    directory.mkdir()
    model = build_model(config, seed=0, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.15, generator=generator).to(dtype))
    save_model(model, directory)
    size = {"vocab_size": 290} if tokenizer == "bpe" else {}
    make_tokenizer(tokenizer, texts=[TEXT], **size).save(directory)
    return directory


def gguf_name(name: str, architecture: str) -> str:
    *path, suffix = name.split(".")
    names = NAMES | OLMO2 if architecture == "olmo2" else NAMES
    if path[:2] == ["model", "layers"]:
        return f"blk.{path[2]}.{names['.'.join(path[3:])]}.{suffix}"
    return f"{names['.'.join(path)]}.{suffix}"


def read(path: Path) -> tuple[dict, dict]:
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return keys, {tensor.name: tensor for tensor in reader.tensors}


def in_their_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of each head so that those which RoPE turns together, j and j + D/2, are neighbours: one by one."""
    size = len(weight) // heads
    order = [h * size + j + half * size // 2 for h in range(heads) for j in range(size // 2) for half in (0, 1)]
    return weight[order]


@pytest.mark.parametrize("kind", ["f32", "f16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_reads_back(name, kind, tmp_path):
    config = CONFIGS[name]
    checkpoint = save(config, tmp_path / "m")
    written = export_gguf(checkpoint, tmp_path / "m.gguf", kind=kind)
    keys, tensors = read(tmp_path / "m.gguf")
    assert written.num_bytes == (tmp_path / "m.gguf").stat().st_size and written.kept_f16 == ()
    architecture = "stablelm" if "layernorm" in name else config.model_type
    assert keys["general.architecture"] == architecture
    expected = {n: t.numpy() for n, t in load_model(checkpoint).state_dict().items()}
    if config.tie_word_embeddings and architecture not in ("stablelm", "olmo2"):
        del expected["lm_head.weight"]
    assert tensors.keys() == {gguf_name(n, architecture) for n in expected}
    for n, value in expected.items():
        if architecture == "llama" and ("q_proj" in n or "k_proj" in n):
            value = in_their_order(value, config.num_attention_heads if "q_proj" in n else config.num_key_value_heads)
        found = tensors[gguf_name(n, architecture)]
        kept = value if kind == "f32" or value.ndim == 1 else value.astype(np.float16)
        assert found.data.dtype == kept.dtype and list(found.shape) == list(reversed(value.shape)), n
        np.testing.assert_array_equal(found.data, kept, err_msg=n)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_reads_back(name, tmp_path):
    config = CONFIGS[name]
    export_gguf(save(config, tmp_path / "cats"), tmp_path / "m.gguf", kind="f16")
    keys, _ = read(tmp_path / "m.gguf")
    a = "stablelm" if "layernorm" in name else config.model_type
    epsilon = "layer_norm_epsilon" if "layernorm" in name else "layer_norm_rms_epsilon"
    expected = {
        "general.type": "model",
        "general.name": "cats",
        "general.file_type": 1,
        f"{a}.vocab_size": 300,
        f"{a}.context_length": 48,
        f"{a}.embedding_length": 64,
        f"{a}.feed_forward_length": 96,
        f"{a}.block_count": 2,
        f"{a}.attention.head_count": 4,
        f"{a}.attention.head_count_kv": 2,
        f"{a}.attention.key_length": config.head_dim,
        f"{a}.attention.value_length": config.head_dim,
        f"{a}.rope.dimension_count": config.head_dim,
        f"{a}.rope.freq_base": 5000.0,
        f"{a}.attention.{epsilon}": float(np.float32(3e-6)),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {key: keys.get(key) for key in expected} == expected


@pytest.mark.parametrize(("kind", "bits"), [("q8_0", 8.5), ("q4_0", 4.5)])
def test_quantized_tensors_are_as_near_as_the_format_allows(kind, bits, tmp_path):
    checkpoint = save(CONFIGS["qwen3 untied head_dim"], tmp_path / "m")
    written = export_gguf(checkpoint, tmp_path / "m.gguf", kind=kind)
    _, tensors = read(tmp_path / "m.gguf")
    assert written.kept_f16 == ()
    for name, value in load_model(checkpoint).state_dict().items():
        found = tensors[gguf_name(name, "qwen3")]
        if value.ndim == 1:
            assert found.tensor_type.name == "F32"
            continue
        words = "embed" in name or "lm_head" in name
        assert found.tensor_type.name == ("Q8_0" if words else kind.upper())
        blocks = value.numpy().reshape(-1, 32)
        error = np.abs(gguf.dequantize(found.data, found.tensor_type).reshape(-1, 32) - blocks)
        largest = np.abs(blocks).max(axis=1, keepdims=True)
        # q8_0: half of one of 127 steps; q4_0: one of 8 steps at its far end; and the scale is rounded to f16.
        steps = 226 if found.tensor_type.name == "Q8_0" else 7.9
        assert (error <= largest / steps).all() and (error > 0).any(), name
        if not words:
            assert found.n_bytes * 8 / value.numel() == bits


def test_rows_that_are_no_multiple_of_a_block_stay_f16_and_are_named(tmp_path):
    config = LlamaConfig(**{**SHAPE, "intermediate_size": 72})
    written = export_gguf(save(config, tmp_path / "m"), tmp_path / "m.gguf", kind="q8_0")
    assert written.kept_f16 == ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight")
    _, tensors = read(tmp_path / "m.gguf")
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "F16"
    assert tensors["blk.0.ffn_up.weight"].tensor_type.name == "Q8_0"


def test_a_bfloat16_checkpoint_is_exact_in_f32(tmp_path):
    checkpoint = save(CONFIGS["qwen3"], tmp_path / "m", dtype=torch.bfloat16)
    export_gguf(checkpoint, tmp_path / "m.gguf", kind="f32")
    _, tensors = read(tmp_path / "m.gguf")
    expected = load_model(checkpoint).model.embed_tokens.weight.detach().float().numpy()
    np.testing.assert_array_equal(tensors["token_embd.weight"].data, expected)


def test_the_tokenizer_is_whole(tmp_path):
    checkpoint = save(CONFIGS["qwen3"], tmp_path / "m")
    export_gguf(checkpoint, tmp_path / "m.gguf", kind="f16")
    keys, _ = read(tmp_path / "m.gguf")
    content = make_tokenizer("bpe", texts=[TEXT], vocab_size=290).content
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == len(set(tokens)) == 300
    assert {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == NORMAL} == content[
        "model"
    ]["vocab"]
    assert [merge.split(" ") for merge in keys["tokenizer.ggml.merges"]] == content["model"]["merges"]
    end = content["added_tokens"][0]["id"]
    assert (tokens[end], types[end], types[end + 1 :]) == ("<|endoftext|>", CONTROL, [UNUSED] * (299 - end))
    assert keys["tokenizer.ggml.eos_token_id"] == keys["tokenizer.ggml.bos_token_id"] == end
    assert keys["tokenizer.ggml.add_eos_token"] is False


def test_chat_templates_stand_under_their_names_and_come_back(tmp_path):
    source = save(CONFIGS["qwen3"], tmp_path / "m")
    config = json.loads((source / "tokenizer_config.json").read_text())
    named = [{"name": "default", "template": "d"}, {"name": "tool use", "template": "t"}]
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("r")
    export_gguf(source, tmp_path / "m.gguf", kind="f32")
    keys, _ = read(tmp_path / "m.gguf")
    assert {name: keys[name] for name in keys if "chat_template" in name} == {
        "tokenizer.chat_template": "d",
        "tokenizer.chat_template.rag": "r",
        "tokenizer.chat_template.tool_use": "t",
        "tokenizer.chat_templates": ["rag", "tool_use"],
    }
    import_gguf(tmp_path / "m.gguf", tmp_path / "again")
    assert chat_templates(tmp_path / "again") == {"default": "d", "rag": "r", "tool_use": "t"}


@pytest.mark.parametrize(("of_tokenizer", "of_config", "expected"), [(290, 7, 290), (None, 7, 7), (None, None, 289)])
def test_a_text_begins_with_the_tokenizers_token_or_the_configs_or_an_end(of_tokenizer, of_config, expected, tmp_path):
    checkpoint = save(CONFIGS["qwen3"], tmp_path / "m")
    save_model(load_model(checkpoint), checkpoint, bos_token_id=of_config)
    content = json.loads((checkpoint / "tokenizer.json").read_text())
    assert content["added_tokens"][0]["id"] == 289  # the end token
    if of_tokenizer is not None:
        content["added_tokens"].append({**content["added_tokens"][0], "id": of_tokenizer, "content": "<s>"})
        first, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [first, text],
            "pair": [first, text, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [of_tokenizer], "tokens": ["<s>"]}},
        }
        (checkpoint / "tokenizer.json").write_text(json.dumps(content))
    export_gguf(checkpoint, tmp_path / "m.gguf")
    keys, _ = read(tmp_path / "m.gguf")
    assert keys["tokenizer.ggml.bos_token_id"] == expected
    assert keys["tokenizer.ggml.add_bos_token"] is (of_tokenizer is not None)
    assert keys.get("tiny_transformer.config_without_bos_token_id", False) is (of_config is None)


def test_a_byte_tokenizer_has_a_merge_that_never_applies(tmp_path):
    export_gguf(save(CONFIGS["qwen3"], tmp_path / "m", tokenizer="byte"), tmp_path / "m.gguf")
    keys, _ = read(tmp_path / "m.gguf")
    (merge,) = keys["tokenizer.ggml.merges"]
    assert all(len(side) > 1 and side not in keys["tokenizer.ggml.tokens"] for side in merge.split(" "))


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    checkpoint = save(CONFIGS["qwen3"], tmp_path / "m")
    for name in ("a", "b"):
        export_gguf(checkpoint, tmp_path / name, kind="q4_0")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def refusal(checkpoint: Path, out: Path, *words: str, **options) -> None:
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        export_gguf(checkpoint, out, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert caught.value.remedy and len(caught.value.lines()) <= 3
    assert sorted(out.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LlamaConfig(**SHAPE, sliding_window=47), ["sliding_window 47", "48"]),
        (Qwen3Config(**SHAPE, attention_bias=True), ["bias on o_proj"]),
        (Qwen3Config(**SHAPE, use_sliding_window=True, sliding_window=9, max_window_layers=1), ["sliding_window 9"]),
    ],
)
def test_a_shape_that_llama_cpp_computes_differently_is_refused(config, words, tmp_path):
    refusal(save(config, tmp_path / "m"), tmp_path / "m.gguf", "no GGUF file of this shape", *words)


def changed_tokenizer(checkpoint: Path, change) -> None:
    file = checkpoint / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["model"].update(ignore_merges=True), ["ignore_merges is True", "qwen2"]),
        (lambda c: c.update(normalizer={"type": "Lowercase"}), ["rewrites text"]),
        (lambda c: c["pre_tokenizer"]["pretokenizers"][0].update(invert=True), ["cuts text into words"]),
        (lambda c: c["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), ["cuts text into words"]),
        (lambda c: c["pre_tokenizer"]["pretokenizers"][0].update(pattern={"String": " "}), ["cuts text into words"]),
        (lambda c: c["model"]["vocab"].update({f"w{i}": 289 + i for i in range(12)}), ["ids", "300 rows"]),
        (lambda c: c["model"].update(unk_token="a"), ["unk_token"]),
    ],
)
def test_a_tokenizer_that_llama_cpp_applies_differently_is_refused(change, words, tmp_path):
    checkpoint = save(CONFIGS["qwen3"], tmp_path / "m")
    changed_tokenizer(checkpoint, change)
    refusal(checkpoint, tmp_path / "m.gguf", *words)


def test_a_character_tokenizer_has_no_gguf_form(tmp_path):
    checkpoint = save(CONFIGS["qwen3"], tmp_path / "m", tokenizer="char")
    refusal(checkpoint, tmp_path / "m.gguf", "char tokenizer", "works on characters", "--tokenizer bpe or byte")


def test_the_pieces_of_llama2cs_stories_have_scores_that_fall_with_their_merges(shared_data, tmp_path):
    stories = shared_data / "models" / "stories260K"
    import_llama2c(stories / "stories260K.bin.xz", stories / "tok512.bin.xz", tmp_path / "m")
    export_gguf(tmp_path / "m", tmp_path / "m.gguf")
    keys, _ = read(tmp_path / "m.gguf")
    tokens, scores, types = (keys[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    assert keys["tokenizer.ggml.model"] == "llama" and keys["tokenizer.ggml.add_space_prefix"] is True
    assert (types[0], types[1], types[2], types[3], types[300]) == (UNKNOWN, CONTROL, CONTROL, BYTE, NORMAL)
    assert [keys[f"tokenizer.ggml.{name}_token_id"] for name in ("unknown", "bos", "eos", "eot")] == [0, 1, 1, 2]
    assert keys["tokenizer.ggml.add_bos_token"] is True
    merges = load_tokenizer(tmp_path / "m").content["model"]["merges"]
    made = list(dict.fromkeys("".join(pair).replace(" ", "▁") for pair in merges))
    assert sorted(made, key=lambda token: -scores[tokens.index(token)]) == made and len(made) > 100
    assert max(scores) == 0 and min(scores) == -len(made)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["model"]["merges"].append(c["model"]["merges"][0]), ["order of the pieces"]),
        (lambda c: c["model"]["merges"].pop(), ["could be joined", "no merge says so"]),
        (lambda c: c.update(normalizer={"type": "Lowercase"}), ["treats spaces"]),
        (lambda c: c["model"].update(ignore_merges=True), ["whole words"]),
        (lambda c: c["model"]["vocab"].update({"<0x0A>": 999}) or c["model"]["vocab"].pop("<0x0A>"), ["all bytes"]),
    ],
)
def test_pieces_that_llama_cpp_joins_differently_are_refused(change, words, tmp_path):
    checkpoint = save(LlamaConfig(**{**SHAPE, "vocab_size": 600}), tmp_path / "m")
    write_tokenizer("tinyllama", checkpoint)
    changed_tokenizer(checkpoint, change)
    refusal(checkpoint, tmp_path / "m.gguf", *words)


def test_gpt2s_own_expression_is_named(tmp_path):
    checkpoint = save(CONFIGS["qwen3"], tmp_path / "m")
    pre = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    changed_tokenizer(checkpoint, lambda c: c.update(pre_tokenizer=pre))
    export_gguf(checkpoint, tmp_path / "m.gguf")
    assert read(tmp_path / "m.gguf")[0]["tokenizer.ggml.pre"] == "gpt-2"


@pytest.mark.parametrize(("value", "words"), [(70000.0, ["70000", "F16", "65504"]), (float("nan"), ["nan"])])
def test_a_weight_that_the_type_cannot_hold_is_refused(value, words, tmp_path):
    checkpoint = save(CONFIGS["qwen3"], tmp_path / "m")
    model = load_model(checkpoint)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value
    save_model(model, checkpoint)
    refusal(checkpoint, tmp_path / "m.gguf", "blk.1.ffn_up.weight", *words)
    if value == value:
        export_gguf(checkpoint, tmp_path / "m.gguf", kind="f32")


def test_what_is_there_is_kept(tmp_path):
    checkpoint = save(CONFIGS["qwen3"], tmp_path / "m")
    (tmp_path / "m.gguf").write_text("mine")
    refusal(checkpoint, tmp_path / "m.gguf", "already there", "--overwrite")
    refusal(checkpoint, tmp_path / "m", "already there", overwrite=True)
    refusal(checkpoint, tmp_path / "new.gguf", "no such GGUF type: q5", kind="q5")
    assert (tmp_path / "m.gguf").read_text() == "mine"
    export_gguf(checkpoint, tmp_path / "m.gguf", overwrite=True)
    assert (tmp_path / "m.gguf").read_bytes()[:4] == b"GGUF"


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    checkpoint = save(CONFIGS["qwen3"], tmp_path / "m")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", fail)
    refusal(checkpoint, tmp_path / "m.gguf", "No space left", "free space")


def test_a_limit_on_the_size_of_a_file_is_named(tmp_path):
    checkpoint = save(CONFIGS["qwen3"], tmp_path / "m")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        refusal(checkpoint, tmp_path / "m.gguf", "File too large", "ulimit -f")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_default_name_says_what_it_is():
    assert default_file_name(Path("runs/demo/step-00002000"), "f16") == "demo-f16.gguf"
    assert default_file_name(Path("models/stories/"), "q8_0") == "stories-q8_0.gguf"


def test_the_verb_writes_the_newest_checkpoint_and_says_what_next(tmp_path, monkeypatch, capsys):
    from tiny_transformer.cli import run

    save(CONFIGS["qwen3"], tmp_path / "cats")
    monkeypatch.chdir(tmp_path)
    assert run(["export", "cats", "--gguf", "q8_0"]) == 0
    out = capsys.readouterr().out
    assert "cats-q8_0.gguf" in out and "llama-cli -m" in out
    assert (tmp_path / "cats-q8_0.gguf").read_bytes()[:4] == b"GGUF"
    assert run(["export", "cats", "--gguf", "q8_0"]) == 2
    assert run(["export", "--help"]) == 0


def test_without_the_package_the_message_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    refusal(save(CONFIGS["qwen3"], tmp_path / "m"), tmp_path / "m.gguf", "gguf package", "pip install gguf")
