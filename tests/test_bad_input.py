"""What people get wrong: each mistake ends within seconds, with at most three lines and the right exit code, and loses
nothing.

Each row makes its mistake in an empty directory, runs a command line, and says what must be printed. The whole
directory is compared before and after: nothing that was there may be gone or changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tiny_transformer.cli import run
from tiny_transformer.errors import ExitCode, command_line

RUN = {
    "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
              "intermediate_size": 32, "max_position_embeddings": 64},
    "data": {"data_dir": "data", "seq_len": 16},
    "training": {"steps": 2, "micro_batch_size": 2, "sample_prompts": [], "device": "cpu"},
    "out_dir": "runs/r",
}  # fmt: skip
TEXT = "The hen laid an egg.\n\n" * 300


@dataclass(frozen=True)
class Mistake:
    """A row of the table.

    Attributes:
        name: what is wrong.
        make: makes it in the working directory.
        command: the command line.
        code: how it must end.
        says: what the message must hold.
    """

    name: str
    make: Callable[[Path], object]
    command: str
    code: ExitCode
    says: tuple[str, ...]


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    """Make one file."""

    def make(directory: Path) -> None:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def config(**changes: object) -> Callable[[Path], object]:
    """Make r.yaml, with some sections changed."""
    tree = {**RUN, **{section: {**RUN.get(section, {}), **values} for section, values in changes.items()}}  # ty: ignore[invalid-argument-type]
    return write("r.yaml", yaml.safe_dump(tree))


def folder_without_text(directory: Path) -> None:
    (directory / "pictures").mkdir()
    (directory / "pictures/cat.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def damage(path: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def make(directory: Path) -> None:
        target = directory / path
        target.write_bytes(change(target.read_bytes()))

    return make


def remove(path: str) -> Callable[[Path], object]:
    return lambda directory: (directory / path).unlink()


def both(*makers: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda directory: [make(directory) for make in makers]


def nothing(directory: Path) -> None:
    """The mistake is in the command line."""


# --- mistakes that need nothing prepared
# ----------------------------------------------------------------------------------

FRESH = [
    Mistake("a missing file", nothing, "prepare --source no.txt", ExitCode.USAGE, ("no.txt",)),
    Mistake("an empty file", write("a.txt", ""), "prepare --source a.txt", ExitCode.BAD_DATA, ("a.txt", "empty")),
    Mistake("a binary file", write("a.txt", b"\0\1\2" * 999), "prepare --source a.txt", ExitCode.BAD_DATA, ("a.txt", "not a text file")),
    Mistake("invalid UTF-8", write("a.txt", TEXT.encode() + b"caf\xe9 " + TEXT.encode()), "prepare --source a.txt",
            ExitCode.BAD_DATA, ("a.txt", "UTF-8", f"{len(TEXT) + 3:,}")),
    Mistake("a text of one word", write("a.txt", "Hen.\n"), "prepare --source a.txt", ExitCode.BAD_DATA,
            ("one document",)),
    Mistake("a text shorter than a sequence", write("a.txt", "A hen.\n<|endoftext|>\nAn egg.\n<|endoftext|>\nA duck.\n"),
            "prepare --source a.txt --tokenizer byte --val_fraction 0.5", ExitCode.BAD_DATA, ("256",)),
    Mistake("a folder without text", folder_without_text, "prepare --source pictures", ExitCode.BAD_DATA, ("pictures",)),
    Mistake("a broken line of JSON", write("a.jsonl", '{"text": "one"}\n{"text": \n'), "prepare --source a.jsonl",
            ExitCode.BAD_DATA, ("a.jsonl", "line 2")),
    Mistake("a field that is not there", write("a.jsonl", '{"body": "one", "title": "t"}\n'), "prepare --source a.jsonl",
            ExitCode.BAD_DATA, ("a.jsonl", "text")),
    Mistake("a tokenizer that is not there", write("a.txt", TEXT), "prepare --source a.txt --tokenizer ./mine",
            ExitCode.USAGE, ("mine",)),
    Mistake("an impossible share", nothing, "prepare --val_fraction 2", ExitCode.USAGE, ("val_fraction = 2",)),
    Mistake("an unknown verb", nothing, "trian", ExitCode.USAGE, ("trian", "train")),
    Mistake("an unknown option", nothing, "generate --promt x", ExitCode.USAGE, ("--promt",)),
    Mistake("a word for a number", nothing, "train --steps many", ExitCode.USAGE, ("--steps",)),
    Mistake("a missing config", nothing, "train --config no.yaml", ExitCode.USAGE, ("no.yaml",)),
    Mistake("a directory for a config", folder_without_text, "train --config pictures", ExitCode.USAGE, ("a directory", "pictures")),
    Mistake("a run for a config", write("x.yaml/config.yaml", ""), "train --config x.yaml", ExitCode.USAGE,
            ("a directory", "did you mean x.yaml/config.yaml?")),
    Mistake("a typo in a config", config(model={"hiden_size": 8}), "train --config r.yaml", ExitCode.USAGE,
            ("r.yaml, line", "hiden_size = 8", "model.hidden_size")),
    Mistake("a width that heads do not divide", config(model={"hidden_size": 33}), "train --config r.yaml", ExitCode.USAGE,
            ("r.yaml", "hidden_size 33", "32 or 34")),
    Mistake("a wrong type in a config", config(training={"steps": "many"}), "train --config r.yaml", ExitCode.USAGE,
            ("r.yaml, line", "training.steps = 'many'")),
    Mistake("two names with two values", config(model={"d_model": 64}), "train --config r.yaml", ExitCode.USAGE,
            ("d_model = 64", "hidden_size")),
    Mistake("sequences longer than the model", config(data={"seq_len": 128}), "train --config r.yaml", ExitCode.USAGE,
            ("128", "64")),
    Mistake("patience without evaluation", config(training={"early_stopping_patience": 2, "eval_steps": None}), "train --config r.yaml",
            ExitCode.USAGE, ("eval_steps",)),
    Mistake("an option without its value", nothing, "generate --num_samples", ExitCode.USAGE,
            ("--num_samples", "generate --help")),
    Mistake("a file for a run", write("taken", "text"), "train --config tiny --out_dir taken", ExitCode.USAGE,
            ("taken is a file", "--out_dir")),
    Mistake("an override of nothing", config(), "train --config r.yaml --training.stepz 5", ExitCode.USAGE,
            ("training.stepz", "training.steps")),
    Mistake("nothing to resume", config(), "train --config r.yaml --resume", ExitCode.USAGE, ("nothing to resume", "runs/r")),
    Mistake("nothing to generate from", nothing, "generate", ExitCode.USAGE, ("no checkpoint",)),
    Mistake("a directory that is no checkpoint", folder_without_text, "generate --ckpt_dir pictures", ExitCode.USAGE,
            ("pictures", "not a checkpoint")),
    Mistake("a checkpoint that does not exist", nothing, "generate --ckpt_dir runs/x/best", ExitCode.USAGE,
            ("runs/x/best", "does not exist")),
    Mistake("an impossible temperature", nothing, "generate --temperature -1", ExitCode.USAGE, ("temperature",)),
    Mistake("an impossible top_p", nothing, "generate --top_p 1.5", ExitCode.USAGE, ("top_p",)),
    Mistake("a doctor without a patient", nothing, "doctor runs/x", ExitCode.USAGE, ("runs/x",)),
    Mistake("a report of no run", folder_without_text, "report pictures", ExitCode.USAGE, ("pictures",)),
]  # fmt: skip


def run_with_a_config_alone(directory: Path) -> None:
    (directory / "runs/new").mkdir()
    shutil.copy(directory / "runs/r/config.yaml", directory / "runs/new")


# --- mistakes with a prepared data directory and a finished run
# --------------------------------------------------------------

USED = [
    Mistake("other data in the way", write("b.txt", TEXT), "prepare --source b.txt --tokenizer byte --seq_len 16",
            ExitCode.USAGE, ("data", "--overwrite")),
    Mistake("a run in the way", nothing, "train --config r.yaml", ExitCode.USAGE, ("runs/r", "--resume", "--overwrite")),
    Mistake("truncated tokens", damage("data/train.bin", lambda raw: raw[:-100]), "train --config r.yaml --out_dir runs/x",
            ExitCode.BAD_DATA, ("train.bin",)),
    Mistake("a flipped bit in the tokens", damage("data/train.bin", lambda raw: bytes([raw[0] ^ 1]) + raw[1:]),
            "train --config r.yaml --out_dir runs/x", ExitCode.BAD_DATA, ("train.bin",)),
    Mistake("a damaged meta.json", damage("data/meta.json", lambda raw: raw[:-20]),
            "train --config r.yaml --out_dir runs/x", ExitCode.BAD_DATA, ("meta.json",)),
    Mistake("a resume with another model", nothing, "train --config r.yaml --resume --model.hidden_size 64", ExitCode.USAGE,
            ("model.hidden_size was 32 and is now 64",)),
    Mistake("a resume with another seed", nothing, "train --config r.yaml --resume --seed 5", ExitCode.USAGE,
            ("training.seed was 0 and is now 5",)),
    Mistake("resume and overwrite", nothing, "train --config r.yaml --resume --overwrite", ExitCode.USAGE, ("cannot be combined",)),
    Mistake("truncated weights", damage("runs/r/step-00000002/model.safetensors", lambda raw: raw[:-1]),
            "generate --ckpt_dir runs/r", ExitCode.BAD_DATA, ("model.safetensors",)),
    Mistake("a flipped bit in the weights",
            damage("runs/r/step-00000002/model.safetensors", lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])),
            "generate --ckpt_dir runs/r", ExitCode.BAD_DATA, ("model.safetensors",)),
    Mistake("a half-written checkpoint", remove("runs/r/step-00000002/manifest.json"), "generate --ckpt_dir runs/r",
            ExitCode.BAD_DATA, ("half-written",)),
    Mistake("weights that are missing", both(remove("runs/r/step-00000002/manifest.json"),
            remove("runs/r/step-00000002/model.safetensors")), "generate --ckpt_dir runs/r/step-00000002",
            ExitCode.BAD_DATA, ("step-00000002",)),
    Mistake("a character the tokenizer has not", nothing, "generate --ckpt_dir runs/r --prompt höhle", ExitCode.BAD_DATA, ("ö",)),
    Mistake("another tokenizer", nothing, "generate --ckpt_dir runs/r --tokenizer byte", ExitCode.USAGE, ("char", "byte")),
    Mistake("a prompt longer than the context", nothing, f"generate --ckpt_dir runs/r --prompt {'hen' * 40}", ExitCode.USAGE,
            ("120", "64")),
    Mistake("a step beyond the end", nothing, "replay r --step 3", ExitCode.USAGE,
            ("--step 3 is not one of the run's steps", "--step N, from 1 to 2")),
    Mistake("step nought", nothing, "replay r --step 0", ExitCode.USAGE, ("--step N, from 1 to 2",)),
    Mistake("a step of a run that never started", run_with_a_config_alone, "replay new --step 1", ExitCode.BAD_DATA,
            ("this run was never started", "train --resume --out_dir runs/new")),
]  # fmt: skip


def snapshot(directory: Path) -> dict[str, str]:
    """Every file and link below a directory, with its content's hash."""
    return {
        str(path.relative_to(directory)): (
            str(path.readlink()) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(directory.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def check(
    mistake: Mistake, directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake.make(directory)
    monkeypatch.chdir(directory)
    before = snapshot(directory)
    capsys.readouterr()
    started = time.process_time()
    code = run(mistake.command.split())
    seconds = time.process_time() - started  # of work: other programs may keep the machine busy
    message = capsys.readouterr().err
    assert code == mistake.code, message
    assert len(message.strip().splitlines()) <= 3, message
    assert "Traceback" not in message
    for words in mistake.says:
        assert words in message, message
    after = snapshot(directory)
    assert {name: after.get(name) for name in before} == before, "something that was there is gone or changed"
    assert not [
        path for path in directory.rglob("*") if path.is_dir() and [p.name for p in path.iterdir()] == [".lock"]
    ]
    assert seconds < 5  # two or three of them import torch, once


@pytest.mark.parametrize("mistake", FRESH, ids=lambda mistake: mistake.name)
def test_a_mistake_in_a_fresh_directory(
    mistake: Mistake, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(mistake, tmp_path, capsys, monkeypatch)


@pytest.fixture(scope="session")
def used_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which data was prepared and a model trained."""
    directory = tmp_path_factory.mktemp("used")
    config()(directory)
    write("a.txt", TEXT + "<|endoftext|>\n" + TEXT.replace("hen", "duck"))(directory)
    before = Path.cwd()
    os.chdir(directory)
    try:
        assert (
            run(["prepare", "--source", "a.txt", "--tokenizer", "char", "--seq_len", "16", "--val_fraction", "0.5"])
            == 0
        )
        assert run(["train", "--config", "r.yaml"]) == 0
    finally:
        os.chdir(before)
    return directory


@pytest.mark.parametrize("mistake", USED, ids=lambda mistake: mistake.name)
def test_a_mistake_beside_finished_work(
    mistake: Mistake,
    used_directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = tmp_path / "work"
    shutil.copytree(used_directory, directory, symlinks=True)
    check(mistake, directory, capsys, monkeypatch)


def test_a_directory_in_use_names_its_owner(used_directory: Path, tmp_path: Path) -> None:
    directory = tmp_path / "work"
    shutil.copytree(used_directory, directory, symlinks=True)
    code = (
        "import sys, time; from tiny_transformer.storage import RunDirectory\n"
        "with RunDirectory('runs/r').lock(): print('locked', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=directory, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "locked\n"
    command = [sys.executable, "-m", "tiny_transformer.train", "--config", "r.yaml", "--resume", "--steps", "4"]
    second = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    owner.kill()
    owner.wait()
    assert second.returncode == ExitCode.LOCKED
    assert str(owner.pid) in second.stderr
    assert len(second.stderr.strip().splitlines()) <= 3


@pytest.mark.fault
@pytest.mark.parametrize("command", ["prepare --source a.txt --tokenizer byte --out_dir frozen/data",
                                     "train --config r.yaml --out_dir frozen/run"])  # fmt: skip
def test_a_read_only_disk(used_directory: Path, tmp_path: Path, command: str) -> None:
    """On a real read-only file system, which stops root too."""
    directory = tmp_path / "work"
    shutil.copytree(used_directory, directory, symlinks=True)
    frozen = directory / "frozen"
    frozen.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(frozen)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        result = subprocess.run(
            [sys.executable, "-m", "tiny_transformer", *command.split()],
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        subprocess.run(["umount", str(frozen)], check=True)
    assert result.returncode == ExitCode.IO, result.stderr
    assert "frozen" in result.stderr and "ead-only" in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 3


def test_a_bug_of_ours_is_told_apart_from_a_mistake(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*paths: Path) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("tiny_transformer.reports.runs_table.list_runs", broken)
    assert run(["runs"]) == ExitCode.INTERNAL
    message = capsys.readouterr().err
    assert "ZeroDivisionError: ours" in message
    assert "bug in tiny-transformer" in message


def test_run_info_is_json_with_both_names_of_the_loss(used_directory: Path) -> None:
    info = json.loads((used_directory / "runs/r/last/run_info.json").read_text())
    assert info["step"] == 2
    assert info["val_loss"] == info["eval_loss"]


@pytest.mark.parametrize("name", ["od\nd\x1b[31m", "it's\t\\n", "a b", "\udcff\n2", "plain"])
def test_a_command_in_a_message_is_one_line_that_means_the_same_name(name: str) -> None:
    written = command_line("printf", "%s", name)
    assert written.isprintable()
    done = subprocess.run(["bash", "-c", written], capture_output=True, check=True)
    assert done.stdout == os.fsencode(name)


def test_a_name_that_would_break_a_line_or_steer_a_terminal_is_never_printed_as_it_is(
    used_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "od\nd\x1b[31m"
    shutil.copytree(used_directory, tmp_path, symlinks=True, dirs_exist_ok=True)
    (tmp_path / "runs/r").rename(tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    for words in (
        ["runs", name],
        ["doctor", name],
        ["report", name],
        ["evaluate", name],
        ["generate", "--ckpt", name, "--prompt", "The", "--max_new_tokens", "1"],
        ["inspect", name, "--prompt", "The"],
        ["quantize", name, "--int8"],
    ):
        assert run(words) == ExitCode.OK, words
        told = capsys.readouterr()
        shown = told.err if words[0] == "generate" else told.out + told.err
        assert "\x1b" not in shown and "od\nd" not in shown, words
