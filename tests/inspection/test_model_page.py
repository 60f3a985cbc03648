"""The page on a model: its numbers are the forward pass's, its text is text, and it is read back in a browser."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiny_transformer.cli import run
from tiny_transformer.config.shapes import Qwen3Config, Qwen3NextConfig
from tiny_transformer.errors import UserError
from tiny_transformer.inspection.head_scores import Copier, losses, previous_token_score
from tiny_transformer.inspection.model_look import look, mean_loss
from tiny_transformer.inspection.model_page import page_html
from tiny_transformer.inspection.observe import logits_without
from tiny_transformer.models import build_model, save_model
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.tokenizers import make_tokenizer

SHAPE = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "max_position_embeddings": 64}
TEXT = 'A <b>"fox"</b> & a\nhen</script>'


def checkpoint(directory: Path, config: Any) -> OpenCheckpoint:
    directory.mkdir()
    save_model(build_model(config, seed=2).eval(), directory)
    make_tokenizer("byte").save(directory)
    return OpenCheckpoint(directory)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenCheckpoint:
    return checkpoint(tmp_path_factory.mktemp("page") / "hybrid", Qwen3NextConfig(vocab_size=257, **SHAPE))


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="model-data">(.*?)</script>', page, re.S)
    return json.loads(found[1]) if found else {}


def logits_of(opened: OpenCheckpoint) -> torch.Tensor:
    with torch.no_grad():
        return opened.model(torch.tensor([opened.tokenizer.encode(TEXT)]))[0]


def test_the_guesses_are_the_forward_pass_s(opened: OpenCheckpoint) -> None:
    data, logits = data_of(page_html(look(opened, TEXT))), logits_of(opened)
    ids = opened.tokenizer.encode(TEXT)
    wanted = torch.softmax(logits, -1)
    assert "".join(data["tokens"]) == TEXT and data["probability"][0] is None
    for t, row in enumerate(data["guesses"]):
        best = wanted[t].topk(len(row))
        assert [p for _, p in row] == pytest.approx(best.values.tolist(), abs=1e-6)
        assert [text for text, _ in row] == [opened.tokenizer.decode([i]) for i in best.indices.tolist()]
        if t:
            assert data["probability"][t] == pytest.approx(wanted[t - 1, ids[t]].item(), abs=1e-6)


def test_the_attention_in_the_page_is_whole_and_its_rows_sum_to_one(opened: OpenCheckpoint) -> None:
    seen = look(opened, TEXT)
    data, num = data_of(page_html(seen)), len(seen.texts)
    assert data["attention"].keys() == {"3"}
    packed = np.frombuffer(base64.b64decode(data["attention"]["3"]), "<f4").reshape(2, -1)
    rows, columns = np.tril_indices(num)
    weights = np.zeros((2, num, num), "f4")
    weights[:, rows, columns] = packed
    np.testing.assert_allclose(weights, seen.seen.attention[3].numpy(), atol=1e-6)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


def test_scores_and_costs_in_the_tables(opened: OpenCheckpoint) -> None:
    page, ids = page_html(look(opened, TEXT)), opened.tokenizer.encode(TEXT)
    logits = logits_of(opened)

    def numbers(part: str) -> list[float]:
        return [float(value) for value in re.findall(r'data-value="([^"]+)"', part)]

    parts = dict(re.findall(r'data-score="([^"]+)"(.*?)</table>', page, re.S))
    seen = look(opened, TEXT).seen
    assert numbers(parts["token before"]) == pytest.approx(previous_token_score(seen.attention[3]).tolist(), abs=1e-6)
    costs = [mean_loss(logits_without(opened.model, ids, 3, head), ids) - mean_loss(logits, ids) for head in (0, 1)]
    assert numbers(parts["cost without it"]) == pytest.approx(costs, abs=1e-6)
    blocks = re.search(r'class="rows costs">(.*?)</table>', page, re.S)
    wanted = [mean_loss(logits_without(opened.model, ids, block), ids) - mean_loss(logits, ids) for block in range(4)]
    assert blocks and numbers(blocks[1]) == pytest.approx(wanted, abs=1e-6)
    norms = re.search(r'data-memory="norm">(.*?)</table>', page, re.S)
    held = torch.cat([memory.norm.T.flatten() for memory in seen.memories.values()])
    assert norms and numbers(norms[1]) == pytest.approx(held.tolist(), abs=1e-6)
    assert page.count("Which experts each token chose") == 1


def test_what_each_token_costs_without_a_part_is_the_forward_pass_s(opened: OpenCheckpoint) -> None:
    data, ids = data_of(page_html(look(opened, TEXT))), opened.tokenizer.encode(TEXT)
    base = losses(logits_of(opened), ids)
    assert data["withoutHead"].keys() == {"3"} and len(data["withoutBlock"]) == 4
    for head, costs in enumerate(data["withoutHead"]["3"]):
        more = losses(logits_without(opened.model, ids, 3, head)[:, :257], ids) - base
        assert costs == pytest.approx(more.tolist(), abs=1e-6)
    for block, costs in enumerate(data["withoutBlock"]):
        more = losses(logits_without(opened.model, ids, block)[:, :257], ids) - base
        assert costs == pytest.approx(more.tolist(), abs=1e-6)


def test_the_page_says_which_head_copies_names_or_that_none_does(opened: OpenCheckpoint) -> None:
    seen = look(opened, "Al saw Al, Al")
    assert seen.repeats.kind == "name"
    told = Copier(3, 1, 0.5, 0.1, 2.25, 9)
    page = page_html(replace(seen, copier=told))
    assert "The head that copies names: block 3, head 1." in page and "costs +2.25 nats more on average" in page
    assert 'data-block="3" data-head="1" data-token="9"' in page and data_of(page)["start"]["token"] == 9
    unknown = page_html(replace(seen, copier=told._replace(cost=float("nan"))))
    assert "block 3, head 1." in unknown and "nats more on average" not in unknown
    redundant = page_html(replace(seen, copier=told._replace(cost=-0.5)))
    assert "costs no more (-0.50 nats)" in redundant and "nats more on average" not in redundant
    assert "No head copies names here" in page_html(replace(seen, copier=told._replace(share=0.15)))
    assert "Nothing comes twice in this text" in page_html(look(opened, "A fox"))


def test_a_text_is_shown_and_never_becomes_part_of_the_page(opened: OpenCheckpoint) -> None:
    page = page_html(look(opened, TEXT))
    assert "could not be made" not in page and "<b>" not in page
    assert len(re.findall(r"</script>", page)) == 2 and "default-src 'none'" in page
    shown = html.unescape("".join(re.findall(r'class="token"[^>]*>(.*?)</button>', page, re.S)))
    assert shown == TEXT.replace("\n", "\N{RETURN SYMBOL}")


def test_a_token_that_ends_a_script_ends_none(opened: OpenCheckpoint) -> None:
    page = page_html(replace(look(opened, "AB"), texts=["</script><b>", "B"]))
    assert data_of(page)["tokens"] == ["</script><b>", "B"]
    assert "<b>" not in page and len(re.findall(r"</script>", page)) == 2


def test_a_single_token_has_guesses_and_no_costs(opened: OpenCheckpoint) -> None:
    page = page_html(look(opened, "A"))
    assert "could not be made" not in page and "cost without" not in page and "after the last token" in page


def test_what_cannot_be_read_is_refused(opened: OpenCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text to read"):
        look(opened, "")
    with pytest.raises(UserError, match="65 tokens, the page shows at most 64"):
        look(opened, "x" * 65)
    broken = checkpoint(tmp_path / "nan", Qwen3Config(vocab_size=257, **SHAPE))
    with torch.no_grad():
        broken.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="not-a-number"):
        look(broken, "A fox")


def test_the_command_writes_the_page_and_says_where(
    opened: OpenCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["inspect", str(opened.path), "--prompt", "A fox"]) == 0
    assert "inspect.html" in capsys.readouterr().out and "What each head does" in Path("inspect.html").read_text()
    assert run(["inspect", "data", "--out", "page.html"]) != 0
    assert "--out is for --prompt" in capsys.readouterr().err
    assert run(["inspect", "nobody", "--prompt", "A fox"]) != 0


def test_the_text_may_come_from_standard_input(
    opened: OpenCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("A hen\n"))
    assert run(["inspect", str(opened.path), "--prompt", "-"]) == 0
    assert "".join(data_of(Path("inspect.html").read_text(encoding="utf-8"))["tokens"]) == "A hen"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["MODEL", "--prompt", "A fox", "--template", "alpaca"], "--template says nothing about a model"),
        (["MODEL", "--prompt", "A fox", "--count", "3"], "--count says nothing about a model"),
        (["MODEL", "--prompt", "A fox", "--ckpt", "other"], "two checkpoints"),
        (["--prompt", "A fox", "--ckpt", "nobody"], "nobody does not exist"),
        (["talk.jsonl", "--packing", "documents"], "--packing says nothing about conversations"),
        (["--template", "alpaca"], "--template says nothing about prepared data"),
        (["--ckpt", "MODEL"], "--ckpt alone shows nothing"),
    ],
)
def test_an_option_that_would_be_passed_over_is_refused(
    words: list[str], what: str, opened: OpenCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", *(str(opened.path) if word == "MODEL" else word for word in words)]) == 2
    assert what in capsys.readouterr().err


def test_a_checkpoint_may_stand_behind_its_option(
    opened: OpenCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["inspect", "--ckpt", str(opened.path), "--prompt", "A fox"]) == 0
    assert f"using {opened.path}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_browser_shows_the_same_numbers(opened: OpenCheckpoint, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    page, seen, ids = tmp_path / "page.html", look(opened, TEXT), opened.tokenizer.encode(TEXT)
    page.write_text(page_html(seen), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=5000"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    dom = subprocess.run([chromium, *options], capture_output=True, text=True, check=True).stdout
    start = seen.copier
    assert start is not None and start.token < len(seen.texts) - 1
    best = seen.guesses[0][start.token].tolist()
    shown = re.findall(r"<td>([\d.]+)%</td><td class=\"bar\">", dom)
    assert [float(p) for p in shown] == pytest.approx([100 * p for p in best], abs=0.006)
    weights = seen.seen.attention[3][start.head, start.token, : start.token + 1]
    told = re.search(r"looks at “.*?” \((\d+)\) with ([\d.]+)%", dom)
    assert told and int(told[1]) == int(weights.argmax())
    assert float(told[2]) == pytest.approx(100 * weights.max().item(), abs=0.006)
    lines = re.findall(r'<line [^>]*stroke-opacity="([\d.e-]+)"', dom)
    assert [float(share) for share in lines] == pytest.approx(weights.tolist(), abs=1e-6)
    under = re.findall(r'class="token"[^>]*--look: ([\d.e-]+)', dom)
    assert [float(share) for share in under] == pytest.approx(
        weights.tolist() + [0] * (len(ids) - len(weights)), abs=1e-6
    )
    without = re.search(r'<div id="without">(.*?)</table>', dom, re.S)
    costs = [*seen.without.heads[3][:, start.token].tolist(), *seen.without.blocks[:, start.token].tolist()]
    shown = sorted(float(cost) for cost in re.findall(r'data-value="([^"]+)"', without[1] if without else ""))
    assert shown == pytest.approx(sorted(costs), abs=1e-6)
