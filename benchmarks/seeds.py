"""How far runs lie apart that differ in their seed alone, and how many pairs of them `compare` calls no difference.

    for seed in 1 2 3 4 5 6 7 8 9 10; do
        tiny-transformer train --config configs/demo.yaml --max_train_minutes null --steps 700 --seed $seed \\
            --sample_prompts '[]' --out_dir runs/demo$seed
    done
    python benchmarks/seeds.py runs/demo?*
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from tiny_transformer.evaluation.comparison import Comparison
from tiny_transformer.evaluation.measuring import MeasuringOptions, measure


def no_differences(found: Comparison, size: int, asked_spread: float | None = None) -> str:
    """Of all choices of `size` models, the share of pairs in each that come out as no difference."""
    verdicts = []
    for models in combinations(found.models, size):
        chosen = replace(found, models=models, asked_spread=asked_spread)
        verdicts += [chosen.difference(*pair).verdict for pair in combinations(models, 2)]
    return f"{verdicts.count('no difference')} of {len(verdicts)}"


def main(runs: list[Path]) -> None:
    """Measure all runs once, then judge them in twos and threes."""
    found = measure(runs, MeasuringOptions(prompts=("A",), max_new_tokens=1), lambda line: None)
    for model in found.models:
        print(f"{model.name}: {found.bits_per_byte(model).value:.4f} bits per byte")
    print(f"standard deviation {found.seed_spread.share:.2%}, {found.seed_spread.degrees} degrees of freedom")
    unknown = replace(found, models=tuple(replace(model, settings_id="") for model in found.models))
    print(f"no difference, spread assumed: {no_differences(unknown, 2)}")
    for size in (2, 3):
        print(f"no difference, spread measured on {size}: {no_differences(found, size)}")
    print(f"no difference, by documents alone: {no_differences(found, 2, 0.0)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    main(parser.parse_args().runs)
