"""No line of the tree runs code that came in a file: checked on the syntax tree, with names resolved.

Every mention of a forbidden function counts, not only a call: who holds it can call it. Names are followed through
imports, assignments, attribute chains and `getattr` with a plain string. What is put together at run time from
strings is beyond such a check; so are the insides of other packages.
"""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

# A forbidden name forbids all behind it: "torch.jit" also torch.jit.load.
FORBIDDEN = (
    *("pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve", "runpy", "code", "codeop"),
    *("torch.load", "torch.save", "torch.serialization", "torch.jit", "torch.export", "torch.hub", "torch.package"),
    *("torch.utils.model_zoo", "torch.utils.data.datapipes"),
    *("numpy.load", "numpy.lib.format", "numpy.lib.npyio", "pandas.read_pickle", "importlib.reload"),
    *(f"yaml.{kind}load{all_}" for kind in ("", "unsafe_", "full_") for all_ in ("", "_all")),
    *("yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "yaml.CLoader", "yaml.CUnsafeLoader", "yaml.CFullLoader"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell"),
    *(f"os.exec{how}" for how in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
    *(f"os.spawn{how}" for how in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
    *("os.posix_spawn", "os.posix_spawnp", "pty.spawn"),
    *(f"builtins.{name}" for name in ("eval", "exec", "compile", "__import__")),
    "__builtins__",
)
COLLECTIVES = re.compile(r"torch\.distributed\.(\w+\.)*\w*object(_list)?")  # they send pickles
SWITCHES = ("shell", "trust_remote_code", "allow_pickle")
# Functions and the number of positional arguments before the one that is a switch, or leads to it.
POSITIONS = {"subprocess.run": 1, "subprocess.Popen": 1, "subprocess.call": 1, "subprocess.check_call": 1}
POSITIONS |= {"subprocess.check_output": 1, "numpy.save": 2}
# `needs` of the loggers, whose callers give it plain names.
ALLOWED = {("tiny_transformer/training/loggers.py", "imports a module by a name that is not plain")}
# The pages of this repository are pasted into a console line by line, as their reader would.
ALLOWED |= {
    ("tests/doc_blocks.py", what) for what in ("imports code", "mentions code", "mentions code.InteractiveConsole")
}
IMPORTERS = ("importlib.import_module", "importlib.__import__")


def is_forbidden(name: str) -> bool:
    return any(name == entry or name.startswith(entry + ".") for entry in FORBIDDEN) or bool(COLLECTIVES.match(name))


class Names:
    """What each name of a module may stand for."""

    def __init__(self, tree: ast.AST) -> None:
        self.meanings: dict[str, set[str]] = {}
        assignments = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    whole = alias.name if alias.asname else alias.name.split(".")[0]
                    self.meanings.setdefault(alias.asname or whole, set()).add(whole)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                for alias in node.names:
                    self.meanings.setdefault(alias.asname or alias.name, set()).add(f"{node.module}.{alias.name}")
            elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                assignments += [pair for target in targets for pair in _pairs(target, node.value)]
            elif isinstance(node, ast.arguments):
                inputs = [*node.posonlyargs, *node.args][::-1]
                assignments += [(a.arg, v) for a, v in zip(inputs, node.defaults[::-1], strict=False)]
                assignments += [(a.arg, v) for a, v in zip(node.kwonlyargs, node.kw_defaults, strict=True) if v]
        for _ in range(4):  # an alias of an alias of an alias
            for name, value in assignments:
                if meanings := self.of(value):
                    self.meanings.setdefault(name, set()).update(meanings)

    def of(self, node: ast.AST) -> set[str]:
        """The dotted names an expression may stand for; none where it stands for something else."""
        if isinstance(node, ast.Name):
            known = self.meanings.get(node.id, set())
            return known | ({f"builtins.{node.id}"} if hasattr(builtins, node.id) and not known else set())
        if isinstance(node, ast.Attribute):
            return {f"{name}.{node.attr}" for name in self.of(node.value)}
        if isinstance(node, (ast.IfExp, ast.BoolOp)):
            return {name for part in ast.iter_child_nodes(node) for name in self.of(part)}
        if isinstance(node, ast.Call) and self.of(node.func) == {"builtins.getattr"} and len(node.args) > 1:
            attribute = _text(node.args[1])
            return {f"{name}.{attribute}" for name in self.of(node.args[0])} if attribute else set()
        if isinstance(node, ast.Call) and self.of(node.func) & {*IMPORTERS, "builtins.__import__"} and node.args:
            return {_text(node.args[0])} - {""}
        return set()


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (ast.Tuple, ast.List)):
        for inner, part in zip(target.elts, value.elts, strict=False):
            yield from _pairs(inner, part)


def _text(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def findings(source: str, *, ours: bool = True) -> list[str]:
    """What a module does that it must not, with line numbers; `ours`: the stricter rules of the package."""
    tree = ast.parse(source)
    names = Names(tree)
    return [
        f"{getattr(node, 'lineno', 0)}: {what}" for node in ast.walk(tree) for what in _wrong(node, names, ours=ours)
    ]


def _wrong(node: ast.AST, names: Names, *, ours: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (f"imports {alias.name}" for alias in node.names if is_forbidden(alias.name))
    elif isinstance(node, ast.ImportFrom) and not node.level:
        whole = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (f"imports {name}" for name in whole if is_forbidden(name))
        yield from (f"imports everything of {node.module}" for alias in node.names if alias.name == "*")
    elif isinstance(node, ast.Call) or (isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load)):
        yield from (f"mentions {name}" for name in sorted(names.of(node)) if is_forbidden(name))
        if isinstance(node, ast.Name) and node.id == "__builtins__":
            yield "mentions __builtins__"
    if isinstance(node, ast.Call):
        yield from _wrong_call(node, names, ours=ours)
    if ours and isinstance(node, ast.Constant) and "trust_remote_code" in _text(node):
        yield "names trust_remote_code"
    if ours and isinstance(node, ast.Assert) and not re.fullmatch(r"[\w.]+ is not None", ast.unparse(node.test)):
        yield "validates with assert, which python -O leaves out"


def _wrong_call(node: ast.Call, names: Names, *, ours: bool) -> Iterator[str]:
    for keyword in node.keywords:
        given = {keyword.arg: keyword.value}
        if keyword.arg is None and isinstance(keyword.value, ast.Dict):  # f(**{"shell": True})
            keys = [_text(key) if key else "" for key in keyword.value.keys]
            given = dict(zip(keys, keyword.value.values, strict=True))
        for name, value in given.items():
            if name in SWITCHES and not (isinstance(value, ast.Constant) and value.value is False):
                yield f"gives {name}"
    for name in names.of(node.func):
        if len(node.args) > POSITIONS.get(name, len(node.args)):
            yield f"gives {name} more than it should without a name"
        if ours and name in IMPORTERS and not re.match(r"'|f'(tiny_transformer\.|\{__name__\}\.)", _shown(node)):
            yield "imports a module by a name that is not plain"


def _shown(call: ast.Call) -> str:
    return ast.unparse(call.args[0]).replace('"', "'") if call.args else ""


# Each runs a program that a file may hold, or would let a file through that it should stop.
ESCAPES = [
    "import pickle",
    "from dill import loads",
    "from torch import load as get\nget('x')",
    "import torch as t\nt.load('x')",
    "import numpy as np\nnp.load('x')",
    "eval('1')",
    "import importlib\nimportlib.import_module('pickle')",
    "__import__('pickle')",
    "import subprocess\nsubprocess.run('x', shell=True)",
    "AutoModel.from_pretrained('x', trust_remote_code=flag)",
    "import yaml\nyaml.load(x)",
    "from os import system\nsystem('x')",
    "import torch\nload = torch.load\nload('x')",
    "from torch import serialization\nserialization.load('x')",
    "import torch.serialization as s\ns.load('x')",
    "import torch\ntorch.jit.load('x')",
    "import torch\ntorch.export.load('x')",
    "import builtins\nbuiltins.eval('1')",
    "f = eval\nf('1')",
    "import torch\nfrom functools import partial\npartial(torch.load, 'x')()",
    "from torch import *\nload('x')",
    "AutoModel.from_pretrained('x', **{'trust_remote_code': True})",
    "import numpy\nnumpy.lib.format.read_array(f, True)",
    "import yaml\nyaml.load_all(x)",
    "import subprocess\nsubprocess.getoutput('x')",
    "import os\nos.execv('x', [])",
    "import runpy\nrunpy.run_path('x')",
    "import torch\ntorch.utils.model_zoo.load_url('x')",
    "import torch\na = b = torch\nc = a\nc.load('x')",
    "import torch\nt, _ = torch, 1\nt.load('x')",
    "import torch\ngetattr(torch, 'load')('x')",
    "import torch\ndef f(get=torch.load): get('x')",
    "import torch\n(torch if x else y).load('x')",
    "import importlib\nimportlib.import_module('torch').load('x')",
    "import importlib\nimportlib.import_module(config['class'])",
    "import numpy as np\nnp.save(f, x, True)",
    "import subprocess\nsubprocess.Popen('x', -1, None, None, None, None, None, True, True)",
    "import subprocess\nsubprocess.run('x', **{'shell': True})",
    "options = {}\noptions['trust_remote_code'] = True",
    "__builtins__['eval']('1')",
    "import torch.distributed as dist\ndist.broadcast_object_list(x)",
    "assert 0 <= i < n, 'i is out of range'",
]
HARMLESS = [
    "model.eval()",
    "import re\nre.compile('x')",
    "import torch\ntorch.compile(model)",
    "import yaml\nyaml.safe_load(x)",
    "import subprocess\nsubprocess.run(['x'], check=True)",
    "from transformers import AutoModel\nAutoModel.from_pretrained('x', trust_remote_code=False)",
    "from importlib import import_module\nimport_module(f'tiny_transformer.models.{kind}.model')",
    "import numpy as np\nnp.save(f, x, allow_pickle=False)",
    "assert self.size is not None",
    "class Config:\n    compile: bool = False",
]


@pytest.mark.parametrize("line", ESCAPES)
def test_the_check_sees_it(line: str) -> None:
    assert findings(line)


@pytest.mark.parametrize("line", HARMLESS)
def test_the_check_lets_it_pass(line: str) -> None:
    assert not findings(line)


def test_nothing_in_the_tree_runs_foreign_code(repository: Path) -> None:
    wrong = []
    for folder in ("tiny_transformer", "tests", "benchmarks"):
        for path in sorted((repository / folder).rglob("*.py")):
            found = findings(path.read_text(encoding="utf-8"), ours=folder == "tiny_transformer")
            name = path.relative_to(repository).as_posix()
            wrong += [f"{name}:{what}" for what in found if (name, what.partition(": ")[2]) not in ALLOWED]
    for path in [repository / "README.md", *sorted((repository / "docs").rglob("*.md"))]:
        for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            wrong += [f"{path.name}: {what}" for what in findings(textwrap.dedent(block))]
    assert not wrong, "\n".join(wrong)
