"""Our scores of task files beside those of EleutherAI's lm-evaluation-harness, on the same checkpoint and rows.

    python -m venv peers && peers/bin/pip install torch==2.13.0 'transformers<5' lm-eval accelerate
    peers/bin/python benchmarks/harness.py runs/demo/last FILE.jsonl ... > theirs.json
    tiny-transformer evaluate demo --task FILE.jsonl ... --json > ours.json
    python benchmarks/harness.py --compare ours.json theirs.json

The harness opens the checkpoint with transformers and takes each row's question as its own task of that name puts it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PRECISION = 1e-4  # of a perplexity, relative; shares are equal or not


def main(arguments: list[str]) -> int:
    """Score with the harness, or compare two results."""
    if arguments[:1] == ["--compare"]:
        return compare(*(json.loads(Path(name).read_text(encoding="utf-8")) for name in arguments[1:3]))
    print(json.dumps(harness_scores(arguments[0], arguments[1:]), indent=2))
    return 0


def harness_scores(checkpoint: str, files: list[str]) -> dict[str, Any]:
    """What the harness says of each file."""
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    wrapped = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(checkpoint), batch_size=8, device="cpu")
    tasks: list[Any] = [ConfigurableTask(config=task_config(Path(file))) for file in files]
    results = lm_eval.simple_evaluate(model=wrapped, tasks=tasks, bootstrap_iters=0)["results"]
    return {"tasks": [{"name": name, **values} for name, values in results.items()]}


def task_config(file: Path) -> dict[str, Any]:
    """A task of the harness for the rows of a file, by the form of the first."""
    with file.open(encoding="utf-8") as lines:
        keys = json.loads(next(lines)).keys()
    shares = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    common: dict[str, Any] = {
        "task": file.name.removesuffix(".jsonl"),
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(file)},
        "test_split": "train",
        "output_type": "multiple_choice",
        "metric_list": shares,
    }
    if "endings" in keys:
        from lm_eval.tasks.hellaswag.utils import process_docs

        form = {"process_docs": process_docs, "doc_to_text": "{{query}}", "doc_to_target": "{{label}}"}
        return {**common, **form, "doc_to_choice": "choices"}
    if "query" in keys:
        text = "{{query.rstrip()}}{% if query.startswith('Question:') %}\nAnswer:{% endif %}"
        return {**common, "doc_to_text": text, "doc_to_target": "gold", "doc_to_choice": "choices"}
    if "context_options" in keys:
        form = {
            "doc_to_text": lambda row: row["gold"],
            "doc_to_target": lambda row: row["continuation"],
            "doc_to_choice": lambda row: row["context_options"],
        }
        return {**common, **form, "metric_list": shares[:1]}
    if "sentence_good" in keys:
        choices = "{{[sentence_good, sentence_bad]}}"
        return {**common, "doc_to_text": "", "doc_to_target": 0, "doc_to_choice": choices}
    perplexity = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
    return {
        **common,
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{' '+continuation}}",
        "metric_list": [perplexity, shares[0]],
    }


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> int:
    """Both side by side; 1 when one figure differs."""
    differ = False
    harness = {task["name"]: task for task in theirs["tasks"]}
    for task in ours["tasks"]:
        other = harness[task["name"]]
        pairs = {name: (task[ours], other.get(f"{name},none")) for name, ours in NAMES.items()}
        for name, (own, their) in pairs.items():
            if own is None or their is None:
                continue
            same = abs(own - their) <= (PRECISION * their if name == "perplexity" else 0)
            differ = differ or not same
            print(f"{task['name']:24} {name:12} {own:<22} {their:<22} {'same' if same else 'DIFFERENT'}")
    return int(differ)


NAMES = {"acc": "accuracy", "acc_norm": "normalised", "perplexity": "perplexity"}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
