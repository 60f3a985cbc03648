"""The roads into an environment: make's own is what the suite runs in; these are the others."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requirements
import yaml

BIN = "Scripts" if os.name == "nt" else "bin"


def sh(*command: str | Path, **options: Any) -> str:
    """What a command that must succeed writes."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def test_requirements_are_what_the_extra_all_needs(repository: Path) -> None:
    """Red: `python tests/requirements.py`."""
    assert (repository / "requirements.txt").read_text(encoding="utf-8") == requirements.requirements()
    assert {"torch", "transformers", "gguf", "pyarrow"} < requirements.needed()
    assert not {"pytest", "ruff", "lightning"} & requirements.needed()


def test_conda_and_pre_commit_find_what_they_name(repository: Path, tmp_path: Path) -> None:
    """Without a .venv, as after `conda env create`: the environment's own tools are on the PATH."""
    environment = yaml.safe_load((repository / "environment.yml").read_text(encoding="utf-8"))
    assert environment["dependencies"][-1]["pip"] == ["-c constraints.txt", "-e .[dev]"]
    hooks = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    (tmp_path / "one.py").write_text('"""Nothing yet."""\n')
    (tmp_path / "pyproject.toml").write_text("")
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for hook in hooks:
        files = ["one.py"] if hook.get("pass_filenames", True) else []
        sh(*shlex.split(hook["entry"]), *files, cwd=tmp_path, env=os.environ | path)
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "ty"]


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment_trains_outside_the_checkout(repository: Path, tmp_path: Path) -> None:
    """Built from the tree, with no file of it in reach."""
    sh(sys.executable, "-m", "pip", "wheel", repository, "--no-deps", "--wheel-dir", tmp_path / "dist")
    (wheel,) = (tmp_path / "dist").glob("tiny_transformer-*.whl")
    sh(sys.executable, "-m", "venv", tmp_path / "venv")
    bin_dir = tmp_path / "venv" / BIN
    sh(bin_dir / "python", "-m", "pip", "install", "--quiet", "-c", repository / "constraints.txt", wheel)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    sh(bin_dir / "tiny-transformer", "train", "--minutes", "1", cwd=elsewhere, env=clean)
    (run,) = (elsewhere / "runs").iterdir()
    assert (run / "report.html").stat().st_size > 10_000
    ask = "from tiny_transformer import load; print(load().generate('Once upon a time', max_new_tokens=5))"
    assert sh(bin_dir / "python", "-c", ask, cwd=elsewhere, env=clean).strip()
