"""Hub sources: the same code path on local data sets in the hub's layouts, and what is said without a network."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from tiny_transformer.data import hub
from tiny_transformer.data.sources import open_source
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
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"story": text, "n": 1}) + "\n" for text in ARTICLES))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    hub_set = hub.HubSet(str(tmp_path), text_field="story")
    assert list(hub.read_documents(hub_set)) == ARTICLES
    with pytest.raises(UserError, match="have no text in the field 'text'") as caught:
        list(hub.read_documents(replace(hub_set, text_field="text")))
    assert caught.value.remedy.endswith("fields that hold text: story")


@pytest.mark.parametrize("name", [*hub.KNOWN_SETS, "someone/something"])
def test_without_network_one_line_and_an_offline_way(name, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as caught:
        open_source(name)
    assert caught.value.exit_code == ExitCode.IO
    assert "no network" in caught.value.what
    assert "\n" not in caught.value.what
    assert "--source stories" in caught.value.remedy


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the package datasets") as caught:
        open_source("wikipedia")
    assert "tiny-transformer[hub]" in caught.value.remedy
    assert "--source stories" in caught.value.remedy


def test_repository_that_fails_is_named_with_the_reason(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    with pytest.raises(UserError, match=r"cannot read .* from the Hugging Face hub") as caught:
        list(hub.read_documents(hub.HubSet(str(tmp_path / "nothing"))))
    assert caught.value.exit_code == ExitCode.IO
