"""Many prompts from a file: each answered as it is alone, whatever the batch, and after any interruption the same."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tiny_transformer.cli import run
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.generation import prompt_files
from tiny_transformer.generation.command import run_generate
from tiny_transformer.generation.prompt_files import read_prompts
from tiny_transformer.generation.requests import GenerateRequest
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.models.swaps import add_lora

SETTINGS = SamplingConfig(max_new_tokens=8, temperature=1.2, seed=5)
TEXTS = ["Once", "There was a", "Once", "x", "The end of all that"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(TEXTS) + "\n\n", encoding="utf-8")
    return path


def answer(checkpoint: Path, prompts: Path, out: Path, settings=SETTINGS, **options) -> list[dict]:
    options = {"num_samples": 2, "batch_size": 3, **options}
    chosen = GenerateRequest(checkpoint=checkpoint, prompts=prompts, out=out, device="cpu", **options)
    run_generate(chosen, settings, Console(file=io.StringIO()))
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_every_prompt_is_answered_in_order_whatever_the_batch(checkpoint, prompts, tmp_path):
    answers = answer(checkpoint, prompts, tmp_path / "a.jsonl")
    assert [(a["index"], a["sample"], a["prompt"]) for a in answers] == [
        (i, s, text) for i, text in enumerate(TEXTS) for s in range(2)
    ]
    assert answers == answer(checkpoint, prompts, tmp_path / "b.jsonl", batch_size=1)
    assert answers == answer(checkpoint, prompts, tmp_path / "c.jsonl", batch_size=100)
    same_prompt = [a["text"] for a in answers if a["prompt"] == "Once"]
    assert len(set(same_prompt)) == 4
    assert all(a["num_tokens"] <= 8 and a["finish_reason"] in ("length", "end") for a in answers)


class StopError(Exception):
    pass


@pytest.mark.parametrize("cut", [0, 7], ids=["between lines", "in a line"])
def test_an_interrupted_file_goes_on_to_the_same_bytes(checkpoint, prompts, tmp_path, monkeypatch, cut):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "deep" / "out.jsonl"
    answer(checkpoint, prompts, whole)
    add = prompt_files.AnswerFile.add
    calls = []

    def stops(self, answers):
        calls.append(len(answers))
        if len(calls) == 3:
            raise StopError
        add(self, answers)

    with monkeypatch.context() as patch, pytest.raises(StopError):
        patch.setattr(prompt_files.AnswerFile, "add", stops)
        answer(checkpoint, prompts, out)
    half = out.read_bytes()
    assert half == whole.read_bytes()[: len(half)] and half.count(b"\n") == 6
    out.write_bytes(half[: len(half) - cut])
    answer(checkpoint, prompts, out)
    assert out.read_bytes() == whole.read_bytes()
    answer(checkpoint, prompts, out)
    assert out.read_bytes() == whole.read_bytes()


def test_who_stops_it_is_told_what_is_there(home, monkeypatch, capsys):
    add, calls = prompt_files.AnswerFile.add, []

    def stop_at_the_second(self, answers):
        calls.append(answers)
        if len(calls) == 2:
            raise KeyboardInterrupt
        add(self, answers)

    monkeypatch.setattr(prompt_files.AnswerFile, "add", stop_at_the_second)
    Path("p.txt").write_text("a\nb\nc\n", encoding="utf-8")
    words = ["generate", "--ckpt", "runs/demo/model", "--prompts", "p.txt", "--out", "o.jsonl", "--batch_size", "2"]
    assert run([*words, "--max_new_tokens", "3", "--device", "cpu"]) == 130
    assert "stopped: 2 of 3 answers in o.jsonl; the same command goes on" in capsys.readouterr().err
    assert run([*words, "--max_new_tokens", "3", "--device", "cpu"]) == 0
    assert "3 answers in o.jsonl, 2 of them from before" in capsys.readouterr().err


def test_a_disk_that_refuses_answers_is_told_with_the_file(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = prompt_files.AnswerFile(tmp_path / "out.jsonl")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot write: No space left on device") as refused:
        file.add([{"prompt": "a"}])
    assert refused.value.exit_code is ExitCode.IO and refused.value.where == str(tmp_path / "out.jsonl")
    assert "free space" in (refused.value.remedy or "")


def test_a_seed_nobody_chose_is_that_of_the_file(checkpoint, prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    answers = answer(checkpoint, prompts, out, is_seed_chosen=False)
    lines = out.read_text(encoding="utf-8").splitlines(keepends=True)
    out.write_text("".join(lines[:4]), encoding="utf-8")
    other = SamplingConfig(max_new_tokens=8, temperature=1.2, seed=77)
    assert answer(checkpoint, prompts, out, other, is_seed_chosen=False) == answers


def test_the_seed_that_is_told_is_the_one_that_is_used(home, capsys):
    Path("p.txt").write_text("a\nb\n", encoding="utf-8")
    words = ["generate", "--ckpt", "runs/demo/model", "--prompts", "p.txt", "--out", "o.jsonl", "--device", "cpu"]
    assert run([*words, "--max_new_tokens", "3", "--seed", "41"]) == 0
    Path("p.txt").write_text("a\nb\nc\n", encoding="utf-8")
    capsys.readouterr()
    assert run([*words, "--max_new_tokens", "3"]) == 0
    assert "; seed 41\n" in capsys.readouterr().err


def with_adapters(model):
    add_lora(model, ["model.layers.0.self_attn.q_proj"], rank=2, alpha=2.0)
    return model


def after_another_step(model):
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    return model


def test_an_output_of_something_else_is_refused_and_stays(checkpoint, prompts, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    answer(checkpoint, prompts, out)
    before = out.read_bytes()
    with pytest.raises(UserError, match="other settings: seed 5 there, 6 asked for"):
        answer(checkpoint, prompts, out, SamplingConfig(max_new_tokens=8, temperature=1.2, seed=6))
    with pytest.raises(UserError, match="line 2 answers another prompt or sample"):
        answer(checkpoint, prompts, out, num_samples=1)
    prompts.write_text("Once\nAnother\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 3 answers another prompt"):
        answer(checkpoint, prompts, out)
    assert out.read_bytes() == before
    prompts.write_text("\n".join(TEXTS), encoding="utf-8")
    for change in (with_adapters, after_another_step):
        with monkeypatch.context() as patch, pytest.raises(UserError, match="other settings: weights"):
            patch.setattr(OpenCheckpoint, "model", change(OpenCheckpoint(checkpoint).model))
            answer(checkpoint, prompts, out)
    prompts.write_text("Once\nAnother\n", encoding="utf-8")
    assert out.read_bytes() == before
    out.write_bytes(before[:-5])  # a kill has cut its last line: that is mended by who goes on, not by who is refused
    with pytest.raises(UserError, match="line 3 answers another prompt"):
        answer(checkpoint, prompts, out)
    assert out.read_bytes() == before[:-5]
    for foreign in (b"{}\n", b"hello", b"[1]\n"):
        out.write_bytes(foreign)
        with pytest.raises(UserError, match="no output of --prompts"):
            answer(checkpoint, prompts, out)
        assert out.read_bytes() == foreign


def test_a_mark_of_byte_order_is_no_part_of_a_prompt(tmp_path, monkeypatch):
    for name, raw in (("p.txt", "hen\r\n"), ("p.jsonl", '{"prompt": "hen"}\n')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + raw.encode())
        assert [prompt.text for prompt in prompt_files.read_prompts(tmp_path / name)] == ["hen"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfhen\n"), encoding="utf-8"))
    assert [prompt.text for prompt in prompt_files.read_prompts(Path("-"))] == ["hen"]


@pytest.mark.parametrize("option", ["--prompt", "--prompts"])
def test_standard_input_that_is_no_text_is_told_as_that(home, option, monkeypatch, capsys):
    """It was a traceback, and "a bug in tiny-transformer"."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9 noir"), encoding="utf-8"))
    assert run(["generate", "--ckpt", "runs/demo/model", option, "-", "--device", "cpu"]) == ExitCode.BAD_DATA
    assert "byte 3 is not UTF-8" in capsys.readouterr().err


def test_rows_of_json_keep_their_other_keys(checkpoint, tmp_path):
    source, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": 7, "prompt": "Once\\nupon", "text": "theirs"}\n', encoding="utf-8")
    found = answer(checkpoint, source, out, num_samples=1)[0]
    assert found["id"] == 7 and found["prompt"] == "Once\nupon" and found["text"] != "theirs"
    told, chosen = io.StringIO(), GenerateRequest(checkpoint=checkpoint, prompts=source, device="cpu")
    run_generate(chosen, SETTINGS, Console(file=told, width=1000))
    assert "text: of the prompts' lines not repeated" in told.getvalue()


REFUSED = [
    ("p.csv", "a", "neither .txt nor .jsonl"),
    ("p.txt", "\n \n", "there are no prompts"),
    ("p.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', "not an object with a text `prompt`"),
    ("p.jsonl", "Once\n", "not an object"),
    ("p.jsonl", '{"prompt": 3}\n', "not an object"),
]


@pytest.mark.parametrize(("name", "content", "what"), REFUSED)
def test_a_file_that_holds_no_prompts_is_refused_by_name(tmp_path, name, content, what):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=what):
        read_prompts(tmp_path / name)


def test_the_wrong_line_and_byte_are_named(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"text": "b"}\n', encoding="utf-8")
    with pytest.raises(UserError) as refused:
        read_prompts(path)
    assert refused.value.where == f"{path}, line 3"
    path.write_bytes(b'{"prompt": "a\xff"}\n')
    with pytest.raises(UserError, match="byte 13 is not UTF-8"):
        read_prompts(path)


def test_the_prompt_that_cannot_be_read_is_named(checkpoint, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "Once"}\n\n{"prompt": "a\\ud800"}\n')
    with pytest.raises(UserError, match="surrogate") as caught:
        answer(checkpoint, prompts, out)
    assert caught.value.where == "prompt 2 of 2, position 1 of the text" and not out.exists()


# --- the command line


@pytest.fixture
def home(checkpoint, tmp_path, monkeypatch) -> Path:
    """A directory with the run `demo`."""
    shutil.copytree(checkpoint, tmp_path / "runs" / "demo" / "model")
    (tmp_path / "runs" / "demo" / "config.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_prompts_and_single_prompts_come_from_standard_input(home, monkeypatch, capsys):
    words = ["generate", "--ckpt", "runs/demo/model", "--max_new_tokens", "4", "--seed", "3", "--device", "cpu"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Once\nupon\n"))
    assert run([*words, "--prompts", "-"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["Once", "upon"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Once\nupon\n"))
    assert run([*words, "-", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompt"] == "Once\nupon" and found["seed"] == 3
    assert run([*words, "--prompt", "Once\nupon"]) == 0
    assert capsys.readouterr().out == found["prompt"] + found["text"] + "\n"


def test_a_word_that_is_a_run_is_not_taken_for_a_prompt(home, capsys):
    assert run(["generate", "demo"]) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert (
        "demo is the name of a run, and stands here as a text" in error
        and "try: tiny-transformer generate --ckpt demo" in error
    )
    assert run(["generate", "demo", "--ckpt", "runs/demo/model", "--max_new_tokens", "2", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("demo")


@pytest.mark.parametrize("model", ["demo/model", "runs/demo/model"])
def test_a_run_beside_a_prompt_is_the_model(home, model, capsys):
    assert run(["generate", model, "--prompt", "a", "--max_new_tokens", "2", "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("a") and "runs/demo/model" in shown.err
    assert run(["generate", model, "b", "--prompt", "a"]) == ExitCode.USAGE
    assert "two prompts: 'a' and 'b'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--prompts", "p.txt", "--prompt", "a"], "--prompt and --prompts"),
        (["--prompts", "p.txt", "--stream"], "--stream shows one text"),
        (["--out", "o.jsonl"], "--out needs --prompts"),
        (["--json", "--stream"], "--json and --stream"),
        (["--prompts", "p.txt", "--batch_size", "0"], "--batch_size 0"),
        (["--prompt", "a", "--batch_size", "4"], "--batch_size is for --prompts"),
        (["--prompts", "p.txt", "--num_draft_tokens", "4"], "--num_draft_tokens and --prompts"),
        (["--prompts", "p.txt", "--engine", "quick"], "there is no engine 'quick'"),
        (["--prompt", "a", "--samples", "2", "--engine", "quick"], "there is no engine 'quick'"),
        (["--interactive", "--speculative", "ngram"], "--speculative is for a text that is given"),
        (["--ckpt", "runs/demo/model", "--prompt", "a", "--num_draft_tokens", "4"], "nothing drafts"),
        (["--ckpt", "runs/demo/model", "--prompt", "a", "--device", "gpu0"], "there is no gpu0 device here"),
    ],
)
def test_options_that_contradict_each_other_are_refused(home, words, what, capsys):
    assert run(["generate", *words]) == ExitCode.USAGE
    assert what in capsys.readouterr().err
