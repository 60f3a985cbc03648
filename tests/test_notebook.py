"""notebooks/train_your_own.ipynb: its cells run from top to bottom, but for the one that installs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def code_cells(repository: Path) -> list[dict[str, Any]]:
    notebook = json.loads((repository / "notebooks/train_your_own.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_it_is_kept_without_outputs_and_one_cell_installs(repository: Path) -> None:
    cells = code_cells(repository)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert [cell["metadata"].get("tags") for cell in cells].count(["install"]) == 1


@pytest.mark.parametrize("notebook", ["checkout/notebooks", ".", "elsewhere"])
def test_the_checkout_is_found_installed_and_entered(notebook: str, repository: Path, tmp_path: Path) -> None:
    """Jupyter's working directory is the notebook's; a hosted machine clones into a folder beside it."""
    root = tmp_path / "checkout"
    for folder in (root / "tiny_transformer", root / "notebooks", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
    (install,) = ["".join(cell["source"]) for cell in code_cells(repository) if "tags" in cell["metadata"]]
    before = "import subprocess\nsubprocess.run = lambda words, check: print(words[1:])\n"
    after = "\nimport os, sys\nprint(os.getcwd(), sys.path[0])\n"
    (tmp_path / "cell.py").write_text(before + install + after, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "cell.py")]
    done = subprocess.run(command, cwd=tmp_path / notebook, capture_output=True, text=True, check=False)
    if notebook == "elsewhere":
        assert done.returncode and "upload or clone" in done.stderr
        return
    installed = ["-m", "pip", "install", "--quiet", "-e", str(root)]
    assert done.stdout.splitlines() == [str(installed), f"{root} {root}"], done.stderr


@pytest.mark.slow
def test_its_cells_train_a_model_that_writes(repository: Path, tmp_path: Path) -> None:
    sources = ["".join(cell["source"]) for cell in code_cells(repository) if "tags" not in cell["metadata"]]
    script = "\n\n".join(sources).replace("STEPS = 300", "STEPS = 3").replace('"2000000"', '"100000"')
    (tmp_path / "cells.py").write_text(script, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "cells.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Once upon a time" in done.stdout and done.stdout.splitlines()[-1].startswith("[")
