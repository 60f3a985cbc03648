"""Reading the text of a config within bounds: a few lines can expand into more than any memory holds.

A few lines of YAML whose anchors refer to each other stand for 10^9 values; nesting 10^5 deep ends the parser's stack;
an integer of 10^5 digits cannot even be shown. Real configs are a few kilobytes of tables two deep.
"""

from __future__ import annotations

import json
import re
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage.reading import read_regular

_GRAMMAR = {
    "JSON": "JSON has its keys and texts in double quotes, no comments, and no comma before a closing bracket",
    "TOML": "TOML has lines `key = value` below a line `[section]`, and texts in quotes",
    "YAML": "YAML has lines `key: value` below a line `section:`, each key once, indented with spaces",
}
MAX_CONFIG_BYTES = 256 * 1024
MAX_DEPTH = 20
MAX_VALUES = 5_000  # keys, values and lists together, whatever anchors make of them
MAX_INTEGER_BITS = 128
MAX_NUMBER_LENGTH = 100
# YAML 1.1 reads 1e-3 as text; in a config of numbers it is a number.
_NUMBER = re.compile(r"[-+]?(\d+(_\d+)*\.?\d*|\.\d+)[eE][-+]?\d+")


class _Yaml(yaml.SafeLoader):
    """Safe YAML in which 1:30 and 010 are text; YAML 1.1 reads them as 90 and 8."""


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    looks_otherwise = ":" in node.value or re.fullmatch(r"[-+]?0[0-9_]+", node.value)
    return node.value if looks_otherwise else loader.construct_yaml_int(node)


def _fraction(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    return node.value if ":" in node.value else loader.construct_yaml_float(node)


_Yaml.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Yaml.add_constructor("tag:yaml.org,2002:float", _fraction)


def read_config_file(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The tree in a .json, .yaml, .yml or .toml file, and the line of each `section.key`, as far as it is known.

    Raises:
        UserError: a file that cannot be read, or is no config.
    """
    line_of: dict[str, int] = {}
    try:
        text = read_regular(path, MAX_CONFIG_BYTES).decode("utf-8-sig")
        tree, node = _parse(text, path.suffix.lower())
        tree = numbers(tree)
        _collect_lines(node, "", line_of)
    except OSError as error:
        raise UserError(f"cannot read the config: {error.strerror}", where=str(path), exit_code=ExitCode.IO) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"the config is not UTF-8 text (byte {error.start})",
            where=str(path),
            remedy="save it as UTF-8",
            exit_code=ExitCode.BAD_DATA,
        ) from None
    except UserError as error:
        raise UserError(
            f"cannot read the config: {error.what}", where=error.where, remedy=error.remedy, exit_code=error.exit_code
        ) from None
    except (ValueError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else getattr(error, "lineno", None)
        reason = getattr(error, "problem", None) or getattr(error, "msg", None) or str(error)
        where = f"{path}, line {line}" if line else str(path)
        language = path.suffix[1:].upper().replace("YML", "YAML")
        raise UserError(
            f"the config is not valid {language}: {reason}",
            where=where,
            remedy=_GRAMMAR[language],
            exit_code=ExitCode.BAD_DATA,
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
    return tree, line_of


def _parse(text: str, suffix: str) -> tuple[Any, yaml.Node | None]:
    """The tree in a text of the kind that its suffix says, and the nodes that know their lines, where there are any."""
    if suffix == ".toml":
        return parse_toml(text), None
    if suffix != ".json":
        return parse_yaml(text)
    tree = parse_json(text)
    with suppress(yaml.YAMLError):  # JSON is YAML but for a few letters: only the lines would be missing
        return tree, parse_yaml(text)[1]
    return tree, None


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


def numbers(value: Any) -> Any:
    """Text like 3e-4 as the number it is meant to be, everywhere in a tree."""
    if isinstance(value, dict):
        return {k: numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [numbers(v) for v in value]
    if not isinstance(value, str):
        return value
    if len(value) > MAX_NUMBER_LENGTH:
        if not set(value) - set("0123456789.eE+-_"):
            raise ValueError(f"a number of {len(value):,} characters")
        return value
    return float(value) if _NUMBER.fullmatch(value) else value


def parse_json(text: str) -> Any:
    """The tree in a JSON text.

    Raises:
        ValueError: it is not JSON, has a key twice, or is beyond the bounds.
    """
    _check_nesting(_JSON_TEXT.sub("", text))
    try:
        return checked(json.loads(text, object_pairs_hook=_no_duplicates, parse_int=_integer))
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def parse_toml(text: str) -> Any:
    """The tree in a TOML text. Errors as in `parse_json`."""
    signs = _TOML_TEXT.sub("text", text)
    _check_nesting(signs)
    if _TOML_LONG_NAME.search(signs):
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


def checked(value: Any) -> Any:
    """The value itself, when every integer in it has a sensible length.

    Raises:
        ValueError: the first that is not.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            checked(key)
            checked(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            checked(item)
    elif isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        raise ValueError(f"an integer of more than {MAX_INTEGER_BITS} bits")
    return value


# Texts and comments, to be taken out before signs are counted. What does not end goes on to the end, so that every try
# matches and the time is linear.
_JSON_TEXT = re.compile(r'"(?:\\.|[^"\n])*"?')
_TOML_TEXT = re.compile(
    r'"""(?:\\.|.)*?(?:"""|\Z)|"(?:\\.|[^"\n])*"?|' r"'''.*?(?:'''|\Z)|'[^'\n]*'?|#[^\n]*", re.DOTALL
)
_TOML_LONG_NAME = re.compile(rf"(?<![\w-])[\w-]++(?:[ \t]*\.[ \t]*[\w-]++){{{MAX_DEPTH},}}")
_TOO_DEEP = f"it is nested more than {MAX_DEPTH} deep"
_TOO_MANY = f"it stands for more than {MAX_VALUES:,} keys and values"


def _check_nesting(signs: str) -> None:
    """Brackets, in what is left without texts and comments: parsers go one call deeper at each."""
    depth = 0
    for sign in re.findall(r"[\[\]{}]", signs):
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
