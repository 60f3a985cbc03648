"""No line of the tree runs code that came in a file: checked on the syntax tree, so that no alias hides it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PICKLES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "marshal", "shelve", "_pickle"}
FORBIDDEN_CALLS = {
    *("torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen"),
    *("eval", "exec", "compile", "torch.hub.load", "numpy.load", "np.load", "pandas.read_pickle"),
}
FORBIDDEN_ARGUMENTS = {"shell", "trust_remote_code", "allow_pickle"}


def findings(source: str) -> list[str]:
    """What a module does that it must not, with line numbers."""
    found, aliases = [], {}
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.name, alias.asname or alias.name.split(".")[0]) for alias in node.names]
            aliases |= {short: name for name, short in names if name != short}
            found += [f"{node.lineno}: imports {name}" for name, _ in names if name.split(".")[0] in PICKLES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            aliases |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in node.names if not node.level}
            found += [f"{node.lineno}: imports {module}"] if module.split(".")[0] in PICKLES else []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, *rest = ast.unparse(node.func).split(".")
        name = ".".join([aliases.get(first, first), *rest])
        if name in FORBIDDEN_CALLS:
            found.append(f"{node.lineno}: calls {name}")
        for keyword in node.keywords:
            is_off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg in FORBIDDEN_ARGUMENTS and not is_off:
                found.append(f"{node.lineno}: gives {keyword.arg}")
        text = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if name.endswith(("import_module", "__import__")) and text and text[0].split(".")[0] in PICKLES:
            found.append(f"{node.lineno}: imports {text[0]}")
    return found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import loads",
        "from torch import load as get\nget('x')",
        "import torch as t\nt.load('x')",
        "import numpy as np\nnp.load('x')",
        f"{'eval'}('1')",
        "import importlib\nimportlib.import_module('pickle')",
        "__import__('pickle')",
        f"import subprocess\nsubprocess.run('x', shell={True})",
        "AutoModel.from_pretrained('x', trust_remote_code=flag)",
        "import yaml\nyaml.load(x)",
        "from os import system\nsystem('x')",
    ],
)
def test_the_check_sees_it(line: str) -> None:
    assert findings(line)


def test_nothing_in_the_tree_runs_foreign_code(repository: Path) -> None:
    wrong = []
    for folder in ("tiny_transformer", "tests", "benchmarks"):
        for path in sorted((repository / folder).rglob("*.py")):
            wrong += [f"{path.relative_to(repository)}:{what}" for what in findings(path.read_text(encoding="utf-8"))]
    for path in [repository / "README.md", *sorted((repository / "docs").rglob("*.md"))]:
        for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            wrong += [f"{path.name}: {what}" for what in findings(block)]
    assert not wrong, "\n".join(wrong)
