"""Questions by likelihood: rows of seven published forms, each pair as the model alone would score it."""

from __future__ import annotations

import io
import json
import lzma
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tiny_transformer.cli import run
from tiny_transformer.config.shapes import Qwen3Config
from tiny_transformer.errors import UserError
from tiny_transformer.evaluation.task_command import run_tasks
from tiny_transformer.evaluation.tasks import (
    Item,
    PairScore,
    encode_pair,
    read_items,
    run_task,
    score_pairs,
    summarize,
)
from tiny_transformer.hardware import choose_hardware
from tiny_transformer.models import build_model
from tiny_transformer.models.checkpoint import save_model
from tiny_transformer.tokenizers import Tokenizer, load_tokenizer, make_tokenizer

ROWS: dict[str, dict[str, Any]] = {
    "arc": {"query": "Question: What melts?", "choices": ["ice", "stone", "iron"], "gold": 0},
    "piqa": {"query": "Question: dresser\n", "choices": ["a pin", "a fin"], "gold": 1},
    "openbookqa": {"query": "There is fog around:", "choices": ["a marsh", "a desert"], "gold": 0},
    "hellaswag": {
        "activity_label": "Vault",
        "ctx_a": "You run [step] with a pole.",
        "ctx_b": "a few women",
        "endings": ["sit [title] Down", "run."],
        "label": "1",
    },
    "winogrande": {"context_options": ["so Sarah", "so Maria"], "continuation": "won.", "gold": 1},
    "blimp": {"sentence_good": "Who ran?", "sentence_bad": "Who run?"},
    "lambada": {"context": "I ask for signs and get no", "continuation": "signs", "id": 0},
}
PAIRS = {
    "arc": [("Question: What melts?\nAnswer:", " ice"), ("Question: What melts?\nAnswer:", " stone")],
    "piqa": [("Question: dresser\nAnswer:", " a pin"), ("Question: dresser\nAnswer:", " a fin")],
    "openbookqa": [("There is fog around:", " a marsh"), ("There is fog around:", " a desert")],
    "hellaswag": [
        ("Vault: You run with a pole. A few women", " sit. Down"),
        ("Vault: You run with a pole. A few women", " run."),
    ],
    "winogrande": [("so Sarah", " won."), ("so Maria", " won.")],
    "blimp": [("", " Who ran?"), ("", " Who run?")],
    "lambada": [("I ask for signs and get no", " signs")],
}
CPU = choose_hardware("cpu", "fp32")


def written(directory: Path, name: str, *rows: dict[str, Any]) -> Path:
    path = directory / f"{name}.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model():
    config = Qwen3Config(
        vocab_size=257, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32
    )
    return build_model(config, seed=3).eval()


@pytest.mark.parametrize("name", ROWS)
def test_each_published_form_is_read_as_its_question(name: str, tmp_path: Path) -> None:
    (item,) = read_items(written(tmp_path, name, ROWS[name]))
    assert list(item.pairs[:2]) == PAIRS[name]
    row = ROWS[name]
    assert item.gold == (None if name == "lambada" else int(row.get("gold", row.get("label", 0))))
    if name == "arc":
        assert item.lengths == (3, 5, 4)  # without the blank before


def test_a_continuation_costs_what_the_model_alone_says_of_it(model) -> None:
    """Rows of all lengths together, against one row at a time through the whole head."""
    tokenizer = make_tokenizer("byte")
    texts = [pair for pairs in PAIRS.values() for pair in pairs]
    pairs = [encode_pair(tokenizer, *text) for text in texts]
    assert any(len(context) + len(continuation) > 33 for context, continuation in pairs)  # some are cut
    for (context, continuation), score in zip(pairs, score_pairs(model, pairs, CPU), strict=True):
        row = (context + continuation)[-33:]
        with torch.no_grad():
            log_probs = torch.log_softmax(model(torch.tensor([row[:-1]]))[0], -1)[-len(continuation) :]
        wanted = log_probs.gather(1, torch.tensor(row[-len(continuation) :])[:, None]).sum().item()
        assert score.log_likelihood == pytest.approx(wanted, abs=1e-4)
        assert score.is_greedy == (log_probs.argmax(1).tolist() == row[-len(continuation) :])


def test_where_context_ends_and_continuation_begins() -> None:
    tokenizer = make_tokenizer("byte")
    end = tokenizer.end_id
    assert encode_pair(tokenizer, "ab", " c") == (tokenizer.encode("ab"), tokenizer.encode(" c"))
    assert encode_pair(tokenizer, "ab ", "c") == (tokenizer.encode("ab"), tokenizer.encode(" c"))
    assert encode_pair(tokenizer, "", "c") == ([end], tokenizer.encode("c"))


def test_a_continuation_that_joins_the_context_keeps_its_own_tokens(shared_data: Path) -> None:
    packed = (shared_data / "tokenizers/qwen3/tokenizer.json.xz").read_bytes()
    tokenizer = Tokenizer(json.loads(lzma.decompress(packed)), name="qwen3")
    context, continuation = encode_pair(tokenizer, "She went to the", " marsh")
    assert tokenizer.decode(context) == "She went to the" and tokenizer.decode(continuation) == " marsh"


def test_shares_and_their_error_by_hand() -> None:
    def item(gold: int) -> Item:
        return Item((("q", " aa"), ("q", " bbbb")), gold, (2, 4))

    items = [item(0), item(1), item(1), item(0)]
    scores = [[PairScore(a, False), PairScore(b, False)] for a, b in ((-1, -3), (-1, -3), (-4, -3), (-2, -5))]
    result = summarize("t", items, scores, num_cut=0)
    assert result.accuracy == 3 / 4 and result.chance == 1 / 2 and result.perplexity is None
    # per character: -.5/-.75, -.5/-.75, -2/-.75, -1/-1.25
    assert result.normalised == 3 / 4
    assert result.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    longer_wins = summarize("t", [item(1)], [[PairScore(-2, False), PairScore(-3, False)]], num_cut=0)
    assert longer_wins.accuracy == 0 and longer_wins.normalised == 1


def test_one_continuation_is_right_when_greedy_decoding_writes_it() -> None:
    items = [Item((("q", " a"),), None, (1,))] * 2
    result = summarize("t", items, [[PairScore(-1.0, True)], [PairScore(-3.0, False)]], num_cut=1)
    assert result.accuracy == 0.5 and result.normalised is None and result.chance == 0 and result.num_cut == 1
    assert result.perplexity == pytest.approx(math.exp(2))


def test_a_model_that_knows_the_answers_has_them_right(tmp_path: Path) -> None:
    """A model made by hand that writes `b` after everything: what holds more `b` is likelier."""
    config = Qwen3Config(
        vocab_size=257, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=False
    )
    model = build_model(config, seed=0).eval()
    tokenizer = make_tokenizer("byte")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight[tokenizer.encode("b")[0], 0] = 9.0
    rows = [{"query": "q", "choices": ["aaaa", "bbbb", "aba"], "gold": 1}] * 3
    result = run_task("t", read_items(written(tmp_path, "t", *rows)), model, tokenizer, CPU)
    assert result.accuracy == 1 and result.normalised == 1 and result.num_items == 3 and result.num_cut == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not a question"),
        ("[1]", "none of the forms"),
        ('{"query": "a", "choices": ["b"], "gold": 1}', "number 1, of 1"),
        ('{"query": "a", "choices": ["b", 3], "gold": 0}', "choices is not a list of texts"),
        ('{"query": "a", "choices": [], "gold": 0}', "of 0"),
        ('{"query": 1, "choices": ["b"], "gold": 0}', "query is not a text"),
        ('{"query": "a", "choices": ["b", "c"], "gold": true}', "gold is not the number"),
        ('{"query": "a", "choices": ["b", ""], "gold": 0}', "choices is not a list of texts"),
        ('{"sentence_good": "a", "sentence_bad": ""}', "an answer is empty"),
        ('{"context": "a", "continuation": null}', "continuation is not a text"),
        ("", "there is no question"),
    ],
)
def test_a_line_that_is_no_question_is_named(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f"\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_items(path)
    if line:
        assert f"{path}, line 2" in str(error.value)
    assert said in str(error.value) and "query, choices, gold" in str(error.value)


@pytest.fixture
def checkpoint(model, tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    save_model(model, tmp_path / "model")
    make_tokenizer("byte").save(tmp_path / "model")
    assert load_tokenizer(tmp_path / "model").vocab_size == 257
    return tmp_path / "model"


def test_a_folder_of_tasks_as_a_table_and_as_json(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = tmp_path / "tasks"
    for name, row in ROWS.items():
        (tasks / name).mkdir(parents=True)
        written(tasks / name, "test", row, row)
    packed = tasks / "more.jsonl.xz"
    packed.write_bytes(lzma.compress(json.dumps(ROWS["blimp"]).encode()))
    shown, notes = io.StringIO(), io.StringIO()
    options: dict[str, Any] = {"limit": 1, "device": "cpu"}
    results = run_tasks(
        checkpoint,
        [tasks],
        **options,
        as_json=False,
        console=Console(file=shown, width=120),
        notes=Console(file=notes, width=200),
    )
    names = [f"{name}/test" for name in sorted(ROWS)]
    assert [result.name for result in results] == sorted([*names, "more"])
    assert all(result.num_items == 1 for result in results)
    rows = shown.getvalue().splitlines()
    assert "perplexity" in rows[0] and len(rows[0].rstrip()) >= len(rows[1].rstrip())
    assert "hellaswag/test: 1 of 1 questions are longer than the 32 tokens" in notes.getvalue()
    assert run(["evaluate", str(checkpoint), "--task", str(tasks), "--limit", "1", "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["accuracy"] for row in told["tasks"]] == [result.accuracy for result in results]


def test_what_goes_with_a_loss_does_not_go_with_questions(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = written(tmp_path, "t", ROWS["arc"])
    for words, said in (
        (["--task", str(task), "--skills"], "--skills is not for --task"),
        (["--task", str(task), "--stories", "3"], "--stories is not for --task"),
        (["--task", str(task), "--split", "val"], "--split is not for --task"),
        (["--num_stories", "3"], "--num_stories is for --skills"),
        (["--skills", "--max_batches", "3"], "--max_batches is not for --skills"),
        (["--stories", "3", "--max_batches", "3"], "--max_batches is not for --stories"),
        (["--stories", "3", "--split", "train"], "--split is not for --stories"),
        (["--limit", "3"], "--limit is for --task"),
        (["--task", str(tmp_path / "none")], "no such task file"),
        (["--task", str(checkpoint)], "no .jsonl file in"),
        (["--task", str(checkpoint / "config.json")], "is no .jsonl file"),
        (["--task", str(task), "--limit", "0"], "--limit 0"),
    ):
        assert run(["evaluate", str(checkpoint), *words]) != 0
        assert said in capsys.readouterr().err
