"""The chunked delta rule beside transformers' torch path, and how the cost of Qwen3-Next grows with the length.

    python benchmarks/delta_rule.py                 # the rule, forward and backward, at T = 1,024
    python benchmarks/delta_rule.py --lengths       # a training step and one more token at 256 to 8,192 tokens
    python benchmarks/delta_rule.py --quick         # a smoke test, no result file

One thread; CPU seconds, so that other work on the machine lengthens nothing but memory traffic. The forms take turns,
round by round; figures are medians. Decays are those of a fresh model. `denormals_flushed` repeats the comparison with
the CPU told to take denormal numbers as zero, which ours mostly avoids anyway and theirs does not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from machine import keep, machine
from torch.nn.functional import softplus

from tiny_transformer.config.shapes import Qwen3NextConfig
from tiny_transformer.hardware import keep_freed_memory
from tiny_transformer.layers.delta_rule import delta_rule_in_chunks, to_unit_length
from tiny_transformer.models import build_model

# B, key heads, value heads, width of a head
SHAPES = {"heads_of_64": (4, 2, 4, 64), "heads_of_128": (1, 16, 32, 128)}
NEW_TOKENS = 16  # written in a round
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
SMALL = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "max_position_embeddings": 8192}
# A model of two delta-rule layers, and one with a layer of attention behind three of them.
MODELS = {"delta_rule_alone": (2, 3), "with_attention": (4, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", action="store_true", help="time against length instead of against transformers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="short texts, one round, no result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rounds = 1 if options.quick else options.rounds
    if options.lengths:
        lengths = LENGTHS[:2] if options.quick else LENGTHS
        figures: dict[str, Any] = {name: grow(*shape, lengths, rounds) for name, shape in MODELS.items()}
    else:
        figures = {name: compare(*shape, 64 if options.quick else 1024, rounds) for name, shape in SHAPES.items()}
    results = {"machine": machine(("torch", "transformers")), "rounds": rounds, **figures}
    print(json.dumps(results, indent=1))
    if not options.quick:
        keep("delta-rule-lengths" if options.lengths else "delta-rule", results)


def compare(B: int, G: int, H: int, width: int, T: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of forward and backward, ours and theirs, and their ratio."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    rates = torch.empty(H).uniform_(0.01, 16, generator=generator)  # as `build_model` draws them
    inputs = {
        "query": to_unit_length(random(B, T, G, width)),
        "key": to_unit_length(random(B, T, G, width)),
        "value": random(B, T, H, width),
        "log_decay": -rates * softplus(0.5 * random(B, T, H) + 1),
        "beta": random(B, T, H).sigmoid(),
    }
    for tensor in inputs.values():
        tensor.requires_grad_()
    gradient = random(B, T, H, width)

    def ours() -> None:
        delta_rule_in_chunks(**inputs, state=None, segments=None)[0].backward(gradient)

    def theirs() -> None:
        torch_chunk_gated_delta_rule(*inputs.values())[0].backward(gradient)

    found: dict[str, Any] = {"batch": B, "tokens": T, "key_heads": G, "value_heads": H, "width": width}
    for name, flush in (("as_it_is", False), ("denormals_flushed", True)):
        torch.set_flush_denormal(flush)
        times = in_turn({"ours": ours, "theirs": theirs}, rounds)
        found[name] = {**times, "theirs_by_ours": round(times["theirs"] / times["ours"], 2)}
    torch.set_flush_denormal(False)
    return found


def grow(layers: int, interval: int, lengths: tuple[int, ...], rounds: int) -> dict[str, dict[str, float]]:
    """By length: microseconds a token of a training step, milliseconds of one more token after so many."""
    config = Qwen3NextConfig(**SMALL, num_experts=0, num_hidden_layers=layers, full_attention_interval=interval)
    model = build_model(config, seed=0)

    def train(T: int) -> Callable[[], None]:
        ids = torch.zeros(1, T, dtype=torch.long)
        return lambda: model(ids).sum().backward()

    def write(T: int) -> Callable[[], None]:
        ids = torch.zeros(1, T, dtype=torch.long)
        cache = model.make_cache(1, config.max_position_embeddings)
        with torch.inference_mode():
            model.backbone(ids[:, : T - NEW_TOKENS * (rounds + 1)], cache=cache)

        def more() -> None:
            with torch.inference_mode():
                for _ in range(NEW_TOKENS):
                    model.backbone(ids[:, :1], cache=cache)

        return more

    steps = in_turn({str(T): train(T) for T in lengths}, rounds)
    tokens = in_turn({str(T): write(T) for T in lengths}, rounds)
    return {
        "training_us_per_token": {T: round(1e3 * value / int(T), 1) for T, value in steps.items()},
        "generation_ms_per_token": {T: round(value / NEW_TOKENS, 3) for T, value in tokens.items()},
    }


def in_turn(work: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of each, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, run in work.items():
            started = time.process_time()
            run()
            times[name].append(1e3 * (time.process_time() - started))
    return {name: round(statistics.median(values[1:]), 3) for name, values in times.items()}


if __name__ == "__main__":
    main()
