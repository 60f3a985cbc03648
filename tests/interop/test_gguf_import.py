"""GGUF files come back as what they were made from: f32 to the bit, the others at the values that they hold."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_forms import WORDS, write_tokenizer
from safetensors.torch import load_file

from tiny_transformer.cli import run
from tiny_transformer.config.shapes import LlamaConfig, Olmo2Config, Qwen3Config
from tiny_transformer.errors import UserError
from tiny_transformer.interop.gguf.exporting import export_gguf
from tiny_transformer.interop.gguf.file import read_gguf_header, read_gguf_tensor
from tiny_transformer.interop.gguf.importing import import_gguf
from tiny_transformer.interop.llama2c import import_llama2c
from tiny_transformer.interop.row_order import half_split, interleaved
from tiny_transformer.models import build_model, end_token_ids, load_config, load_model, save_model
from tiny_transformer.models.swaps import restore_layers
from tiny_transformer.tokenizers import load_tokenizer, make_tokenizer
from tiny_transformer.tokenizers.patterns import LLAMA3_PATTERN

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
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "llama untied bias": LlamaConfig(**SHAPE, tie_word_embeddings=False, attention_bias=True),
    "qwen2": LlamaConfig(**SHAPE, qkv_bias=True),
    "llama linear": LlamaConfig(**SHAPE, rope_scaling={"rope_type": "linear", "factor": 3.0}),
    "llama llama3": LlamaConfig(**SHAPE, rope_scaling=LLAMA3),
    "llama llama3 of other numbers": LlamaConfig(
        **SHAPE,
        head_dim=32,
        rope_scaling={**LLAMA3, "factor": 3.3, "low_freq_factor": 0.7, "original_max_position_embeddings": 100},
    ),
    "qwen3 yarn": Qwen3Config(**SHAPE, rope_scaling=YARN),
    "olmo2": Olmo2Config(**SHAPE),
    "olmo2 untied": Olmo2Config(**SHAPE, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SHAPE),
    "qwen3 untied head_dim": Qwen3Config(**SHAPE, head_dim=32, tie_word_embeddings=False),
}


def save(config, directory: Path, tokenizer: str = "bpe", *, begin: bool = False) -> Path:
    """A checkpoint as `train` writes it, or with a token in config.json that begins a text."""
    directory.mkdir()
    model = build_model(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.15, generator=generator))
    made = make_tokenizer(tokenizer, texts=[TEXT], **({"vocab_size": 290} if tokenizer == "bpe" else {}))
    begin_ids = {"bos_token_id": made.end_id} if begin else {}
    save_model(model, directory, eos_token_id=made.end_id, **begin_ids)
    made.save(directory)
    return directory


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_f32_comes_back_to_the_bit(name, begin, tmp_path):
    source = save(CONFIGS[name], tmp_path / "m", begin=begin)
    export_gguf(source, tmp_path / "m.gguf", kind="f32")
    import_gguf(tmp_path / "m.gguf", tmp_path / "again")
    for file in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "again" / file).read_bytes() == (source / file).read_bytes(), file
    assert load_config(tmp_path / "again") == CONFIGS[name]


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["llama", "qwen3 untied head_dim"])
def test_smaller_kinds_come_back_at_the_values_they_hold(name, kind, tmp_path):
    gguf = pytest.importorskip("gguf")
    source = save(CONFIGS[name], tmp_path / "m")
    export_gguf(source, tmp_path / "m.gguf", kind=kind)
    assert import_gguf(tmp_path / "m.gguf", tmp_path / "again", full_size=True) == []
    published = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    _, ours = read_gguf_header(tmp_path / "m.gguf")
    assert ours.keys() == published.keys()
    for tensor_name, tensor in published.items():
        expected = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        found = read_gguf_tensor(tmp_path / "m.gguf", ours[tensor_name])
        np.testing.assert_array_equal(found, expected.reshape(found.shape), err_msg=tensor_name)
    before, after = (load_file(directory / "model.safetensors") for directory in (source, tmp_path / "again"))
    assert before.keys() == after.keys()
    for tensor_name, weight in before.items():
        step = {"f16": 2e-3, "q8_0": 1 / 100, "q4_0": 1 / 7}[kind]
        assert (after[tensor_name] - weight).abs().max() <= step * weight.abs().max(), tensor_name
        assert torch.equal(after[tensor_name], weight) == (weight.ndim == 1)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["llama", "llama untied bias", "qwen3 untied head_dim", "olmo2"])
def test_quantized_weights_stay_as_they_are(name, kind, tmp_path):
    source = save(CONFIGS[name], tmp_path / "m")
    export_gguf(source, tmp_path / "m.gguf", kind=kind)
    kinds = import_gguf(tmp_path / "m.gguf", tmp_path / "kept")
    import_gguf(tmp_path / "m.gguf", tmp_path / "full", full_size=True)
    assert kinds == (["int8"] if kind == "q8_0" else ["int4", "int8"])  # llama.cpp keeps 8 bits for the words, so do we
    kept, full = load_model(tmp_path / "kept"), load_model(tmp_path / "full")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(kept(ids), full(ids), rtol=0, atol=1e-5)
    restore_layers(kept)
    assert kept.state_dict().keys() == full.state_dict().keys()
    for key, tensor in full.state_dict().items():
        assert torch.equal(kept.state_dict()[key], tensor), key
    stored = load_file(tmp_path / "kept" / "model.safetensors")
    assert not [key for key, tensor in stored.items() if tensor.ndim == 2 and key.endswith("weight")]
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("kept", "full")]
    assert sizes[0] < sizes[1] * (0.32 if kind == "q8_0" else 0.28)  # the header of so small a file counts
    export_gguf(tmp_path / "kept", tmp_path / "kept.gguf", kind=kind)
    assert gguf_tensors(tmp_path / "kept.gguf") == gguf_tensors(tmp_path / "m.gguf")


def gguf_tensors(path: Path) -> dict[str, bytes]:
    """The bytes of each tensor of a file."""
    whole = path.read_bytes()
    return {name: whole[t.start : t.start + t.num_bytes] for name, t in read_gguf_header(path)[1].items()}


def test_a_scale_that_is_no_number_is_refused(tmp_path):
    export_gguf(save(CONFIGS["qwen3"], tmp_path / "m"), tmp_path / "m.gguf", kind="q8_0")
    _, tensors = read_gguf_header(tmp_path / "m.gguf")
    with (tmp_path / "m.gguf").open("r+b") as file:
        file.seek(tensors["blk.1.ffn_up.weight"].start)
        file.write(struct.pack("<e", float("inf")))
    with pytest.raises(UserError, match=r"model.layers.1.mlp.up_proj.scale has weights that are infinite or not"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "out")


def test_bfloat16_tensors_are_read(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    writer.add_tensor("w", weight.view(torch.int16).numpy().view(np.uint16), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()
    _, tensors = read_gguf_header(tmp_path / "x.gguf")
    np.testing.assert_array_equal(read_gguf_tensor(tmp_path / "x.gguf", tensors["w"]), weight.float().numpy())


@pytest.mark.parametrize("tokenizer", ["bpe", "byte"])
def test_the_tokenizer_comes_back_as_it_was(tokenizer, tmp_path):
    source = save(CONFIGS["qwen3"], tmp_path / "m", tokenizer)
    export_gguf(source, tmp_path / "m.gguf", kind="f32")
    import_gguf(tmp_path / "m.gguf", tmp_path / "again")
    before, after = load_tokenizer(source), load_tokenizer(tmp_path / "again")
    assert after.fingerprint == before.fingerprint
    assert after.end_id == before.end_id and end_token_ids(tmp_path / "again") == [before.end_id]


def test_llama_3s_expression_and_its_whole_words_come_back(tmp_path):
    source = save(CONFIGS["llama"], tmp_path / "m")
    content = json.loads((source / "tokenizer.json").read_text())
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": LLAMA3_PATTERN}
    content["model"]["ignore_merges"] = True
    (source / "tokenizer.json").write_text(json.dumps(content))
    export_gguf(source, tmp_path / "m.gguf", kind="f32")
    import_gguf(tmp_path / "m.gguf", tmp_path / "again")
    after = load_tokenizer(tmp_path / "again")
    assert after.fingerprint == load_tokenizer(source).fingerprint and after.begin_id is None


def test_tokens_before_a_text_and_added_text_come_back(tmp_path):
    source = save(CONFIGS["llama"], tmp_path / "m")
    content = json.loads((source / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 290, "content": "<s>"})
    content["added_tokens"].append({**content["added_tokens"][0], "id": 291, "content": "<note>", "special": False})
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [290], "tokens": ["<s>"]}},
    }
    (source / "tokenizer.json").write_text(json.dumps(content))
    export_gguf(source, tmp_path / "m.gguf", kind="f32")
    import_gguf(tmp_path / "m.gguf", tmp_path / "again")
    before, after = load_tokenizer(source), load_tokenizer(tmp_path / "again")
    assert (after.begin_id, after.end_id) == (before.begin_id, before.end_id) == (290, 289)
    for text in ("Once upon a <note>", "she'LL sit on 12 mats ✓"):
        assert after.encode(text) == before.encode(text)
    assert after.is_special(290) and not after.is_special(291)
    assert after.content["added_tokens"] == before.content["added_tokens"]


def with_pieces(tmp_path: Path, change: Callable[[dict], None] = lambda content: None, **shape: Any) -> Path:
    """A checkpoint with a tokenizer as TinyLlama's repository has it, or one changed from that."""
    source = tmp_path / "pieces"
    write_tokenizer("tinyllama", source)
    content = json.loads((source / "tokenizer.json").read_text())
    change(content)
    (source / "tokenizer.json").write_text(json.dumps(content))
    save_model(build_model(LlamaConfig(**{**SHAPE, "vocab_size": 512, **shape}), seed=0), source, eos_token_id=2)
    return source


TEXTS = [
    "Once upon a time there was a little cat",
    " two  spaces, and three   at the end   ",
    "naïve café 🦊 你好 \t tab\nline",
    "",
    " ",
    "a</s>b <s> c",
    "1,234 cups",
    *WORDS.split(),
]


def llama2cs(content: dict) -> None:
    """Spaces as they are, as in llama2.c's stories."""
    pieces = {token.replace("▁", " "): i for token, i in content["model"]["vocab"].items()}
    merges = [[part.replace("▁", " ") for part in merge] for merge in content["model"]["merges"]]
    content["model"] |= {"vocab": pieces, "merges": merges}
    content["normalizer"] = {"type": "Prepend", "prepend": " "}
    content["decoder"]["decoders"].pop(0)


def without_a_space(content: dict) -> None:
    content["normalizer"] = content["normalizer"]["normalizers"][1]
    content["decoder"]["decoders"].pop()


def without_a_begin(content: dict) -> None:
    content["post_processor"] = None


def with_added_words(content: dict) -> None:
    flags = content["added_tokens"][0]
    content["added_tokens"].append({**flags, "id": 500, "content": "<|user|>"})
    content["added_tokens"].append({**flags, "id": 501, "content": "COVID-19", "special": False})


@pytest.mark.parametrize("change", [dict, llama2cs, without_a_space, without_a_begin, with_added_words])
def test_pieces_with_scores_come_back(change, tmp_path):
    source = with_pieces(tmp_path, change)
    export_gguf(source, tmp_path / "m.gguf", kind="f32")
    import_gguf(tmp_path / "m.gguf", tmp_path / "again")
    before, after = load_tokenizer(source), load_tokenizer(tmp_path / "again")
    assert (after.begin_id, after.end_id) == (before.begin_id, before.end_id)
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path / "again")
    for text in [*TEXTS, "in COVID-19 times", "<|user|> hi"]:
        ids = before.encode(text)
        assert after.encode(text) == ids and after.decode(ids) == before.decode(ids), text
        if "<" not in text:
            begin = [] if before.begin_id is None else [before.begin_id]
            assert theirs(text).input_ids == begin + ids, text
    assert (tmp_path / "again/model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    export_gguf(tmp_path / "again", tmp_path / "second.gguf", kind="f32")  # and goes out again as it came
    assert load_tokenizer(tmp_path / "again").content["model"] == after.content["model"]


def test_the_stories_of_llama2c_come_back_from_a_gguf_file(tmp_path, shared_data):
    stories = shared_data / "models" / "stories260K"
    import_llama2c(stories / "stories260K.bin.xz", stories / "tok512.bin.xz", tmp_path / "m")
    export_gguf(tmp_path / "m", tmp_path / "m.gguf", kind="f32")
    import_gguf(tmp_path / "m.gguf", tmp_path / "again")
    before, after = load_tokenizer(tmp_path / "m"), load_tokenizer(tmp_path / "again")
    for text in TEXTS:
        assert after.encode(text) == before.encode(text) and after.decode(after.encode(text)) == text
    ids = torch.tensor([[1, *before.encode("Once upon a time there was a cat")]])
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "again")(ids), load_model(tmp_path / "m")(ids))
    assert end_token_ids(tmp_path / "again") == end_token_ids(tmp_path / "m")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer__ggml__scores": [0.0]}, "tokens, token_type and scores do not fit together"),
        ({"tokenizer__ggml__scores": None}, "tokenizer.ggml.scores is missing"),
        ({"tokenizer__ggml__scores": [0.0] * 512}, "have one score, so neither is joined first"),
        ({"tokenizer__ggml__scores": [float("nan")] * 512}, "a score that is no number"),
        ({"tokenizer__ggml__token_type": [1] * 512}, "no pieces for all bytes"),
        ({"tokenizer__ggml__remove_extra_whitespaces": 1}, "rewrites texts"),
        ({"tokenizer__ggml__add_eos_token": True}, "ends each text with a token"),
        ({"tokenizer__ggml__bos_token_id": 9999}, "bos_token_id names none"),
        ({"tokenizer__ggml__pre": "gpt-2"}, "its tokenizer is 'llama' with the split expression 'gpt-2'"),
    ],
)
def test_pieces_that_have_no_form_here_are_refused(changes, words, tmp_path):
    export_gguf(with_pieces(tmp_path), tmp_path / "m.gguf", kind="f32")
    source = changed(tmp_path / "m.gguf", tmp_path / "x.gguf", **changes)
    with pytest.raises(UserError, match=words) as caught:
        import_gguf(source, tmp_path / "out")
    assert caught.value.remedy and not (tmp_path / "out").exists()


def test_factors_of_rope_are_read_where_the_published_numbers_give_them(tmp_path):
    """As llama.cpp's converter writes Llama 3.2: the factors alone."""
    export_gguf(save(CONFIGS["llama llama3"], tmp_path / "m"), tmp_path / "m.gguf", kind="f32")
    source = changed(tmp_path / "m.gguf", tmp_path / "x.gguf", tiny_transformer__rope_scaling=None)
    import_gguf(source, tmp_path / "again")
    assert load_config(tmp_path / "again") == CONFIGS["llama llama3"]
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "again")(ids), load_model(tmp_path / "m")(ids))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("llama llama3 of other numbers", None),
        ("llama llama3", json.dumps({**LLAMA3, "factor": 8.0})),
        ("llama llama3", "{"),
        ("llama llama3", "[" * 100_000),
        ("llama llama3", json.dumps({**LLAMA3, "factor": float("inf")})),
    ],
)
def test_factors_of_rope_that_no_numbers_give_are_refused(name, told, tmp_path):
    export_gguf(save(CONFIGS[name], tmp_path / "m"), tmp_path / "m.gguf", kind="f32")
    source = changed(tmp_path / "m.gguf", tmp_path / "x.gguf", tiny_transformer__rope_scaling=told)
    with pytest.raises(UserError, match="that no numbers known here give"):
        import_gguf(source, tmp_path / "out")


@pytest.mark.parametrize("shape", [(24, 7), (24,)])
def test_the_two_orders_of_rows_undo_each_other(shape):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(half_split(interleaved(tensor, 8), 8), tensor)
    assert not torch.equal(interleaved(tensor, 8), tensor)


def test_the_verb_imports_and_refuses_a_tokenizer_of_its_own(tmp_path, capsys):
    export_gguf(save(CONFIGS["qwen3"], tmp_path / "m"), tmp_path / "m.gguf", kind="f16")
    arguments = ["import", str(tmp_path / "m.gguf"), "--out_dir", str(tmp_path / "out")]
    assert run([*arguments, "--tokenizer", "gpt2"]) == 2
    assert "its own tokenizer" in capsys.readouterr().err
    assert run(arguments) == 0
    assert "generate --ckpt_dir" in capsys.readouterr().out
    export_gguf(tmp_path / "m", tmp_path / "q.gguf", kind="q8_0")
    assert run(["import", str(tmp_path / "q.gguf"), "--out_dir", str(tmp_path / "kept")]) == 0
    assert "weights stay as they are (int8); --full_size" in capsys.readouterr().out
    assert run(["import", str(tmp_path / "m"), "--out_dir", str(tmp_path / "x"), "--full_size"]) == 2
    assert "is no GGUF file" in capsys.readouterr().err
    for source in ("m", "m.gguf"):
        words = ["import", str(tmp_path / source), "--out_dir", str(tmp_path / "x"), "--dtype", "uint32"]
        assert run(words) == 2
        assert "holds no token files" in capsys.readouterr().err
    with torch.no_grad():
        assert torch.isfinite(load_model(tmp_path / "out")(torch.arange(9)[None])).all()


def changed(source: Path, target: Path, **changes: Any) -> Path:
    """The file with other keys: `a__b` for a.b; None leaves a key out."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(source)
    fields = {name: f for name, f in reader.fields.items() if not name.startswith("GGUF.")}
    values = {name: (field.contents(), field.types) for name, field in fields.items()}
    for name, value in changes.items():
        name = name.replace("__", ".")
        kind = gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.UINT32
        values[name] = (value, values[name][1] if name in values and not isinstance(value, str) else [kind])
    writer = gguf.GGUFWriter(target, values["general.architecture"][0])
    for name, (value, types) in values.items():
        if name == "general.architecture" or value is None:
            continue
        if isinstance(value, list):
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, value, types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"general__architecture": "gemma3"}, "architecture 'gemma3' is not imported"),
        ({"qwen3__rope__scaling__type": "longrope"}, "RoPE is scaled"),
        ({"qwen3__rope__scaling__type": "yarn"}, "describe no model: rope_scaling.yarn.factor"),
        ({"qwen3__attention__sliding_window": 512}, "qwen3.attention.sliding_window is not known"),
        ({"qwen3__block_count": None}, "lacks the key qwen3.block_count"),
        ({"qwen3__block_count": 3}, "lacks the tensor blk.2."),
        ({"qwen3__block_count": 1}, "should not have the tensor blk.1."),
        ({"qwen3__block_count": 1000}, "claims 1000 layers"),
        ({"qwen3__feed_forward_length": 95}, r"shape \[96, 64\], its keys ask for \[95, 64\]"),
        ({"qwen3__attention__head_count": 0}, "describe no model: num_attention_heads"),
        ({"qwen3__attention__value_length": 8}, "attention.value_length is not the head_dim 16"),
        ({"tokenizer__ggml__model": "llama"}, "its tokenizer is 'llama'"),
        ({"tokenizer__ggml__model": "bert"}, "its tokenizer is 'bert'"),
        ({"tokenizer__ggml__add_eos_token": True}, "ends each text with a token"),
        ({"tokenizer__ggml__pre": "deepseek-llm"}, "expression 'deepseek-llm'"),
        ({"tokenizer__ggml__eos_token_id": 300}, "eos_token_id 300 is not an id"),
        ({"tokenizer__ggml__tokens": ["a", "b"]}, "do not fit together"),
        ({"tokenizer__ggml__merges": ["a b c"]}, "merges is not two tokens"),
        ({"tokenizer__ggml__token_type": [7]}, "do not fit together"),
        ({"tokenizer__ggml__token_type": ["1"]}, "token_type is missing or of another kind"),
    ],
)
def test_what_is_not_computed_here_is_refused_with_the_reason(changes, words, tmp_path):
    export_gguf(save(CONFIGS["qwen3"], tmp_path / "m"), tmp_path / "m.gguf", kind="f32")
    source = changed(tmp_path / "m.gguf", tmp_path / "x.gguf", **changes)
    with pytest.raises(UserError, match=words) as caught:
        import_gguf(source, tmp_path / "out")
    assert caught.value.remedy and str(source) in str(caught.value) and not (tmp_path / "out").exists()


def test_a_weight_that_is_no_number_is_refused(tmp_path):
    export_gguf(save(CONFIGS["qwen3"], tmp_path / "m"), tmp_path / "m.gguf", kind="f32")
    _, tensors = read_gguf_header(tmp_path / "m.gguf")
    with (tmp_path / "m.gguf").open("r+b") as file:
        file.seek(tensors["blk.1.ffn_up.weight"].start + 40)
        file.write(struct.pack("<f", float("nan")))
    with pytest.raises(UserError, match=r"model.layers.1.mlp.up_proj.weight has weights that are infinite or not"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "out")
