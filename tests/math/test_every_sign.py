"""The pages of training mathematics themselves: every formula has one test, and that test notices every sign."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from math_pages import Block, Page, load

PAGES = ("qwen3_page", "next_page")


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest) -> Page:
    return request.getfixturevalue(request.param)


def checks_in(repository: Path, block: Block) -> ModuleType:
    """The test file that a block names."""
    path = repository / block.claim.partition("::")[0]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader, block.claim
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_of(tests: ModuleType, block: Block) -> Callable[[ModuleType], None]:
    return getattr(tests, block.claim.partition("::")[2])


def test_each_block_names_one_test_and_each_test_one_block(repository: Path, page: Page) -> None:
    assert page.blocks
    file = f"tests/math/test_{page.path.stem.lower()}.py"
    claims = [block.claim for block in page.blocks]
    assert len(set(claims)) == len(claims)
    tests = checks_in(repository, page.blocks[0])
    assert {f"{file}::{name}" for name in vars(tests) if name.startswith("test_")} == set(claims)


def test_formulas_stand_only_in_blocks_that_run(page: Page) -> None:
    assert {block.language for block in page.blocks} == {"python"}
    prose = re.sub(r"```.*?```", "", page.text, flags=re.DOTALL)
    assert "$" not in prose and "~~~" not in prose
    assert not re.findall(r"`[^`\n]* [-+] [^`\n]*`", prose), "a sum or difference that no test would see"


def test_files_named_on_the_page_exist(repository: Path, page: Page) -> None:
    named = re.findall(r"`([\w/]+\.py)`", page.text)
    assert named and all((repository / "tiny_transformer" / name).is_file() for name in named)


@pytest.mark.slow
def test_a_turned_sign_is_noticed(repository: Path, page: Page) -> None:
    """Turn each sign and operator of each block around, one at a time: the block's test must fail."""
    tests = checks_in(repository, page.blocks[0])
    survivors, count = [], 0
    for block in page.blocks:
        assert passes(check_of(tests, block), page, block, block), block.claim
        for what, turned in block.turned():
            count += 1
            if passes(check_of(tests, block), page, block, turned):
                survivors.append(what)
    assert count > 100
    assert not survivors, "these changes went unnoticed:\n" + "\n".join(survivors)


def passes(check: Callable[[ModuleType], None], page: Page, block: Block, turned: Block) -> bool:
    try:
        with np.errstate(all="ignore"):
            check(load(page, instead=(block, turned)))
    except Exception:
        return False
    return True
