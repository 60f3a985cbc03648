"""What hardware.py promises about precision and memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from tiny_transformer import hardware
from tiny_transformer.errors import UserError
from tiny_transformer.hardware import BF16_SWITCH, choose_hardware, has_fast_bf16

CPU = torch.device("cpu")


@pytest.fixture(params=[False, True], ids=["without", "with"])
def multiplies_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A CPU without bf16 arithmetic, and one with it."""
    monkeypatch.delenv(BF16_SWITCH, raising=False)
    monkeypatch.setattr(hardware, "_multiplies_bf16", lambda device: request.param)
    return request.param


def test_auto_takes_bf16_where_it_is_fast_and_its_products_are_right(
    multiplies_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_hardware("cpu").precision == ("bf16" if multiplies_bf16 else "fp32")
    monkeypatch.setattr(hardware, "agrees_with_float64", lambda device, dtype: False)
    assert choose_hardware("cpu").precision == "fp32"


def test_bf16_can_be_hidden_and_granted_on_any_machine(multiplies_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for switch, expected in (("hide", False), ("grant", True), ("", multiplies_bf16)):  # read anew each time
        monkeypatch.setenv(BF16_SWITCH, switch)
        assert has_fast_bf16(CPU) == expected
        auto, asked = choose_hardware("cpu"), choose_hardware("cpu", "bf16")
        assert auto.precision == asked.precision == ("bf16" if expected else "fp32")
        assert auto.update_dtype == asked.update_dtype == (torch.bfloat16 if expected else torch.float32)
        assert (asked.note is None) == expected


def test_what_is_hidden_is_not_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_multiplies_bf16", lambda device: True)
    monkeypatch.setenv(BF16_SWITCH, "hide")
    assert choose_hardware("cpu", "bf16").note == f"{BF16_SWITCH}=hide: using fp32"


@pytest.mark.parametrize("name", ["gpu0", "cuda:9", ""])
def test_a_device_that_nobody_knows_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"there is no {name} device here"):
        choose_hardware(name)


def test_a_misspelt_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BF16_SWITCH, "hidden")
    with pytest.raises(UserError, match=f"{BF16_SWITCH}=hidden is neither hide nor grant"):
        choose_hardware("cpu")


def test_an_update_is_as_precise_as_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Muon's products are bf16 in half precision only, and only where that is fast."""
    dtypes = {None: torch.float32, torch.bfloat16: torch.bfloat16, torch.float16: torch.bfloat16}
    for switch in ("grant", "hide"):
        monkeypatch.setenv(BF16_SWITCH, switch)
        for autocast, expected in dtypes.items():
            found = hardware.Hardware(CPU, autocast).update_dtype
            assert found == (expected if switch == "grant" else torch.float32)


TENSORS_COME_AND_GO = """
import resource, sys, torch
from tiny_transformer.hardware import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(10_000_000)
before = faults()
for _ in range(20):
    torch.ones(10_000_000)  # 40 MB: about 10,000 pages of 4 KiB
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc hands blocks back one by one")
def test_freed_memory_is_kept_for_the_next_tensor():
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", TENSORS_COME_AND_GO, how], capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("returned", "kept")
    }
    if faults["returned"] < 20 * 1000:
        pytest.skip("this system's pages are huge: there is little to save")
    assert faults["kept"] < 0.6 * faults["returned"]
