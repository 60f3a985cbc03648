"""What is checked of the written pages: each check is a function of their text and gives a list of what is wrong.

`test_docs.py` calls them with the pages as they are, `test_docs_faults.py` with faults planted.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import doc_blocks
import typer

from tiny_transformer.cli import app
from tiny_transformer.config.keys import is_key, is_switch

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "tiny_transformer"
FENCED = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```[ \t]*$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
MODULES = {"prepare_dataset": "prepare", "train": "train", "sample": "generate"}
ELSEWHERE = ("http://", "https://", "mailto:")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
           "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty")  # fmt: skip
Pages = dict[str, str]


def read_pages() -> Pages:
    """Every page of Markdown by its path from the root: those that stand there, and docs."""
    paths = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
    return {str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8") for path in sorted(paths)}


# --- links and pictures


def prose(text: str) -> str:
    """A page without its blocks and comments."""
    return COMMENT.sub("", FENCED.sub("", text))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(text), re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", LINK.sub(r"\2", heading).lower()).replace(" ", "-")
        number, name = 0, words
        while name in found:
            number += 1
            name = f"{words}-{number}"
        found.add(name)
    return found


def dead_links(pages: Pages) -> list[str]:
    """Links to files that are not there, or to headings that a page has not; and links out of the checkout."""
    wrong = []
    for name, text in pages.items():
        for _, _, target in LINK.findall(SPAN.sub("", prose(text))):
            if target.startswith(ELSEWHERE):
                continue
            file, _, anchor = target.partition("#")
            path = (REPOSITORY / name).parent / file if file else REPOSITORY / name
            inside = path.resolve().is_relative_to(REPOSITORY)
            other = str(path.resolve().relative_to(REPOSITORY)) if inside else ""
            if not inside or not (path.exists() or other in pages):
                wrong.append(f"{name}: no file {target}")
            elif anchor and anchor not in anchors(pages.get(other, "")):
                wrong.append(f"{name}: no heading {target}")
    return wrong


def pictures_without_words(pages: Pages) -> list[str]:
    """Pictures that say nothing to who cannot see them."""
    wrong = []
    for name, text in pages.items():
        bare = prose(text)
        wrong += [f"{name}: {target}" for mark, alt, target in LINK.findall(bare) if mark and len(alt.split()) < 3]
        wrong += [f"{name}: {tag}" for tag in re.findall(r"<img[^>]*>", bare) if not re.search(r'alt="[^"]{9,}"', tag)]
    return wrong


def dead_sources(pages: Pages) -> list[str]:
    """Source markers whose file or name is gone, and blocks that are no longer what they name."""
    wrong = []
    for name, text in pages.items():
        try:
            if doc_blocks.filled(text) != text:
                wrong.append(f"{name}: a block is not its source any more (python tests/doc_blocks.py {name})")
        except LookupError as error:
            wrong.append(f"{name}: {error}")
    return wrong


# --- blocks


def blocks(text: str, *languages: str) -> Iterator[str]:
    """The blocks of a page in these languages, without their indentation."""
    for indent, language, body in FENCED.findall(text):
        if language in languages:
            yield "\n".join(line.removeprefix(indent) for line in body.splitlines())


def broken_blocks(pages: Pages) -> list[str]:
    """Fences without an end, lines that leave the list their block is in (it ends there, and its closing fence opens a
    block over what follows), Python that does not parse, and names that the package does not have."""
    wrong = []
    for name, text in pages.items():
        if text.count("\n```") % 2:
            wrong.append(f"{name}: a block has no end")
        for indent, _, body in FENCED.findall(text):
            outside = [line for line in body.splitlines() if line and not line.startswith(indent)]
            wrong += [f"{name}: not indented as its block is: {line}" for line in outside]
        for body in blocks(text, "python"):
            try:
                tree = ast.parse(body.replace(">>> ", ""))
            except SyntaxError as error:
                wrong.append(f"{name}: {error.msg} in: {(error.text or '').strip()}")
                continue
            wrong += [f"{name}: {problem}" for problem in _missing_names(tree)]
    return wrong


def _missing_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE.name:
            try:
                module = importlib.import_module(node.module or "")
            except ImportError:
                yield f"no module {node.module}"
                continue
            for alias in node.names:
                path = Path(*(node.module or "").split("."), f"{alias.name}.py")
                if not hasattr(module, alias.name) and not (REPOSITORY / path).exists():
                    yield f"{node.module} has no {alias.name}"


# --- commands


def command_lines(text: str) -> Iterator[str]:
    """Our commands in a page: lines of its shell blocks, and spans of code that begin with the program."""
    for body in blocks(text, "bash", "sh"):
        for line in body.replace("\\\n", " ").splitlines():
            yield line.removeprefix("$ ")
    for span in SPAN.findall(prose(text)):
        if span.startswith("tiny-transformer "):
            yield span


def wrong_commands(pages: Pages) -> list[str]:
    """Commands with a verb, option or key that there is not."""
    return [
        f"{name}: {problem}: {line.strip()}"
        for name, text in pages.items()
        for line in command_lines(text)
        if (problem := _problem_of(line))
    ]


def _problem_of(line: str) -> str | None:
    words = [word for word in _words(line) if word != "nohup" and not re.match(r"[A-Z_]+=", word)]
    if words[:1] == ["torchrun"] and "tiny_transformer" in words:
        words = ["tiny-transformer", *words[words.index("tiny_transformer") + 1 :]]
    if words[:2] == ["python", "-m"] and words[2:3] == ["tiny_transformer"]:
        words = ["tiny-transformer", *words[3:]]
    if words[:2] == ["python", "-m"] and words[2].startswith("tiny_transformer."):
        module = words[2].split(".")[1]
        words = ["tiny-transformer", MODULES[module], *words[3:]] if module in MODULES else []
    if words[:1] != ["tiny-transformer"] or words[1:2] in ([], ["..."]):
        return None
    return _refusal(words[1], words[2:])


def _words(line: str) -> list[str]:
    """The words up to the end of the first command; a placeholder is a word like any other."""
    try:
        words = shlex.split(line.replace("[", "").replace("]", "") if " [--" in line else line, comments=True)
    except ValueError:
        words = line.split()
    end = next((i for i, word in enumerate(words) if word in ("|", ">", "&&", ";", "&", "<", "||")), len(words))
    return [word.removesuffix(";") for word in words[:end] if word != "..."]


def _refusal(verb: str, words: list[str]) -> str | None:
    command = _commands().get(verb)
    if command is None:
        return None if verb.startswith("-") else f"no verb {verb}"
    given = [word.partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    known = _options(command)
    is_open = command.context_settings.get("ignore_unknown_options")
    unknown = [name for name in given if name not in {*known, "__help"} and not (is_open and _is_key(name))]
    return f"no option {unknown[0].replace('_', '-', 2)}" if unknown else None


@cache
def _commands() -> dict[str, Any]:
    return typer.main.get_command(app).commands  # ty: ignore[unresolved-attribute]


def _options(command: Any) -> set[str]:
    return {option.replace("-", "_") for param in command.params for option in (*param.opts, *param.secondary_opts)}


@cache
def _is_key(name: str) -> bool:
    key = name.removeprefix("__")
    return is_key(key) or is_switch(key)


def wrong_options(pages: Pages) -> list[str]:
    """Options of ours named in the text, that no verb has and that are no key; `OTHERS` are of other programs."""
    known = set[str]().union(*map(_options, _commands().values()))
    wrong = []
    for name, text in pages.items():
        for span in SPAN.findall(prose(text)):
            option = re.match(r"--[a-z][\w.-]*", span)
            if option and option[0] not in OTHERS:
                word = option[0].replace("-", "_")
                if word not in known and not _is_key(word):
                    wrong.append(f"{name}: {option[0]}")
    return wrong


# --- files, extras, counts

OTHERS = {
    "--no-deps",
    "--help",
    "--nproc-per-node",
    "--against",
    "--check",
    "--write",
    "--only",
    "--lengths",
    "--exact",
}
OURS = re.compile(
    r"(?<![\w/.])((?:tests|benchmarks|configs|docs|cases|notebooks)/[\w./-]+\.(?:py|yaml|yml|json|md|svg|txt|ipynb|sh))\b"
)


def missing_files(pages: Pages) -> list[str]:
    """Files of the checkout that a page names in code and that are not there."""
    wrong = []
    for name, text in pages.items():
        for path in OURS.findall(text):
            if not (REPOSITORY / path).exists():
                wrong.append(f"{name}: {path}")
    return wrong


def missing_extras(pages: Pages, project: str) -> list[str]:
    """Extras that a page installs and pyproject.toml does not have."""
    extras = tomllib.loads(project)["project"]["optional-dependencies"]
    wrong = []
    for name, text in pages.items():
        for found in re.findall(r"(?:-e '?\.|tiny-transformer)\[([a-z,_-]+)\]", text):
            wrong += [f"{name}: [{extra}]" for extra in found.split(",") if extra not in extras]
    return wrong


def stale_counts(pages: Pages) -> list[str]:
    """README's numbers of files on each road that are not those of DESIGN's lists, which `roads.py` traces; and the
    number of the learning path's pages."""
    design, readme = pages["docs/DESIGN.md"], pages["README.md"]
    counts = re.findall(r"^- \*(.+?)\.\* .*?The whole way, (\d+) files: (.+)\.$", design, re.MULTILINE)
    wrong = [] if counts else ["docs/DESIGN.md: no road"]
    for road, number, files in counts:
        if len(files.split(", ")) != int(number):
            wrong.append(f"docs/DESIGN.md: {road} is not {number} files")
        if not re.search(rf"\| {road}[^|]*\|[^|]*\| {number} \|", readme, re.IGNORECASE):
            wrong.append(f"README.md: {road} is {number} files")
    said = re.search(r"(\w+) pages, one idea each", pages["docs/LEARNING_PATH.md"])
    if said is None or NUMBERS.index(said[1].lower()) + 2 != sum(name.startswith("docs/learn/") for name in pages):
        wrong.append("docs/LEARNING_PATH.md: the number of its pages")
    return wrong


# --- the code's own words, the keys of others, the log


def package_sources() -> Pages:
    """Every module of the package."""
    return {str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


def undocumented(sources: Pages) -> list[str]:
    """Public modules, classes, functions and methods without a docstring. A method may have that of the contract it
    fulfils: one of the same name elsewhere in the package, or in a library (`INHERITED`)."""
    trees = {name: ast.parse(text) for name, text in sources.items()}
    told = {
        node.name
        for tree in trees.values()
        for owner in ast.walk(tree)
        if isinstance(owner, ast.ClassDef)
        for node in owner.body
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node)
    }
    wrong = [name for name, tree in trees.items() if tree.body and not ast.get_docstring(tree)]
    for name, tree in trees.items():
        wrong += [f"{name}: {symbol}" for symbol in _undocumented(tree, told | INHERITED)]
    return wrong


INHERITED = {"close", "extra_repr", "readable"}  # of io and of torch.nn


def _undocumented(owner: ast.Module | ast.ClassDef, told: set[str]) -> Iterator[str]:
    for node in owner.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
            continue
        inherits = isinstance(owner, ast.ClassDef) and (node.name in told or _is_another_s(node))
        if not ast.get_docstring(node) and not inherits:
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{name}" for name in _undocumented(node, told))


def _is_another_s(node: ast.ClassDef | ast.FunctionDef) -> bool:
    """Whether a method only says what another object has (`...`), or hands its arguments on to another's method of
    its name."""
    last = ast.unparse(node.body[-1])
    return last == "..." or (len(node.body) == 1 and f".{node.name}" in last)


def missing_old_keys(page: str, keys: Iterable[str]) -> list[str]:
    """Keys of older projects, with their section, that are read here and that docs/COMING_FROM.md, `page`, has not."""
    words = set(re.findall(r"\w+", page))
    return [key for key in keys if key.rpartition(".")[2] not in words]


def newest_day(log: str) -> str:
    """The entries of docs/LOG.md of its last day: older ones name what was there when they were written."""
    entries = re.split(r"^(?=## \d{4}-\d\d-\d\d)", log, flags=re.MULTILINE)[1:]
    day = max(entry[3:13] for entry in entries)
    return "".join(entry for entry in entries if entry[3:13] == day)
