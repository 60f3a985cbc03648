"""A command that a message gives can be copied into a shell as it stands, whatever the path is called."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny_transformer.cli import run
from tiny_transformer.errors import UserError, command_line
from tiny_transformer.storage import RunDirectory
from tiny_transformer.training.nonfinite import not_finite

NAMES = ("plain", "two  blanks", "it's", 'a "quote"', "-dash", "$HOME; x", "tab(1)*")


def make_run(path: Path) -> None:
    path.mkdir()
    (path / "config.yaml").write_text("{}")


def make_model(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text("{}")


def make_tokens(path: Path) -> None:
    path.mkdir()
    (path / "train.bin").write_bytes(b"\0\0")


def make_damaged_run(path: Path) -> None:
    with (directory := RunDirectory(path)).lock(), directory.publish_step(1) as staging:
        staging.write("config.json", "{}")
    (path / "step-00000001/manifest.json").unlink()


def make_folder_of_models(path: Path) -> None:
    path.mkdir()
    (path / "model.bin").write_bytes(b"12345678")
    (path / "tok.bin").write_bytes(b"1")


def commands_in(text: str) -> list[list[str]]:
    """The words from each `tiny-transformer` on, as a shell would take them."""
    found = []
    for rest in re.split(r"(?=tiny-transformer )", text)[1:]:
        for end in range(len(rest), 0, -1):  # what follows the command may hold a lone quote
            try:
                found.append(shlex.split(rest[:end]))
            except ValueError:
                continue
            break
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_run, ["train", "PATH"]),
        (Path.mkdir, ["train", "--steps", "1", "--data_dir", "PATH"]),
        (make_tokens, ["train", "--steps", "1", "--data_dir", "PATH"]),
        (make_run, ["inspect", "PATH"]),
        (make_model, ["inspect", "PATH"]),
        (Path.mkdir, ["inspect", "PATH"]),
        (make_damaged_run, ["runs", "PATH"]),
        (make_folder_of_models, ["import", "PATH", "--out_dir", "x"]),
        (make_tokens, ["import", "PATH/train.bin", "--out_dir", "x"]),
        (make_damaged_run, ["import", "PATH", "--out_dir", "x"]),
    ],
)
def test_a_command_in_a_message_names_the_path_as_a_shell_takes_it(
    make: Callable[[Path], None],
    words: list[str],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path(name))
    given = f"./{name}" if name.startswith("-") else name
    run([word.replace("PATH", given) for word in words])
    out, err = capsys.readouterr()
    commands = commands_in(out + err)
    assert commands, out + err
    for command in commands:
        named = [word for word in command if name in word]
        assert named and not any(word.startswith("-") for word in named), command
        assert any(Path(word).exists() for word in named), command


@pytest.mark.parametrize("name", NAMES)
def test_the_command_that_replays_a_step_can_be_copied(name: str) -> None:
    (command,) = commands_in(str(not_finite(1234, "loss is nan", None, [], Path(name))))
    shown = f"./{name}" if name.startswith("-") else name
    assert command[:5] == ["tiny-transformer", "replay", shown, "--step", "1234"]


def test_a_message_keeps_blanks_of_a_name_and_stays_on_its_line() -> None:
    path = Path("two  blanks\n\tand\x1b[2J\u2028more")
    (line,) = UserError(f"no {path}  ").lines()
    assert line == "error: no two  blanks and\ufffd[2J more"
    assert shlex.split(command_line("x", Path("two  blanks"), 3)) == ["x", "two  blanks", "3"]
