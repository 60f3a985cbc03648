"""Faults planted in the pages, or in what they describe: each is caught by the check that is responsible for it."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import doc_blocks
import doc_checks
import pytest
import requirements
import torch
import trouble

from tiny_transformer.config.aliases import ALIASES
from tiny_transformer.config.reference import reference_markdown
from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.data.meta import read_meta
from tiny_transformer.errors import UserError
from tiny_transformer.storage.runs import load_identity

sys.path.insert(0, str(Path(__file__).parent / "math"))

import math_pages
import test_every_sign

PAGES = doc_checks.read_pages()
ALT = "the page of a run: loss beside the best loss possible, a diagnosis, and what the model knows"
HAND = doc_checks.REPOSITORY / "docs/learn/04_attention_by_hand.md"
Check = Callable[[doc_checks.Pages], list[str]]


@dataclass(frozen=True)
class Fault:
    """`page` with `old` turned into `new`, which only `check` is asked about; what it finds first is `told`."""

    check: Check
    page: str
    old: str
    new: str
    told: str


IN_PAGES = {
    "dead link": Fault(
        doc_checks.dead_links,
        "README.md",
        "(docs/CONFIG_REFERENCE.md)",
        "(docs/CONFIG.md)",
        "no file docs/CONFIG.md",
    ),
    "dead anchor": Fault(
        doc_checks.dead_links,
        "README.md",
        "(docs/TROUBLESHOOTING.md)",
        "(docs/TROUBLESHOOTING.md#no-such-thing)",
        "no heading docs/TROUBLESHOOTING.md#no-such-thing",
    ),
    "missing alt text": Fault(doc_checks.pictures_without_words, "README.md", f"![{ALT}]", "![]", "docs/report.png"),
    "source marker without its name": Fault(
        doc_checks.dead_sources,
        "docs/learn/05_the_block.md",
        "layers/norm.py:RMSNorm",
        "layers/norm.py:RMSNorms",
        "layers/norm.py: no RMSNorms there",
    ),
    "source that has changed": Fault(
        doc_checks.dead_sources,
        "docs/learn/05_the_block.md",
        "def forward(",
        "def fwd(",
        "a block is not its source any more",
    ),
    "block without an end": Fault(
        doc_checks.broken_blocks, "docs/learn/02_tokens.md", "\n```\n", "\n", "a block has no end"
    ),
    "a line of a block that leaves its list": Fault(
        doc_checks.broken_blocks, "docs/learn/02_tokens.md", "   11 True", "11 True", "as its block is: 11 True"
    ),
    "Python that does not parse": Fault(
        doc_checks.broken_blocks, "README.md", "lm = load(", "lm = load((", "'(' was never closed in: lm = load(("
    ),
    "a name that is gone": Fault(
        doc_checks.broken_blocks,
        "README.md",
        "import load\n",
        "import load_model_of\n",
        "tiny_transformer has no load_model_of",
    ),
    "unknown command": Fault(
        doc_checks.wrong_commands,
        "README.md",
        "tiny-transformer doctor runs",
        "tiny-transformer physician runs",
        "no verb physician",
    ),
    "renamed flag": Fault(
        doc_checks.wrong_commands,
        "README.md",
        "--max_new_tokens 200",
        "--maximum_new_tokens 200",
        "no option --maximum_new_tokens",
    ),
    "unknown key on the command line": Fault(
        doc_checks.wrong_commands,
        "docs/learn/01_first_light.md",
        "tiny-transformer train ",
        "tiny-transformer train --widht 4 ",
        "no option --widht",
    ),
    "an option that there is not": Fault(
        doc_checks.wrong_options, "README.md", "`--full_size`", "`--fullest_size`", "--fullest_size"
    ),
    "a file that was moved": Fault(
        doc_checks.missing_files,
        "README.md",
        "tests/training/test_killed.py",
        "tests/training/test_murdered.py",
        "tests/training/test_murdered.py",
    ),
}


@pytest.mark.parametrize("name", IN_PAGES)
def test_a_fault_in_a_page_is_caught(name: str) -> None:
    fault = IN_PAGES[name]
    text = PAGES[fault.page]
    assert fault.old in text, "the fault is planted nowhere"
    assert fault.check({fault.page: text}) == [], "there was a fault before"
    if name == "dead anchor":  # the page it leads to is read as well
        there = {key: PAGES[key] for key in ("docs/TROUBLESHOOTING.md",)}
    else:
        there = {}
    found = fault.check({**there, fault.page: text.replace(fault.old, fault.new, 1)})
    assert found and found[0].startswith(f"{fault.page}: ") and fault.told in found[0], found


def test_a_missing_extra_is_caught() -> None:
    project = (doc_checks.REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert doc_checks.missing_extras({"README.md": PAGES["README.md"]}, project) == []
    without = re.sub(r"(?m)^all = .*$", "", project)
    assert doc_checks.missing_extras({"README.md": PAGES["README.md"]}, without) == ["README.md: [all]"]


def test_a_default_that_changed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    page = PAGES["docs/CONFIG_REFERENCE.md"]
    assert page == reference_markdown()
    monkeypatch.setattr(TrainingConfig.model_fields["warmup_fraction"], "default", 0.06)
    assert page != reference_markdown()


@pytest.mark.parametrize("page", ["README.md", "docs/DESIGN.md"])
def test_a_stale_count_of_files_is_caught(page: str) -> None:
    assert doc_checks.stale_counts(PAGES) == []
    stale = {"README.md": (" | 15 |", " | 14 |"), "docs/DESIGN.md": ("15 files:", "14 files:")}[page]
    assert stale[0] in PAGES[page]
    found = doc_checks.stale_counts({**PAGES, page: PAGES[page].replace(*stale)})
    assert found and found[0].startswith(f"{page}: Token files to loss is "), found


def test_a_requirement_that_is_not_pinned_as_said_is_caught() -> None:
    written = (doc_checks.REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
    assert written == requirements.requirements()
    assert re.sub(r"numpy==.*", "numpy==1.0", written) != requirements.requirements()


@pytest.mark.parametrize(
    ("shown", "printed"), [("loss 2.31", "loss 2.62"), ("loss 2.31", "gain 2.31"), ("7 rows", "8 rows")]
)
def test_a_wrong_number_or_word_in_a_shown_output_is_caught(shown: str, printed: str) -> None:
    block = doc_blocks.Block(Path("page.md"), 1, "text", shown, "Expected, numbers within 5 %:")
    assert doc_blocks.difference(block, shown) is None
    assert doc_blocks.difference(block, printed)


def test_a_wrong_sign_in_the_code_is_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The page computes attention by hand, and the layer's beside it: that of the negative scores is another."""
    monkeypatch.chdir(tmp_path)
    every = doc_blocks.blocks_of(HAND)
    blocks = every[: next(i for i, block in enumerate(every) if "load(" in block.text)]  # from there on a run is needed
    assert doc_blocks.run_page(blocks, doc_blocks.Console()) == []
    real = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda self, *words, **named: real(-self, *words, **named))
    (found,) = doc_blocks.run_page(blocks, doc_blocks.Console())
    assert "this line was not printed" in found and "tensor([[1.0000, 0.0000, 0.0000, 0.0000]," in found, found


def test_an_example_that_no_longer_runs_is_caught(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    shutil.copy(HAND, page)
    page.write_text(page.read_text(encoding="utf-8").replace("import math", "import maths", 1), encoding="utf-8")
    assert any("maths" in line for line in doc_blocks.run_page(doc_blocks.blocks_of(page), doc_blocks.Console()))


@pytest.mark.parametrize("name", ["TokenFile", "read", "open_dataset"])
def test_a_missing_docstring_is_caught(name: str) -> None:
    sources, module = doc_checks.package_sources(), "tiny_transformer/data/token_file.py"
    tree = ast.parse(sources[module])
    kinds = ast.ClassDef | ast.FunctionDef
    node = next(node for node in ast.walk(tree) if isinstance(node, kinds) and node.name == name)
    if name == "read":  # a word that no other class explains
        node.name = "read_tokens"
    del node.body[0]
    found = doc_checks.undocumented({**sources, module: ast.unparse(tree)})
    assert len(found) == 1 and found[0].endswith(node.name)


def test_a_key_missing_among_those_of_older_projects_is_caught() -> None:
    page = PAGES["docs/COMING_FROM.md"]
    assert doc_checks.missing_old_keys(page, ALIASES) == []
    assert doc_checks.missing_old_keys(page.replace("gradient_clip_val", "clip"), ALIASES) == [
        "training.gradient_clip_val"
    ]


@pytest.mark.parametrize(
    ("check", "old", "new", "told"),
    [
        (
            doc_checks.wrong_commands,
            r"tiny-transformer (train|evaluate|finetune|align)\b",
            "tiny-transformer trains",
            "no verb trains",
        ),
        (doc_checks.missing_files, doc_checks.OURS.pattern, "benchmarks/of_last_year.py", "benchmarks/of_last_year.py"),
    ],
)
def test_a_stale_command_in_the_newest_entries_of_the_log_is_caught(
    check: Check, old: str, new: str, told: str
) -> None:
    log = doc_checks.newest_day(
        PAGES["docs/LOG.md"] + "\n## 2999-01-01 A day\n\n`tiny-transformer train --steps 2`, `benchmarks/train.py`\n"
    )
    assert check({"docs/LOG.md": log}) == []
    (found,) = check({"docs/LOG.md": re.sub(old, new, log, count=1)})
    assert told in found


def test_a_stale_number_of_pages_is_caught() -> None:
    name = "docs/LEARNING_PATH.md"
    assert "Fourteen pages, one idea each" in PAGES[name]
    found = doc_checks.stale_counts({**PAGES, name: PAGES[name].replace("Fourteen pages", "Twelve pages")})
    assert found == [f"{name}: the number of its pages"]


def test_a_message_of_the_product_that_changed_is_caught(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    page = trouble.PAGE.read_text(encoding="utf-8")
    entry = next(entry for entry in trouble.read_entries(page) if entry.title == "A token on the command line")
    place = trouble.Place(tmp_path, monkeypatch, capsys)
    assert trouble.shows(place.type(entry.command)[1], entry.shown)
    monkeypatch.setattr("tiny_transformer.cli.WHERE_THEY_GO", "secrets go elsewhere")
    assert not trouble.shows(place.type(entry.command)[1], entry.shown)


@pytest.mark.parametrize(
    "name", ["tiny_transformer.storage.runs.STATE_FORMAT", "tiny_transformer.data.meta.FORMAT_VERSION"]
)
def test_another_version_of_a_format_than_that_of_the_golden_runs_is_caught(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = Path(__file__).parent / "golden/qwen3"
    checkpoint = next(path for path in sorted((golden / "run").glob("step-*")) if path.is_dir())
    load_identity(checkpoint), read_meta(golden / "data")
    monkeypatch.setattr(name, 2)
    with pytest.raises(UserError, match=r"format|version"):
        load_identity(checkpoint), read_meta(golden / "data")


def test_a_turned_sign_in_a_formula_is_caught() -> None:
    """By the block's own test; tests/math/test_every_sign.py turns every sign, in the slow suite."""
    page = math_pages.read_page(doc_checks.REPOSITORY / "docs/TRAINING_MATH_QWEN3.md")
    block = next(block for block in page.blocks if block.claim.endswith("::test_linear"))
    check = test_every_sign.check_of(test_every_sign.checks_in(doc_checks.REPOSITORY, block), block)
    assert test_every_sign.passes(check, page, block, block)
    (turned,) = [turned for what, turned in block.turned() if "x_dot @ W.T + " in what]
    assert not test_every_sign.passes(check, page, block, turned)
