"""Is the model that `--minutes` chooses at least as good as the best of five chosen by hand, in the same time?

    python benchmarks/dial.py --minutes 1 2 4    # on a machine where nothing else computes: six runs for each, in turn
    python benchmarks/dial.py --quick            # a smoke test of a minute: three seconds each, no result file

All six read the same token files of the built-in stories (`prepare` is not counted) and get the same minutes of the
clock; the dial's include what it spends on choosing. `compare` then reads the same validation documents with each: bits
per byte, and how far each is from the best, with a 95 % interval over documents. `seconds` says who kept to the time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import keep, machine

DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"
CLI = [sys.executable, "-m", "tiny_transformer"]
WIDER = "--model.hidden_size 192 --model.num_attention_heads 6 --model.num_key_value_heads 3 --intermediate_size 576"
# What somebody who knows the demo's config might try in its place.
BY_HAND = {
    "the demo": "",
    "three layers": "--model.num_hidden_layers 3",
    "192 wide, four layers": f"--model.num_hidden_layers 4 {WIDER}",
    "AdamW": "--optimizer adamw",
    "half the batch": "--micro_batch_size 1",
}


def main() -> None:
    """Run and print; keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--quick", action="store_true", help="three seconds each, little text, no result file")
    options = parser.parse_args()
    if options.quick:
        options.minutes = [0.05]
    results: dict[str, Any] = {"machine": machine(["torch"])}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        data = Path(scratch) / "data"
        size = "600000" if options.quick else "16000000"
        text = ["--source", "stories", "--max_bytes", size, "--val_fraction", "0.01", "--vocab_size", "2048"]
        call("prepare", *text, "--out_dir", str(data))
        for minutes in options.minutes:
            results[f"{minutes:g} minutes"] = race(minutes, data, Path(scratch) / f"{minutes:g}")
    print(json.dumps(results, indent=1))
    if not options.quick:
        print(f"kept in {keep('dial', results)}")


def race(minutes: float, data: Path, runs: Path) -> dict[str, Any]:
    """The six runs of so many minutes, the best first."""
    common = ["--data_dir", str(data), "--sample_prompts", "[]"]
    names = {"the dial": ["--minutes", str(minutes)]}
    for name, changes in BY_HAND.items():
        names[name] = ["--config", str(DEMO), "--max_train_minutes", str(minutes), *changes.split()]
    for name, options in names.items():
        call("train", *options, *common, "--out_dir", str(runs / name.replace(" ", "-").replace(",", "")))
    told = call("compare", str(runs / "*"), "--json", "--out", str(runs / "compare.html"))
    ends = {path.name: json.loads((path / "last" / "run_info.json").read_text()) for path in sorted(runs.glob("*/"))}
    kept = ("step", "num_tokens", "num_parameters", "val_loss")
    facts = {
        name: {"seconds": round(end["elapsed_seconds"], 1), **{key: end[key] for key in kept}}
        for name, end in ends.items()
    }
    return {"compared": json.loads(told[told.index("{") :]), "runs": facts}


def call(*arguments: str) -> str:
    """What a command of the product prints."""
    return subprocess.run([*CLI, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
