"""What other programs wrote comes in whole or is refused: model directories, token files, and nothing pickled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_transformer.cli import run
from tiny_transformer.config.shapes import LlamaConfig, Qwen3Config, Qwen3NextConfig
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.errors import UserError
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.text import complete
from tiny_transformer.interop.hf import import_hf
from tiny_transformer.interop.token_bins import import_token_bins
from tiny_transformer.models import build_model, end_token_ids, load_model, save_model
from tiny_transformer.storage import verify
from tiny_transformer.tokenizers import load_tokenizer, make_tokenizer

SHAPE = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "mistral": LlamaConfig(**SHAPE, sliding_window=7, tie_word_embeddings=False),
    "stablelm": LlamaConfig(**SHAPE, norm_type="layernorm"),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
}
# What config.json of released models holds, size aside: each must be read as it is.
RELEASED = {
    "LlamaConfig": {"rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": [2, 3], "tie_word_embeddings": True},
    "MistralConfig": {"rms_norm_eps": 1e-5, "sliding_window": None, "head_dim": 8},
    "Qwen3Config": {"head_dim": 16, "max_window_layers": 2, "sliding_window": None, "eos_token_id": 2},
}


@pytest.fixture(scope="session")
def transformers():
    module = pytest.importorskip("transformers")
    module.utils.logging.disable_progress_bar()
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_import_of_our_own_export_is_the_same_to_the_byte(name, dtype, tmp_path):
    (tmp_path / "ours").mkdir()
    save_model(build_model(CONFIGS[name], seed=1, dtype=dtype), tmp_path / "ours", eos_token_id=256, bos_token_id=7)
    make_tokenizer("byte").save(tmp_path / "ours", max_length=64)
    (tmp_path / "ours" / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n \xe2\x9c\x93")
    import_hf(tmp_path / "ours", tmp_path / "again")
    names = {path.name for path in (tmp_path / "ours").iterdir()}
    assert {path.name for path in (tmp_path / "again").iterdir()} == {*names, "manifest.json"}
    for file in names:
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    verify(tmp_path / "again")


@pytest.mark.parametrize("wide", ["A_log", "mtp.", "norm", "embed_tokens"])
def test_each_tensor_keeps_the_type_it_has_on_disk(wide, tmp_path):
    """Released hybrids are bfloat16 but for a few tensors, which must neither narrow nor widen the others."""
    experts = {"num_experts": 3, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    config = Qwen3NextConfig(**SHAPE, **experts, full_attention_interval=2, num_nextn_predict_layers=1)
    source = tmp_path / "ours"
    source.mkdir()
    make_tokenizer("byte").save(source)
    save_model(build_model(config, seed=1, dtype=torch.bfloat16), source, eos_token_id=256)
    tensors = load_file(source / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    mixed = {
        name: torch.randn(tensor.shape, generator=generator).to(torch.float32 if wide in name else tensor.dtype)
        for name, tensor in tensors.items()
    }
    save_file(mixed, source / "model.safetensors", metadata={"format": "pt"})
    import_hf(source, tmp_path / "again")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.float32, torch.bfloat16}
    assert sum(name.startswith("mtp.") for name in after) > 20
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    expected = "float32" if wide == "embed_tokens" else "bfloat16"
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", RELEASED)
def test_a_sharded_directory_of_theirs_comes_in_with_the_same_tensors(transformers, name, dtype, tmp_path):
    torch.manual_seed(0)
    config = getattr(transformers, name)(**SHAPE, **RELEASED[name], dtype=dtype)
    theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="15KB")
    make_tokenizer("byte").save(tmp_path / "theirs")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    import_hf(tmp_path / "theirs", tmp_path / "ours")
    expected = {
        n: t for n, t in theirs.state_dict().items() if not (n == "lm_head.weight" and config.tie_word_embeddings)
    }
    found = load_file(tmp_path / "ours" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], t) and t.dtype == dtype for n, t in expected.items())
    ids = torch.arange(40)[None]
    with torch.no_grad():
        logits = load_model(tmp_path / "ours", dtype=torch.float32)(ids)
        torch.testing.assert_close(logits, theirs.float()(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("auto_map", {"AutoModelForCausalLM": "modeling.Mine"}, "auto_map"),
        ("quantization_config", {"bits": 4}, "quantization_config"),
        ("num_experts", 4, "num_experts"),
        ("mlp_bias", True, "mlp_bias"),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}, "of rope_scaling disagree"),
        ("model_type", "gpt2", "'gpt2'"),
        ("some_new_key", 1, "some_new_key"),
    ],
)
def test_what_is_not_computed_here_is_refused_with_the_reason(key, value, words, tmp_path):
    (tmp_path / "m").mkdir()
    save_model(build_model(CONFIGS["qwen3"], seed=0), tmp_path / "m")
    make_tokenizer("byte").save(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(UserError, match=words):
        import_hf(tmp_path / "m", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_id_that_ends_a_text_is_kept_and_ends_it(tmp_path):
    (tmp_path / "m").mkdir()
    model = build_model(CONFIGS["qwen3"], seed=0)
    save_model(model, tmp_path / "m")
    make_tokenizer("byte").save(tmp_path / "m")
    assert end_token_ids(tmp_path / "m") == []
    tokenizer = load_tokenizer(tmp_path / "m")
    settings = SamplingConfig(temperature=0, max_new_tokens=12)
    text = complete(model, tokenizer, ["ab"], settings)[0]
    # Each byte of the model's own text, named as an end, must end the text where it first stands.
    ids = tokenizer.encode(text)
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, ids[3]]}))
    ends = end_token_ids(tmp_path / "m")
    assert ends == [256, ids[3]]
    shorter = complete(model, tokenizer, ["ab"], settings, ends)[0]
    assert tokenizer.encode(shorter) == ids[: ids.index(ids[3])]
    import_hf(tmp_path / "m", tmp_path / "out")
    assert end_token_ids(tmp_path / "out") == [256, ids[3]]
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "generation_config.json").unlink()
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "eos_token_id": 9}))
    assert end_token_ids(tmp_path / "m") == [9]


def test_a_chat_template_in_the_hubs_cache_is_kept(tmp_path):
    """There a snapshot is a folder of links to blobs."""
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "1234", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    save_model(build_model(CONFIGS["qwen3"], seed=1), snapshot)
    make_tokenizer("byte").save(snapshot)
    (blobs / "abcd").write_text("{{ messages }}")
    (snapshot / "chat_template.jinja").symlink_to("../../blobs/abcd")
    import_hf(snapshot, tmp_path / "out")
    kept = tmp_path / "out" / "chat_template.jinja"
    assert kept.read_text() == "{{ messages }}" and not kept.is_symlink()


def test_a_folder_of_files_is_told_which_file_to_name(tmp_path, capsys):
    def refused(*words: str) -> None:
        assert run(["import", str(tmp_path / "d"), "--out_dir", str(tmp_path / "out")]) in (2, 65)
        message = capsys.readouterr().err
        assert all(word in message for word in words), message

    folder = tmp_path / "d"
    folder.mkdir()
    refused("neither config.json nor train.bin", "a .gguf")
    (folder / "stories.bin.xz").write_bytes(bytes(100))
    refused(f"import {folder}/stories.bin.xz --tokenizer TOKENIZER.bin --out_dir DIR")
    (folder / "a-tokenizer.bin").write_bytes(bytes(10))
    refused(f"import {folder}/stories.bin.xz --tokenizer {folder}/a-tokenizer.bin --out_dir DIR")
    (folder / "m.gguf").write_bytes(bytes(1000))
    refused(f"name the file: tiny-transformer import {folder}/m.gguf --out_dir DIR")
    (folder / "config.json").mkdir()
    refused("config.json is not a regular file")


def write_bins(directory: Path, train: list[int], val: list[int], dtype: str = "<u2") -> Path:
    directory.mkdir()
    np.array(train, dtype).tofile(directory / "train.bin")
    np.array(val, dtype).tofile(directory / "val.bin")
    return directory


def test_token_files_become_prepared_data(tmp_path):
    train = [*b"hello there", 256, *"Zoë".encode(), 256, *b"no end"]
    source = write_bins(tmp_path / "bins", train, [*b"other words", 256])
    (source / "meta.pkl").write_bytes(b"\x80\4not read")
    meta = import_token_bins(source, tmp_path / "data", tokenizer="byte", seq_len=4)
    assert (meta.train.num_tokens, meta.train.num_documents, meta.train.longest_document) == (len(train), 3, 12)
    assert (meta.train.num_bytes, meta.val.num_bytes) == (11 + 4 + 6, 11)
    assert meta.num_used_ids == len({*train, *b"other words"})
    dataset = open_dataset(tmp_path / "data")
    assert dataset.train[: len(train)].tolist() == train
    assert dataset.train.documents().tolist() == [0, 12, 17]
    assert (tmp_path / "data" / "train.bin").read_bytes() == (source / "train.bin").read_bytes()
    assert not (tmp_path / "data" / "meta.pkl").exists()


def test_wide_token_files_and_their_faults(tmp_path):
    source = write_bins(tmp_path / "wide", [*b"abcdef", 256], [*b"abcdef", 256], "<u4")
    import_token_bins(source, tmp_path / "data", tokenizer="byte", dtype="uint32", seq_len=4)
    assert (tmp_path / "data" / "train.bin").stat().st_size == 14  # 257 ids fit into two bytes
    bad = write_bins(tmp_path / "bad", [*b"abcdef", 9999], [*b"abcdef", 256])
    for options, words in (({"seq_len": 4}, "id 9999"), ({"seq_len": 90}, "7 tokens"), ({"dtype": "int8"}, "int8")):
        with pytest.raises(UserError, match=words):
            import_token_bins(bad, tmp_path / "out", tokenizer="byte", **options)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tokens", [40, 40_000])
def test_wide_token_files_read_as_narrow_ones_are_told_so(tokens, tmp_path, capsys):
    ids = np.random.default_rng(0).integers(0, 256, tokens).tolist()
    wide = write_bins(tmp_path / "wide", ids, ids[:20], "<u4")
    command = ["import", str(wide), "--tokenizer", "byte"]
    assert run([*command, "--out_dir", str(tmp_path / "out")]) == 65
    told = capsys.readouterr().err
    assert "32-bit tokens read as 16-bit" in told and "--dtype uint32" in told and not (tmp_path / "out").exists()
    assert run([*command, "--dtype", "uint32", "--out_dir", str(tmp_path / "out")]) == 0
    assert open_dataset(tmp_path / "out").meta.train.num_tokens == tokens
    narrow = write_bins(tmp_path / "narrow", ids, ids[:20])
    assert run(["import", str(narrow), "--tokenizer", "byte", "--out_dir", str(tmp_path / "narrow-out")]) == 0
    assert open_dataset(tmp_path / "narrow-out").meta.train.num_tokens == tokens


@pytest.mark.parametrize(
    ("stored", "asked", "words", "remedy"),
    [
        ("<i8", "uint32", "64-bit tokens read as 32-bit ones", "write them as 32-bit numbers"),
        ("<i8", "uint16", "64-bit tokens read as 16-bit ones", "write them as 32-bit numbers"),
        (">u2", "uint16", "id 24832 is not below the vocabulary size 257", "big-endian"),
        (">u4", "uint32", "is not below the vocabulary size 257", "big-endian"),
        ("<u2", "uint32", "is not below the vocabulary size 257", "--dtype"),
        ("<f4", "uint32", "is not below the vocabulary size 257", "--dtype"),
    ],
)
def test_token_files_of_another_form_are_told_so(stored, asked, words, remedy, tmp_path):
    source = write_bins(tmp_path / "in", [97, 98, 99, 256] * 200, [97] * 400, stored)
    with pytest.raises(UserError, match=words) as caught:
        import_token_bins(source, tmp_path / "out", tokenizer="byte", dtype=asked)
    assert remedy in caught.value.remedy and "prepare" not in caught.value.remedy
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "words", "remedy"),
    [
        ("in/train.bin", "token files are imported with their directory", "import {}/in --tokenizer"),
        ("in/validation.bin", "token files are imported with their directory", "import {}/in --tokenizer"),
        ("model.zip", "a zip archive", "unpack it"),
        ("run", "a run of several checkpoints", "import {}/run/best"),
        ("half", "a run of several checkpoints", "import {}/half/step-00000002"),
    ],
)
def test_what_is_near_to_something_is_told(name, words, remedy, tmp_path, capsys):
    write_bins(tmp_path / "in", [97] * 600, [98] * 600)
    (tmp_path / "in/validation.bin").write_bytes(b"ab")
    (tmp_path / "model.zip").write_bytes(b"PK\x03\x04abc")
    a_run(tmp_path / "run")
    (tmp_path / "run/best").symlink_to("step-00000002")
    a_run(tmp_path / "half")
    (tmp_path / "half/last").unlink()
    assert run(["import", str(tmp_path / name), "--out_dir", str(tmp_path / "out"), "--tokenizer", "byte"]) != 0
    told = capsys.readouterr().err
    assert words in told and remedy.format(tmp_path) in told


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "https://huggingface.co/Qwen/Qwen3-0.6B", "hf://Qwen/Qwen3-0.6B"])
def test_a_model_of_the_hub_is_answered_with_how_to_fetch_it(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["import", name, "--out_dir", "out"]) == 2
    assert "hf download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B" in capsys.readouterr().err
    assert run(["import", "no/such.gguf", "--out_dir", "out"]) == 2
    assert "hf download" not in capsys.readouterr().err


def test_short_token_files_come_in_with_a_length_that_fits(tmp_path, capsys):
    """`import` has no --seq_len, so it names none."""
    source = write_bins(tmp_path / "bins", [97] * 600, [98] * 9)
    assert import_token_bins(source, tmp_path / "data", tokenizer="byte").seq_len == 8
    tiny = write_bins(tmp_path / "tiny", [97] * 600, [98] * 2)
    assert run(["import", str(tiny), "--tokenizer", "byte", "--out_dir", str(tmp_path / "out")]) == 65
    told = capsys.readouterr().err
    assert "val split has 2 tokens" in told and "--seq_len" not in told


@pytest.mark.parametrize("layer", [True, False])
def test_the_angles_that_older_files_carry_are_passed_over_if_they_are_the_configs(layer, tmp_path):
    config = LlamaConfig(**SHAPE, rope_theta=700.0)
    source = tmp_path / "old"
    source.mkdir()
    save_model(build_model(config, seed=1, dtype=torch.bfloat16), source, eos_token_id=256)
    make_tokenizer("byte").save(source)
    tensors = load_file(source / "model.safetensors")
    angles = 1 / 700.0 ** (torch.arange(0, 8, 2).float() / 8)
    names = (
        [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(2)]
        if layer
        else ["model.rotary_emb.inv_freq"]
    )
    for i, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
        added = {name: angles.to(dtype, copy=True) for name in names}
        save_file({**tensors, **added}, source / "model.safetensors", metadata={"format": "pt"})
        import_hf(source, tmp_path / f"new{i}")
        after = load_file(tmp_path / f"new{i}" / "model.safetensors")
        assert after.keys() == tensors.keys() and all(torch.equal(after[name], tensors[name]) for name in tensors)
    for wrong in (angles * 1.01, angles[:2], angles.long()):
        added = {name: wrong.clone() for name in names}
        save_file({**tensors, **added}, source / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=r"rotary_emb.inv_freq has other angles than rope_theta 700"):
            import_hf(source, tmp_path / "out")


def test_an_adapter_is_told_from_a_model(tmp_path, capsys):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "lora" / "adapter_model.bin").write_bytes(b"\x80\4")
    assert run(["import", str(tmp_path / "lora"), "--out_dir", str(tmp_path / "out")]) == 65
    told = capsys.readouterr().err
    assert "adapter of peft" in told and "merge_and_unload" in told and "pickle" not in told


def test_recommended_sampling_is_kept_and_nothing_else(tmp_path):
    source = tmp_path / "ours"
    source.mkdir()
    save_model(build_model(CONFIGS["qwen3"], seed=1), source, eos_token_id=256)
    make_tokenizer("byte").save(source)
    wanted = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "pad_token_id": 3}
    other = {"suppress_tokens": [1], "custom_generate": "x.py", "temperature_": 1, "min_p": "many"}
    generation = {"eos_token_id": [256, 5], **wanted, **other}
    (source / "generation_config.json").write_text(json.dumps(generation))
    import_hf(source, tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert kept == {"eos_token_id": [256, 5], **wanted}
    (source / "generation_config.json").write_text(json.dumps({**generation, "pad_token_id": 257}))
    with pytest.raises(UserError, match="pad_token_id 257 is not an id of this model"):
        import_hf(source, tmp_path / "bad")


def test_templates_for_tools_and_documents_are_kept_beside_the_default_one(transformers, tmp_path):
    source = tmp_path / "theirs"
    source.mkdir()
    save_model(build_model(CONFIGS["qwen3"], seed=1), source, eos_token_id=256)
    make_tokenizer("byte").save(source)
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    theirs.chat_template = {"default": "{{ messages[0]['content'] }}", "tool_use": "tools: {{ tools }}", "rag": "r"}
    theirs.save_pretrained(source)
    assert sorted(path.name for path in (source / "additional_chat_templates").iterdir()) == [
        "rag.jinja",
        "tool_use.jinja",
    ]
    import_hf(source, tmp_path / "out")
    verify(tmp_path / "out")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == theirs.chat_template
    (source / "additional_chat_templates" / "a b.jinja").write_text("x")
    with pytest.raises(UserError, match="a chat template is named by letters"):
        import_hf(source, tmp_path / "bad")


@pytest.mark.parametrize("prefix", ["always", "first", "never"])
def test_a_unigram_model_with_normal_forms_opens_with_their_ids(prefix, transformers, tmp_path):
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    theirs = tokenizers.Tokenizer(models.Unigram())
    theirs.normalizer = normalizers.NFKC()
    theirs.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    theirs.decoder = decoders.Metaspace(prepend_scheme=prefix)
    trainer = trainers.UnigramTrainer(
        vocab_size=40, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    theirs.train_from_iterator(["the cat sat on the mat and that was that"] * 9, trainer)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=theirs, eos_token="</s>", unk_token="<unk>")
    wrapped.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    for text in ("the cat", " a  cat\n", "\ufb01ne \ufdfa \u00bd", "zebra"):
        assert ours.encode(text) == wrapped(text)["input_ids"], text
        shown = wrapped.decode(wrapped(text)["input_ids"], skip_special_tokens=True)
        assert ours.decode(ours.encode(text)) == shown


def a_run(home: Path, config: str = "") -> Path:
    """A run of one checkpoint, on a disk without symbolic links."""
    (home / "step-00000002").mkdir(parents=True)
    save_model(build_model(CONFIGS["qwen3"], seed=1), home / "step-00000002", eos_token_id=256)
    make_tokenizer("byte").save(home / "step-00000002")
    (home / "last").write_text("step-00000002\n")
    (home / "config.yaml").write_text(config or "training: {sample_prompts: ['def main(', x]}\n")
    return home


def test_a_mark_that_is_a_text_file_is_followed(tmp_path, capsys):
    a_run(tmp_path / "my run")
    assert run(["import", str(tmp_path / "my run/last"), "--out_dir", str(tmp_path / "the model")]) == 0
    weights = (tmp_path / "my run/step-00000002/model.safetensors").read_bytes()
    assert (tmp_path / "the model/model.safetensors").read_bytes() == weights
    told = capsys.readouterr().out
    assert f"generate --ckpt_dir '{tmp_path}/the model' --prompt 'def main('" in told  # what the run was sampled with
    (tmp_path / "my run/last").write_text("step-00000009\n")
    assert run(["import", str(tmp_path / "my run/last"), "--out_dir", str(tmp_path / "b")]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("config", ["training: {sample_prompts: []}\n", "training: {sample_prompts: 5}\n", "[broken"])
def test_a_hint_names_no_prompt_where_none_is_known(tmp_path, capsys, config):
    source = a_run(tmp_path / "r", config) / "step-00000002"
    assert run(["import", str(source), "--out_dir", str(tmp_path / "model")]) == 0
    assert '--prompt "YOUR TEXT"' in capsys.readouterr().out


def test_the_verb_finds_out_what_it_is(tmp_path, capsys, shared_data):
    stories = shared_data / "models" / "stories260K"
    source = [str(stories / "stories260K.bin.xz"), "--tokenizer", str(stories / "tok512.bin.xz")]
    assert run(["import", *source, "--out_dir", str(tmp_path / "stories")]) == 0
    told = capsys.readouterr().out
    assert "next: tiny-transformer generate" in told and "--prompt 'Once upon a time'" in told
    assert run(["import", str(tmp_path / "stories"), "--out_dir", str(tmp_path / "again")]) == 0
    for path in (tmp_path / "stories").iterdir():
        assert path.name == "manifest.json" or path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    bins = write_bins(tmp_path / "bins", [97] * 600, [98] * 600)
    assert run(["import", str(bins), "--out_dir", str(tmp_path / "data")]) == 2
    assert "name it: --tokenizer gpt2" in capsys.readouterr().err
    assert run(["import", str(bins), "--tokenizer", "byte", "--out_dir", str(tmp_path / "data")]) == 0
    assert "--data_dir" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "weights.ckpt", "meta.pkl", "pytorch_model.bin"])
@pytest.mark.parametrize("inside", [True, False])
def test_pickles_are_refused_and_the_way_out_is_told(name, inside, tmp_path, capsys):
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / name).write_bytes(b"\x80\4cos\nsystem\n(S'touch pwned'\ntR.")
    source = tmp_path / "dir" if inside else tmp_path / "dir" / name
    assert run(["import", str(source), "--out_dir", str(tmp_path / "out")]) == 65
    message = capsys.readouterr().err
    assert "never read" in message and "save_pretrained" in message and len(message.splitlines()) == 3
    assert not (tmp_path / "out").exists()
