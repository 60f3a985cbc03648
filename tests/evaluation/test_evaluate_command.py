"""`evaluate`: the right data for a checkpoint, the same loss as in training, tables that line up, JSON, refusals."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from small_corpus import MANY

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import DataConfig
from tiny_transformer.data.batches import evaluation_batches
from tiny_transformer.data.meta import SplitMeta
from tiny_transformer.data.prepare.command import prepare
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.evaluation import loss as loss_module
from tiny_transformer.evaluation import stories as stories_module
from tiny_transformer.evaluation.command import EvaluateOptions, run_evaluate
from tiny_transformer.evaluation.loss import num_targets, scored_bytes
from tiny_transformer.evaluation.written import FIGURES
from tiny_transformer.stages.launch import launch
from tiny_transformer.stages.stage import Request, RunResult
from tiny_transformer.tokenizers import load_tokenizer

SMALL = {
    "model": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
    },
    "data": {"source": "stories", "max_bytes": 60_000, "val_fraction": 0.1, "tokenizer": "byte", "seq_len": 64},
    "training": {"device": "cpu", "precision": "fp32", "steps": 3, "micro_batch_size": 4, "eval_steps": 3},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as a person has it after training on stories, the data found by its default name."""
    directory = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        trained({"out_dir": "runs/small"}, "small")
        text = "\n<|endoftext|>\n".join(f"Line {i} says {i * i} and {i % 7}." for i in range(300))
        Path("lines.txt").write_text(text, encoding="utf-8")
        prepare(DataConfig(source="lines.txt", tokenizer="byte", seq_len=64, val_fraction=0.2), "data/lines")
        prepare(DataConfig(source="lines.txt", tokenizer="char", seq_len=64, val_fraction=0.2), "data/other")
    return directory


def trained(changes: dict[str, Any], name: str) -> RunResult:
    tree: dict[str, Any] = {**SMALL, **changes}
    return launch(Request(load_run_config(tree), name), Console(file=io.StringIO()))


class Screen:
    """Runs `evaluate` in a directory; what it shows, and what it notes."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.notes = ""

    def __call__(self, checkpoint: Path | None = None, **options: Any) -> str:
        shown, notes = io.StringIO(), io.StringIO()
        given = EvaluateOptions(checkpoint, device="cpu", **options)
        run_evaluate(given, Console(file=shown, width=100), Console(file=notes, width=1000))
        self.notes = notes.getvalue()
        return shown.getvalue() + self.capsys.readouterr().out


@pytest.fixture
def evaluate(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Screen:
    monkeypatch.chdir(home)
    return Screen(capsys)


def test_the_loss_is_the_one_training_saw(evaluate: Screen) -> None:
    result = json.loads(evaluate(as_json=True))
    info = json.loads(Path("runs/small/best/run_info.json").read_text(encoding="utf-8"))
    assert result["nats_per_token"] == pytest.approx(info["val_loss"], rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(info["val_bits_per_byte"], rel=1e-6)
    assert result["perplexity"] == pytest.approx(info["val_perplexity"], rel=1e-5)
    assert result["floor"] == info["floor"]
    assert result["data_dir"] == "data/small"
    assert result["beats_the_floor"] is False
    assert "runs/small/best" in evaluate.notes and "warning" not in evaluate.notes
    assert "not known" not in evaluate.notes


def test_the_table_lines_up_and_shows_the_floor(evaluate: Screen) -> None:
    shown = evaluate(Path("runs/small"))
    rows = [re.search(rf"^{name}(.*)$", shown, re.M) for name in ("this model", "best possible", "still to learn")]
    figures = [[float(word) for word in row[1].split()] for row in rows if row]
    for column in range(2):  # nats per token, bits per byte
        assert figures[0][column] - figures[1][column] == pytest.approx(figures[2][column], abs=2e-4)
    ends = [[match.end() for match in re.finditer(r"\.\d{4}", row[0])] for row in rows if row]
    assert ends[0] == ends[1] == ends[2]


def test_other_data_of_the_same_tokenizer_has_no_floor(evaluate: Screen) -> None:
    shown = evaluate(data_dir=Path("data/lines"))
    assert "this model" in shown and "best possible" not in shown
    result = json.loads(evaluate(data_dir=Path("data/lines"), as_json=True))
    assert result["floor"] is None and result["beats_the_floor"] is None


def test_a_part_of_a_split_and_the_other_split(evaluate: Screen) -> None:
    whole = json.loads(evaluate(split="train", as_json=True))
    part = json.loads(evaluate(split="train", max_batches=1, as_json=True))
    assert part["num_tokens"] == 16 * 64 < whole["num_tokens"]
    assert part["bits_per_byte"] == pytest.approx(part["nats_per_token"] / 0.6931, rel=2e-3)  # a byte is a token
    assert part["nats_per_token"] == pytest.approx(whole["nats_per_token"], rel=0.05)


def test_skills_of_fresh_stories_and_of_the_split(evaluate: Screen) -> None:
    shown = evaluate(skills=True, num_stories=6)
    for words in ("pronoun", "ordering", "things told once more", "stop", "90-100 %", "6 stories; the model pays"):
        assert words in shown
    fresh = json.loads(evaluate(skills=True, num_stories=6, as_json=True))
    kept = json.loads((Path(fresh["checkpoint"]).resolve().parent / "skills.json").read_text())
    assert [row["lost"] for row in kept["skills"]] == [row["lost"] for row in fresh["skills"]]
    assert kept["step"] == 3
    assert "tiny-transformer report runs/small says it in words" in evaluate.notes
    assert fresh["stories"] == "fresh stories"
    lost = [row["lost"] for row in fresh["skills"]]
    assert lost == sorted(lost, reverse=True)
    assert sum(lost) == pytest.approx(fresh["lost_per_text"])
    assert sum(row["lost"] for row in fresh["parts"]) == pytest.approx(fresh["lost_per_text"])
    of_split = json.loads(evaluate(skills=True, num_stories=2, split="val", as_json=True))
    assert of_split["num_texts"] == 2 and of_split["exact_per_text"] != fresh["exact_per_text"]


def test_what_it_writes_is_read_and_kept_beside_the_skills(evaluate: Screen) -> None:
    shown = evaluate(stories=3)
    for words in ("3 stories, read by the grammar", "sentences", "the hero's name", "It writes too little to tell"):
        assert words in shown
    result = json.loads(evaluate(stories=3, as_json=True))
    written = result["written"]
    assert written["num_stories"] == 3 and "skills" not in result and "nats_per_token" not in result
    assert [row["name"] for row in written["figures"]] == list(FIGURES)
    assert json.loads(Path("runs/small/written.json").read_text()) == {"step": 3, **written}
    both = json.loads(evaluate(stories=3, skills=True, num_stories=2, as_json=True))
    assert both["written"] == written and len(both["skills"]) > 5


def test_a_loss_below_the_floor_is_told_as_a_mistake(evaluate: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    def nearly_nothing(model, batch, hardware):
        return torch.full_like(batch.labels, 0.001, dtype=torch.float32) * (batch.labels >= 0)

    monkeypatch.setattr(loss_module, "token_losses", nearly_nothing)
    monkeypatch.setattr(stories_module, "token_losses", nearly_nothing)
    for options in ({}, {"skills": True, "num_stories": 5}):
        evaluate(**options)
        assert "too good to be true" in evaluate.notes
        assert "(3) the model was trained on these very texts" in evaluate.notes
    evaluate(split="train")  # may be known by heart
    assert "warning" not in evaluate.notes


def test_packed_documents_are_measured_as_they_were_trained(evaluate: Screen) -> None:
    data = {**SMALL["data"], "packing": "documents", "data_dir": "data/small"}
    outcome = trained({"out_dir": "runs_packed/p", "data": data}, "packed")
    result = json.loads(evaluate(Path("runs_packed/p"), as_json=True))
    assert result["nats_per_token"] == pytest.approx(outcome.state.metrics["val_loss"], rel=1e-6)
    assert result["beats_the_floor"] is False
    report = json.loads(evaluate(Path("runs_packed/p"), skills=True, num_stories=4, as_json=True))
    assert report["num_texts"] == 4 and report["lost_per_text"] > 0


# --- refusals
# ------------------------------------------------------------------------------------------------------------


def refusal(evaluate: Screen, checkpoint: Path | None = None, **options: Any) -> UserError:
    with pytest.raises(UserError) as error:
        evaluate(checkpoint, **options)
    lines = error.value.lines()
    assert len(lines) <= 3 and lines[-1].startswith("  try: ")
    return error.value


@pytest.mark.parametrize(("packing", "lost"), [("concat", 1), ("documents", 20)])
def test_the_bytes_of_a_part_are_those_of_its_targets(packing: str, lost: int) -> None:
    meta = SplitMeta(1_020, 20, 5_000, 60, "", "", [], None)
    assert num_targets(meta, packing) == 1_020 - lost
    assert scored_bytes(meta, 1_020 - lost, packing) == 5_000  # all of it: not a byte is missing
    assert scored_bytes(meta, 500, packing) == math.ceil(5_000 * 500 / (1_020 - lost))
    assert scored_bytes(meta, 1, packing) >= 1


def test_a_run_that_evaluates_all_its_tokens_as_a_part_tells_the_bits_of_the_whole(
    evaluate: Screen, tmp_path: Path
) -> None:
    """`eval_tokens` above the size of the split is the whole split, whatever the packing."""
    data = SMALL["data"] | {"packing": "documents", "source": "lines.txt", "val_fraction": 0.2}
    bits = {}
    for name, more in (("all", {}), ("counted", {"eval_tokens": 10**9})):
        trained({"data": data, "out_dir": str(tmp_path / name), "training": SMALL["training"] | more}, name)
        bits[name] = json.loads((tmp_path / name / "best/run_info.json").read_text())["val_bits_per_byte"]
    assert bits["counted"] == bits["all"]
    assert json.loads(evaluate(tmp_path / "all", as_json=True))["bits_per_byte"] == pytest.approx(bits["all"], rel=1e-6)


def test_a_part_above_half_is_told_as_a_part(evaluate: Screen) -> None:
    val = open_dataset(Path("data/small")).val
    batches = list(evaluation_batches(val, seq_len=64, batch_size=16))
    whole = evaluate(Path("runs/small")).splitlines()[-1]
    part = evaluate(Path("runs/small"), max_batches=len(batches) - 1).splitlines()[-1]
    scored = sum(batch.num_targets for batch in batches[:-1])
    assert whole.startswith(f"{len(val) - 1:,} tokens, ")
    assert part.startswith(f"{scored:,} of {len(val) - 1:,} tokens, ")


def test_skills_need_stories(evaluate: Screen) -> None:
    error = refusal(evaluate, skills=True, data_dir=Path("data/lines"))
    assert "--skills needs the story corpus" in error.what and "lines.txt" in error.what
    assert "--stories needs the story corpus" in refusal(evaluate, stories=2, data_dir=Path("data/lines")).what


def test_a_tokenizer_that_knows_more_control_tokens_writes_texts_the_same(evaluate: Screen, home: Path) -> None:
    """As after fine-tuning: whatever the data of its base says, it reads with the same ids."""
    expected = evaluate(Path("runs/small"), data_dir=Path("data/lines"))
    grown = shutil.copytree(home / "runs/small/last", home / "grown", ignore=shutil.ignore_patterns("manifest.json"))
    load_tokenizer(grown).with_control_tokens(("<|im_end|>",)).save(grown)
    assert evaluate(grown, data_dir=Path("data/lines")) == expected


def test_data_of_another_tokenizer_is_refused(evaluate: Screen) -> None:
    assert "another tokenizer (char) than the model's (byte)" in refusal(evaluate, data_dir=Path("data/other")).what


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "test"}, "no split 'test'"),
        ({"max_batches": 0}, "--max_batches 0"),
        ({"skills": True, "num_stories": 0}, "--num_stories 0"),
        ({"stories": 0}, "--stories 0"),
        ({"data_dir": Path("nowhere")}, "nowhere holds no prepared data"),
        ({"checkpoint": Path("data")}, "not a checkpoint"),
    ],
)
def test_what_cannot_be_is_told(evaluate: Screen, options: dict[str, Any], words: str) -> None:
    assert words in refusal(evaluate, **options).what


def test_a_checkpoint_alone_needs_to_be_told_its_data(evaluate: Screen, tmp_path: Path) -> None:
    alone = tmp_path / "model"
    shutil.copytree(Path("runs/small/best").resolve(), alone)
    assert "does not say what it was trained on" in refusal(evaluate, alone).what
    result = json.loads(evaluate(alone, data_dir=Path("data/small"), as_json=True))
    assert "how it learnt to read is not known" in evaluate.notes and "packing: concat" in evaluate.notes
    assert result["nats_per_token"] == pytest.approx(json.loads(evaluate(as_json=True))["nats_per_token"], rel=1e-6)


def test_data_that_is_gone_is_told(evaluate: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path("runs/small"), tmp_path / "runs/small", symlinks=True)
    monkeypatch.chdir(tmp_path)
    assert "is not in data/small/ any more" in refusal(evaluate, Path("runs/small")).what


def test_data_is_found_from_elsewhere_and_other_data_in_its_place_is_not_taken_for_it(
    evaluate: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = Path.cwd(), json.loads(evaluate(Path("runs/small"), as_json=True))
    monkeypatch.chdir(tmp_path)
    told = json.loads(evaluate(home / "runs/small", as_json=True))
    assert told["loss_sum"] == here["loss_sum"] and Path(told["data_dir"]).resolve() == home / "data/small"
    shutil.copytree(home / "runs/small", tmp_path / "runs/small", symlinks=True)
    shutil.copytree(home / "data/lines", tmp_path / "data/small")  # of the same tokenizer
    error = refusal(evaluate, Path("runs/small"))
    assert error.what == "data/small does not hold the data that this run was trained on"
    assert json.loads(evaluate(Path("runs/small"), data_dir=Path("data/small"), as_json=True))["floor"] is None


def test_stories_of_another_grammar_are_told_from_ours(evaluate: Screen, tmp_path: Path) -> None:
    MANY.prepare(tmp_path / "bags", count=100)
    error = refusal(evaluate, skills=True, split="val", data_dir=tmp_path / "bags")
    assert "is not a story that this version tells" in error.what
    assert error.exit_code == ExitCode.BAD_DATA
    evaluate(skills=True, num_stories=2, data_dir=tmp_path / "bags")
    assert "an earlier version of the grammar" in evaluate.notes
    evaluate(skills=True, num_stories=2)
    assert "an earlier version" not in evaluate.notes
