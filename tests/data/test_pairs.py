"""Preference data: each form gives the same pair, each broken file its own message; rows, masks, cuts, weights."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from tiny_transformer.data.chat.conversations import Cut
from tiny_transformer.data.chat.pairs import Pair, encode_pairs, fingerprint, fit_pairs, read_pairs
from tiny_transformer.data.chat.records import Reading
from tiny_transformer.data.preferences import PairBatches, Pairs
from tiny_transformer.errors import UserError
from tiny_transformer.tokenizers import make_tokenizer
from tiny_transformer.tokenizers.chat import ChatTemplate, Message
from tiny_transformer.tokenizers.templates import ALPACA, CHATML, PLAIN, QWEN3

BROKEN, SHARED = Path(__file__).parent / "broken_pairs", Path(__file__).parents[3] / "shared/data/preference"
SYSTEM, QUESTION = Message("system", "Be brief."), Message("user", "Two and two?")
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two and two?"}]
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("Four.", "Five."))
FORMS = {
    "texts": {"system": "Be brief.", "prompt": "Two and two?", "chosen": " Four.\n", "rejected": "Five."},
    "question": {"system": "Be brief.", "question": "Two and two?", "chosen": "Four.", "rejected": "Five."},
    "instruction": {
        "system": "Be brief.",
        "instruction": "Two and two?",
        "input": "",
        "chosen": "Four.",
        "rejected": "Five.",
    },
    "messages": {"prompt": ASKED, "chosen": [GOOD], "rejected": [BAD]},
    "whole conversations": {"chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD]},
    "both": {"prompt": "Two and two?", "chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD]},
    "sharegpt": {
        "conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Two and two?"}],
        "chosen": {"from": "gpt", "value": "Four."},
        "rejected": {"from": "gpt", "value": "Five."},
    },
}


def read(
    path: Path, template: ChatTemplate = CHATML, *, skips_bad: bool = False, reading: Reading | None = None
) -> list[Pair]:
    return list(read_pairs(str(path), template, system=None, skips_bad=skips_bad, reading=reading or Reading()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_each_form_gives_the_same_pair(form: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"pairs{suffix}"
    if suffix == ".parquet":
        pandas = pytest.importorskip("pandas")
        pandas.DataFrame([FORMS[form]]).to_parquet(path)
    else:
        path.write_text(json.dumps(FORMS[form] if suffix == ".jsonl" else [FORMS[form]]), encoding="utf-8")
    (pair,) = read(path)
    assert pair[:3] == ((SYSTEM, QUESTION), "Four.", "Five.") and str(path) in pair.where


def test_a_prompt_beside_several_turns_is_their_first_question(tmp_path: Path) -> None:
    turns = [*ASKED, {"role": "assistant", "content": "Four."}, {"role": "user", "content": "And one?"}]
    row = {"prompt": "Two and two?", "chosen": [*turns, GOOD], "rejected": [*turns, BAD]}
    (tmp_path / "p.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (pair,) = read(tmp_path / "p.jsonl")
    assert [message.content for message in pair.messages] == ["Be brief.", "Two and two?", "Four.", "And one?"]


def test_a_table_and_an_input_are_read(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("instruction,input,chosen,rejected\nAdd,2 and 2,Four.,Five.\n", encoding="utf-8")
    (pair,) = read(tmp_path / "p.csv", ALPACA)
    assert pair.messages == (Message("user", "Add\n\n### Input:\n2 and 2"),) and "line 2" in pair.where


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("same.jsonl", 2, "chosen and rejected are the same answer, so neither is preferred"),
        ("empty_answer.jsonl", 3, "chosen is empty"),
        ("roles_out_of_order.jsonl", 1, "roles out of order: message 3 is of the assistant, not of the user"),
        ("ends_with_a_question.json", 2, "roles out of order: rejected ends with a message of the user"),
        ("no_rejected.csv", 2, "the record has no rejected answer; its keys: prompt, chosen, answer"),
        ("no_question.jsonl", 1, "the record has two answers and no question"),
        ("another_question.jsonl", 1, "chosen and rejected do not answer the same question"),
        ("not_the_prompt.jsonl", 1, "the question of the record is not the one that its answers begin with"),
        ("empty_message.jsonl", 1, "chosen: message 1 is empty"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(name: str, line: int, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        read(BROKEN / name)
    assert f"line {line}" in str(caught.value.where) and caught.value.remedy
    reading, good = Reading(), line - 1 if name.endswith(".jsonl") else 0
    assert len(read(BROKEN / name, skips_bad=True, reading=reading)) == good
    assert [error.what for error in reading.skipped] == [caught.value.what]


@pytest.mark.parametrize("template", [CHATML, ALPACA, QWEN3])
def test_the_last_answer_and_its_end_alone_are_marked(template: ChatTemplate) -> None:
    tokenizer = make_tokenizer("byte").with_control_tokens(template.control_tokens)
    messages = (QUESTION, Message("assistant", "Four."), Message("user", "And one?"))
    (pair,) = encode_pairs(tokenizer, template, [Pair(messages, "Five.", "Six.", "here")])
    for (ids, is_answer), text in ((pair.chosen, "Five."), (pair.rejected, "Six.")):
        answer = [token for token, flag in zip(ids, is_answer, strict=True) if flag]
        assert tokenizer.decode(answer[:-1]).removeprefix("<think>\n\n</think>\n\n") == text
        assert answer[-1] == ids[-1] == template.end_id(tokenizer)
        before = ids[: is_answer.index(True)]
        prompt = template.prompt_ids(tokenizer, messages)
        assert before == prompt[: len(before)]


def test_what_a_row_cannot_hold_is_cut_or_left_out_and_counted() -> None:
    tokenizer = make_tokenizer("byte")
    texts = [("ab", "cd"), ("a" * 20, "cd"), ("xxxxxxx1", "xxxxxxx2"), ("ab", "cd")]
    asked = ["q", "q", "q", "q" * 30]
    pairs = [Pair((Message("user", q),), a, b, "") for q, (a, b) in zip(asked, texts, strict=True)]
    encoded = encode_pairs(tokenizer, PLAIN, pairs)
    kept, cut = fit_pairs(encoded, 8)
    assert cut == Cut(num_truncated=1, num_lost=2) and [len(pair.chosen.ids) for pair in kept] == [5, 9]
    assert fingerprint(kept) != fingerprint(encoded[:2]) == fingerprint(fit_pairs(encoded[:2], 50)[0])


def test_batches_hold_each_pair_once_an_epoch_and_know_the_whole_batch() -> None:
    tokenizer = make_tokenizer("byte")
    asked = [Pair((Message("user", "q" * (n + 1)),), "ab", "c", "") for n in range(6)]
    pairs = Pairs(encode_pairs(tokenizer, PLAIN, asked))
    order = {"global_batch_size": 6, "seed": 3}
    whole = PairBatches(lambda: pairs, 6, **order).batch(4)
    halves = [PairBatches(lambda: pairs, 6, **order, rank=rank, world_size=2).batch(4) for rank in range(2)]
    assert sorted(whole.sample_ids.tolist()) == list(range(6)) and whole.num_targets == 6
    assert [*halves[0].sample_ids, *halves[1].sample_ids] == [*whole.sample_ids]
    assert {batch.token_weight for batch in (whole, *halves)} == {6 / sum(range(4, 10))}
    row = int(np.argmax(whole.sample_ids.numpy()))
    assert whole.rows.is_text[row].sum() == 10 and whole.rows.is_answer[row].sum() == 3  # "ab" and its end
    assert whole.rows.is_answer[6 + row].sum() == 2  # "c" and its end: rejected answers come after the chosen ones


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data beside the project")
@pytest.mark.parametrize(("name", "count", "skipped"), [("dpo-en-demo", 270, 0), ("raschka-1100", 983, 6)])
def test_the_sets_beside_the_project_are_read(name: str, count: int, skipped: int, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(lzma.decompress((SHARED / name / "train.jsonl.xz").read_bytes()))
    reading = Reading()
    assert len(read(path, ALPACA, skips_bad=True, reading=reading)) == count and len(reading.skipped) == skipped
