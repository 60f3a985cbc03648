"""docs/LEARNING_PATH.md and its pages, as a learner walks them: every block is run, every shown output compared."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from doc_blocks import NUMBER, Block, Console, blocks_of, difference, filled, run_page, source_of
from doc_checks import prose

LEARN = Path(__file__).parent.parent / "docs/learn"
PAGES = sorted(LEARN.glob("*.md"))
WIDTH = "100"  # of the terminal that the shown outputs come from


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_shown_source_is_the_source(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text, f"run: python tests/doc_blocks.py {page}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_what_every_page_has(page: Path) -> None:
    """Minutes, what you make, predictions, three exercises with answers, a way on; each shown output belongs to a
    run."""
    text = page.read_text(encoding="utf-8")
    number = int(page.stem[:2])
    assert re.match(rf"# {number}\. .+\n\n\*\S+ minutes on two cores, .+You make: .+\.\*\n", text)
    assert "redict" in text
    for question in re.finditer(r"\*\*Predict first", text):
        following = re.search(r"```(\w+)", text[question.start() :])
        assert following and following[1] != "text", f"asked when the answer has been shown: {question.start()}"
    exercises = text.partition("## Exercises")[2]
    assert re.findall(r"^(\d)\. ", exercises, re.MULTILINE) == ["1", "2", "3"]
    assert exercises.count("<details><summary>Answer</summary>") == exercises.count("</details>") == 3
    for block in blocks_of(page):
        assert block.language in ("bash", "python", "text"), block.place
        assert block.language != "text" or block.is_output, f"{block.place}: nothing says how exact this is"
        assert block.text.strip() != "?", block.place


def test_the_path_leads_from_page_to_page() -> None:
    table = re.findall(r"^\| \[(\d+)\. (.+?)\]\(learn/(.+?)\) .*\| (\d+) \|$", path_text(), re.MULTILINE)
    assert [name for _, _, name, _ in table] == [page.name for page in PAGES]
    for (number, title, name, minutes), after in zip(table, [*table[1:], None], strict=True):
        text = (LEARN / name).read_text(encoding="utf-8")
        assert text.startswith(f"# {number}. {title}\n")
        assert minutes_of(text) == int(minutes)
        way_on = f"Next: [{after[0]}. {after[1]}]({after[2]})" if after else "../LEARNING_PATH.md"
        assert way_on in text.strip().splitlines()[-1]


def test_every_link_of_the_path_leads_to_a_file() -> None:
    for page in (LEARN.parent / "LEARNING_PATH.md", *PAGES):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"


def path_text() -> str:
    return (LEARN.parent / "LEARNING_PATH.md").read_text(encoding="utf-8")


def minutes_of(text: str) -> int:
    """Those that a page begins with, in words."""
    words = {"Ten": 10, "Fifteen": 15, "Twenty": 20, "Twenty-five": 25}
    return words[re.findall(r"\*(\S+) minutes on two cores", text)[0]]


# Worked out beside the number, on the page itself; 6.5 is a guess to choose.
BY_HAND = {"0.707": 1 / math.sqrt(2), "2.028": math.exp(0.707), "0.001": 1 / 1024, "0.999": 1 - 1 / 1024,
           "4.5": 9 / 2, "6.5": 6.5}  # fmt: skip


def test_a_number_in_the_text_stands_in_a_block_of_its_page_or_of_one_before() -> None:
    """Blocks are run and compared, so their numbers are held; rounded in the text they are the same."""
    wrong, held = [], list(BY_HAND.values())
    for page in PAGES:
        held += [number for block in blocks_of(page) if block.is_run or block.is_output for number in numbers(block)]
        for text in re.findall(r"(?<![\w.])\d[\d,]*\.\d+", prose(page.read_text(encoding="utf-8"))):
            number, places = float(text.replace(",", "")), len(text.rpartition(".")[2])
            if number not in (round(one, places) for one in held):
                wrong.append(f"{page.name}: {text}")
    assert wrong == []


def numbers(block: Block) -> list[float]:
    return [float(text.replace(",", "")) for text in NUMBER.findall(block.text)]


@pytest.mark.slow
def test_the_path_is_walked(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first page to the last, each command typed, in one directory."""
    for name in ("configs", "cases"):
        (tmp_path / name).symlink_to(repository / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", WIDTH)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wrong = []
    for page in PAGES:
        torch.manual_seed(0)
        wrong += run_page(blocks_of(page), Console())
    assert not wrong, "\n\n".join(wrong)


# --- the checks themselves, seen red ----------------------------------------------------------------------------------


def shown(how: str, text: str) -> Block:
    return Block(Path("page.md"), 1, "text", text, how)


@pytest.mark.parametrize(
    ("how", "text", "printed"),
    [
        ("Expected, exactly:", "loss 2.31\n", "first\nloss  2.31\nlast\n"),
        ("Expected, exactly:", "a ... c\n", "a b c\n"),
        ("Expected, exactly:", "total 4 ...\n", "total 4\n"),
        ("Expected, exactly:", "one\ntwo\n", "│ one │\n╰───╯\n│ two │\n"),
        ("Expected, numbers within 5 %:", "loss 2.31 after 400 steps\n", "loss 2.40 after 400 steps\n"),
        ("Expected, numbers within 5 %:", "1,234.5 GB\n", "1,250.0 GB\n"),
        ("For example:", "Once upon a time there was\n", "seed 1\nOnce upon a hen\n"),
    ],
)
def test_an_output_that_is_as_shown(how: str, text: str, printed: str) -> None:
    assert shown(how, text).is_output
    assert difference(shown(how, text), printed) is None


@pytest.mark.parametrize(
    ("how", "text", "printed"),
    [
        ("Expected, exactly:", "loss 2.31\n", "loss 2.32\n"),
        ("Expected, exactly:", "one\ntwo\n", "two\none\n"),
        ("Expected, exactly:", "True\n", ""),
        ("Expected, numbers within 5 %:", "loss 2.31\n", "loss 2.50\n"),
        ("Expected, numbers within 5 %:", "loss 2.31 after 400 steps\n", "loss 2.31 after 401 steps\n"),
        ("Expected, numbers within 5 %:", "loss 2.31\n", "cost 2.31\n"),
        ("For example:", "Once upon a time there was\n", "error: no such run\n"),
    ],
)
def test_an_output_that_is_not_as_shown(how: str, text: str, printed: str) -> None:
    assert difference(shown(how, text), printed) is not None


def test_what_goes_wrong_on_a_page_is_told_with_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\nprint(x)\n```\n\nExpected, exactly:\n\n```text\n2\n```\n", encoding="utf-8")
    assert [text.split(":")[:2] for text in run_page(blocks_of(page), Console())] == [["page.md", "9"]]
    for block in (
        "python\n1 / 0",
        "python\nfor x in range(3):\n    pass\nprint(x)",
        "bash\ntiny-transformer runs --nonsense",
    ):
        page.write_text(f"```{block}\n```\n", encoding="utf-8")
        assert run_page(blocks_of(page), Console())[0].startswith("page.md:2: ")
    page.write_text("<!-- not run: it fails -->\n```python\n1 / 0\n```\n", encoding="utf-8")
    assert run_page(blocks_of(page), Console()) == []


def test_source_that_has_changed_is_seen() -> None:
    page = "<!-- source: tiny_transformer/layers/norm.py:RMSNorm.forward -->\n```python\n```\n\n```python\nmine\n```\n"
    assert "    return self.weight * UnitRMS" in filled(page) and filled(page).count("mine") == 1
    assert filled(filled(page)) == filled(page) != page
    assert filled(filled(page).replace("self.weight *", "self.weight +")) == filled(page)
    for file, name in (("layers/norm.py", "RMSNorm.backwards"), ("layers/norm.py", "Norm.forward"), ("norms.py", "")):
        with pytest.raises(LookupError, match=f"{file}: no {name}"):
            source_of(f"tiny_transformer/{file}", name)
