"""Pages of Markdown that are executed: their shell and Python blocks are run, shown outputs compared, source filled in.

How a page is written:

- A fenced block of `bash` or `python` is run, in the order of the page; under `<!-- not run: REASON -->` it is not.
- A block of `text` behind it is what it prints. The line above the block says how exactly:
      Expected, exactly:
      Expected, numbers within 5 %:      numbers with a decimal point may differ so far; whole numbers and words may not
      For example:                       your words will differ; the first three words may not
  Of the first two each line must come, in this order, others may come between; `...` in a line stands for anything.
- Above a block of Python `<!-- source: tiny_transformer/layers/norm.py:RMSNorm.forward -->` says whose source it is.
  `python tests/doc_blocks.py PAGE ...` writes it there; a test compares.
"""

from __future__ import annotations

import ast
import code
import contextlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
MODULES = {"prepare_dataset": "prepare", "train": "train", "sample": "generate"}
SOURCE = re.compile(r"<!-- source: (\S+?\.py)(?::([\w.]+))? -->")
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->")
FENCE = re.compile(r"^( *)(`{3,})(\S*)\s*$")
WITHIN = re.compile(r"numbers within ([\d.]+) ?%")
NUMBER = re.compile(r"\d[\d,]*\.\d+(?:e[+-]?\d+)?|\d+e[+-]?\d+|\d[\d,]*")
GAP = "..."


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        path, line: where its first line stands, counted from 1.
        language: what the fence names.
        text: what is between the fences, without its indentation.
        above: the last line before it that is not empty.
    """

    path: Path
    line: int
    language: str
    text: str
    above: str

    @property
    def place(self) -> str:
        return f"{self.path.name}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.language in ("bash", "python") and not NOT_RUN.search(self.above) and not SOURCE.search(self.above)

    @property
    def is_output(self) -> bool:
        return self.language == "text" and self.above.rstrip().endswith((":", ":*", ":**")) and bool(_how(self.above))


def blocks_of(path: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, above, lines = [], "", path.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        if match := FENCE.match(lines[number]):
            indent, fence, language = match.groups()
            end = next(i for i in range(number + 1, len(lines)) if lines[i].strip() == fence)
            text = "".join(line.removeprefix(indent) + "\n" for line in lines[number + 1 : end])
            found.append(Block(path, number + 2, language, text, above))
            number = end
        elif lines[number].strip():
            above = lines[number].strip()
        number += 1
    return found


# --- source by marker -------------------------------------------------------------------------------------------------


def source_of(file: str, name: str | None = None) -> str:
    """The lines of a file of the checkout, or of a class, a function, a method, or a constant of that module.

    Raises:
        LookupError: there is no such file or name.
    """
    path = REPOSITORY / file
    if not path.is_file():
        raise LookupError(f"{file}: no such file")
    text = path.read_text(encoding="utf-8")
    if not name:
        return text
    node = _find(ast.parse(text).body, name)
    if node is None:
        raise LookupError(f"{file}: no {name} there")
    first = min([node.lineno, *(line.lineno for line in getattr(node, "decorator_list", []))])
    lines = text.splitlines()[first - 1 : node.end_lineno]
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "".join(line[indent:] + "\n" for line in lines)


def _find(body: list[ast.stmt], name: str) -> ast.stmt | None:
    """The statement that a dotted name leads to."""
    first, _, rest = name.partition(".")
    node = next((child for child in body if first in _names(child)), None)
    return _find(getattr(node, "body", []), rest) if rest else node


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def filled(page: str) -> str:
    """The page with the block behind each source marker as the source is now."""

    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}\n```python\n{source_of(match[2], match[3])}```\n"

    return re.sub(rf"({SOURCE.pattern})\n```python\n(?:(?!```).*\n)*```\n", fill, page)


# --- what a block prints ----------------------------------------------------------------------------------------------


def _how(above: str) -> str:
    """`exactly`, `within`, `example`, or nothing where the line announces no output."""
    if "For example" in above:
        return "example"
    if "Expected" not in above:
        return ""
    return "within" if WITHIN.search(above) else "exactly" if "exactly" in above else ""


def difference(shown: Block, printed: str) -> str | None:
    """What of a shown output was not printed; None when all was."""
    kind = _how(shown.above)
    if kind == "example":
        start = shown.text.split()[:3]
        return None if " ".join(start) in " ".join(printed.split()) else f"{' '.join(start)!r} was not printed"
    match = WITHIN.search(shown.above)
    tolerance = float(match[1]) / 100 if match else 0.0
    lines = iter(printed.splitlines())
    for line in shown.text.splitlines():
        if line.strip() not in ("", GAP) and not any(_alike(line, other, tolerance) for other in lines):
            return f"this line was not printed, or not in this order:\n    {line}"
    return None


def _alike(shown: str, printed: str, tolerance: float) -> bool:
    """Words and whole numbers equal, numbers with a point close, blanks and frames of tables of no account."""
    pattern, numbers = [], []
    for part in re.split(rf"(\s*{re.escape(GAP)}\s*|{NUMBER.pattern}|\s+)", _plain(shown)):
        if part.strip() == GAP:
            pattern.append(".*?")
        elif not part.strip():
            pattern.append(r"\s+" if part else "")
        elif NUMBER.fullmatch(part) and tolerance and not part.replace(",", "").isdigit():
            pattern.append(rf"({NUMBER.pattern})")
            numbers.append(part)
        else:
            pattern.append(re.escape(part))
    match = re.fullmatch("".join(pattern), _plain(printed))
    return bool(match) and all(_near(a, b, tolerance) for a, b in zip(numbers, match.groups(), strict=True))


def _plain(line: str) -> str:
    return " ".join(re.sub("[│╭╮╰╯─]+", " ", line).split())


def _near(shown: str, printed: str, tolerance: float) -> bool:
    wanted, got = (float(text.replace(",", "")) for text in (shown, printed))
    return abs(wanted - got) <= tolerance * abs(wanted) + 1e-12


# --- running ----------------------------------------------------------------------------------------------------------


class Console(code.InteractiveConsole):
    """Python as somebody sees it who pastes blocks: one session, one line after the other; an error ends it."""

    def showtraceback(self) -> None:
        raise RuntimeError(f"the block failed with {sys.exc_info()[0]}: {sys.exc_info()[1]}") from sys.exc_info()[1]

    def showsyntaxerror(self, filename: str | None = None, **more: object) -> None:
        raise RuntimeError(f"a line cannot be pasted into Python: {sys.exc_info()[1]}")

    def paste(self, text: str) -> None:
        """Run a block."""
        if [self.push(line) for line in [*text.splitlines(), ""]][-1]:
            raise RuntimeError("the block ends within a statement")


def commands_in(block: Block) -> list[list[str]]:
    """The commands of a shell block, as words; a line that ends with a backslash goes on."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def as_ours(words: list[str]) -> list[str] | None:
    """Verb and words of a command of ours; None for another program's."""
    if words[0] == "tiny-transformer":
        return words[1:]
    if words[:2] == ["python", "-m"] and words[2].startswith("tiny_transformer."):
        return [MODULES[words[2].split(".")[1]], *words[3:]]
    return None


def run_page(blocks: Iterable[Block], console: Console, others: Callable[[list[str]], str] | None = None) -> list[str]:
    """Run the blocks of a page in the present directory; commands of ours are run in this process.

    Args:
        blocks: from `blocks_of`.
        console: holds the names that Python blocks define.
        others: runs a command of another program and gives what it prints; None: there may be none.

    Returns:
        What went otherwise than the page says.
    """
    wrong, printed = [], ""
    for block in blocks:
        if block.is_output:
            if told := difference(block, printed):
                wrong.append(f"{block.place}: {told}\n  printed was:\n{printed}")
        elif block.is_run:
            try:
                printed = _run(block, console, others)
            except RuntimeError as error:
                return [*wrong, f"{block.place}: {error}"]
    return wrong


def _run(block: Block, console: Console, others: Callable[[list[str]], str] | None) -> str:
    from tiny_transformer.cli import run

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        if block.language == "python":
            console.paste(block.text)
            return out.getvalue()
        for words in commands_in(block):
            ours = as_ours(words)
            if ours is not None and (code := run(ours)):
                raise RuntimeError(f"{shlex.join(words)} ended with {code}:\n{out.getvalue()}")
            if ours is None:
                if others is None:
                    raise RuntimeError(f"{shlex.join(words)} is a command of another program")
                out.write(others(words))
    return out.getvalue()


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"{page} written anew")
