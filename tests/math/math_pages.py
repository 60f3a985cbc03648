"""Reads the formulas of a page of training mathematics, makes a module of them, and turns their signs around.

A page is Markdown; each of its fenced blocks is Python whose first line names a test. The blocks of a page, and of the
page before it, are run in order in one module that has numpy as `np` and nothing else.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import CodeType, ModuleType

import numpy as np

FENCE = "```"
CLAIM = "# test: "
OTHERS = {
    "+": "-",
    "-": "+",
    "*": "/",
    "/": "*",
    "**": "*",
    "//": "*",
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "==": "!=",
    "!=": "==",
    "&": "|",
    "+=": "-=",
    "-=": "+=",
    "in": "not in",
}


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        path: of the page.
        line: of the page, where the code begins, counted from 1.
        language: what the fence names.
        source: the code.
    """

    path: Path
    line: int
    language: str
    source: str

    @property
    def claim(self) -> str:
        """The test that the first line names, or the empty string."""
        first = self.source.partition("\n")[0]
        return first.removeprefix(CLAIM) if first.startswith(CLAIM) else ""

    @cached_property
    def code(self) -> CodeType:
        """The block compiled, with the page's line numbers."""
        return importlib.abc.InspectLoader.source_to_code("\n" * (self.line - 1) + self.source, str(self.path))

    def turned(self) -> Iterator[tuple[str, Block]]:
        """The block with one sign or operator replaced by another, for each of them, and words that say which."""
        lines = self.source.splitlines(keepends=True)
        for row, column, sign in _signs(self.source):
            line = lines[row - 1]
            changed = line[:column] + OTHERS[sign] + line[column + len(sign) :]
            source = "".join([*lines[: row - 1], changed, *lines[row:]])
            what = f"{self.path.name}:{self.line + row - 1}: {line.strip()}  ->  {changed.strip()}"
            yield what, replace(self, source=source)


@dataclass(frozen=True)
class Page:
    """A page's text and blocks; `before`: the blocks of the page it goes on from."""

    path: Path
    text: str
    blocks: tuple[Block, ...]
    before: tuple[Block, ...] = ()


def read_page(path: Path, after: Page | None = None) -> Page:
    """The page with its blocks."""
    text = path.read_text(encoding="utf-8")
    lines, blocks, start = text.splitlines(), [], None
    for number, line in enumerate(lines):
        if line.startswith(FENCE):
            if start is None:
                start = number
            else:
                source = "\n".join(lines[start + 1 : number]) + "\n"
                blocks.append(Block(path, start + 2, lines[start].removeprefix(FENCE), source))
                start = None
    if start is not None:
        raise ValueError(f"{path.name}:{start + 1}: a block that does not end")
    return Page(path, text, tuple(blocks), () if after is None else after.blocks)


def load(page: Page, *, instead: tuple[Block, Block] | None = None) -> ModuleType:
    """A module of the page's formulas; `instead`: a block, and the one to take in its place."""
    spec = importlib.machinery.ModuleSpec(page.path.stem.lower(), loader=None)
    module = importlib.util.module_from_spec(spec)
    module.np = np
    for block in (*page.before, *page.blocks):
        _BlockLoader(instead[1] if instead and block is instead[0] else block).exec_module(module)
    return module


class _BlockLoader(importlib.abc.InspectLoader):
    """Runs a block in a module that has run the blocks before it."""

    def __init__(self, block: Block) -> None:
        self._block = block

    def get_source(self, fullname: str) -> str:
        return self._block.source

    def get_code(self, fullname: str) -> CodeType:
        return self._block.code


def _signs(source: str) -> list[tuple[int, int, str]]:
    """Row (from 1), column and text of every arithmetic sign, comparison and negation in Python code."""
    found = []
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.string in OTHERS]
    for node in ast.walk(ast.parse(source)):
        for start, end in _gaps(node):
            found += [(*t.start, t.string) for t in tokens if start <= t.start and t.end <= end]
    return sorted(found)


def _gaps(node: ast.AST) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where a node's signs stand: between its operands."""

    def start(part: ast.expr) -> tuple[int, int]:
        return part.lineno, part.col_offset

    def end(part: ast.expr) -> tuple[int, int]:
        return part.end_lineno or part.lineno, part.end_col_offset or part.col_offset

    if isinstance(node, ast.BinOp):
        yield end(node.left), start(node.right)
    elif isinstance(node, ast.UnaryOp):
        yield start(node), start(node.operand)
    elif isinstance(node, ast.AugAssign):
        yield end(node.target), start(node.value)
    elif isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        for left, right in pairwise(operands):
            yield end(left), start(right)
