"""Configs that say very much in few bytes, or what no setting can be: row F1 for configs. All end as a UserError."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiny_transformer.config.load import load_run_config, parse_override
from tiny_transformer.config.text import MAX_CONFIG_BYTES, MAX_VALUES, parse_yaml
from tiny_transformer.errors import ExitCode, UserError

LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
HOSTILE: dict[str, tuple[str, str]] = {
    "billion laughs": (".yaml", LAUGHS),
    "an anchor that holds itself": (".yaml", "training: &t\n  steps: *t\n"),
    "an anchor that holds itself in a list": (".yaml", "a: &a [*a]\n"),
    "an anchor of nothing": (".yaml", "a: *b\n"),
    "merged with itself": (".yaml", "a: &a\n  <<: *a\n"),
    "nested lists": (".yaml", "a: " + "[" * 100_000),
    "nested tables": (".yaml", "a: " + "{a: " * 30_000),
    "nested by indentation": (".yaml", "".join(" " * n + "a:\n" for n in range(400))),
    "10^5 keys": (".yaml", "".join(f"k{n}: 1\n" for n in range(100_000))),
    "20,000 short keys": (".yaml", "".join(f"k{n}: 1\n" for n in range(20_000))),
    "many values": (".yaml", "a: [" + "1, " * 60_000 + "]"),
    "a long integer": (".yaml", "training:\n  steps: " + "9" * 100_000),
    "a long integer that Python reads": (".yaml", "training:\n  steps: " + "9" * 4_000),
    "a long hexadecimal integer": (".yaml", "training:\n  steps: 0x" + "f" * 100_000),
    "a base-60 integer": (".yaml", "training:\n  steps: 1" + ":1" * 50_000),
    "a binary that is none": (".yaml", "training:\n  steps: !!binary '?'\n"),
    "a date that is none": (".yaml", "training:\n  steps: 2026-13-45\n"),
    "a table as a key": (".yaml", "? {a: 1}\n: 2\n"),
    "a tag of Python": (".yaml", "a: !!python/object/apply:os.system [ls]\n"),
    "not a number": (".yaml", "training:\n  learning_rate: .nan\n"),
    "infinite": (".yaml", "training:\n  learning_rate: .inf\n"),
    "infinite by its exponent": (".yaml", "training:\n  learning_rate: 1e999\n"),
    "a long exponent": (".yaml", "training:\n  learning_rate: 1e" + "9" * 5_000),
    "infinite as a text": (".yaml", "training:\n  learning_rate: 'inf'\n"),
    "infinite as a word": (".yaml", "training:\n  weight_decay: infinity\n"),
    "not a number as a word": (".yaml", "training:\n  learning_rate: nan\n"),
    "control characters": (".yaml", "training:\n  steps: \x00\x1b[2J"),
    "two documents": (".yaml", "a: 1\n---\nb: 2\n"),
    "nested JSON lists": (".json", '{"a": ' + "[" * 100_000),
    "nested JSON tables": (".json", '{"a": ' * 30_000),
    "a long JSON integer": (".json", '{"training": {"steps": ' + "9" * 100_000 + "}}"),
    "a JSON number without end": (".json", '{"training": {"learning_rate": 1e999}}'),
    "JSON's NaN": (".json", '{"training": {"learning_rate": NaN}}'),
    "10^5 JSON keys": (".json", "{" + ", ".join(f'"k{n}": 1' for n in range(15_000)) + "}"),
    "nested TOML": (".toml", "a = " + "[" * 100_000),
    "TOML's long name": (".toml", ".".join("a" * 30_000) + " = 1\n"),
    "TOML's long table": (".toml", "[" + ".".join("a" * 30_000) + "]\n"),
    "TOML's long name in quotes": (".toml", ".".join(['"a#"'] * 30_000) + " = 1\n"),
    "TOML's long name behind a comment": (".toml", "# a\nb = '#' # c\n" + " . ".join("a" * 30_000) + " = 1\n"),
    "TOML's long name in a table": (".toml", "a = { " + ".".join("a" * 30_000) + " = 1 }\n"),
    "quotation marks of TOML that do not end": (".toml", '\\"""' * 40_000),
    "a TOML word": (".toml", "a" * 200_000),
    "a long TOML integer": (".toml", "[training]\nsteps = " + "9" * 100_000),
    "TOML's infinity": (".toml", "[training]\nlearning_rate = inf\n"),
    "too large": (".yaml", "# " + "x" * MAX_CONFIG_BYTES + "\n"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_config_is_refused_at_once(case: str, tmp_path: Path) -> None:
    suffix, text = HOSTILE[case]
    path = tmp_path / f"config{suffix}"
    path.write_text(text)
    begun = time.process_time()
    with pytest.raises(UserError) as refused:
        load_run_config(path)
    assert time.process_time() - begun < 1.0  # of a processor; the slowest takes 0.3
    assert len(refused.value.lines()) <= 3 and sum(map(len, refused.value.lines())) < 6000


@pytest.mark.parametrize("size", [60 << 20, 20 << 30])
def test_a_large_file_is_not_even_read(size: int, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.touch()
    os.truncate(path, size)
    with pytest.raises(UserError, match=f"has {size:,} bytes"):
        load_run_config(path)


@pytest.mark.parametrize(
    "value", ["[" * 5000, "{a: " * 5000, "9" * 5000, "0x" + "f" * 90_000, "&a [*a]", ".inf", ".nan", "1e999"]
)
def test_a_hostile_value_on_the_command_line(value: str) -> None:
    with pytest.raises(UserError) as refused:
        load_run_config(None, [f"training.steps={value}"])
    assert refused.value.exit_code is ExitCode.USAGE and len(refused.value.lines()) <= 3


TRUTHS = [
    ("training.learning_rate", "yes"),
    ("training.learning_rate", "true"),
    ("training.steps", "true"),
    ("training.steps", "on"),
    ("training.seed", "off"),
    ("training.max_train_minutes", "yes"),
    ("data.max_bytes", "true"),
    ("data.val_fraction", "no"),
    ("model.hidden_size", "true"),
    ("training.optimizer", "on"),
]


@pytest.mark.parametrize(("key", "value"), TRUTHS)
def test_true_is_no_number(key: str, value: str, tmp_path: Path) -> None:
    section, _, leaf = key.partition(".")
    (tmp_path / "c.yaml").write_text(f"{section}:\n  {leaf}: {value}\n")
    for source, overrides in ((None, [f"{key}={value}"]), (tmp_path / "c.yaml", [])):
        with pytest.raises(UserError, match=r"a number is needed|neither true nor false|input should be") as refused:
            load_run_config(source, overrides)
        assert leaf in refused.value.what
    assert "line 2" in str(refused.value.where)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", f"# {'.' * 70}\n[training]\nsteps = 7 # {'e.g. ' * 30}\n"),
        ("a.toml", f"# {'a.b.c.' * 30}\n[training] # {'[' * 30}\nsteps = 7\n"),
        ("a.toml", f"""out_dir = '{"a." * 30}{"[" * 30}'\n[training]\nsteps = 7\n"""),
        ("a.toml", f'out_dir = """{"a.b" * 30}\n{"[" * 30}"""\n[training]\nsteps = 7\n'),
        ("a.toml", "[training]\nsteps = 7\nsample_prompts = [" + "'[[[ a.b.c', " * 12 + "]\n"),
        ("a.json", f'{{"out_dir": "{"[{" * 30}", "training": {{"steps": 7}}}}'),
        ("a.json", f'{{"out_dir": "\\"{"[" * 30}", "training": {{"steps": 7}}}}'),
    ],
)
def test_dots_and_brackets_in_comments_and_texts_nest_nothing(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert load_run_config(tmp_path / name).training.steps == 7


def test_a_long_value_on_the_command_line_is_refused_and_not_cut() -> None:
    with pytest.raises(UserError, match=f"data.source has {MAX_CONFIG_BYTES + 4:,} characters"):
        parse_override("data.source='" + "x" * (MAX_CONFIG_BYTES + 2) + "'")


def test_ordinary_configs_are_as_before(tmp_path: Path, repository: Path) -> None:
    """Anchors and merges, all forms of numbers, and the bounds leave room."""
    (tmp_path / "c.yaml").write_text(
        "base: &base {hidden_size: 64, num_hidden_layers: 2}\nmodel:\n  <<: *base\ntraining: {learning_rate: 3e-4}\n"
    )
    with pytest.raises(UserError, match="unknown key base"):
        load_run_config(tmp_path / "c.yaml")
    tree, _ = parse_yaml((tmp_path / "c.yaml").read_text())
    assert tree["model"] == {"hidden_size": 64, "num_hidden_layers": 2}
    values: dict[str, Any] = {"training.compile": "yes", "training.steps": "1_000", "training.learning_rate": "1e-3"}
    config = load_run_config(None, [f"{key}={value}" for key, value in values.items()])
    assert (config.training.compile, config.training.steps, config.training.learning_rate) == (True, 1000, 1e-3)
    largest = max((repository / "configs").rglob("*.yaml"), key=lambda path: path.stat().st_size)
    assert largest.stat().st_size < MAX_CONFIG_BYTES / 20
    assert len(list(yaml.parse(largest.read_text(), Loader=yaml.SafeLoader))) < MAX_VALUES / 10
    assert parse_override("data.source=[x: y").value == "[x: y"  # no YAML: the text itself


@pytest.mark.parametrize("key", ["out_dir", "init_from", "data.data_dir"])
@pytest.mark.parametrize(
    ("value", "what"),
    [("", "an empty path"), (" ", "an empty path"), ("a\0b", "NUL character"), ("~nobody-here/x", "no user")],
)
def test_what_is_no_path_is_refused_and_not_taken_for_one(key: str, value: str, what: str) -> None:
    section, _, name = key.rpartition(".")
    with pytest.raises(UserError, match=what):
        load_run_config({section: {name: value}} if section else {name: value})


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(UserError, match="an empty name"):
        load_run_config({"data": {"source": " "}})
