"""From a file and a command line to a checked `RunConfig`: defaults <- preset or file <- dotted overrides.

Everything wrong is found here, before any work starts, and told with file, line, key, value and the nearest valid key.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tiny_transformer.config.aliases import ALIASES, SWITCHES, UNBUILT, implied, translate
from tiny_transformer.config.model import LlamaConfig, Qwen3Config, Qwen3NextConfig
from tiny_transformer.config.presets import PRESETS
from tiny_transformer.config.schema import DataConfig, RunConfig, TrainingConfig
from tiny_transformer.config.strict import lookalike
from tiny_transformer.errors import ExitCode, UserError

SUFFIXES = (".json", ".yaml", ".yml", ".toml")
# YAML 1.1 reads 1e-3 as text; in a config of numbers it is a number.
_NUMBER = re.compile(r"[-+]?(\d+(_\d+)*\.?\d*|\.\d+)[eE][-+]?\d+")
_MODELS: dict[str, type[BaseModel]] = {
    "llama": LlamaConfig,
    "qwen3": Qwen3Config,
    "qwen3_next": Qwen3NextConfig,
}
_SECTIONS: dict[str, tuple[type[BaseModel], ...]] = {
    "model": tuple(_MODELS.values()),
    "data": (DataConfig,),
    "training": (TrainingConfig,),
}


class _Yaml(yaml.SafeLoader):
    """Safe YAML in which 1:30 and 010 are text; YAML 1.1 reads them as 90 and 8."""


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    looks_otherwise = ":" in node.value or re.fullmatch(r"[-+]?0[0-9_]+", node.value)
    return node.value if looks_otherwise else loader.construct_yaml_int(node)


def _fraction(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    return node.value if ":" in node.value else loader.construct_yaml_float(node)


_Yaml.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Yaml.add_constructor("tag:yaml.org,2002:float", _fraction)


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
        overrides: `section.key=value` strings; values are read as YAML.

    Raises:
        UserError: unreadable file, unknown key, wrong type or impossible combination.
    """
    layers = [_read_source(source), [parse_override(text) for text in overrides]]
    return build_run_config(layers)


def load_data_config(overrides: Iterable[str]) -> DataConfig:
    """The checked section `data` on its own; sequences may have any length, as no model is there to limit it.

    Raises:
        UserError: as `load_run_config`.
    """
    return load_run_config({"model": {"max_position_embeddings": 2**24}}, overrides).data


def build_run_config(layers: Iterable[Iterable[Assignment]]) -> RunConfig:
    """Merge layers of assignments, later ones winning, and check the result."""
    merged: dict[str, Assignment] = {}
    for layer in layers:
        merged.update(_resolve(layer))
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
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, merged) from None


def _refuse_lookalike(key: str, assignment: Assignment) -> None:
    section, _, leaf = key.rpartition(".")
    for model in _SECTIONS.get(section, ()):
        field = model.model_fields.get(leaf)
        if field is not None and (problem := lookalike(assignment.value, field.annotation)):
            raise UserError(
                f"{assignment.key} = {assignment.value!r}: {problem}",
                where=assignment.origin,
                remedy="docs/CONFIG_REFERENCE.md tells the type and range of every key",
            )


def parse_override(text: str, origin: str = "command line") -> Assignment:
    """`training.steps=200` as an assignment."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(
            f"cannot read the override {text!r}",
            where=origin,
            remedy="write SECTION.KEY=VALUE, for example training.steps=200",
        )
    try:
        parsed = _numbers(yaml.load(value, _Yaml))  # noqa: S506
    except yaml.YAMLError:
        parsed = value
    return Assignment(key.strip().removeprefix("--"), parsed, origin)


def keys_of(overrides: Iterable[str]) -> set[str]:
    """The keys that overrides set, in our own words."""
    return set(_resolve(parse_override(text) for text in overrides))


def config_name(source: str | Path | None) -> str:
    """What to call a run of this config: the file's name without its suffix, or the preset's."""
    return "default" if source is None else Path(source).stem


def valid_keys() -> list[str]:
    """Every key in our own words, with its section."""
    keys = {"out_dir"}
    for section, models in _SECTIONS.items():
        keys |= {f"{section}.{name}" for model in models for name in model.model_fields}
    return sorted(keys)


def is_key(name: str) -> bool:
    """Whether a config has such a key, with or without its section, in our words or in other ones."""
    return _key_called(name) is not None


def is_switch(name: str) -> bool:
    """Whether such a key is true or false, and nothing else."""
    key = _key_called(name)
    section, _, leaf = ALIASES.get(key or "", (key or "",))[0].rpartition(".")
    fields = [model.model_fields[leaf] for model in _SECTIONS.get(section, ()) if leaf in model.model_fields]
    return key in SWITCHES or any(field.annotation is bool for field in fields)


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
    if path.suffix in SUFFIXES and path.is_file():
        tree, line_of = _read_file(path)
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
    near = difflib.get_close_matches(
        str(source), [*PRESETS, *(str(p) for p in Path("configs").glob("*.*"))], n=1, cutoff=0.4
    )
    raise UserError(
        f"there is no config {str(source)!r}",
        remedy=(f"did you mean {near[0]}? " if near else "")
        + f"a file ({', '.join(SUFFIXES)}) or a preset ({', '.join(PRESETS)})",
    )


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The file's tree and the line of each `section.key`."""
    line_of: dict[str, int] = {}
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            tree = json.loads(text, object_pairs_hook=_no_duplicates)
        elif path.suffix == ".toml":
            tree = tomllib.loads(text)
        else:
            tree = yaml.load(text, _Yaml)  # noqa: S506
        if path.suffix != ".toml":
            _collect_lines(yaml.compose(text, Loader=yaml.SafeLoader), "", line_of)
    except OSError as error:
        raise UserError(f"cannot read the config: {error.strerror}", where=str(path), exit_code=ExitCode.IO) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"the config is not UTF-8 text (byte {error.start})",
            where=str(path),
            remedy="save it as UTF-8",
            exit_code=ExitCode.BAD_DATA,
        ) from None
    except (ValueError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else getattr(error, "lineno", None)
        reason = getattr(error, "problem", None) or getattr(error, "msg", None) or str(error)
        where = f"{path}, line {line}" if line else str(path)
        raise UserError(
            f"the config is not valid {path.suffix[1:].upper()}: {reason}", where=where, exit_code=ExitCode.BAD_DATA
        ) from None
    if tree is None or not text.strip():
        raise UserError(
            "the config is empty",
            where=str(path),
            remedy="leave --config out for the defaults, or write a section, for example `training:`",
            exit_code=ExitCode.BAD_DATA,
        )
    if not isinstance(tree, dict):
        raise UserError(
            "the config is not a table of keys and values",
            where=str(path),
            remedy="start with a section, for example `training:`",
            exit_code=ExitCode.BAD_DATA,
        )
    return _numbers(tree), line_of


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in pairs:
        if key in tree:
            raise ValueError(f"the key {key!r} stands there twice")
        tree[key] = value
    return tree


def _collect_lines(node: yaml.Node | None, prefix: str, line_of: dict[str, int]) -> None:
    """Remember the line of each key; refuse a key that stands twice in one table (YAML would keep the last,
    silently)."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        if key in line_of:
            raise ValueError(
                f"the key {key!r} stands there twice, in lines {line_of[key]} and {key_node.start_mark.line + 1}"
            )
        line_of[key] = key_node.start_mark.line + 1
        _collect_lines(value_node, key + ".", line_of)


def _numbers(value: Any) -> Any:
    """Text like 3e-4 as the number it is meant to be, everywhere in a tree."""
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


# --- names
# ---------------------------------------------------------------------------------------------------------------


def _flatten(tree: Mapping[str, Any], line_of: Mapping[str, int], origin: str) -> list[Assignment]:
    assignments = []
    sections = {*_SECTIONS, *(name.partition(".")[0] for name in (*ALIASES, *UNBUILT))}

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


def _resolve(layer: Iterable[Assignment]) -> dict[str, Assignment]:
    """One layer in our own words; two names of one key must agree."""
    resolved: dict[str, Assignment] = {}
    for assignment in layer:
        for key, value in translate(_qualify(assignment), assignment.value, assignment.origin):
            other = resolved.get(key)
            if other is not None and other.value != value:
                both = f"{other.key} = {other.value!r} and {assignment.key} = {assignment.value!r}"
                raise UserError(
                    f"{both} are two names of {key} with different values",
                    where=assignment.origin,
                    remedy=f"keep one of them, best under the name {key}",
                )
            if key not in valid_keys():
                raise _unknown(assignment)
            resolved[key] = Assignment(assignment.key, value, assignment.origin)
    return resolved


def _qualify(assignment: Assignment) -> str:
    """The key with its section; a bare name is looked up among all sections."""
    if "." in assignment.key or assignment.key == "out_dir":
        return assignment.key
    names = [*valid_keys(), *ALIASES, *SWITCHES, *UNBUILT]
    for section in (*_SECTIONS, "hardware", "advanced"):
        if f"{section}.{assignment.key}" in names:
            return f"{section}.{assignment.key}"
    raise _unknown(assignment)


def _unknown(assignment: Assignment) -> UserError:
    names = [*valid_keys(), *ALIASES]
    leaf = assignment.key.rpartition(".")[2]
    near = difflib.get_close_matches(assignment.key, names, n=1, cutoff=0.5)
    near = near or [
        n
        for n in names
        if n.rpartition(".")[2] in difflib.get_close_matches(leaf, [n.rpartition(".")[2] for n in names], n=1)
    ]
    return UserError(
        f"unknown key {assignment.key} = {assignment.value!r}",
        where=assignment.origin,
        remedy=f"did you mean {near[0]}?" if near else "docs/CONFIG_REFERENCE.md lists every key",
    )


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
            f"unknown model_type {chosen.value!r}", where=chosen.origin, remedy=f"one of {', '.join(_MODELS)}"
        )
    location = [str(part) for part in problem["loc"] if part not in _MODELS]
    assignment = merged.get(".".join(location[:2]))
    reason = _in_the_users_words(str(problem.get("ctx", {}).get("error", problem["msg"])), merged)
    if assignment is None:  # a rule about several keys, or about one that was not written
        written = [a.origin for key, a in merged.items() if not location or key.startswith(location[0])]
        return UserError(reason, where=written[0] if written else None)
    if problem["type"] == "extra_forbidden":
        model_type = merged["model.model_type"].value if "model.model_type" in merged else "qwen3"
        return UserError(
            f"a {model_type} model has no {assignment.key}",
            where=assignment.origin,
            remedy=f"remove it, or choose another model_type ({', '.join(_MODELS)})",
        )
    return UserError(
        f"{assignment.key} = {assignment.value!r}: {reason[0].lower()}{reason[1:]}",
        where=assignment.origin,
        remedy="docs/CONFIG_REFERENCE.md tells the type and range of every key",
    )
