"""Classification on the engine: what it learns, how it resumes, how it opens in transformers, what the verb says."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_helpers import fingerprint, log_without_clock
from torch.nn import functional as F
from tuning_helpers import tune

from tiny_transformer.cli import run
from tiny_transformer.data.labels import read_labelled
from tiny_transformer.errors import UserError
from tiny_transformer.evaluation.classes import ClassFigures
from tiny_transformer.models import load_model
from tiny_transformer.models.classifier import ClassificationModel, load_classifier, scores_of
from tiny_transformer.stages import class_data
from tiny_transformer.stages import run as engine
from tiny_transformer.stages.classify import Classifying
from tiny_transformer.storage.replaced import RUN_FILES
from tiny_transformer.tokenizers import load_tokenizer
from tiny_transformer.training import loop


@pytest.fixture(scope="module")
def base(base_run: Path) -> Path:
    return base_run / "last"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a text ends with says its label; one label is rare."""
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    lines = [f'{n},"hen {n} {"!" if n % 4 else "?"}",{"loud" if n % 4 else "asks"}' for n in range(80)]
    path.write_text("\n".join(["id,text,label", *lines]), encoding="utf-8")
    return path


def tree(base: Path, rows: Path, out_dir: Path, **changes: Any) -> dict[str, Any]:
    training = {
        **{"device": "cpu", "precision": "fp32", "steps": 9, "micro_batch_size": 4, "eval_steps": 4, "save_steps": 3},
        **{"log_steps": 1, "learning_rate": 1e-2, "warmup_steps": 0, **changes.pop("training", {})},
    }
    data = {"source": str(rows), "seq_len": 32, **changes.pop("data", {})}
    return {
        **{"stage": "classify", "init_from": str(base), "out_dir": str(out_dir)},
        **{"data": data, "training": training, **changes},
    }


@pytest.fixture(scope="module")
def sorted_run(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run_dir = tmp_path_factory.mktemp("sorted") / "sorted"
    return run_dir, tune(tree(base, rows, run_dir, training={"steps": 40, "eval_steps": 20}), shows=True)[1]


@pytest.mark.slow
def test_it_learns_and_shows_which_label_is_taken_for_which(sorted_run: tuple[Path, str]) -> None:
    run_dir, told = sorted_run
    assert "texts and" in told and "accuracy 1.000, macro-F1 1.000" in told
    assert "classification.json" in RUN_FILES  # which `--overwrite` moves aside
    kept = json.loads((run_dir / "classification.json").read_text(encoding="utf-8"))
    assert kept["labels"] == ["asks", "loud"] and kept["confusion"][0][1] == kept["confusion"][1][0] == 0
    assert {"val_accuracy", "val_macro_f1", "accuracy"} <= log_without_clock(run_dir)[-1].keys()


@pytest.mark.slow
def test_transformers_gives_the_same_scores_padded_on_either_side(
    sorted_run: tuple[Path, str], rows: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    last = sorted_run[0] / "last"
    model, labels = load_classifier(last)
    theirs = AutoModelForSequenceClassification.from_pretrained(last)
    tokenizer = load_tokenizer(last)
    assert theirs.config.id2label == dict(enumerate(labels))
    texts = [tokenizer.encode(text) for text in ("hen 3 !", "a hen", "hen?")]
    ids = torch.tensor([[*text, *[tokenizer.end_id] * (8 - len(text))] for text in texts])
    ours = scores_of(model, ids, torch.tensor([len(text) for text in texts]))
    assert torch.allclose(theirs(ids, attention_mask=(ids != tokenizer.end_id).long()).logits, ours, atol=1e-5)
    with pytest.raises(UserError, match="this model is a classifier: it gives labels to texts and cannot write any"):
        load_model(last)
    for stage in ("finetune", "classify"):
        with pytest.raises(UserError, match="this model is a classifier"):
            tune(tree(last, rows, tmp_path / "again", stage=stage))


def test_the_loss_weighs_classes_and_a_label_counts_the_same(base: Path, rows: Path, tmp_path: Path) -> None:
    settings = tree(base, rows, tmp_path / "r", classify={"class_weights": True}, training={"steps": 1})
    result, _ = tune(settings)
    stage = result.stage
    assert isinstance(stage, Classifying)
    (batch,) = stage.batches(0, 1).micro_batches(0, 4)
    model = stage.build_model("cpu").eval()
    stage.load_first_weights(model)
    total = 0.0
    for ids, length, label in zip(batch.input_ids, batch.lengths, batch.labels, strict=True):
        scores = scores_of(model, ids[:length][None], length[None])  # each text alone, without padding
        total += (stage.weights[label] * F.cross_entropy(scores, label[None])).item()
    assert log_without_clock(tmp_path / "r")[0]["loss"] == pytest.approx(total / 4, rel=1e-5)
    counts = [sum(text.label == i for text in stage.train) for i in range(2)]
    assert stage.weights[0] * counts[0] == pytest.approx(float(stage.weights[1] * counts[1]))


@pytest.mark.slow
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(tree(base, rows, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        inner = loop.train
        patch.setattr(engine, "train", lambda job, state, _: inner(job, state, lambda: state.step >= 5))
        tune(tree(base, rows, tmp_path / "parts"))
    tune(tree(base, rows, tmp_path / "parts"), resume=True)
    assert fingerprint(tmp_path / "parts") == fingerprint(tmp_path / "whole")
    assert log_without_clock(tmp_path / "parts") == log_without_clock(tmp_path / "whole")


def test_a_classification_model_in_python_scores_the_last_real_token_and_learns(base: Path) -> None:
    """The signature of an older project: `ClassificationModel(transformer, num_classes)`."""
    torch.manual_seed(0)
    language_model = load_model(base)
    model = ClassificationModel(language_model, num_classes=3)
    assert model.classifier.in_features == language_model.config.hidden_size
    ids = torch.tensor([[5, 6, 7, 8], [9, 3, 0, 0]])
    scores = model(ids, lengths=torch.tensor([4, 2]))
    for row, text in enumerate((ids[:1], ids[1:, :2])):  # alone, without padding
        hidden = language_model.backbone(text).hidden[0, -1]
        assert torch.allclose(model.classifier(hidden), scores[row], atol=1e-6)
        assert torch.allclose(model(text)[0], scores[row], atol=1e-6)
    labels, optimizer = torch.tensor([2, 0]), torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = F.cross_entropy(model(ids, torch.tensor([4, 2])), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model(ids, torch.tensor([4, 2])).argmax(-1).tolist() == [2, 0]


def test_a_label_is_text_and_no_markup_on_the_terminal() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(class_data._table(ClassFigures(0.0, torch.tensor([[3, 1], [2, 4]])), ["[/x]", "[bold]b"]))
    assert console.file.getvalue().split() == ["[/x]", "[bold]b", "[/x]", "3", "1", "[bold]b", "2", "4"]


def test_figures_of_a_known_confusion() -> None:
    figures = ClassFigures(0.0, torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]]))
    assert figures.accuracy == pytest.approx(0.7)
    assert figures.macro_f1 == pytest.approx((6 / 9 + 8 / 11) / 2)  # the third label is neither there nor taken


@pytest.mark.slow
def test_the_verb_sorts_texts(
    sorted_run: tuple[Path, str], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "hen 7 ?"}', encoding="utf-8")
    words = ["classify", str(sorted_run[0]), "--text", "hen 5 !", "--file", str(tmp_path / "t.jsonl")]
    assert run([*words, "--device", "cpu"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["label"] for one in told] == ["loud", "asks"]
    assert sum(told[0]["probabilities"].values()) == pytest.approx(1.0)
    with gzip.open(tmp_path / "t.txt.gz", "wt", encoding="utf-8") as file:
        file.write("hen 3 !\n\nhen 4 ?\n")
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04")
    assert run([*words[:2], "--file", str(tmp_path / "t.txt.gz"), "--device", "cpu"]) == 0
    assert [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()] == ["loud", "asks"]
    assert run([*words[:2], "--file", str(tmp_path / "t.xlsx"), "--device", "cpu"]) == 65
    assert ".xlsx files are not read" in capsys.readouterr().err
    assert run(["classify", str(base), "--text", "x"]) == 65
    assert "this is no classifier" in capsys.readouterr().err


@pytest.mark.slow
def test_labels_are_read_from_a_data_set_of_the_hub_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose labels are numbers there, as `datasets` keeps them."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("tiny_transformer.data.prepare.records.hub_is_reachable", lambda: True)
    kept = datasets.Dataset.from_dict({"text": ["a hen", "an egg"], "label": [1, 0]})
    kept = kept.cast_column("label", datasets.ClassLabel(names=["egg", "bird"]))
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **k: (asked.append((name, k)), kept)[1])
    rows = list(read_labelled("someone/animals", "text", "label"))
    assert rows == [("a hen", "1", "someone/animals, row 1"), ("an egg", "0", "someone/animals, row 2")]
    assert asked == [("someone/animals", {"split": "train"})]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"classify": {"labels": ["asks", "quiet"]}}, "the label 'loud' is not in the list"),
        ({"classify": {"label_field": "kind"}}, "no text in the field 'kind'"),
        ({"lora": {"enabled": True}}, "a new head cannot be learnt by adapters alone"),
        ({"init_from": None}, "classification starts from a trained model"),
        ({"data": {"source": "stories"}}, "classification needs labelled texts to learn from"),
        ({"data": {"data_dir": "data"}}, r"data\.data_dir says nothing to classification"),
        ({"data": {"vocab_size": 300}}, r"data\.vocab_size says nothing to classification"),
        ({"data": {"max_bytes": 300}}, r"data\.max_bytes says nothing to classification"),
        ({"data": {"packing": "documents"}}, r"data\.packing says nothing to classification"),
        ({"data": {"tokenizer": "bpe"}}, r"data\.tokenizer = 'bpe', but the model in .* has a tokenizer of its own"),
        ({"training": {"eval_tokens": 64}}, r"training\.eval_tokens says nothing to classification"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    changes: dict[str, Any], says: str, base: Path, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        tune(tree(base, rows, tmp_path / "r", **changes))
