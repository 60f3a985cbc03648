"""A family that only its own three files know: it trains, is saved and loaded, and what nobody has told about it is
reported as not known. It is never taken for another family, and nothing crashes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from new_family import add_toy_family

pytestmark = pytest.mark.slow

TOY = "--model.model_type=toy --model.hidden_size=32 --model.num_hidden_layers=2 --model.num_attention_heads=4"
SMALL = f"{TOY} --data.seq_len=16 --training.micro_batch_size=2"


@pytest.fixture(scope="module")
def root(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the enlarged package, prepared data and a run of two steps."""
    root = tmp_path_factory.mktemp("toy")
    add_toy_family(repository, root)
    (root / "text.txt").write_text("Once upon a time there was a toy.\n\n" * 2000, encoding="utf-8")
    done = call(root, "prepare --source text.txt --tokenizer byte --seq_len 16 --out_dir d")
    assert done.returncode == 0, done.stderr
    done = call(root, f"train {SMALL} --steps 2 --data_dir d --out_dir runs/toy")
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def call(root: Path, command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    words = [sys.executable, "-m", "tiny_transformer", *command.split()]
    return subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=120)


def test_it_is_what_was_trained_and_it_writes_on(root: Path) -> None:
    saved = json.loads((root / "runs/toy/last/config.json").read_text())
    assert (saved["model_type"], saved["architectures"]) == ("toy", ["ToyForCausalLM"])
    for command in ("generate --ckpt_dir runs/toy/last --prompt Once --max_new_tokens 5", "evaluate runs/toy/last"):
        done = call(root, command)
        assert done.returncode == 0, done.stdout + done.stderr


def test_profile_counts_what_the_model_shows_and_knows_no_more(root: Path) -> None:
    done = call(root, f"profile {SMALL} --data_dir d --json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # 257 words of 32; 2 layers of four heads of 8 with their norms; SwiGLU of 768.
    attention, mlp, norms = 4 * 32 * 32, 3 * 32 * 768, 2 * 32 + 2 * 8
    assert sum(found["parameters"].values()) == 257 * 32 + 2 * (attention + mlp + norms) + 32
    assert found["model"].startswith("toy, 2 layers")
    assert found["forward"]["attention"] == 2 * 4 * 4 * 8 * 16
    assert "causal_attention" not in found["forward"]
    assert found["cache_bytes_per_token"] == 2 * 2 * 4 * 8 * 4
    assert set(found["readers"]) == {
        *("transformers 5", "transformers 4.57", "vLLM", "vLLM on a CPU", "llama.cpp", "mlx-lm")
    }
    assert all(reason.startswith("not known") for reason in found["readers"].values())
    shown = call(root, f"profile {SMALL} --data_dir d")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("not known: ") == 6 and "no: not known" not in shown.stdout


def test_export_says_that_it_is_not_known(root: Path) -> None:
    done = call(root, "export runs/toy/last --out toy.gguf")
    assert done.returncode == 65, done.stdout + done.stderr
    assert "not known" in done.stderr and not (root / "toy.gguf").exists()


def test_minutes_do_not_choose_its_size(root: Path) -> None:
    done = call(root, "train --minutes 0.2 --model.model_type=toy --data_dir d --out_dir runs/none")
    assert done.returncode == 2, done.stdout + done.stderr
    told = " ".join(done.stderr.split())
    assert "what size suits a toy is not known" in told and "llama, qwen3, olmo2" in told


def test_messages_name_it(root: Path) -> None:
    done = call(root, "train --model.model_type=toi --steps 1")
    assert "toy" in done.stderr and done.returncode == 2
