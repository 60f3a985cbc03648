"""The keys of a config: which there are, what others call them, and what to say to one that there is not.

Values that look like one type and would be read as another are refused here too.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from reprlib import repr as short
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tiny_transformer.config.aliases import ALIASES, INSTEAD, SWITCHES, UNBUILT, translate
from tiny_transformer.config.schema import RunConfig, sections_of
from tiny_transformer.config.secrets import HIDDEN, WHERE_THEY_GO, is_secret
from tiny_transformer.config.shapes import SHAPES
from tiny_transformer.config.stages import CONFIGS
from tiny_transformer.errors import UserError


@dataclass(frozen=True)
class Assignment:
    """One `key = value` a user wrote, and where."""

    key: str
    value: Any
    origin: str


def valid_keys(schema: type[RunConfig] | None = None) -> list[str]:
    """Every key in our own words, with its section; of one stage's config, or of all stages'."""
    keys: set[str] = set()
    for config in CONFIGS.values() if schema is None else (schema,):
        sections = sections_of(config)
        keys |= config.model_fields.keys() - sections.keys()
        for section in sections:
            keys |= {f"{section}.{name}" for model in _models_of(section, config) for name in model.model_fields}
    return sorted(keys)


def is_key(name: str) -> bool:
    """Whether a config has such a key, with or without its section, in our words or in other ones."""
    return _key_called(name) is not None


def is_switch(name: str) -> bool:
    """Whether such a key is true or false, and nothing else."""
    key = _key_called(name)
    section, _, leaf = ALIASES.get(key or "", (key or "",))[0].rpartition(".")
    return key in SWITCHES or any(field.annotation is bool for field in _fields_called(section, leaf))


def schema_of(layers: Iterable[Iterable[Assignment]]) -> type[RunConfig]:
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


def resolve(layer: Iterable[Assignment], schema: type[RunConfig] | None) -> dict[str, Assignment]:
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


def _section_names() -> list[str]:
    """The sections of all stages, in the order in which a bare key is looked for."""
    return list(dict.fromkeys(name for schema in CONFIGS.values() for name in sections_of(schema)))


def written_sections() -> set[str]:
    """The sections of all stages, and those of other words for our keys."""
    return {*_section_names(), *(name.partition(".")[0] for name in (*ALIASES, *UNBUILT))}


def refuse_lookalike(key: str, assignment: Assignment) -> None:
    """Refuse a value that another type would make of what was written.

    Raises:
        UserError: the value only looks like one of its key's type; where it was written, and what is wrong with it.
    """
    section, _, leaf = key.rpartition(".")
    for field in _fields_called(section, leaf):
        if problem := _lookalike(assignment.value, field.annotation):
            raise UserError(
                f"{assignment.key} = {short(assignment.value)}: {problem}",
                where=assignment.origin,
                remedy="docs/CONFIG_REFERENCE.md tells the type and range of every key",
            )


def _models_of(section: str, schema: type[RunConfig]) -> tuple[type[BaseModel], ...]:
    """The classes that a section may have: each architecture's for `model`."""
    own = sections_of(schema).get(section)
    return tuple(SHAPES.values()) if own is None else (own,)


def _fields_called(section: str, leaf: str) -> list[FieldInfo]:
    """The fields that `section.leaf` may mean: of all stages and architectures."""
    schemas = [schema for schema in CONFIGS.values() if section in sections_of(schema)]
    models = [model for schema in schemas for model in _models_of(section, schema)]
    return [model.model_fields[leaf] for model in models if leaf in model.model_fields]


def _key_called(name: str) -> str | None:
    try:
        key = _qualify(Assignment(name, None, ""))
    except UserError:
        return None
    return key if key in {*valid_keys(), *ALIASES, *SWITCHES} else None


def _qualify(assignment: Assignment, schema: type[RunConfig] | None = None) -> str:
    """The key with its section; a bare name is looked up among the sections of the stage first, then of all."""
    if assignment.key in written_sections():
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
    if (lower := assignment.key.lower()) != assignment.key and lower in {*written_sections(), *names}:
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
        near = difflib.get_close_matches(assignment.key, sorted(written_sections()), n=1)
        return f"did you mean the section {near[0]}?" if near else f"the sections are {', '.join(_section_names())}"
    names = [*valid_keys(), *ALIASES, *SWITCHES, *UNBUILT]
    section, _, leaf = assignment.key.rpartition(".")
    own = [name.rpartition(".")[2] for name in names if section and name.startswith(f"{section}.")]
    if near := difflib.get_close_matches(leaf, own, n=1):
        return f"did you mean {section}.{near[0]}?"
    leaves = [name.rpartition(".")[2] for name in names]
    near = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75)
    near = near or [longer for longer in leaves if len(leaf) > 3 and longer.startswith(leaf)]
    fitting = [name for name in names if near and name.rpartition(".")[2] == near[0]]
    return f"did you mean {fitting[0]}?" if fitting else "docs/CONFIG_REFERENCE.md lists every key"


def _lookalike(value: Any, annotation: Any) -> str | None:
    """What is wrong with a value for a field of that type, or None; what is plainly wrong is left to the schema.

    `true` would be 1 (and so would YAML's `yes`), "5" would be 5, 1 would be true, and nothing is larger than `.inf`.
    """
    if get_origin(annotation) is tuple and isinstance(value, (list, tuple)):
        inner = get_args(annotation)[0]
        return next((problem for item in value if (problem := _lookalike(item, inner))), None)
    kinds, words = _alternatives(annotation)
    if isinstance(value, str) and value in words:
        return None
    if bool in kinds:
        return None if isinstance(value, bool) or value is None else "neither true nor false"
    if not kinds & {int, float}:
        return None
    if isinstance(value, bool):
        return f"a number is needed, and this is {str(value).lower()} (YAML reads yes, no, on and off as that)"
    if isinstance(value, str) and str not in kinds:
        others = "".join(f" or {word}" for word in sorted(words))
        return f"a number{others} is needed, and this is text"
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number is needed"
    return None


def _alternatives(annotation: Any) -> tuple[set[Any], set[str]]:
    """The types that a field may have, and the words."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return set(), {word for word in get_args(annotation) if isinstance(word, str)}
    if get_origin(annotation) not in (Union, UnionType):
        return {annotation}, set()
    found = [_alternatives(part) for part in get_args(annotation)]
    return set().union(*(kinds for kinds, _ in found)), set().union(*(words for _, words in found))
