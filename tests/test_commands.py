"""The commands of the README, as a person would type them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml

from tiny_transformer.cli import app
from tiny_transformer.cli import run as main_run
from tiny_transformer.cli.frame import overrides_of
from tiny_transformer.config.load import load_run_config
from tiny_transformer.errors import ExitCode
from tiny_transformer.storage import RunDirectory

SMALL = {
    "model": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
    },
    "data": {"max_bytes": 300_000, "tokenizer": "byte", "seq_len": 64},
    "training": {
        "steps": 12,
        "eval_steps": 6,
        "save_steps": 4,
        "micro_batch_size": 4,
        "sample_tokens": 20,
        "log_steps": 2,
    },
}


def readme_commands(repository: Path) -> list[list[str]]:
    """Each line of the README's shell blocks that calls us, as the words after the program's name."""
    readme = (repository / "README.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", readme, re.DOTALL) for line in block.splitlines()]
    commands = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:1] == ["tiny-transformer"]:
            commands.append(words[1:])
        elif words[:2] == ["python", "-m"]:
            verb = {"prepare_dataset": "prepare", "train": "train", "sample": "generate"}[words[2].split(".")[1]]
            commands.append([verb, *words[3:]])
    return commands


def test_every_command_of_the_readme_is_accepted(repository: Path) -> None:
    group = typer.main.get_command(app)
    commands = readme_commands(repository)
    assert len(commands) >= 10
    for words in commands:
        command = group.commands[words[0]]  # ty: ignore[unresolved-attribute]
        context = command.make_context(words[0], words[1:])
        if context.ignore_unknown_options:  # the rest are keys of a config
            load_run_config(None, overrides_of(context, plain := []))
            assert not plain, f"not an option: {plain}"
        else:
            assert not context.args, f"not an option: {context.args}"


@pytest.mark.parametrize("size", ["1", "2"])
def test_one_of_several_processes_ends_without_taking_the_interpreter_down(size: str, tmp_path: Path) -> None:
    """Threads of torch.distributed would now and then abort it then. Nothing that was printed is lost."""
    code = (
        "import atexit; from tiny_transformer.cli import main; atexit.register(print, 'taken down'); "
        "main(['runs', '--nonsense'])"
    )
    environment = {**os.environ, "WORLD_SIZE": size, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "--nonsense" in done.stderr) == (ExitCode.USAGE, True)
    assert ("taken down" in done.stdout) == (size == "1")


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&-", "2>&-"])
def test_a_program_without_standard_output_or_errors_does_its_work_in_silence(closed: str, tmp_path: Path) -> None:
    """And what it writes to a file is what it wrote there, and no warning of a library."""
    code = (
        "import os, sys; from pathlib import Path; from tiny_transformer.cli import main, run; "
        "import tiny_transformer.cli as cli; "
        "cli.run = lambda *a, **k: (print('said'), print('said', file=sys.stderr), sys.stdin.read(0), "
        "Path('numbers').write_text(str(os.open('numbers', os.O_RDONLY | os.O_CREAT) > 2)), run(['runs']))[-1]; "
        "main([])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "numbers").read_text() == "True"
    assert ("said" in done.stdout) == (">&-" not in closed.replace("2>&-", ""))
    assert ("said" in done.stderr) == ("2>&-" not in closed)


class Terminal:
    """Runs commands in one directory, the program started anew each time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}

    def __call__(self, command: str, code: int = 0) -> str:
        words = shlex.split(command)
        program = [sys.executable, "-m", "tiny_transformer"] if words[0] == "tiny-transformer" else [sys.executable]
        result = subprocess.run(
            [*program, *words[1:]],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout + result.stderr


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("prepare --source stories --out_dir ''", "--out_dir is empty"),
        ("generate --ckpt '' --prompt a", "is empty"),
        ("train --config ''", "is empty"),
        ("doctor ''", "is empty"),
        ("prepare --source '~nobody-here/a.txt'", "there is no user 'nobody-here' here"),
        ("prepare --source stories --out_dir '~nobody-here'", "there is no user 'nobody-here' here"),
        ("train --out_dir '~nobody-here/x' --steps 1", "there is no user 'nobody-here' here"),
    ],
)
def test_an_empty_path_and_a_home_of_nobody_are_refused(
    command: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a shell makes of a variable that is not set; nothing is made for them."""
    monkeypatch.chdir(tmp_path)
    assert main_run(shlex.split(command)) == ExitCode.USAGE
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_verb_that_takes_a_run_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that nobody has is refused by each with the near one; doctor reads a run by name."""
    monkeypatch.chdir(tmp_path)
    with (run := RunDirectory(tmp_path / "runs" / "demo")).lock(), run.publish_step(3) as staging:
        staging.write("config.json", b"{}")
        staging.write("model.safetensors", b"")
    verbs = (
        ["generate", "--ckpt"],
        ["evaluate"],
        ["evaluate", "--ckpt"],
        ["export"],
        ["quantize", "--int8"],
        ["export", "--ckpt_dir"],
        ["quantize", "--int8"],
        ["quantize", "--int8", "--checkpoint"],
        ["doctor"],
        ["report"],
        ["replay", "--step", "1"],
        ["runs"],
    )
    for words in verbs:
        assert main_run([*words, "dmo"]) == ExitCode.USAGE, words
        assert capsys.readouterr().err == "error: dmo does not exist\n  try: did you mean demo?\n", words
    assert main_run(["evaluate", "demo", "--ckpt", "other"]) == ExitCode.USAGE
    assert "two checkpoints: demo and other" in capsys.readouterr().err
    for words in (["doctor", "demo"], ["doctor"]):  # without a name the newest
        assert main_run(words) == ExitCode.OK
        assert capsys.readouterr().out.startswith("runs/demo: everything is whole\n  step-00000003")
    assert main_run(["report"]) == ExitCode.OK
    assert capsys.readouterr().out == "runs/demo/report.html\n"
    (tmp_path / "demo").mkdir()
    main_run(["doctor", "demo"])
    assert capsys.readouterr().err.startswith("note: demo is a path here; the run of that name is runs/demo\n")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_a_config_that_is_no_file_is_told_as_what_it_is(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with (run := RunDirectory(tmp_path / "runs" / "demo")).lock(), run.publish_step(3) as staging:
        staging.write("config.json", b"{}")
        staging.write("model.safetensors", b"")
    make(tmp_path / "runs/demo/config.yaml")
    assert main_run(["doctor", "demo"]) == ExitCode.BAD_DATA
    assert "config.yaml is not a regular file" in capsys.readouterr().out
    for command in ("train --resume --out_dir runs/demo", "evaluate demo"):
        assert main_run(command.split()) in (ExitCode.BAD_DATA, ExitCode.USAGE)
        told = capsys.readouterr().err
        assert "runs/demo/config.yaml" in told and ("is not a regular file" in told or "a directory where" in told)
        assert "there is no config" not in told


@pytest.mark.slow
def test_the_whole_road(tmp_path: Path) -> None:
    """Prepare, train, train again, resume, generate, list, examine: each prints what it promises."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    terminal = Terminal(tmp_path)

    first = terminal("tiny-transformer train --config small.yaml")
    for words in (
        "preparing stories",
        "step 12/12",
        "best possible",
        "still to learn",
        "a sample",
        "runs/small/report.html",
    ):
        assert words in first
    page = (tmp_path / "runs/small/report.html").read_text(encoding="utf-8")
    assert "best loss possible" in page.lower()

    assert "runs/small-2" in terminal("tiny-transformer train --config small.yaml --steps 4")
    resumed = terminal("tiny-transformer train --resume --out_dir runs/small-2 --steps 6")
    assert "resuming from step 4" in resumed

    text = terminal("tiny-transformer generate --max_new_tokens 10 --temperature 0")
    assert "Once upon a time" in text
    assert "using runs/small" in text
    again = terminal("tiny-transformer generate --max_new_tokens 10 --temperature 0 --stream")
    assert text.splitlines()[0] == again.splitlines()[0]

    table = terminal("tiny-transformer runs")
    assert "small-2" in table and "stories" in table
    assert "last, best" in terminal("tiny-transformer runs runs/small-2")
    assert "everything is whole" in terminal("tiny-transformer doctor runs/small")
    weights = tmp_path / "runs/small/last/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "there are problems" in terminal("tiny-transformer doctor runs/small", code=65)


@pytest.mark.slow
def test_the_module_commands(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    terminal = Terminal(tmp_path)
    terminal(
        "python -m tiny_transformer.prepare_dataset --source stories --out_dir data --seq_len 64 --max_bytes 300000"
    )
    again = terminal(
        "python -m tiny_transformer.prepare_dataset --source stories --out_dir data --seq_len 64 --max_bytes 300000"
    )
    assert "stories in data" in again
    terminal(
        "python -m tiny_transformer.train --config small.yaml --data_dir data --out_dir runs_small --steps 6 --bf16"
    )
    text = terminal('python -m tiny_transformer.sample --ckpt_dir runs_small/best --prompt "A hen" --max_new_tokens 5')
    assert "A hen" in text
    assert "runs_small" in terminal("tiny-transformer runs")


@pytest.mark.slow
def test_without_a_network_the_default_of_prepare_dataset_says_so_in_one_line(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.environment |= {"HF_HUB_OFFLINE": "1"}
    message = terminal(
        "python -m tiny_transformer.prepare_dataset --out_dir data --seq_len 512 --max_bytes 100000000", code=74
    )
    lines = message.strip().splitlines()
    assert len(lines) <= 3
    assert "wikipedia" in lines[0]
    assert "--source stories" in message
    assert not (tmp_path / "data/train.bin").exists()
