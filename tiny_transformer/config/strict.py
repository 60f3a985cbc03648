"""Values that look like one type and would be read as another: a boolean or a string for a number, or infinity."""

from __future__ import annotations

import math
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin


def lookalike(value: Any, annotation: Any) -> str | None:
    """What is wrong with a value for a field of that type, or None; what is plainly wrong is left to the schema.

    `true` would be 1 (and so would YAML's `yes`), "5" would be 5, 1 would be true, and nothing is larger than `.inf`.
    """
    if get_origin(annotation) is tuple and isinstance(value, (list, tuple)):
        inner = get_args(annotation)[0]
        return next((problem for item in value if (problem := lookalike(item, inner))), None)
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
