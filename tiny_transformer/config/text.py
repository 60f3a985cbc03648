"""Parsing the text of a config within bounds: a few lines can expand into more than any memory holds.

A few lines of YAML whose anchors refer to each other stand for 10^9 values; nesting 10^5 deep ends the parser's stack;
an integer of 10^5 digits cannot even be shown. Real configs are a few kilobytes of tables two deep.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import yaml

MAX_CONFIG_BYTES = 256 * 1024
MAX_DEPTH = 20
MAX_VALUES = 5_000  # keys, values and lists together, whatever anchors make of them
MAX_INTEGER_BITS = 128


class _Yaml(yaml.SafeLoader):
    """Safe YAML in which 1:30 and 010 are text; YAML 1.1 reads them as 90 and 8."""


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    looks_otherwise = ":" in node.value or re.fullmatch(r"[-+]?0[0-9_]+", node.value)
    return node.value if looks_otherwise else loader.construct_yaml_int(node)


def _fraction(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    return node.value if ":" in node.value else loader.construct_yaml_float(node)


_Yaml.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Yaml.add_constructor("tag:yaml.org,2002:float", _fraction)


def parse_json(text: str) -> Any:
    """The tree in a JSON text.

    Raises:
        ValueError: it is not JSON, has a key twice, or is beyond the bounds.
    """
    _check_nesting(text)
    try:
        return checked(json.loads(text, object_pairs_hook=_no_duplicates, parse_int=_integer))
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def parse_toml(text: str) -> Any:
    """The tree in a TOML text. Errors as in `parse_json`."""
    _check_nesting(text)
    if max((line.partition("=")[0].count(".") for line in text.splitlines()), default=0) > MAX_DEPTH:
        raise ValueError(_TOO_DEEP)
    try:
        return checked(tomllib.loads(text))
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def parse_yaml(text: str) -> tuple[Any, yaml.Node | None]:
    """The tree in a YAML text, and the nodes it was made of, which know their lines. Errors as in `parse_json`, and
    YAMLError."""
    _check_events(text)
    loader = _Yaml(text)
    try:
        node = loader.get_single_node()
        return (None if node is None else checked(loader.construct_document(node))), node
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except (OverflowError, TypeError) as error:  # a date or a base-60 number that is none, a table as a key
        raise ValueError(f"a value cannot be read: {error}") from None
    finally:
        loader.dispose()


def checked(value: Any, depth: int = 0) -> Any:
    """The value itself, when every integer in it has a sensible length.

    Raises:
        ValueError: the first that is not.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            checked(key, depth + 1)
            checked(item, depth + 1)
    elif isinstance(value, list | tuple | set):
        for item in value:
            checked(item, depth + 1)
    elif isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        raise ValueError(f"an integer of more than {MAX_INTEGER_BITS} bits")
    return value


_TOO_DEEP = f"it is nested more than {MAX_DEPTH} deep"
_TOO_MANY = f"it stands for more than {MAX_VALUES:,} keys and values"


def _check_nesting(text: str) -> None:
    """Brackets, those inside of strings included: parsers go one call deeper at each."""
    depth = 0
    for sign in re.findall(r"[\[\]{}]", text):
        depth += 1 if sign in "[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)


def _check_events(text: str) -> None:
    """Walk the text without building anything, and count what each anchor stands for."""
    sizes: dict[str, int] = {}
    open_groups: list[tuple[str | None, int]] = []  # its anchor, and how many values there were before it
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent):
            if anchor not in sizes:
                raise ValueError(f"the anchor {str(anchor)[:40]!r} refers to itself or to nothing")
            count += sizes[anchor]
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            sizes |= {anchor: 1} if anchor else {}
        elif isinstance(event, yaml.CollectionStartEvent):
            open_groups.append((anchor, count))
            count += 1
            if len(open_groups) > MAX_DEPTH:
                raise ValueError(_TOO_DEEP)
        elif isinstance(event, yaml.CollectionEndEvent):
            name, before = open_groups.pop()
            sizes |= {name: count - before} if name else {}
        if count > MAX_VALUES:
            raise ValueError(_TOO_MANY)


def _integer(digits: str) -> int:
    if len(digits) > MAX_INTEGER_BITS:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in pairs:
        if key in tree:
            raise ValueError(f"the key {key!r} stands there twice")
        tree[key] = value
    return tree
