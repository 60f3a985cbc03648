"""Instruction data: each form gives the same messages, each broken file and template its own message; packed rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from broken_templates import MasksEnds, broken

from tiny_transformer.data.chat.checks import check_lengths, check_rows, check_template, count_other_ids
from tiny_transformer.data.chat.conversations import Answers, TokenStore, encode_conversations, split
from tiny_transformer.data.chat.records import Conversation, Reading, read_conversations
from tiny_transformer.data.packing import IGNORE_INDEX
from tiny_transformer.errors import UserError
from tiny_transformer.tokenizers import Tokenizer, make_tokenizer
from tiny_transformer.tokenizers.chat import ChatTemplate, Message
from tiny_transformer.tokenizers.templates import ALPACA, CHATML, PLAIN, QWEN3

BROKEN = Path(__file__).parent / "broken_chats"
TALK = (Message("system", "Be brief."), Message("user", "Two and two?"), Message("assistant", "Four."))
FORMS = {
    "alpaca": {"system": "Be brief.", "instruction": "Two and two?", "input": "", "output": " Four.\n"},
    "question": {"system": "Be brief.", "question": "Two and two?", "answer": "Four."},
    "prompt": {"system": "Be brief.", "prompt": "Two and two?", "completion": "Four."},
    "openai": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Two and two?"},
            {"role": "assistant", "content": "Four."},
        ]
    },
    "openai in parts": {
        "messages": [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in (("system", "Be brief."), ("user", "Two and two?"), ("assistant", "Four."))
        ]
    },
    "sharegpt": {
        "system": "Be brief.",
        "conversations": [{"from": "human", "value": "Two and two?"}, {"from": "gpt", "value": "Four."}],
    },
}


def read(path: Path, template: ChatTemplate = CHATML, **options: object) -> list[Conversation]:
    settings = {"system": None, "skips_bad": False, "reading": Reading(), **options}
    return list(read_conversations(str(path), template, **settings))  # ty: ignore[invalid-argument-type]


def chatml() -> Tokenizer:
    return make_tokenizer("byte").with_control_tokens(CHATML.control_tokens)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_each_form_gives_the_same_messages(form: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"talk{suffix}"
    if suffix == ".parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist([FORMS[form]]), path)
    else:
        path.write_text(json.dumps([FORMS[form]] if suffix == ".json" else FORMS[form]), encoding="utf-8")
    (talk,) = read(path)
    assert talk.messages == TALK and str(path) in talk.where


def test_a_table_is_read_by_its_header(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('instruction;input;output\n"Add; them";1 and 2;3\n', encoding="utf-8")
    (talk,) = read(tmp_path / "t.csv", ALPACA, system="Be brief.")
    assert talk.messages == (
        TALK[0],
        Message("user", "Add; them\n\n### Input:\n1 and 2"),
        Message("assistant", "3"),
    )


def test_a_table_may_be_written_as_other_programs_do(tmp_path: Path) -> None:
    text = '\ninstruction,"the\noutput",output,,\n"Add, them",x,"1\n2",,\n\nSay,y,3,,\n'
    for ending in ("\n", "\r\n", "\r"):
        (tmp_path / "t.csv").write_bytes(text.replace("\n", ending).encode())
        one, two = read(tmp_path / "t.csv")
        answers = [talk.messages[1].content.replace("\r\n", "\n").replace("\r", "\n") for talk in (one, two)]
        assert answers == ["1\n2", "3"] and two.where.endswith("line 7")
    (tmp_path / "t.csv").write_text("instruction,output,output\nAdd,1,2\n")
    with pytest.raises(UserError, match="2 columns are called 'output'"):
        read(tmp_path / "t.csv")


def test_a_folder_says_what_of_it_is_read_and_what_not(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("a.jsonl", "more/b.jsonl"):
        (tmp_path / name).write_text(json.dumps(FORMS["question"]) + "\n")
    for name in ("README.md", "notes.txt", "paper.pdf"):
        (tmp_path / name).write_text("This is no record.\n")
    reading = Reading()
    assert len(read(tmp_path, reading=reading)) == 2
    assert reading.left_out() == ["reading 2 .jsonl; skipped 3: 1 .md, 1 .pdf, 1 .txt"]
    alone = Reading()
    assert len(read(tmp_path / "a.jsonl", reading=alone)) == 1 and alone.left_out() == []


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("not_json.jsonl", 2, "is not JSON"),
        ("roles_out_of_order.jsonl", 3, "roles out of order: message 2 is of the user, not of the assistant"),
        ("empty_answer.jsonl", 2, "output is empty"),
        ("ends_with_a_question.jsonl", 1, "ends without an answer"),
        ("unknown_role.json", 3, "message 2 has the role 'tool'"),
        ("no_known_form.jsonl", 1, "of no known form; its keys: text"),
        ("none_as_input.csv", 3, "input is the word None"),
        ("short_row.csv", 3, "a row has 1 field, and the first line names 2 columns"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(name: str, line: int, says: str) -> None:
    with pytest.raises(UserError) as refused:
        read(BROKEN / name)
    assert says in refused.value.what and (refused.value.where or "").endswith(f"{name}, line {line}")


def test_bad_records_are_left_out_and_counted_where_that_is_asked_for() -> None:
    reading = Reading()
    talks = read(BROKEN / "empty_answer.jsonl", skips_bad=True, reading=reading)
    assert [talk.messages[0].content for talk in talks] == ["Name a bird."]
    assert reading.num_records == 2 and "output is empty" in reading.skipped[0].what


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("end not trained", r"the end token <\|im_end\|> is not trained"),
        ("trains the user", "trains the tokens of the system"),
        ("counts messages", "is unstable: before message 3 it writes other tokens"),
        ("writes None", 'writes a literal "None"'),
    ],
)
def test_a_broken_template_is_refused(name: str, says: str) -> None:
    template, tokenizer = broken(name), chatml()
    examples = encode_conversations(tokenizer, template, [Conversation(TALK, "talks.jsonl, line 7")])
    with pytest.raises(UserError, match=says) as refused:
        check_template(tokenizer, template, examples)
    assert refused.value.where == "talks.jsonl, line 7"


def test_sound_templates_pass_the_checks() -> None:
    talk = (*TALK, Message("user", "Sure?"), Message("assistant", "<think>\nHm.\n</think>\n\nYes, None."))
    for template in (CHATML, QWEN3, ALPACA, PLAIN):
        examples = encode_conversations(chatml(), template, [Conversation(talk, "")])
        check_template(chatml(), template, examples)
        assert count_other_ids(chatml(), template, examples) == 0
        assert len(examples) == (2 if template is QWEN3 else 1)


def test_ends_hidden_by_a_mask_of_padding_and_everything_cut_away_are_refused() -> None:
    tokenizer = chatml()
    examples = encode_conversations(tokenizer, CHATML, [Conversation(TALK, "")] * 3)
    store, end_id = TokenStore(examples, 128, "talks"), CHATML.end_id(tokenizer)
    check_rows(Answers(store, 128), store, end_id)
    rows = MasksEnds(store, 128)
    rows.end_id = end_id
    with pytest.raises(UserError, match="masking it hides 3 of 3 ends of answers"):
        check_rows(rows, store, end_id)
    short = TokenStore(examples, 20, "talks")
    assert short.cut.num_lost == 3
    with pytest.raises(UserError, match="everything is truncated away: none of 3 conversations"):
        check_lengths(short, 3, 20)


def test_rows_hold_whole_conversations_and_the_tokens_of_answers_are_their_targets() -> None:
    tokenizer = chatml()
    talks = [Conversation((Message("user", "a" * n), Message("assistant", "b" * n)), "") for n in range(1, 20)]
    examples = encode_conversations(tokenizer, CHATML, talks)
    store = TokenStore(examples, 64, "talks")
    rows = Answers(store, 64)
    assert 64 * len(rows) < 1.3 * len(store) and store.cut == (type(store.cut))()
    answers = []
    for i in range(len(rows)):
        row = rows[i]
        assert row.doc_ids is not None and row.positions is not None
        learnt = row.labels != IGNORE_INDEX
        assert np.array_equal(row.labels[:-1][learnt[:-1]], row.input_ids[1:][learnt[:-1]])
        answers += tokenizer.decode(row.labels[learnt].tolist(), skip_special_tokens=False).split("<|im_end|>")
        for piece in np.unique(row.doc_ids[learnt]):
            here = row.doc_ids == piece
            assert np.array_equal(row.positions[here], np.arange(here.sum()))
            assert tokenizer.spelling(int(row.input_ids[here][0])) == "<|im_start|>"
    assert sorted(filter(None, answers)) == ["b" * n for n in range(1, 20)]
    assert store.num_bytes == sum(range(1, 20)) == store.num_targets - 19


def test_a_long_answer_is_cut_and_counted() -> None:
    tokenizer = chatml()
    talk = Conversation((Message("user", "a"), Message("assistant", "b" * 90)), "")
    store = TokenStore(encode_conversations(tokenizer, CHATML, [talk]), 64, "talks")
    assert (store.cut.num_truncated, len(store)) == (1, 65)
    row = Answers(store, 64)[0]
    assert CHATML.end_id(tokenizer) not in row.labels and (row.labels == ord("b")).sum() == store.num_targets


def test_answers_to_one_question_stay_on_one_side_and_none_moves() -> None:
    tokenizer = chatml()
    talks = [
        Conversation((Message("user", f"{n}?"), Message("assistant", f"{n} {again}")), "")
        for n in range(200)
        for again in range(2)
    ]
    examples = encode_conversations(tokenizer, CHATML, talks)
    train, val = split(examples, 0.1)
    asked = [{example.messages[0] for example in part} for part in (train, val)]
    assert not asked[0] & asked[1] and 20 < len(val) < 60 and len(train) + len(val) == 400
    fewer = split(examples[:200], 0.1)[1]
    assert {e.messages for e in fewer} <= {e.messages for e in val}
    assert [len(part) for part in split(examples[:4], 0.0001)] == [2, 2]
    with pytest.raises(UserError, match="1 different question, and two are needed"):
        split(examples[:2], None)


@pytest.mark.slow
def test_a_data_set_as_the_hub_has_it_is_read_by_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the package that reads the hub; the rows kept for testing are none to learn from."""
    datasets, arrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "talks"
    (folder / "data").mkdir(parents=True)
    for name, form in (("train", "openai"), ("test", "sharegpt")):
        rows = arrow.Table.from_pylist([FORMS[form]] * 3)
        parquet.write_table(rows, folder / f"data/{name}-00000-of-00001.parquet")
    card = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n# Talks\n"
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    talks = read(folder)
    assert [talk.messages for talk in talks] == [TALK] * 3 and talks[2].where == f"{folder}, row 3"
    monkeypatch.setattr("tiny_transformer.data.prepare.records.hub_is_reachable", lambda: True)
    load, asked = datasets.load_dataset, []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **k: (asked.append(name), load(str(folder), **k))[1])
    assert [talk.messages for talk in read(Path("someone/talks"))] == [TALK] * 3 and asked == ["someone/talks"]


def test_a_hub_that_cannot_be_reached_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own client tries five times, for half a minute; what was read before is still asked for."""
    datasets = pytest.importorskip("datasets")
    asked: list[str] = []
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("tiny_transformer.data.prepare.records.hub_is_reachable", lambda: False)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **k: asked.append(name) or [FORMS["openai"]])
    with pytest.raises(UserError, match=r"cannot be reached \(no network\)") as caught:
        read(Path("someone/talks"))
    assert "--source FILE" in (caught.value.remedy or "") and asked == []
    (tmp_path / "someone___talks").mkdir()
    assert len(read(Path("someone/talks"))) == 1 and asked == ["someone/talks"]
