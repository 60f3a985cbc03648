"""What speculation brings: the same texts with and without each drafter, in turn, in processor time.

    python benchmarks/speculative.py RUN [--draft SMALLER_RUN]     # acceptance and speed, greedy and sampled
    python benchmarks/speculative.py --exact 1000                  # greedy texts of random models in float64, all equal

Speeds are medians over rounds; in each round the drafters take turns on one prompt. `always` drafts four tokens a pass
whatever it costs, `adapts` as many as pay (it knows the time of a clock, so a busy machine misleads it). `copied` is a
prompt whose end stands in it twice: what n-grams are for.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tiny_transformer.generation.drafting import speculation_of
from tiny_transformer.generation.rows import Generation
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.speculative import SpeculativeGeneration
from tiny_transformer.generation.text import encode_prompt
from tiny_transformer.models.contract import has_mtp_head
from tiny_transformer.models.open import OpenCheckpoint, open_checkpoint

PROMPTS = ("Once upon a time", "One day, the old fox", "In the forest there was", "Tom and his sister")
NUM_TOKENS = 64


def written(generation: Any) -> list[int]:
    """The tokens of the first row."""
    return [ids[0] for ids in generation if ids[0] is not None]


def compare(opened: OpenCheckpoint, drafters: dict[str, str], settings: SamplingConfig, prompts: Any) -> None:
    """Print for each drafter the acceptance, tokens a pass, and how much faster it is, over lists of tokens."""
    ratios: dict[tuple[str, bool], list[float]] = {}
    speculations = {
        (name, adapts): speculation_of(opened, word) for name, word in drafters.items() for adapts in (False, True)
    }
    for prompt in prompts:
        started = time.process_time()
        plain = written(Generation(opened.model, [prompt], settings))
        plain_seconds = time.process_time() - started
        for key, speculation in speculations.items():
            if speculation is None:
                raise SystemExit(f"{key[0]} drafts nothing")
            speculation.adapts = key[1]
            started = time.process_time()
            text = written(SpeculativeGeneration(opened.model, [prompt], settings, speculation))
            ratios.setdefault(key, []).append(plain_seconds / (time.process_time() - started))
            if text != plain:  # in float32 two nearly equal logits may change places
                print(f"  another text with {key[0]}: {sum(a == b for a, b in zip(plain, text, strict=False))} equal")
    for key, found in ratios.items():
        tally = speculations[key].tally  # ty: ignore[possibly-missing-attribute]
        share = tally.num_accepted / max(1, tally.num_drafted)
        per_pass = tally.num_tokens / max(1, tally.num_passes)
        words = f"{key[0]:8} {'adapts' if key[1] else 'always'}: {share:5.1%} of {tally.num_drafted} accepted, "
        print(words + f"{per_pass:.2f} tokens a pass, {statistics.median(found):.2f} x, given up {tally.num_given_up}")


def speeds(run: str, draft: str | None) -> None:
    """All drafters of a checkpoint."""
    opened = open_checkpoint(Path(run), device="cpu")
    drafters = {"ngram": "ngram"}
    if has_mtp_head(opened.model):
        drafters["mtp"] = "mtp"
    if draft is not None:
        drafters["model"] = draft
    encoded = [encode_prompt(opened.tokenizer, prompt) for prompt in PROMPTS]
    for name, temperature in (("greedy", 0.0), ("temperature 0.8", 0.8)):
        print(name)
        compare(opened, drafters, SamplingConfig(temperature=temperature, max_new_tokens=NUM_TOKENS), encoded)
    settings = SamplingConfig(temperature=0.8, max_new_tokens=NUM_TOKENS)
    texts = [ids + written(Generation(opened.model, [ids], settings)) for ids in encoded]
    print("copied, greedy")
    compare(opened, {"ngram": "ngram"}, SamplingConfig(temperature=0, max_new_tokens=64), [t + t[:40] for t in texts])


def exact(number: int) -> None:
    """Compare so many greedy texts with the plain ones, for each family and drafter of the tests, in float64."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "generation"))
    import test_speculative as tests

    models = {name: tests.build_model(c, seed=1, dtype=torch.float64).eval() for name, c in tests.FAMILIES.items()}
    settings = SamplingConfig(temperature=0, max_new_tokens=12)
    for family, drafter in tests.PAIRS:
        different, model = 0, models[family]
        for seed in range(-(-number // 50)):
            prompts = tests.random_prompts(50, seed=1000 + seed)
            plain = tests.written(Generation(model, prompts, settings))
            speculation = tests.drafted_by(drafter, model, models)
            fast = tests.written(SpeculativeGeneration(model, prompts, settings, speculation))
            different += sum(a != b for a, b in zip(plain, fast, strict=True))
        print(f"{family} {drafter}: {different} of {number} differ", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--draft")
    parser.add_argument("--exact", type=int)
    asked = parser.parse_args()
    if asked.exact:
        exact(asked.exact)
    elif asked.run:
        speeds(asked.run, asked.draft)
    else:
        parser.error("name a run, or --exact N")
