"""Hub sources: the same code path on local data sets in the hub's layouts, and what is said without a network."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from tiny_transformer.data.prepare import hub
from tiny_transformer.data.prepare.sources import open_source
from tiny_transformer.errors import ExitCode, UserError

ARTICLES = ["Intro of one.\n\nIts body.", "Intro of two,\nstill the intro.\n\nMore.\n\nAnd more.", "Only an intro."]


@pytest.fixture
def wikipedia(tmp_path, monkeypatch):
    """A data set laid out as wikimedia/wikipedia is: a folder of parquet files per config, a card that names them."""
    pytest.importorskip("datasets")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root = tmp_path / "wikipedia"
    (root / "20231101.en").mkdir(parents=True)
    rows = {"id": ["1", "2", "3"], "url": ["u"] * 3, "title": ["a", "b", "c"], "text": ARTICLES}
    parquet.write_table(pyarrow.table(rows), root / "20231101.en" / "train-00000-of-00001.parquet")
    card = "configs:\n- config_name: 20231101.en\n  data_files:\n  - split: train\n    path: 20231101.en/*.parquet\n"
    (root / "README.md").write_text(f"---\n{card}---\n")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "ours"))
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: True)
    for name in ("wikipedia", "wiki-intros"):
        monkeypatch.setitem(hub.KNOWN_SETS, name, replace(hub.KNOWN_SETS[name], repository=str(root)))
    return root


def test_wikipedia_streams_its_articles(wikipedia):
    assert list(open_source("wikipedia").documents()) == ARTICLES


def test_wiki_intros_end_at_the_first_blank_line(wikipedia):
    source = open_source("wiki-intros")
    assert list(source.documents()) == ["Intro of one.", "Intro of two,\nstill the intro.", "Only an intro."]
    assert "CC BY-SA" in source.licence
    assert list(open_source("wiki-intros", max_bytes=5).documents()) == ["Intro of one."]


def test_any_data_set_with_another_field(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(
        "".join(json.dumps({"story": text, "n": 1}) + "\n" for text in ARTICLES)
    )
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "ours"))
    hub_set = hub.HubSet(str(tmp_path / "set"), text_field="story")
    assert list(hub.read_documents(hub_set)) == ARTICLES
    with pytest.raises(UserError, match="have no text in the field 'text'") as caught:
        list(hub.read_documents(replace(hub_set, text_field="text")))
    assert caught.value.remedy.endswith("fields that hold text: story")


# --- what has been read stays


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A data set of several files and some blank rows, its cache cut into small parts; and a count of rows read."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "ours"))
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(hub, "PART_BYTES", 200)
    (tmp_path / "set").mkdir()
    for file in range(3):
        rows = [f"\nRow {file}.{i}, ✓ \u2028 and so on.\n" if i % 7 else " " for i in range(40)]
        (tmp_path / "set" / f"{file}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    monkeypatch.setitem(hub.KNOWN_SETS, "many", hub.HubSet(str(tmp_path / "set")))
    return [f"Row {file}.{i}, ✓ \u2028 and so on." for file in range(3) for i in range(40) if i % 7]


def rows_read(monkeypatch) -> list[str]:
    """The list to which each row's text is added that comes from the hub and not from the cache."""
    read, text_of = [], hub._text_of
    monkeypatch.setattr(hub, "_text_of", lambda row, hub_set: read.append(row["text"]) or text_of(row, hub_set))
    return read


def test_what_was_read_needs_no_network_and_no_package(many, monkeypatch):
    assert list(open_source("many").documents()) == many
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert list(open_source("many").documents()) == many
    assert list(open_source("many", max_bytes=300).documents()) == many[:11]


def test_part_that_was_read_is_used_and_the_rest_is_fetched_from_there(many, monkeypatch):
    read = rows_read(monkeypatch)
    known = 0
    for max_bytes in (500, 500, 900, 2_000, None, None):
        read.clear()
        got = list(open_source("many", max_bytes=max_bytes).documents())
        assert got == many[: len(got)]
        assert [text.strip() for text in read if text.strip()] == got[known:]
        known = len(got)
    assert got == many


def test_without_network_the_amount_at_hand_is_named(many, monkeypatch):
    list(open_source("many", max_bytes=500).documents())
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: False)
    with pytest.raises(UserError) as caught:
        open_source("many", max_bytes=2_000)
    (cached,) = [int(word) for word in caught.value.remedy.split() if word.isdigit()]
    assert 500 <= cached < 560
    assert sum(len(text.encode()) for text in open_source("many", max_bytes=cached).documents()) == cached


def test_stream_that_breaks_off_keeps_what_it_gave(many, monkeypatch):
    text_of, count = hub._text_of, iter(range(1_000))

    def breaks(row, hub_set):
        if next(count) == 50:
            raise ConnectionError("gone")
        return text_of(row, hub_set)

    with monkeypatch.context() as patch:
        patch.setattr(hub, "_text_of", breaks)
        with pytest.raises(UserError, match="ConnectionError: gone") as caught:
            list(open_source("many").documents())
    assert "--max_bytes" in caught.value.remedy
    read = rows_read(monkeypatch)
    assert list(open_source("many").documents()) == many
    assert len(read) <= 120 - 50 + 8  # what came since the last whole part comes again


@pytest.mark.parametrize("name", [*hub.KNOWN_SETS, "someone/something"])
def test_without_network_one_line_and_an_offline_way(name, monkeypatch, tmp_path):
    pytest.importorskip("datasets")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as caught:
        open_source(name)
    assert caught.value.exit_code == ExitCode.IO
    assert "no network" in caught.value.what
    assert "\n" not in caught.value.what
    assert "--source stories" in caught.value.remedy


def test_without_the_package_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the package datasets") as caught:
        open_source("wikipedia")
    assert "pip install datasets" in caught.value.remedy
    assert "--source stories" in caught.value.remedy


def test_repository_that_fails_is_named_with_the_reason(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"is read from the Hugging Face hub, which cannot be reached") as caught:
        list(hub.read_documents(hub.HubSet(str(tmp_path / "nothing"))))
    assert caught.value.exit_code == ExitCode.IO
