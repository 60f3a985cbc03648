"""From a file and a command line to a checked `RunConfig`: defaults <- preset or file <- dotted overrides.

Everything wrong is found here, before any work starts, and told with file, line, key, value and the nearest valid key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

import yaml
from pydantic import ValidationError

from tiny_transformer.config.aliases import SWITCHES, implied
from tiny_transformer.config.keys import Assignment, refuse_lookalike, resolve, schema_of, written_sections
from tiny_transformer.config.presets import PRESETS
from tiny_transformer.config.schema import DataConfig, RunConfig
from tiny_transformer.config.shapes import SHAPES
from tiny_transformer.config.text import MAX_CONFIG_BYTES, numbers, parse_yaml, read_config_file
from tiny_transformer.errors import ExitCode, UserError

SUFFIXES = (".json", ".yaml", ".yml", ".toml")
_WORD = re.compile(r"[\w.+:~-]+")  # what can be a number, true, false or null
_PREFIX = re.compile(r"^(?:\d+|config|train)_")  # of a config's name: says nothing about what is in it


def load_run_config(source: str | Path | Mapping[str, Any] | None, overrides: Iterable[str] = ()) -> RunConfig:
    """The checked config of a run.

    Args:
        source: a .json, .yaml, .yml or .toml file, a preset's name, a dict, or None for the defaults.
        overrides: `section.key=value` strings; see `parse_override`.

    Raises:
        UserError: unreadable file, unknown key, wrong type or impossible combination.
    """
    return build_run_config([_read_source(source), [parse_override(text) for text in overrides]])


def load_data_config(overrides: Iterable[str]) -> DataConfig:
    """The checked section `data` on its own; sequences may have any length, as no model is there to limit it.

    Raises:
        UserError: as `load_run_config`.
    """
    return load_run_config({"model": {"max_position_embeddings": 2**24}}, overrides).data


def build_run_config(layers: Sequence[Sequence[Assignment]]) -> RunConfig:
    """Merge layers of assignments, later ones winning, and check the result."""
    schema = schema_of(layers)
    merged: dict[str, Assignment] = {}
    for layer in layers:
        merged.update(resolve(layer, schema))
    for key, value in implied({key: (a.key, a.value) for key, a in merged.items()}).items():
        merged.setdefault(key, Assignment(key, value, "implied"))
    for key, assignment in merged.items():
        refuse_lookalike(key, assignment)
    tree: dict[str, Any] = {}
    for key, assignment in merged.items():
        section, _, leaf = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[leaf] = assignment.value
    if "model" in tree:
        tree["model"].setdefault("model_type", "qwen3")
    try:
        config = schema.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, merged) from None
    if "model.model_type" not in merged:
        config.model.model_fields_set.discard("model_type")  # nobody asked for it
    return config


def parse_override(text: str, origin: str = "command line") -> Assignment:
    """`training.steps=200` as an assignment: a number, true, false, null, a list in brackets, or a text."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(
            f"cannot read the override {text!r}",
            where=origin,
            remedy="write SECTION.KEY=VALUE, for example training.steps=200",
        )
    if not value.strip():
        what = f"{key.strip().removeprefix('--')[:80]} has no value"
        raise UserError(what, where=origin, remedy="null stands for none, '' for an empty text")
    if len(value) > MAX_CONFIG_BYTES:
        what = f"the value of {key.strip()[:80]} has {len(value):,} characters; at most {MAX_CONFIG_BYTES:,} are read"
        raise UserError(what, where=origin)
    try:
        parsed = _value_of(value.strip())
    except ValueError as error:
        raise UserError(f"cannot read the value of {key.strip()[:80]}: {error}", where=origin) from None
    return Assignment(key.strip().removeprefix("--"), parsed, origin)


def _value_of(text: str) -> Any:
    """What a value on the command line stands for, by YAML's rules: a number, true, false or null, a list or table in
    brackets, a text in quotation marks. Anything else is the text as it stands: a `#`, a `: ` or a line break in a
    prompt is part of it, though YAML would cut it there or make something else of it.

    Raises:
        ValueError: beyond the bounds of a config.
    """
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    if not is_quoted and text[0] not in "[{" and not _WORD.fullmatch(text):
        return text
    try:
        parsed = parse_yaml(text)[0]
    except yaml.YAMLError:
        return text
    if is_quoted:
        return parsed if isinstance(parsed, str) else text
    if text[0] in "[{":
        return numbers(parsed)
    is_plain = isinstance(parsed, bool | int | float) or text.lower() in ("null", "~")
    return parsed if is_plain else numbers(text)


def keys_of(overrides: Iterable[str]) -> set[str]:
    """The keys that overrides set, in our own words."""
    layer = [parse_override(text) for text in overrides]
    return set(resolve(layer, schema_of([layer]) if any(a.key == "stage" for a in layer) else None))


def config_name(source: str | Path | None) -> str:
    """What to call a run of this config: the file's name without its suffix, or the preset's."""
    return "default" if source is None else Path(source).stem


def _read_source(source: str | Path | Mapping[str, Any] | None) -> list[Assignment]:
    if source is None:
        return []
    if isinstance(source, Mapping):
        return _flatten(source, {}, "config")
    path = Path(source)
    if path.suffix.lower() in SUFFIXES and path.is_file():
        tree, line_of = read_config_file(path)
        return _flatten(tree, line_of, str(path))
    if str(source) in PRESETS:
        return _flatten(PRESETS[str(source)], {}, f"preset {source}")
    if path.is_dir():
        inside = next((p for p in (path / "config.yaml", *sorted(path.glob("*.yaml"))) if p.is_file()), None)
        raise UserError(
            "a directory where a config file should be",
            where=str(path),
            remedy=f"did you mean {inside}?" if inside else f"name a file ({', '.join(SUFFIXES)}) or a preset",
        )
    if path.is_file():
        raise UserError(
            f"cannot tell the format of {path.name}",
            where=str(path),
            remedy=f"name it {' or '.join('*' + s for s in SUFFIXES)}",
        )
    if path.exists():
        raise UserError(
            f"{path.name} is not a regular file",
            where=str(path),
            remedy="put a config of that name there",
            exit_code=ExitCode.BAD_DATA,
        )
    near = _names_like(path)
    raise UserError(
        f"there is no config {str(source)!r}",
        remedy=(f"did you mean {' or '.join(near)}? " if near else "")
        + f"a file ({', '.join(SUFFIXES)}) or a preset ({', '.join(PRESETS)})",
    )


def _names_like(missing: Path) -> list[str]:
    """The presets and the configs of a checkout that are called most like a file that is not there."""
    called = {preset: [preset] for preset in PRESETS}
    for path in sorted(Path("configs").rglob("*.*")):
        if path.suffix in SUFFIXES and path.parent.name != "launch":
            called.setdefault(_PREFIX.sub("", path.stem), []).append(str(path))
    near = difflib.get_close_matches(_PREFIX.sub("", missing.stem), called, n=1, cutoff=0.5)
    return called[near[0]] if near else []


def _flatten(tree: Mapping[str, Any], line_of: Mapping[str, int], origin: str) -> list[Assignment]:
    assignments = []
    sections = written_sections()

    def add(key: str, value: Any) -> None:
        line = line_of.get(key)
        assignments.append(Assignment(key, value, f"{origin}, line {line}" if line else origin))

    for name, value in tree.items():
        if name in sections and isinstance(value, Mapping):
            for leaf, leaf_value in value.items():
                add(f"{name}.{leaf}", leaf_value)
        elif name in sections and value is None:
            continue
        else:
            add(str(name), value)
    return assignments


def _in_the_users_words(reason: str, merged: Mapping[str, Assignment]) -> str:
    """A rule about several keys, each called as the user has written it."""
    for key, assignment in merged.items():
        ours, theirs = (name.rpartition(".")[2] for name in (key, assignment.key))
        if ours != theirs and assignment.key not in SWITCHES:
            reason = re.sub(rf"(?<![\w.]){re.escape(ours)}\b", theirs, reason)
    return reason


def _explain(error: ValidationError, merged: Mapping[str, Assignment]) -> UserError:
    """The first problem pydantic found, in the user's own words and place."""
    problem = error.errors()[0]
    if problem["type"] == "union_tag_invalid":
        chosen = merged["model.model_type"]
        return UserError(
            f"unknown model_type {short(chosen.value)}", where=chosen.origin, remedy=f"one of {', '.join(SHAPES)}"
        )
    location = [str(part) for part in problem["loc"] if part not in SHAPES]
    assignment = merged.get(".".join(location[:2]))
    reason = _in_the_users_words(str(problem.get("ctx", {}).get("error", problem["msg"])), merged)
    if assignment is None:  # a rule about several keys, or about one that was not written
        written = {key: a for key, a in merged.items() if not location or key.startswith(location[0])}
        words = set(re.findall(r"\w+", reason))
        named = [a for key, a in written.items() if words & {name.rpartition(".")[2] for name in (key, a.key)}]
        places = dict.fromkeys(a.origin for a in named or [*written.values()][:1])
        return UserError(reason, where="; ".join(places) or None)
    if problem["type"] == "extra_forbidden":
        model_type = merged["model.model_type"].value if "model.model_type" in merged else "qwen3"
        return UserError(
            f"a {model_type} model has no {assignment.key}",
            where=assignment.origin,
            remedy=f"remove it, or choose another model_type ({', '.join(SHAPES)})",
        )
    return UserError(
        f"{assignment.key} = {short(assignment.value)}: {reason[0].lower()}{reason[1:]}",
        where=assignment.origin,
        remedy="docs/CONFIG_REFERENCE.md tells the type and range of every key",
    )
