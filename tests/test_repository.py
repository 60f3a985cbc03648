"""The repository itself: who imports whom, what is cheap to import, that the README's tree and every config are
real."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tiny_transformer.config.load import load_run_config
from tiny_transformer.stages.stage import HOMES

PACKAGE = "tiny_transformer"
# docs/DESIGN.md, section 2: a room imports only rooms of the lines below its own, wherever in a file the import stands.
FLOORS = (
    {"__main__", "prepare_dataset", "train", "sample"},
    {"cli"},
    {"stages"},
    {"costs"},
    {"inspection"},
    {"reports"},
    {"quantization"},
    {"interop"},
    {"training"},
    {"evaluation"},
    {"generation"},
    {"data"},
    {"models"},
    {"tokenizers", "parallel"},
    {"layers", "hardware"},
    {"config"},
    {"storage"},
    {"errors"},
)
TORCH_FREE = (
    "cli",
    "config.load",
    "errors",
    "storage",
    "storage.doctor",
    "tokenizers",
    "data.prepare.sources",
    "data.stories",
    "reports.runs_table",
    "costs.command",
)


WALL_CLOCK = {"monotonic", "perf_counter", "time"}  # of the module `time`


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def sources(repository: Path) -> list[Path]:
    return sorted((repository / PACKAGE).rglob("*.py"))


def module_name(path: Path, repository: Path) -> str:
    return ".".join(path.relative_to(repository).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, repository: Path) -> set[str]:
    """Modules of ours that a file imports anywhere: at the top, inside a function, for type checking only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(repository).parent.parts
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] == PACKAGE}


def wrong_imports(repository: Path) -> list[str]:
    """Imports that do not lead to a lower floor, and models that import their siblings."""
    wrong = []
    for path in sources(repository):
        parts = module_name(path, repository).split(".")
        if len(parts) < 2:
            continue
        room = parts[1]
        for name in imports(path, repository):
            other = name.split(".")[1] if name.count(".") else None
            if other not in (None, "__version__", room) and floor_of(other) <= floor_of(room):
                wrong.append(f"{path.relative_to(repository)} imports {name}")
            if room == "models" and len(parts) > 3 and other == "models" and is_sibling(name, parts[2], repository):
                wrong.append(f"{path.relative_to(repository)}: a model imports its sibling {name}")
    return wrong


def is_sibling(name: str, model: str, repository: Path) -> bool:
    other = [*name.split("."), ""][2]
    return other != model and (repository / PACKAGE / "models" / other / "model.py").exists()


def circle(repository: Path) -> str | None:
    """Files that import each other in a circle, as `a -> b -> a`."""
    modules = {module_name(path, repository): path for path in sources(repository)}
    graph = {
        name: {other for other in imports(path, repository) if other in modules and other not in (name, PACKAGE)}
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> str | None:
        if name in path:
            return " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                if found := visit(other, (*path, name)):
                    return found
            done.add(name)
        return None

    return next((found for name in graph if (found := visit(name, ()))), None)


def test_imports_only_point_down(repository: Path) -> None:
    wrong = wrong_imports(repository)
    assert not wrong, "\n".join(wrong)


def test_no_import_circle(repository: Path) -> None:
    assert circle(repository) is None


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("data/order.py", "from tiny_transformer.training.plan import Plan"),
        ("layers/norm.py", "import tiny_transformer.hardware"),
        ("config/load.py", "def late():\n    from tiny_transformer import models"),
        ("storage/fs.py", "if TYPE_CHECKING:\n    from ..config import load"),
        ("models/qwen3/model.py", "from tiny_transformer.models.llama.model import LlamaBlock"),
    ],
)
def test_an_import_that_points_up_or_sideways_is_seen(room: str, line: str, repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / PACKAGE / room
    path.write_text(path.read_text(encoding="utf-8") + "\n" + line + "\n", encoding="utf-8")
    assert [found for found in wrong_imports(tmp_path) if room in found]


def test_a_circle_of_files_is_seen_inside_functions_too(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / PACKAGE / "data/order.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "\ndef late():\n    from tiny_transformer.data import batches\n", encoding="utf-8")
    assert "data.order" in (circle(tmp_path) or "")


@pytest.mark.parametrize("name", TORCH_FREE)
def test_importing_it_does_not_import_torch(name: str) -> None:
    code = f"import sys, {PACKAGE}.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def fastest(arguments: list[str], tries: int = 5) -> float:
    """Seconds of a processor that a command takes at best; what else the machine does counts little."""
    times = []
    for _ in range(tries):
        before = os.times()
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(times)


@pytest.mark.slow
def test_import_and_help_are_quick() -> None:
    bare = fastest([sys.executable, "-c", ""])
    assert fastest([sys.executable, "-c", f"import {PACKAGE}"]) - bare < 0.15
    assert fastest([sys.executable, "-m", PACKAGE, "--help"]) < 0.4


def test_every_help_runs(capsys: pytest.CaptureFixture[str]) -> None:
    from tiny_transformer.cli import app, run

    verbs = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert {"prepare", "train", "generate", "evaluate", "sample", "infer", "list"} <= set(verbs)
    for verb in verbs:
        assert run([verb, "--help"]) == 0
        page = capsys.readouterr().out
        assert "Usage:" in page and "bool" not in page  # switches take no value


def test_every_config_loads(repository: Path) -> None:
    launch_files = repository / "configs/launch"  # these start processes; tests/training has a test for them
    files = sorted(path for path in (repository / "configs").rglob("*.*") if launch_files not in path.parents)
    assert files
    for path in files:
        load_run_config(path)


def test_the_tree_in_the_readme_is_the_tree(repository: Path) -> None:
    """Each path of the README's annotated tree exists, and each room of the package is in it."""
    readme = (repository / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```text\n(tiny-transformer/\n.*?)```", readme, re.DOTALL)
    assert block, "README.md has no tree"
    stack: list[str] = []
    shown = set()
    for line in block[1].splitlines()[1:]:
        match = re.match(r"( *)(\S+)", line)
        assert match, line
        depth = len(match[1]) // 2
        stack = [*stack[: depth - 1], match[2].rstrip("/")]
        shown.add("/".join(stack))
    missing = [name for name in shown if not (repository / name).exists()]
    assert not missing, f"in the README's tree but not there: {missing}"
    rooms = {
        f"{PACKAGE}/{path.name}" for path in (repository / PACKAGE).iterdir() if path.suffix == ".py" or path.is_dir()
    }
    rooms = {room for room in rooms if "__" not in room}
    assert rooms <= shown, f"not in the README's tree: {rooms - shown}"


def test_the_files_that_the_plan_of_the_house_names_are_there(repository: Path) -> None:
    """docs/DESIGN.md: the indented lines of section 2, and every path in backquotes that begins with a room."""
    text = (repository / "docs/DESIGN.md").read_text(encoding="utf-8")
    room, missing = "", []
    for line in text.split("```")[1].splitlines():
        if not line.startswith("  "):
            room = line.split(" ", 1)[0]
            continue
        names = [word for word in re.split(r"\s{2,}", line.strip()) if re.fullmatch(r"[a-z_]+/?", word)]
        missing += [f"{room}/{name}" for name in names if not there(repository / PACKAGE / room / name.rstrip("/"))]
    rooms = "|".join(sorted(set[str]().union(*FLOORS)))
    for path in re.findall(rf"`((?:{rooms})/[a-z_0-9/]{(2,)})(?:\.py)?`", text):
        if not there(repository / PACKAGE / path.rstrip("/")):
            missing.append(path)
    assert missing == []


def there(path: Path) -> bool:
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_environments_agree(repository: Path) -> None:
    """environment.yml installs what `make install` does, and constraints.txt pins every direct dependency."""
    environment = (repository / "environment.yml").read_text(encoding="utf-8")
    assert "-c constraints.txt" in environment and "-e .[dev]" in environment
    project = (repository / "pyproject.toml").read_text(encoding="utf-8")
    pins = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    }
    block = project[project.index("dependencies = [") : project.index("[project.scripts]")]
    wanted = {re.split(r"[<>=\[]", name)[0] for name in re.findall(r'"([a-zA-Z][^"]*)"', block)} - {"tiny-transformer"}
    assert wanted and wanted <= pins, f"not pinned: {wanted - pins}"
    assert "torch==2.13.0" in (repository / "constraints.txt").read_text(encoding="utf-8")


def test_no_test_judges_the_wall_clock_but_those_that_run_alone(repository: Path) -> None:
    """A busy machine must turn no suite red: use the clock of the processor, a made-up one, or the order of things."""
    wrong = []
    for path in sorted((repository / "tests").rglob("test_*.py")):
        for test in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(test, ast.FunctionDef) or not test.name.startswith("test_"):
                continue
            is_alone = any("mark.clock" in ast.unparse(mark) for mark in test.decorator_list)
            calls = [call.func for call in ast.walk(test) if isinstance(call, ast.Call)]
            reads = [f for f in calls if isinstance(f, ast.Attribute) and ast.unparse(f.value) == "time"]
            if not is_alone and any(f.attr in WALL_CLOCK for f in reads):
                wrong.append(f"{path.relative_to(repository)}: {test.name}")
    assert wrong == []


def test_few_dependencies_and_all_pinned(repository: Path) -> None:
    """Eight packages at most are needed to run; what they need in turn is pinned as well."""
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    direct = {re.split(r"[<>=!~\[; ]", name)[0].lower() for name in project["dependencies"]}
    assert len(direct) <= 8
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.split("==")[0].lower().replace("_", "-") for line in lines if line and not line.startswith("#")}
    assert all(
        re.fullmatch(r"[\w.-]+==[\w.+!-]+(\s*;.*)?", line) for line in lines if line and not line.startswith("#")
    )
    todo, seen = set(direct), set()
    while todo:
        name = todo.pop()
        seen.add(name)
        for text in requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo |= {requirement.name.lower().replace("_", "-")} - seen
    assert seen <= pins, f"not pinned: {seen - pins}"


def test_a_stage_is_an_assembly_and_repeats_no_lines_of_another(repository: Path) -> None:
    folder, at, found = repository / "tiny_transformer/stages", {}, []
    for path in sorted(folder.glob("*.py")):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        if path.stem in HOMES:
            assert len(lines) <= 150, path.name
        for first in range(len(lines) - 4):
            window = tuple(lines[first : first + 4])
            if all(len(line) > 15 and not line.startswith(("from ", "import ", "def ")) for line in window):
                found += [(at[window], path.name, window)] if at.setdefault(window, path.name) != path.name else []
    assert found == []


def test_functions_fit_on_a_screen_and_take_few_parameters(repository: Path) -> None:
    """Of the rooms in which they do; the one loop may be longer."""
    too_large = []
    for room in ("cli/training.py", "cli/frame.py", "stages", "training", "storage"):
        path = repository / PACKAGE / room
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef):
                    lines = node.end_lineno - node.lineno + 1
                    parameters = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
                    parameters = [name for name in parameters if name not in ("self", "cls")]
                    if lines > (120 if node.name == "train" else 60) or len(parameters) > 8:
                        too_large.append(f"{file.name} {node.name}: {lines} lines, {len(parameters)} parameters")
    assert not too_large, "\n".join(too_large)
