"""From files and overrides to a checked config: values, names, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tiny_transformer.cli.frame import overrides_of
from tiny_transformer.config.aliases import ALIASES
from tiny_transformer.config.keys import is_switch, valid_keys
from tiny_transformer.config.load import load_run_config, parse_override
from tiny_transformer.config.presets import PRESETS
from tiny_transformer.errors import UserError


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def refused(source: object, *overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        load_run_config(source, overrides)  # ty: ignore[invalid-argument-type]
    assert len(caught.value.lines()) <= 3
    return caught.value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "training:\n  learning_rate: 3e-4\n  weight_decay: 1e-3\n  steps: 2e3\n"),
        ("c.yml", "training: {learning_rate: 3e-4, weight_decay: 1.0E-3, steps: 2000}\n"),
        ("c.json", '{"training": {"learning_rate": 3e-4, "weight_decay": 0.001, "steps": 2000}}'),
        ("c.json", '{"training": {"learning_rate": "3e-4", "weight_decay": "1e-3", "steps": 2000}}'),
        ("c.toml", "[training]\nlearning_rate = 3e-4\nweight_decay = 1e-3\nsteps = 2000\n"),
    ],
)
def test_the_same_numbers_in_every_format(tmp_path: Path, name: str, text: str) -> None:
    training = load_run_config(write(tmp_path / name, text)).training
    assert (training.learning_rate, training.weight_decay, training.steps) == (3e-4, 1e-3, 2000)


def test_overrides_are_stronger_than_the_file_and_the_file_than_the_defaults(tmp_path: Path) -> None:
    source = write(tmp_path / "c.yaml", "training: {steps: 10, seed: 3}\n")
    config = load_run_config(source, ["training.steps=20", "learning_rate=1e-2"])
    assert (config.training.steps, config.training.seed, config.training.learning_rate) == (20, 3, 1e-2)
    assert config.training.grad_clip == 1.0


def test_the_saved_config_reads_back_as_itself(tmp_path: Path) -> None:
    config = load_run_config({"model": {"hidden_size": 64, "num_attention_heads": 4}, "training": {"dropout": 0.1}})
    source = write(tmp_path / "c.json", json.dumps(config.model_dump(mode="json")))
    assert load_run_config(source) == config


@pytest.mark.parametrize(("heads", "groups"), [(8, 4), (12, 4), (6, 6), (2, 2), (1, 1)])
def test_key_value_heads_that_nobody_named_fit_the_query_heads(heads: int, groups: int) -> None:
    config = load_run_config({"model": {"n_head": heads, "n_embd": 96, "head_dim": 16}})
    assert config.model.num_key_value_heads == groups


def test_switches_of_other_projects_choose_a_precision() -> None:
    assert load_run_config({"training": {"bf16": True, "fp16": False}}).training.precision == "bf16"
    assert load_run_config({}, ["fp16=true"]).training.precision == "fp16"
    assert load_run_config({"training": {"bf16": False}}).training.precision == "auto"


def test_the_words_of_other_projects_mean_our_keys() -> None:
    config = load_run_config(
        {
            "model": {
                "model_type": "llama",
                "d_model": 64,
                "n_heads": 4,
                "n_kv_heads": 2,
                "n_layers": 3,
                "block_size": 128,
                "dropout": 0.1,
                "swa_window": 0,
            },
            "training": {"batch_size": 12, "max_iters": 60, "warmup_iters": 6, "gradient_accumulation_steps": 2},
            "hardware": {"accelerator": "cpu", "precision": "32"},
            "data": {"dataset": "roneneldan/TinyStories"},
        }
    )
    model, training = config.model, config.training
    assert (model.hidden_size, model.num_attention_heads, model.num_key_value_heads, model.num_hidden_layers) == (
        64,
        4,
        2,
        3,
    )
    assert (model.max_position_embeddings, config.data.seq_len, model.sliding_window) == (128, 128, None)
    assert (training.micro_batch_size, training.grad_accum_steps, training.steps, training.warmup_steps) == (
        12,
        2,
        60,
        6,
    )
    assert (training.dropout, training.device, training.precision, config.data.source) == (
        0.1,
        "cpu",
        "fp32",
        "tinystories",
    )


def test_a_flat_dictionary_of_model_keys_is_understood() -> None:
    config = load_run_config(
        {
            "vocab_size": 151646,
            "d_model": 640,
            "n_heads": 4,
            "n_kv_groups": 1,
            "n_layers": 18,
            "d_ff": 2048,
            "max_seq_len": 32768,
            "dtype": "torch.bfloat16",
        }
    )
    assert (config.model.head_dim, config.model.num_key_value_heads, config.model.vocab_size) == (160, 1, 151646)
    assert (config.model.max_position_embeddings, config.data.seq_len, config.training.precision) == (
        32768,
        256,
        "bf16",
    )


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_config(name: str) -> None:
    assert load_run_config(name).model.model_type == "llama"


def test_every_alias_leads_to_a_key_that_exists() -> None:
    assert {key for keys in ALIASES.values() for key in keys} <= set(valid_keys())
    assert not set(ALIASES) & set(valid_keys())


@pytest.mark.parametrize(
    ("name", "text", "where", "what", "remedy"),
    [
        (
            "c.yaml",
            "model:\n  hidden_sizee: 64\n",
            "c.yaml, line 2",
            "unknown key model.hidden_sizee = 64",
            "model.hidden_size",
        ),
        ("c.json", '{"trainin": {"steps": 5}}', "c.json, line 1", "unknown key trainin", "training"),
        ("c.yaml", "Training: {steps: 5}\n", "c.yaml, line 1", "unknown key Training", "did you mean training?"),
        ("c.yaml", "training: {Steps: 5}\n", "c.yaml, line 1", "unknown key training.Steps", "training.steps?"),
        ("c.yaml", "training: {eval_steps: often}\n", "c.yaml, line 1", "a number or auto is needed", ""),
        ("c.yaml", "training:\n  steps: many\n", "c.yaml, line 2", "training.steps = 'many'", ""),
        ("c.yaml", "training:\n  dropout: 1.5\n", "c.yaml, line 2", "training.dropout = 1.5", ""),
        (
            "c.yaml",
            "model:\n  d_model: 64\n  hidden_size: 32\n",
            "c.yaml, line 3",
            "two names of model.hidden_size",
            "keep one",
        ),
        ("c.yaml", "training:\n  steps: 1\n  steps: 2\n", "c.yaml", "'training.steps' stands there twice", ""),
        ("c.json", '{"training": {"steps": 1, "steps": 2}}', "c.json", "'steps' stands there twice", ""),
        ("c.yaml", "training: [1, 2\n", "c.yaml, line", "not valid YAML", ""),
        ("c.json", '{"training": ', "c.json, line 1", "not valid JSON", ""),
        ("c.toml", "training = \n", "c.toml", "not valid TOML", ""),
        ("c.yaml", "- 1\n- 2\n", "c.yaml", "not a table", "section"),
        ("c.yaml", "model:\n  hidden_size: 100\n  num_attention_heads: 8\n", "c.yaml", "hidden_size 100", ""),
        ("c.yaml", "model: {model_type: gpt5}\n", "c.yaml, line 1", "unknown model_type 'gpt5'", "llama, qwen3"),
        (
            "c.yaml",
            "model: {norm_type: layernorm}\n",
            "c.yaml, line 1",
            "a qwen3 model has no model.norm_type",
            "model_type",
        ),
        ("c.yaml", "data: {seq_len: 4096}\n", "c.yaml", "longer than model.max_position_embeddings", ""),
        ("c.yaml", "training: {early_stopping_patience: 2, eval_steps: null}\n", "c.yaml", "needs eval_steps", ""),
        ("c.ini", "x=1\n", "c.ini", "cannot tell the format", "*.yaml"),
    ],
)
def test_a_wrong_file_is_refused_with_place_value_and_remedy(
    tmp_path: Path, name: str, text: str, where: str, what: str, remedy: str
) -> None:
    error = refused(write(tmp_path / name, text))
    assert what in error.what
    assert where in (error.where or "")
    assert remedy in (error.remedy or "")


@pytest.mark.parametrize(
    "words", [["--compile"], ["--training.compile"], ["--compile", "true"], ["--hardware.compile"]]
)
def test_a_key_that_is_true_or_false_may_stand_alone(words: list[str]) -> None:
    config = load_run_config(None, overrides_of(SimpleNamespace(args=[*words, "seed=7", "--steps", "5"])))
    assert (config.training.compile, config.training.seed, config.training.steps) == (True, 7, 5)


def test_every_switch_of_the_schema_may_stand_alone() -> None:
    switches = [key for key in valid_keys() if is_switch(key)]
    assert {"training.compile", "training.deterministic", "training.zero_residual", "model.norm_topk_prob"} <= {
        *switches
    }
    assert overrides_of(SimpleNamespace(args=[f"--{key}" for key in switches])) == [f"{key}=true" for key in switches]
    assert overrides_of(SimpleNamespace(args=["--fp16", "--deterministic", "no"])) == ["fp16=true", "deterministic=no"]


@pytest.mark.parametrize(
    ("words", "what"),
    [(["--learning_rate"], "--learning_rate needs a value"), (["--compil"], "no such option or key: --compil")],
)
def test_a_key_without_its_value_is_told_from_one_that_does_not_exist(words: list[str], what: str) -> None:
    with pytest.raises(UserError) as caught:
        overrides_of(SimpleNamespace(args=words, command=SimpleNamespace(params=[]), command_path="x train"))
    assert caught.value.what == what


@pytest.mark.parametrize("words", ["tensorboard,wandb", "tensorboard, wandb", "[tensorboard, wandb]"])
def test_a_list_of_names_is_written_as_words_with_commas(words: str) -> None:
    assert load_run_config(None, [f"loggers={words}"]).training.loggers == ("tensorboard", "wandb")
    assert load_run_config(None, ["loggers=wandb"]).training.loggers == ("wandb",)
    assert "loggers = 'tensorbord'" in refused(None, "loggers=tensorbord").what
    assert load_run_config(None, ["sample_prompts=A hen, and"]).training.sample_prompts == ("A hen, and",)


def test_a_wrong_override_names_the_command_line() -> None:
    assert refused(None, "training.stepz=5").remedy == "did you mean training.steps?"
    assert refused(None, "training.steps=0").where == "command line"
    assert "d_model = 32 and hidden_size = 64" in refused(None, "d_model=32", "hidden_size=64").what


@pytest.mark.parametrize(
    "text",
    [
        *("Once upon # a time", "# not a comment", "Note: be brief", "- a list", "line one\nline two", "&a hen"),
        *("2024-01-01", "a: b: c", "? what", "!!str 5", "| a", "'a' and 'b'", "[verse] sing", "C# and {x}"),
        *("*hen*", "a:", "yes!"),
    ],
)
def test_a_text_on_the_command_line_is_the_text_as_it_stands(text: str) -> None:
    """YAML cut it at a `#`, folded its lines, and made a table of a colon."""
    assert load_run_config(None, [f"data.source={text}"]).data.source == text
    assert load_run_config(None, [f"sample_prompts={text}"]).training.sample_prompts == (text,)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("3e-4", 3e-4), ("5", 5), ("-5", -5), ("1_000", 1000), ("yes", True), ("null", None), ("~", None)),
        *(
            ("'1e5'", "1e5"),
            ('"a\\nb"', "a\nb"),
            ("[a, 'b # c']", ["a", "b # c"]),
            ("5 # h", "5 # h"),
            ("1:30", "1:30"),
        ),
    ],
)
def test_what_a_value_on_the_command_line_stands_for(text: str, value: object) -> None:
    assert parse_override(f"key={text}").value == value


@pytest.mark.parametrize(
    "words", [["--learning-rate=2e-3"], ["--learning-rate", "2e-3"], ["--training.learning-rate=2e-3"]]
)
def test_a_dash_in_a_key_is_an_underscore(words: list[str]) -> None:
    assert load_run_config(None, overrides_of(SimpleNamespace(args=words))).training.learning_rate == 2e-3


def test_a_missing_config_names_the_nearest(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of the founding documents, which stand in a folder here, too."""
    assert "did you mean small?" in str(refused("smal"))
    monkeypatch.chdir(repository)
    for missing, near in {
        "config_smoke.yaml": "configs/founding/001_smoke.yaml",
        "config_finetune.yaml": "configs/finetune_alpaca.yaml",
        "config/train_gpt2.py": "gpt2 or configs/founding/004_gpt2.yaml",
        "qwen3_demo.json": "configs/qwen3_demo.json",
        "config.yaml": " or ".join(f"configs/founding/{number}_config.yaml" for number in ("001", "003", "004")),
    }.items():
        assert (refused(missing).remedy or "").startswith(f"did you mean {near}? a file ("), missing
    assert (refused("zzz").remedy or "").startswith("a file (")


def test_a_config_that_is_not_text_says_where(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"training: \xff\n")
    assert "not UTF-8 text (byte 10)" in refused(str(path)).what


@pytest.mark.parametrize("name", ["c.yaml", "c.toml", "c.json"])
def test_an_empty_config_says_how_to_write_one(tmp_path: Path, name: str) -> None:
    error = refused(write(tmp_path / name, "" if name != "c.json" else "null"))
    assert error.what == "the config is empty"
    assert "leave --config out for the defaults" in (error.remedy or "")


def test_a_value_out_of_range_says_where_the_ranges_stand() -> None:
    error = refused({"training": {"steps": 0}})
    assert error.remedy == "docs/CONFIG_REFERENCE.md tells the type and range of every key"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "steps: 7\n"),
        ("a.toml", "[training]\nsteps = 7\n"),
        ("a.json", '{"steps": 7}'),
        ("A.YAML", "steps: 7\n"),
    ],
)
def test_a_config_with_a_byte_order_mark_or_a_large_suffix_is_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_run_config(tmp_path / name).training.steps == 7


@pytest.mark.parametrize("value", ["5", "qwen3", "[{steps: 5}]", "true"])
@pytest.mark.parametrize("section", ["training", "model", "data", "advanced", "hardware"])
def test_a_section_that_is_a_value_is_told_as_that(tmp_path: Path, section: str, value: str) -> None:
    error = refused(write(tmp_path / "a.yaml", f"seed: 3\n{section}: {value}\n"))
    assert (
        f"{section} is a section, and here it is a value" in error.what and error.where == f"{tmp_path}/a.yaml, line 2"
    )
    assert "keys" in (error.remedy or "")
    assert "is a section" in refused(None, f"{section}={value}").what


@pytest.mark.parametrize("override", ["steps=", "training.steps= ", "--steps=", "data.source="])
def test_a_key_without_a_value_on_the_command_line_is_refused(override: str) -> None:
    error = refused(None, override)
    assert "has no value" in error.what and "null" in (error.remedy or "") and error.where == "command line"


def test_one_key_given_twice_is_told_as_that() -> None:
    assert refused(None, "training.steps=5", "training.steps=6").what == "training.steps is given twice, as 5 and 6"
    assert "two names of training.steps" in refused(None, "training.steps=5", "max_iters=6").what
    assert load_run_config(None, ["training.steps=5", "training.steps=5"]).training.steps == 5


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", "// c\n{}", "no comments"),
        ("a.json", '{"steps": 5,}', "no comma before a closing bracket"),
        ("a.toml", "steps: 5\n", "key = value"),
        ("a.yaml", "\tsteps: 5\n", "spaces"),
    ],
)
def test_a_config_that_cannot_be_parsed_is_answered_with_its_grammar(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    assert words in (refused(write(tmp_path / name, text)).remedy or "")
