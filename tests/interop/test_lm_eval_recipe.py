"""The recipe of docs/EVALUATE_WITH_LM_EVAL.md, taken from the page and run: its texts, its task, its command."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tiny_transformer.config.shapes import Qwen3Config
from tiny_transformer.models import build_model, load_model, save_model
from tiny_transformer.tokenizers import make_tokenizer


@pytest.fixture
def page(repository: Path) -> dict[str, str]:
    """The page's blocks: `python`, `bash`, and the `yaml` inside that."""
    text = (repository / "docs" / "EVALUATE_WITH_LM_EVAL.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"```(python|bash)\n(.*?)```", text, re.DOTALL))
    blocks["yaml"] = re.search(r"<<'YAML'\n(.*?)\nYAML\n", blocks["bash"], re.DOTALL).group(1)
    return blocks


def make_texts(page: dict[str, str], folder: Path) -> list[str]:
    subprocess.run([sys.executable, "-c", page["python"]], cwd=folder, check=True)
    return [json.loads(line)["text"] for line in (folder / "my_stories.jsonl").read_text().splitlines()]


def test_the_texts_are_written_where_the_task_reads_them(page, tmp_path):
    texts = make_texts(page, tmp_path)
    assert len(texts) == 30 and all(len(text.split()) > 100 for text in texts)
    task = yaml.safe_load(page["yaml"])
    assert task["dataset_kwargs"]["data_files"] == {task["test_split"]: "my_stories.jsonl"}
    assert task["doc_to_target"] == "{{text}}"


def test_the_command_is_shell_and_names_the_task(page):
    subprocess.run(["bash", "-n", "-c", page["bash"]], check=True)
    assert f"--tasks {yaml.safe_load(page['yaml'])['task']} --include_path tasks" in page["bash"]


@pytest.mark.slow
def test_lm_eval_measures_what_we_measure(page, repository, tmp_path):
    installed = repository / ".cache" / "lm-eval"
    if not (installed / "lm_eval").is_dir():
        pytest.skip(
            "lm_eval is not installed beside the environment (pip install --target .cache/lm-eval 'lm_eval[hf]')"
        )
    texts, tokenizer = make_texts(page, tmp_path)[:2], make_tokenizer("byte")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    directory = tmp_path / "runs" / "demo" / "best"
    directory.mkdir(parents=True)
    save_model(build_model(Qwen3Config(**shape, vocab_size=257), seed=0), directory, eos_token_id=tokenizer.end_id)
    tokenizer.save(directory)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "my_stories.yaml").write_text(page["yaml"])
    arguments = page["bash"].rpartition("lm_eval --model")[2].replace("\\\n", " ").split()
    command = [sys.executable, "-m", "lm_eval", "--model", *arguments, "--limit", "2", "--output_path", "out"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(installed),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next((tmp_path / "out").rglob("results*.json")).read_text())["results"]["my_stories"]
    model, nats = load_model(directory), 0.0
    for text in texts:
        ids = torch.tensor([[tokenizer.end_id, *tokenizer.encode(text)]])
        with torch.no_grad():
            nats -= model(ids)[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).sum().item()
    expected = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    assert results["bits_per_byte,none"] == pytest.approx(expected, rel=1e-4)
