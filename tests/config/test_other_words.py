"""What people paste from the founding documents builds the model that the document means, and a value that looks like
one thing is never read as another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_transformer.config.aliases import ALIASES, INSTEAD, SWITCHES
from tiny_transformer.config.keys import valid_keys
from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.presets import PRESETS
from tiny_transformer.costs.accounting import count_parameters
from tiny_transformer.errors import UserError

# Document 004, "Model Size Presets", as printed.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"d_model": 128, "n_heads": 4, "n_layers": 4, "block_size": 128},
    "small": {"d_model": 256, "n_heads": 8, "n_layers": 6, "block_size": 256},
    "medium": {"d_model": 512, "n_heads": 8, "n_layers": 12, "block_size": 512},
    "large": {"d_model": 768, "n_heads": 12, "n_layers": 24, "block_size": 1024},
    "gpt2": {"d_model": 768, "n_heads": 12, "n_layers": 12, "block_size": 1024, "vocab_size": 50257},
}
# Document 002, `QWEN3_CONFIG`, as printed.
QWEN3 = {
    "vocab_size": 151646,
    "d_model": 640,
    "n_heads": 4,
    "n_kv_groups": 1,
    "n_layers": 18,
    "d_ff": 2048,
    "max_seq_len": 32768,
}


def total(source: Any) -> int:
    parts, _ = count_parameters(load_run_config(source).model)
    return parts.total()


def refused(source: Any, *overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        load_run_config(source, overrides)
    return caught.value


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("is_flat", [False, True])
def test_the_sizes_of_document_004_are_the_presets(name: str, is_flat: bool) -> None:
    config = load_run_config(SIZES[name] if is_flat else {"model": SIZES[name]})
    assert config.model == load_run_config(name).model
    assert config.data.seq_len == SIZES[name]["block_size"]


def test_the_gpt2_block_of_document_004_as_printed(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "model:\n  d_model: 768\n  n_heads: 12\n  n_layers: 12\n  block_size: 1024\n"
        "  vocab_size: 50257  # GPT-2 BPE vocab\ntraining:\n  batch_size: 12  # Adjust for your GPU\n"
        "  learning_rate: 2.5e-4\n  max_iters: 600000\n  warmup_iters: 2000\n"
    )
    assert total(tmp_path / "c.yaml") == 123_570_432
    training = load_run_config(tmp_path / "c.yaml").training
    assert (training.micro_batch_size, training.steps, training.warmup_steps) == (12, 600_000, 2000)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "torch.bfloat16"])
def test_the_dict_of_document_002_is_its_283_million(dtype: Any) -> None:
    config = load_run_config({**QWEN3, "dtype": dtype})
    assert total({**QWEN3, "dtype": dtype}) == 283_347_200
    assert (config.model.model_type, config.model.head_dim, config.model.tie_word_embeddings) == ("qwen3", 160, False)
    assert config.training.precision == "bf16"


def test_the_words_of_document_003_are_a_llama() -> None:
    tree = {
        "model": {"d_model": 384, "n_layers": 6, "n_heads": 6, "n_kv_heads": 2, "swa_window": 0},
        "data": {"dataset": "shahrukhx01/wikipedia-bookscorpus-en-preprocessed"},
        "training": {"seq_len": 512, "batch_size": 8},
        "hardware": {"accelerator": "auto", "precision": "16-mixed"},
    }
    model = load_run_config(tree).model
    assert (model.model_type, model.norm_type, model.intermediate_size) == ("llama", "rmsnorm", 1024)  # ty: ignore
    assert (model.num_key_value_heads, model.sliding_window) == (2, None)  # ty: ignore
    windowed = load_run_config(tree, ["model.swa_window=64"]).model
    assert (windowed.model_type, windowed.sliding_window) == ("llama", 64)  # ty: ignore
    scaled = load_run_config(tree, ["d_model=768", "n_heads=12", "training.seq_len=4096"])
    assert (scaled.model.intermediate_size, scaled.model.max_position_embeddings) == (2048, 4096)


@pytest.mark.parametrize(
    ("width", "heads"), [(64, 1), (128, 2), (384, 6), (768, 12), (640, 10), (100, 1), (32, 1), (1000, 10)]
)
def test_heads_that_nobody_named_follow_from_the_width(width: int, heads: int) -> None:
    model = load_run_config({"d_model": width}).model
    assert (model.num_attention_heads, model.head_dim) == (heads, width // heads)


def test_our_own_words_keep_our_own_default() -> None:
    assert load_run_config({"model": {"hidden_size": 128}}).model.model_type == "qwen3"
    assert load_run_config({"model": {"d_model": 128, "head_dim": 16}}).model.model_type == "qwen3"
    assert load_run_config({"model": {"d_model": 128, "model_type": "qwen3"}}).model.model_type == "qwen3"
    assert load_run_config("small", ["d_model=512"]).model.intermediate_size == 688


def test_a_window_in_another_word_is_a_window_in_every_layer() -> None:
    model = load_run_config({"model": {"model_type": "qwen3", "swa_window": 64}}).model
    assert (model.use_sliding_window, model.sliding_window) == (True, 64)  # ty: ignore
    assert set(model.layer_types) == {"sliding_attention"}  # ty: ignore
    assert load_run_config({"model": {"model_type": "qwen3", "swa_window": 0}}).model.sliding_window is None  # ty: ignore
    assert "model.swa_window" in refused({"model": {"model_type": "qwen3_next", "swa_window": 64}}).what


def test_a_rule_about_several_keys_calls_them_as_the_user_did() -> None:
    error = refused({"model": {"d_model": 100, "n_heads": 8}})
    assert "d_model 100 is not a multiple of n_heads 8" in error.what and "hidden_size" not in error.what
    error = refused({"model": {"model_type": "qwen3", "swa_window": 64, "use_sliding_window": False}})
    assert "swa_window 64 has no effect" in error.what
    assert "block_size" in refused({"model": {"block_size": 64}, "data": {"seq_len": 128}}).what


ADVANCED: dict[str, Any] = {
    "use_lora": False,
    "lora_rank": 8,
    "lora_alpha": 16,
    "quantize": "none",
    "log_attention": False,
    "speculative_sampling": False,
    "use_flash_attention": False,
    "multi_query": False,
    "dropout_annealing": False,
}


def test_an_advanced_section_that_is_off_says_nothing() -> None:
    assert load_run_config({"advanced": ADVANCED}) == load_run_config(None)
    assert load_run_config({"advanced": {"quantize": None, "use_lora": "off"}}) == load_run_config(None)
    assert load_run_config({"advanced": {"speculative_sampling": False, "draft_model": None}}) == load_run_config(None)
    assert load_run_config(None, ["advanced.use_lora=false"]) == load_run_config(None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("draft_model", "runs/small"),
        ("use_flash_attention", True),
        ("dropout_annealing", True),
    ],
)
def test_what_is_not_built_is_refused_by_name(key: str, value: Any) -> None:
    error = refused({"advanced": {**ADVANCED, key: value}})
    assert f"advanced.{key} = {value!r} is not built here" in error.what and error.remedy
    assert error.where == "config"


@pytest.mark.parametrize("word", INSTEAD)
def test_a_word_of_other_programs_is_answered_with_ours(word: str) -> None:
    names = {*valid_keys(), *ALIASES, *SWITCHES}
    assert word not in {name.rpartition(".")[2] for name in names}, "it is a key, and no one is told"
    for key in (word, f"training.{word}", f"model.{word}", f"advanced.{word}"):
        error = refused(None, f"{key}=5")
        assert (error.what, error.remedy) == (f"unknown key {key} = 5", INSTEAD[word])
    named = re.findall(r"\b(?:data|model|training)\.\w+|\bout_dir\b", INSTEAD[word])
    assert (named or "leave it out" in INSTEAD[word]) and set(named) <= set(valid_keys())


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("training.learning_rat", "did you mean training.learning_rate?"),
        ("data.vocabsize", "did you mean data.vocab_size?"),  # model has one too
        ("advanced.mixed_precision", "did you mean training.mixed_precision?"),
        ("model.use_mqa", "did you mean advanced.use_mqa?"),
        ("training.dropout_annealing", "did you mean advanced.dropout_annealing?"),
        ("hidden", "did you mean model.hidden_size?"),  # a beginning
        ("batch", "did you mean training.batch_size?"),
        ("data.zebra", "docs/CONFIG_REFERENCE.md lists every key"),
        ("training.local_pat", "docs/CONFIG_REFERENCE.md lists every key"),
    ],
)
def test_the_nearest_key_is_offered_and_no_far_one(key: str, remedy: str) -> None:
    assert refused(None, f"{key}=5").remedy == remedy


def test_a_section_of_another_name_is_answered_with_the_section() -> None:
    assert refused({"train": {"max_steps": 5}}).remedy == "did you mean the section training?"
    assert "the sections are model, data, training" in (refused({"zebra": {"a": 5}}).remedy or "")


@pytest.mark.parametrize("value", [1, "yes", "on", 0.5, ["x"]])
def test_a_switch_is_on_or_off(value: Any) -> None:
    for key in ("use_lora", "use_mqa", "log_attention"):
        error = refused({"advanced": {key: value}})
        assert (error.what, error.remedy) == (
            f"advanced.{key} = {value!r}: neither true nor false",
            f"advanced.{key}: true",
        )
    assert load_run_config({"advanced": {"use_mqa": 0}}).model.num_key_value_heads == 4


def test_attention_is_logged_where_the_older_word_asks_for_it() -> None:
    assert load_run_config({"advanced": {"log_attention": True}}).training.log_attention


def test_settings_of_adapters_need_their_switch() -> None:
    assert "lora.rank says nothing without lora.enabled" in refused({"advanced": {"lora_rank": 8}}).what
    assert "lora.alpha says nothing without lora.enabled" in refused(None, "lora.alpha=8").what
    assert not load_run_config({"advanced": {"use_lora": False, "lora_rank": 64}}).lora.enabled


def test_a_setting_that_is_built_is_a_key_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALIASES, "advanced.lora_rank", ("training.warmup_steps",))  # stands for the key to come
    assert load_run_config({"advanced": {"lora_rank": 8}}).training.warmup_steps == 8


def test_what_is_built_may_be_switched_on_under_advanced() -> None:
    on = dict.fromkeys(("compile", "gradient_checkpointing", "multi_query", "speculative_sampling"), True)
    config = load_run_config({"advanced": on})
    assert config.training.sample_drafter == "auto"
    assert config.training.compile and config.training.gradient_checkpointing
    assert config.model.num_key_value_heads == 1
    for value in ("int8", "int4"):
        assert load_run_config({"advanced": {**ADVANCED, "quantize": value}}).training.quantize == value
    for value in (False, "none", "off", None):
        assert load_run_config({"advanced": {"quantize": value}}).training.quantize is None
    assert "quantize" in refused({"advanced": {"quantize": "int3"}}).what
    assert "unknown key advanced.use_lorra" in refused({"advanced": {"use_lorra": False}}).what


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("training: {learning_rate: yes}", "learning_rate = True: a number is needed"),
        ("training: {steps: true}", "steps = True: a number is needed"),
        ("training: {max_iters: on}", "max_iters = True: a number is needed"),
        ("training: {grad_clip: no}", "grad_clip = False: a number is needed"),
        ("data: {val_fraction: yes}", "val_fraction = True: a number is needed"),
        ("data: {seq_len: true}", "seq_len = True: a number is needed"),
        ("model: {hidden_size: true}", "hidden_size = True: a number is needed"),
        ("model: {rope_theta: yes}", "rope_theta = True: a number is needed"),
        ("model: {model_type: qwen3_next, mlp_only_layers: [true]}", "mlp_only_layers = [True]: a number is needed"),
        ("training: {learning_rate: .inf}", "learning_rate = inf: a finite number is needed"),
        ("training: {weight_decay: .nan}", "weight_decay = nan: a finite number is needed"),
        ("training: {max_train_minutes: 1:30}", "max_train_minutes = '1:30': a number is needed, and this is text"),
        ("training: {max_train_minutes: 1:30.5}", "'1:30.5': a number is needed, and this is text"),
        ("training: {steps: 0100}", "steps = '0100': a number is needed, and this is text"),
        ('training: {steps: "100"}', "steps = '100': a number is needed, and this is text"),
        ("training: {compile: 1}", "compile = 1: neither true nor false"),
        ("model: {tie_word_embeddings: 0}", "tie_word_embeddings = 0: neither true nor false"),
        ('training: {deterministic: "yes"}', "deterministic = 'yes': neither true nor false"),
        ("data: {source: yes}", "source = True"),
        ("data: {source: 2024}", "source = 2024"),
        ("training: {sample_prompts: [yes]}", "sample_prompts"),
        ("training: {steps: 2.5}", "steps = 2.5"),
    ],
)
def test_a_value_that_looks_like_one_thing_is_not_read_as_another(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    error = refused(tmp_path / "c.yaml")
    assert what in error.what
    assert "c.yaml, line 1" in (error.where or "")


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("steps=true", "steps = True: a number is needed"),
        ("learning_rate=yes", "learning_rate = True: a number is needed"),
        ("max_train_minutes=1:30", "max_train_minutes = '1:30': a number is needed"),
        ("learning_rate=.inf", "learning_rate = inf: a finite number"),
        ("model.rope_theta=yes", "rope_theta = True: a number is needed"),
        ("compile=1", "compile = 1: neither true nor false"),
    ],
)
def test_nor_on_the_command_line(override: str, what: str) -> None:
    assert what in refused(None, override).what


def test_numbers_as_people_write_them_stay_numbers(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("training: {learning_rate: 3e-4, max_tokens: 1e6, steps: 10_000, weight_decay: 0}")
    training = load_run_config(tmp_path / "c.yaml").training
    assert (training.learning_rate, training.max_tokens, training.steps) == (3e-4, 1_000_000, 10_000)
    assert load_run_config(None, ["steps=1e3", "compile=yes"]).training.steps == 1000
