"""What people type at first does what they mean, or is answered with what to type instead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tiny_transformer.cli import run
from tiny_transformer.config.load import load_run_config
from tiny_transformer.errors import ExitCode
from tiny_transformer.stages.launch import choose_run_dir
from tiny_transformer.stages.training_data import as_read
from tiny_transformer.storage.reading import at_home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("home").mkdir()
    Path("my.txt").write_text("".join(f"Line {i} says {i * i}.\n" for i in range(400)))
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, home: Path) -> list[Any]:
    """The requests that reach training."""
    requests: list[Any] = []

    def pretrain(request: Any, console: Any) -> Any:
        requests.append(request)
        return SimpleNamespace(is_first=False, status="finished")

    monkeypatch.setattr("tiny_transformer.stages.launch.launch", pretrain)
    return requests


def said(words: list[str], capsys: pytest.CaptureFixture[str], code: int = ExitCode.USAGE) -> str:
    capsys.readouterr()
    assert run(words) == code
    out, err = capsys.readouterr()
    return " ".join((out + err).split())


# --- words without an option


@pytest.mark.parametrize(
    "words",
    [
        ["my.txt"],
        ["my.txt", "--minutes", "2"],
        ["--minutes", "2", "my.txt"],
        ["--learning_rate", "3e-4", "my.txt", "training.seed=3"],
        ["--compile", "my.txt"],
        ["--source", "my.txt"],
    ],
)
def test_a_text_may_stand_alone(words: list[str], asked: list[Any]) -> None:
    assert run(["train", *words]) == 0
    (request,) = asked
    assert (request.config.data.source, request.name, request.data_name) == ("my.txt", "my", "my")
    assert "source" in request.asked


def test_a_config_a_preset_and_prepared_data_may_stand_alone(asked: list[Any]) -> None:
    Path("r.yaml").write_text("training: {steps: 7}\n")
    Path("r.json").write_text('{"training": {"steps": 8}}')
    Path("rows.json").write_text('[{"text": "A hen."}]')
    assert run(["prepare", "my.txt", "--out_dir", "d", "--tokenizer", "byte"]) == 0
    Path("made.json").write_text('[{"text": "A hen.", "meta": {"model": "x"}}]')
    Path("lines.json").write_text('{"text": "A hen.", "model": "x"}\n{"text": "An egg.", "model": "x"}\n')
    rows = (["rows.json"], ["made.json"], ["lines.json"])
    for words in (["r.yaml"], ["r.json", "my.txt"], ["tiny"], ["--preset", "tiny"], ["d"], *rows):
        assert run(["train", *words]) == 0, words
    assert [request.config.training.steps for request in asked] == [7, 8, *[None] * 6]
    assert [request.name for request in asked] == ["r", "r", "tiny", "tiny", "my", "rows", "made", "lines"]
    assert asked[4].config.data.data_dir == Path("d")
    assert asked[1].config.data.source == "my.txt"


def test_what_cannot_be_meant_together_is_refused(
    home: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("other.txt").write_text("A hen.")
    Path("run").mkdir()
    Path("run/config.yaml").touch()
    assert "other.txt and my.txt are both given" in said(["train", "my.txt", "other.txt"], capsys)
    assert "are both given" in said(["train", "my.txt", "--source", "other.txt"], capsys)
    assert "are both given" in said(["train", "tiny", "--config", "small"], capsys)
    assert "--resume --out_dir run" in said(["train", "run"], capsys)
    assert "two sources" in said(["prepare", "my.txt", "--source", "stories"], capsys)
    assert "two prompts" in said(["generate", "A", "--prompt", "B"], capsys)
    assert not asked


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--prompt", "A", "--prompt", "B"],
        ["generate", "--ckpt", "a", "--ckpt_dir", "b"],
        ["train", "--steps", "1", "--steps", "2"],
        ["train", "--source", "a", "--source=b"],
        ["prepare", "--out_dir", "a", "--out-dir", "b"],
        ["evaluate", "--split", "val", "--split", "train"],
    ],
)
def test_an_option_that_is_given_twice_is_refused(
    words: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is given twice" in said(words, capsys)


def test_no_words_at_all_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Usage: tiny-transformer" in said([], capsys, ExitCode.OK)


def test_prompts_may_stand_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("tiny_transformer.generation.command.run_generate", lambda options, *_: seen.append(options))
    (home / "runs/demo/last").mkdir(parents=True)
    for words in (["Once"], ["Once upon", "a hen"], ["runs/demo", "Once"], ["--prompt", "Once"], []):
        assert run(["generate", *words]) == 0
    assert [options.prompt for options in seen] == ["Once", "Once upon a hen", "Once", "Once", None]
    assert [options.checkpoint for options in seen] == [None, None, Path("runs/demo"), None, None]


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--minutes", "5"], "tiny-transformer train --minutes 5"),
        (["my.txt"], "tiny-transformer train my.txt --minutes 10"),
        (["my.txt", "--steps", "9"], "tiny-transformer train my.txt --steps 9"),
        (["runs/demo", "Once upon"], "tiny-transformer generate --ckpt runs/demo 'Once upon'"),
        (["eval", "runs/demo"], "tiny-transformer evaluate runs/demo"),
        (["help"], "tiny-transformer --help"),
        (["resume"], "tiny-transformer train --resume --out_dir"),
        (["train", "--file", "my.txt"], "--source my.txt"),
        (["train", "--data=it's.txt"], """--source 'it'"'"'s.txt'"""),
        (["train", "my.txt", "--model", "tiny"], "--preset tiny"),
        (["train", "my.txt", "--name", "x"], "--out_dir x"),
        (["train", "my.txt", "--gpu"], "--device cuda"),
        (["finetune", "qa.jsonl"], "--source qa.jsonl"),
        (["finetune", "runs/demo", "--source", "qa.jsonl"], "--init_from runs/demo"),
        (["finetune", "--model", "demo"], "--init_from demo"),
        (["align", "a.yaml"], "--config a.yaml"),
        (["finetune", "--zz"], "finetune --help"),
        (["prepare", "--input", "my.txt"], "--source my.txt"),
        (["generate", "-p", "Once"], "--prompt Once"),
        (["generate", "--length", "9"], "--max_new_tokens 9"),
        (["generate", "--temp", "0.5"], "--temperature 0.5"),
        (["generate", "--model", "runs/demo"], "--ckpt runs/demo"),
        (["export", "--output", "x"], "--out x"),
    ],
)
def test_a_word_of_other_programs_is_answered_with_ours(
    words: list[str], remedy: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "runs/demo/last").mkdir(parents=True)
    assert said(words, capsys).partition(" try: ")[2].endswith(remedy)


# --- how long


@pytest.mark.parametrize("name", ["steps", "max_train_minutes", "eval_steps", "save_steps", "early_stopping_patience"])
def test_null_takes_a_number_out_of_a_config(name: str, asked: list[Any]) -> None:
    Path("r.yaml").write_text(
        "training: {steps: 9, max_train_minutes: 4, eval_steps: 5, save_steps: 5, early_stopping_patience: 2}\n"
    )
    more = ["--early_stopping_patience", "null"] * (name == "eval_steps")
    for nothing in ("null", "None"):
        assert run(["train", "r.yaml", f"--{name}", nothing, *more]) == 0
        assert getattr(asked[-1].config.training, name) is None


@pytest.mark.parametrize(("flag", "value"), [("--steps", "20"), ("--max_tokens", "5000"), ("--epochs", "2")])
def test_a_length_of_the_command_line_is_stronger_than_that_of_a_file(
    flag: str, value: str, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("r.yaml").write_text("training: {steps: 9, max_train_minutes: 4}\n")
    told = said(["train", "r.yaml", flag, value], capsys, ExitCode.OK)
    training = asked[-1].config.training
    assert getattr(training, flag[2:]) == float(value)
    assert training.max_train_minutes is None and training.steps in (None, 20)
    assert "overrides max_train_minutes 4.0 of the config" in told
    both = said(["train", "r.yaml", flag, value, "--max_train_minutes", "3"], capsys, ExitCode.OK)
    assert asked[-1].config.training.max_train_minutes == 3  # both were asked for: whichever ends first
    assert "max_train_minutes" not in both


def test_nor_do_the_minutes_of_a_run_cut_what_a_resumption_asks_for(asked: list[Any]) -> None:
    Path("runs/my").mkdir(parents=True)
    Path("runs/my/config.yaml").write_text("training: {max_train_minutes: 4, learning_rate: 2e-3}\n")
    for words in (["--out_dir", "runs/my"], ["--source", "my.txt"]):
        assert run(["train", "--resume", "--steps", "20", *words]) == 0
        training = asked[-1].config.training
        assert (training.steps, training.max_train_minutes, training.learning_rate) == (20, None, 2e-3)


def saved_run(path: str, settings: str, begun: int = 1000) -> None:
    Path(path).mkdir(parents=True)
    Path(path, "config.yaml").write_text(settings)
    os.utime(Path(path, "config.yaml"), (begun, begun))


def test_minutes_resume_a_config_s_run_as_it_was_chosen(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Its own config.yaml has what `--minutes` chose then; the file that was given has only some of it."""
    own = "{model: {hidden_size: 128}, training: {seed: 3, max_train_minutes: 4, optimizer: muon}, data: {seq_len: 64}}"
    saved_run("runs/r", own)
    saved_run("elsewhere", own)
    for more in ("", ", out_dir: elsewhere"):
        Path("r.yaml").write_text(
            "{training: {seed: 3, steps: 9, max_train_minutes: 2}, data: {tokenizer: byte}" + more + "}"
        )
        assert run(["train", "--config", "r.yaml", "--resume", "--minutes", "5"]) == 0
        request = asked[-1]
        assert (request.config.model.hidden_size, request.config.training.optimizer) == (128, "muon")
        assert (request.config.training.max_train_minutes, request.config.training.steps) == (5, None)
        assert request.config.out_dir == Path("elsewhere" if more else "runs/r")
        assert "tokenizer" in request.asked and request.config.data.tokenizer == "byte"  # compared with the data
    count = len(asked)
    for key, value in (
        ("training.seed", 4),
        ("model.hidden_size", 64),
        ("data.seq_len", 32),
        ("training.log_steps", 7),
    ):
        section, _, name = key.partition(".")
        Path("r.yaml").write_text(f"{section}: {{{name}: {value}}}")
        told = said(["train", "--config", "r.yaml", "--resume", "--minutes", "5"], capsys)
        assert f"{key} is {value} in r.yaml and " in told and "in the run that is to be resumed" in told
    assert run(["train", "--config", "r.yaml", "--resume", "--minutes", "5", "--log_steps", "7"]) == 0
    assert asked[count].config.training.log_steps == 7  # what the command line says is meant


def test_of_the_runs_of_a_name_only_numbered_ones_are_resumed(asked: list[Any]) -> None:
    name = "a[1]"  # no pattern of file names
    Path(f"{name}.yaml").write_text("training: {steps: 9}")
    for begun, follower in enumerate(("", "-2", "-11", "-big", "-2-big", "-1", "-02", "-3x")):
        saved_run(f"runs/{name}{follower}", "training: {steps: 9}", begun + 1000)
    for words in (["--resume"], ["--resume", "--minutes", "3"]):
        assert run(["train", "--config", f"{name}.yaml", *words]) == 0
        request = asked[-1]
        assert choose_run_dir(request) == Path("runs", f"{name}-11"), words


def test_continue_goes_on_with_numbered_runs_only(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    Path("r # 1.yaml").write_text("training: {steps: 9}")
    for begun, name in enumerate(("r # 1", "r # 1-2", "r # 1-2024-attempt")):
        saved_run(f"runs/{name}", "training: {steps: 9}", begun + 1000)
    told = said(["train", "--config", "r # 1.yaml", "--continue"], capsys, ExitCode.OK)
    assert told.startswith("runs/r # 1-2 was interrupted: resuming it")
    assert asked[-1].config.out_dir == Path("runs/r # 1-2") and asked[-1].resume


def test_several_processes_tell_what_is_continued_once(
    asked: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_run("runs/r", "training: {steps: 9}")
    Path("r.yaml").write_text("training: {steps: 9}")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert said(["train", "--config", "r.yaml", "--continue"], capsys, ExitCode.OK) == ""
    with pytest.raises(SystemExit) as ended:
        run(["train", "--continue"])
    assert ended.value.code == ExitCode.USAGE and capsys.readouterr() == ("", "")
    with pytest.raises(SystemExit):
        run(["train", "--config", "r.yaml", "--resume", "--overwrite"])
    assert capsys.readouterr() == ("", "")


def test_minutes_on_the_command_line_leave_the_steps_of_a_file(asked: list[Any]) -> None:
    Path("r.yaml").write_text("training: {steps: 9}\n")
    assert run(["train", "r.yaml", "--max_train_minutes", "3"]) == 0
    training = asked[-1].config.training
    assert (training.steps, training.max_train_minutes) == (9, 3)


def test_epochs_are_so_many_times_the_tokens() -> None:
    figures = SimpleNamespace(source="stories", tokenizer="byte", request={}, train=SimpleNamespace(num_tokens=1001))
    data: Any = SimpleNamespace(meta=figures)
    for key in ("epochs", "num_train_epochs", "num_epochs", "max_epochs"):
        config = load_run_config({"training": {key: 2.5}})
        assert as_read(config, data).training.max_tokens == 2503
        assert as_read(as_read(config, data), data).training.max_tokens == 2503  # taken up again
    assert as_read(load_run_config({"training": {"epochs": 2, "max_tokens": 900}}), data).training.max_tokens == 900


# --- the home directory, and what a console can show


def test_the_home_directory_is_meant_wherever_a_path_is(home: Path, asked: list[Any]) -> None:
    (home / "home/my.txt").write_text(Path("my.txt").read_text())
    (home / "home/r.yaml").write_text("{out_dir: ~/r, data: {data_dir: ~/d}}")
    assert run(["prepare", "--source=~/my.txt", "--out_dir=~/x", "--tokenizer", "byte"]) == 0
    assert (home / "home/x/meta.json").is_file() and not Path("~").exists()
    assert run(["train", "--config=~/r.yaml"]) == 0
    assert (asked[-1].config.out_dir, asked[-1].config.data.data_dir) == (home / "home/r", home / "home/d")
    assert run(["train", "--data_dir=~/x", "training.out_dir=~/y"]) == 0
    assert (asked[-1].config.out_dir, asked[-1].config.data.data_dir) == (home / "home/y", home / "home/x")
    assert run(["inspect", "~/x"]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["train", "~nobody-here/x.txt"],
        ["train", "--out_dir", "~nobody-here/x"],
        ["train", "--source", "~nobody-here/x"],
        ["train", "--init_from", "~nobody-here/x"],
        ["train", "data.data_dir=~nobody-here/x"],
        ["prepare", "--out_dir", "~nobody-here/x"],
        ["prepare", "--tokenizer", "~nobody-here/x"],
        ["generate", "--ckpt", "~nobody-here/x"],
        ["doctor", "~nobody-here/x"],
    ],
)
def test_the_home_of_nobody_is_said_and_not_made(
    words: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no user 'nobody-here' here" in said(words, capsys)
    assert not Path("~nobody-here").exists()


def test_a_name_that_begins_like_a_home_is_itself_where_it_is_there(home: Path) -> None:
    Path("~mine.txt").write_text("a")
    assert at_home("~mine.txt") == Path("~mine.txt")
    assert at_home("~/x") == home / "home" / "x"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["prepare", "--out_dir", ""], "--out_dir"),
        (["prepare", "--out_dir="], "--out_dir"),
        (["train", "--data_dir", "", "--steps", "1"], "--data_dir"),
        (["train", "--config", ""], "--config"),
        (["train", "--source", ""], "data.source"),
        (["train", ""], "data.source"),
        (["train", "out_dir=''"], "out_dir"),
        (["generate", "--ckpt", ""], "--checkpoint"),
        (["generate", "--prompts", ""], "--prompts"),
        (["evaluate", ""], "CKPT"),
        (["report", "a", ""], "RUN"),
        (["report", "", "--out", "x.html"], "RUN"),
        (["doctor", ""], "DIR"),
        (["inspect", ""], "DIR|FILE"),
        (["import", "", "--out_dir", "x"], "SOURCE"),
    ],
)
def test_an_empty_path_is_not_this_directory(
    words: list[str], name: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--out_dir "$UNSET"` put its files into the current directory."""
    told = said(words, capsys)
    assert f"{name} is empty" in told or f"{name} = '': an empty" in told
    assert sorted(path.name for path in Path().iterdir()) == ["home", "my.txt"]


def test_names_are_never_markup(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("m[/bold]", "we ird [x] é"):
        Path(name).mkdir(parents=True)
        Path(name, "x[red].txt").write_text(Path("my.txt").read_text())
        out_dir = f"out_{name}"
        assert run(["prepare", "--source", f"{name}/x[red].txt", "--out_dir", out_dir, "--tokenizer", "byte"]) == 0
        told = capsys.readouterr().out
        assert f"{name}/x[red].txt in {out_dir}" in " ".join(told.split())
        command = told.split("next: tiny-transformer ")[1].strip()
        import shlex

        assert shlex.split(command)[:3] == ["train", "--data_dir", out_dir]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_console_that_cannot_show_a_character_shows_another(home: Path, encoding: str) -> None:
    Path("鸡 é.txt").write_text(Path("my.txt").read_text())
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    words = ["prepare", "--source", "鸡 é.txt", "--out_dir", "鸡", "--tokenizer", "byte"]
    done = subprocess.run(
        [sys.executable, "-m", "tiny_transformer", *words], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"?" in done.stdout and b"next: tiny-transformer train" in done.stdout


def test_a_terminal_of_no_width_is_written_to(home: Path) -> None:
    """Every table and sentence was left out, and the command ended well."""
    words = [sys.executable, "-m", "tiny_transformer", "runs"]
    done = subprocess.run(words, env={**os.environ, "COLUMNS": "0"}, capture_output=True, text=True, check=True)
    assert "No runs here yet" in done.stdout


@pytest.mark.parametrize(
    ("module", "first", "shows"),
    [
        ("prepare_dataset", "[OPTIONS] [TEXT]", "[default: wiki-intros]"),
        ("train", "[OPTIONS]", "--minutes"),
        ("sample", "[OPTIONS] [TEXT]...", "--prompt"),
    ],
)
def test_a_module_shows_a_usage_that_works(module: str, first: str, shows: str) -> None:
    name = f"tiny_transformer.{module}"
    done = subprocess.run([sys.executable, "-m", name, "--help"], capture_output=True, text=True, check=True)
    page = " ".join(done.stdout.split())
    assert f"Usage: python -m {name} {first}" in page
    assert shows in page
    wrong = subprocess.run([sys.executable, "-m", name, "--nonsense"], capture_output=True, text=True, check=False)
    assert wrong.returncode == ExitCode.USAGE
    assert f"python -m {name} --help" in wrong.stderr or "no such option or key" in wrong.stderr


def test_the_module_reads_the_source_that_it_is_given(home: Path) -> None:
    words = ["--source", "my.txt", "--out_dir", "d", "--tokenizer", "byte"]
    done = subprocess.run(
        [sys.executable, "-m", "tiny_transformer.prepare_dataset", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "my.txt in d" in done.stdout


# --- secrets


@pytest.mark.parametrize(
    "words",
    [
        ["prepare", "--source", "org/set", "--hf_token", "CANARY"],
        ["prepare", "--hf-token=CANARY"],
        ["generate", "--token", "CANARY"],
        ["train", "--hf_token", "CANARY"],
        ["train", "--hf-token=CANARY"],
        ["train", "--hf_token"],
        ["profile", "training.wandb_key=CANARY"],
        ["train", "--wandb_api_key", "CANARY", "--steps", "3"],
    ],
)
def test_a_secret_is_answered_with_where_it_belongs(
    words: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = said(words, capsys)
    assert "secrets stay off the command line and out of configs" in told
    assert "HF_TOKEN" in told and "WANDB_API_KEY" in told
    assert "CANARY" not in told and "did you mean" not in told and "Possible" not in told
