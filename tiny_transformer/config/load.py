"""From a file and a command line to a checked `RunConfig`: defaults <- preset or file <- dotted overrides.

Everything wrong is found here, before any work starts, and told with file, line, key, value and the nearest valid key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from tiny_transformer.config.aliases import ALIASES, INSTEAD, SWITCHES, UNBUILT, implied, translate
from tiny_transformer.config.presets import PRESETS
from tiny_transformer.config.schema import DataConfig, RunConfig, sections_of
from tiny_transformer.config.secrets import HIDDEN, WHERE_THEY_GO, is_secret
from tiny_transformer.config.shapes import SHAPES
from tiny_transformer.config.stages import CONFIGS
from tiny_transformer.config.strict import lookalike
from tiny_transformer.config.text import MAX_CONFIG_BYTES, numbers, parse_yaml, read_config_file
from tiny_transformer.errors import ExitCode, UserError

SUFFIXES = (".json", ".yaml", ".yml", ".toml")
_WORD = re.compile(r"[\w.+:~-]+")  # what can be a number, true, false or null
_PREFIX = re.compile(r"^(?:\d+|config|train)_")  # of a config's name: says nothing about what is in it


@dataclass(frozen=True)
class Assignment:
    """One `key = value` a user wrote, and where."""

    key: str
    value: Any
    origin: str


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
    schema = _schema(layers)
    merged: dict[str, Assignment] = {}
    for layer in layers:
        merged.update(_resolve(layer, schema))
    for key, value in implied({key: (a.key, a.value) for key, a in merged.items()}).items():
        merged.setdefault(key, Assignment(key, value, "implied"))
    for key, assignment in merged.items():
        _refuse_lookalike(key, assignment)
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


def _refuse_lookalike(key: str, assignment: Assignment) -> None:
    section, _, leaf = key.rpartition(".")
    for field in _fields_called(section, leaf):
        if problem := lookalike(assignment.value, field.annotation):
            raise UserError(
                f"{assignment.key} = {short(assignment.value)}: {problem}",
                where=assignment.origin,
                remedy="docs/CONFIG_REFERENCE.md tells the type and range of every key",
            )


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
    return set(_resolve(layer, _schema([layer]) if any(a.key == "stage" for a in layer) else None))


def config_name(source: str | Path | None) -> str:
    """What to call a run of this config: the file's name without its suffix, or the preset's."""
    return "default" if source is None else Path(source).stem


def valid_keys(schema: type[RunConfig] | None = None) -> list[str]:
    """Every key in our own words, with its section; of one stage's config, or of all stages'."""
    keys: set[str] = set()
    for config in CONFIGS.values() if schema is None else (schema,):
        sections = sections_of(config)
        keys |= config.model_fields.keys() - sections.keys()
        for section in sections:
            keys |= {f"{section}.{name}" for model in _models_of(section, config) for name in model.model_fields}
    return sorted(keys)


def _models_of(section: str, schema: type[RunConfig]) -> tuple[type[BaseModel], ...]:
    """The classes that a section may have: each architecture's for `model`."""
    own = sections_of(schema).get(section)
    return tuple(SHAPES.values()) if own is None else (own,)


def _fields_called(section: str, leaf: str) -> list[FieldInfo]:
    """The fields that `section.leaf` may mean: of all stages and architectures."""
    schemas = [schema for schema in CONFIGS.values() if section in sections_of(schema)]
    models = [model for schema in schemas for model in _models_of(section, schema)]
    return [model.model_fields[leaf] for model in models if leaf in model.model_fields]


def _schema(layers: Iterable[Iterable[Assignment]]) -> type[RunConfig]:
    """The config class of the stage that the layers name last."""
    stages = [assignment for layer in layers for assignment in layer if assignment.key == "stage"]
    if not stages:
        return RunConfig
    chosen = stages[-1]
    if chosen.value not in CONFIGS:
        raise UserError(
            f"there is no stage {short(chosen.value)}", where=chosen.origin, remedy=f"one of {', '.join(CONFIGS)}"
        )
    return CONFIGS[chosen.value]


def is_key(name: str) -> bool:
    """Whether a config has such a key, with or without its section, in our words or in other ones."""
    return _key_called(name) is not None


def is_switch(name: str) -> bool:
    """Whether such a key is true or false, and nothing else."""
    key = _key_called(name)
    section, _, leaf = ALIASES.get(key or "", (key or "",))[0].rpartition(".")
    return key in SWITCHES or any(field.annotation is bool for field in _fields_called(section, leaf))


def _key_called(name: str) -> str | None:
    try:
        key = _qualify(Assignment(name, None, ""))
    except UserError:
        return None
    return key if key in {*valid_keys(), *ALIASES, *SWITCHES} else None


# --- reading
# -------------------------------------------------------------------------------------------------------------


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


# --- names
# ---------------------------------------------------------------------------------------------------------------


def _flatten(tree: Mapping[str, Any], line_of: Mapping[str, int], origin: str) -> list[Assignment]:
    assignments = []
    sections = _written_sections()

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


def _section_names() -> list[str]:
    """The sections of all stages, in the order in which a bare key is looked for."""
    return list(dict.fromkeys(name for schema in CONFIGS.values() for name in sections_of(schema)))


def _written_sections() -> set[str]:
    """The sections of all stages, and those of other words for our keys."""
    return {*_section_names(), *(name.partition(".")[0] for name in (*ALIASES, *UNBUILT))}


def _resolve(layer: Iterable[Assignment], schema: type[RunConfig] | None) -> dict[str, Assignment]:
    """One layer in our own words; two names of one key must agree."""
    resolved: dict[str, Assignment] = {}
    keys = valid_keys(schema)
    for assignment in layer:
        for key, value in translate(_qualify(assignment, schema), assignment.value, assignment.origin):
            other = resolved.get(key)
            if other is not None and other.value != value and other.key == assignment.key:
                what = f"{other.key} is given twice, as {short(other.value)} and {short(assignment.value)}"
                raise UserError(what, where=assignment.origin, remedy="give it once")
            if other is not None and other.value != value:
                both = f"{other.key} = {short(other.value)} and {assignment.key} = {short(assignment.value)}"
                raise UserError(
                    f"{both} are two names of {key} with different values",
                    where=assignment.origin,
                    remedy=f"keep one of them, best under the name {key}",
                )
            if key not in keys:
                raise _unknown(assignment)
            resolved[key] = Assignment(assignment.key, value, assignment.origin)
    return resolved


def _qualify(assignment: Assignment, schema: type[RunConfig] | None = None) -> str:
    """The key with its section; a bare name is looked up among the sections of the stage first, then of all."""
    if assignment.key in _written_sections():
        what = f"{assignment.key} is a section, and here it is a value: {short(assignment.value)}"
        raise UserError(what, where=assignment.origin, remedy="write its keys below it, or SECTION.KEY=VALUE")
    names = [*valid_keys(), *ALIASES, *SWITCHES, *UNBUILT]
    if "." in assignment.key or assignment.key in valid_keys():
        return assignment.key
    own = [] if schema is None else [s for s in sections_of(schema) if f"{s}.{assignment.key}" in valid_keys(schema)]
    for section in (*own, *_section_names(), "hardware", "advanced"):
        if f"{section}.{assignment.key}" in names:
            return f"{section}.{assignment.key}"
    raise _unknown(assignment)


def _unknown(assignment: Assignment) -> UserError:
    if is_secret(assignment.key):
        what = f"unknown key {assignment.key} = {HIDDEN}"
        return UserError(what, where=assignment.origin, remedy=WHERE_THEY_GO)
    names = [*valid_keys(), *ALIASES]
    if (lower := assignment.key.lower()) != assignment.key and lower in {*_written_sections(), *names}:
        what = f"unknown key {assignment.key} = {short(assignment.value)}"
        return UserError(what, where=assignment.origin, remedy=f"did you mean {lower}? Keys are written small")
    return UserError(
        f"unknown key {assignment.key} = {assignment.value!r}",
        where=assignment.origin,
        remedy=INSTEAD.get(assignment.key.rpartition(".")[2]) or _nearest(assignment),
    )


def _nearest(assignment: Assignment) -> str:
    """The key that is written most like an unknown one: of its own section first, then of any."""
    if isinstance(assignment.value, Mapping):
        near = difflib.get_close_matches(assignment.key, sorted(_written_sections()), n=1)
        return f"did you mean the section {near[0]}?" if near else f"the sections are {', '.join(_section_names())}"
    names = [*valid_keys(), *ALIASES, *SWITCHES, *UNBUILT]
    section, _, leaf = assignment.key.rpartition(".")
    own = [name.rpartition(".")[2] for name in names if section and name.startswith(f"{section}.")]
    if near := difflib.get_close_matches(leaf, own, n=1):
        return f"did you mean {section}.{near[0]}?"
    near = difflib.get_close_matches(leaf, [name.rpartition(".")[2] for name in names], n=1, cutoff=0.75)
    fitting = [name for name in names if near and name.rpartition(".")[2] == near[0]]
    return f"did you mean {fitting[0]}?" if fitting else "docs/CONFIG_REFERENCE.md lists every key"


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
