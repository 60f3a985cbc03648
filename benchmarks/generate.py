"""Writing text: our engines beside transformers, and the memory bandwidth of the same minutes.

    python benchmarks/generate.py                       # a Qwen3 of about 36M parameters, all cores
    python benchmarks/generate.py --shape 126M          # and one of about 126M
    python benchmarks/generate.py --threads 1           # one thread, CPU seconds: for a machine that others use
    python benchmarks/generate.py --quick               # a smoke test, no result file

Contenders take turns, round by round; `median` is of all rounds, `least` the quickest one, which on a shared machine
says more about the program than the median does about anything. Decoding writes one token after a context of 128, from
ids to ids, greedily. Ours are the plain engine and the compiled step (`generation/kernels.py`, of several rows
`row_step.py`); theirs is `transformers.generate` as it comes. Bandwidth is that of summing 512 MB; a step reads all
weights and its cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from machine import keep, machine

from tiny_transformer.config.shapes import Qwen3Config
from tiny_transformer.generation.decoder import Decoder
from tiny_transformer.generation.engines import choose_engine
from tiny_transformer.hardware import keep_freed_memory
from tiny_transformer.models import build_model, save_model
from tiny_transformer.models.swaps import quantize_layers, quantize_words
from tiny_transformer.tokenizers import make_tokenizer

HEADS = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 300, **HEADS},
    "36M": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 16384, **HEADS},
    "126M": {
        **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "vocab_size": 16384},
        **{"num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 64},
    },
}
KINDS = ("fp32", "bf16", "int8", "int4")
CONTEXT, NEW_TOKENS, ROWS, PREFILL = 128, 8, 16, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="36M")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a tiny shape, one round, no result file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    shape, rounds = ("tiny", 1) if options.quick else (options.shape, options.rounds)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    packages = ("torch", "transformers", "numba")
    results: dict[str, Any] = {"machine": machine(packages), "shape": shape, "threads": options.threads}
    results |= {"clock": "CPU seconds" if options.threads == 1 else "wall seconds", "rounds": rounds}
    config = Qwen3Config(**SHAPES[shape], max_position_embeddings=1024)
    with tempfile.TemporaryDirectory() as directory:
        results |= measure(config, Path(directory), rounds, clock)
        results["command to first token"] = first_token(Path(directory), 1 if options.quick else 5)
    print(json.dumps(results, indent=1))
    if not options.quick:
        keep(f"generate-{shape}-{options.threads}-threads", results)


@torch.inference_mode()
def measure(config: Qwen3Config, directory: Path, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Everything but the start of the program."""
    models = {kind: made(config, kind) for kind in KINDS}
    fast = {kind: made(config, kind) for kind in KINDS}
    save_model(models["fp32"], directory, eos_token_id=0)
    make_tokenizer("byte").save(directory)
    theirs = {kind: loaded(directory, kind) for kind in ("fp32", "bf16")}
    ids = torch.randint(0, 250, (1, PREFILL))
    contenders: dict[str, Callable[[], Any]] = {}
    for kind in ("fp32", "bf16"):
        contenders[f"transformers, {kind}"] = generated(theirs[kind], ids[:, :CONTEXT])
    for kind in KINDS:
        choose_engine(fast[kind], "fast")
        contenders[f"plain, {kind}"] = written(models[kind], 1)
        contenders[f"compiled, {kind}"] = written(fast[kind], 1)
        contenders[f"plain, {kind}, {ROWS} rows"] = written(models[kind], ROWS)
        contenders[f"compiled, {kind}, {ROWS} rows"] = written(fast[kind], ROWS)
    few: dict[str, Callable[[], Any]] = {}
    for kind in ("fp32", "bf16"):
        few[f"prefill, plain, {kind}"] = lambda kind=kind: Decoder(models[kind], 1, PREFILL).feed_last(ids)
        few[f"prefill, compiled, {kind}"] = lambda kind=kind: Decoder(fast[kind], 1, PREFILL).feed_last(ids)
        few[f"prefill, transformers, {kind}"] = lambda kind=kind: theirs[kind](ids, use_cache=True, logits_to_keep=1)
    few["a token at 512 without a cache, fp32"] = lambda: models["fp32"](ids)[:, -1]
    long = Decoder(models["fp32"], 1, 1000)
    long.feed_last(ids)
    few["a token at 512 with a cache, fp32"] = lambda: long.feed_last(ids[:, :1])
    flat = torch.ones(2**27)
    few["read 512 MB"] = flat.sum
    seconds = in_turn({**contenders, **few}, rounds, clock)
    return told(seconds, {kind: step_bytes(model) for kind, model in models.items()}, flat.nbytes)


def made(config: Qwen3Config, kind: str) -> Any:
    model = build_model(config, seed=0).eval()
    if kind == "bf16":
        return model.to(torch.bfloat16)
    if kind != "fp32":
        quantize_layers(model, kind)
        quantize_words(model)
    return deepcopy(model)


def loaded(directory: Path, kind: str) -> Any:
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def written(model: Any, rows: int) -> Callable[[], None]:
    """Write so many tokens a row, over and over, at the same place of the context."""
    decoder = Decoder(model, rows, CONTEXT + NEW_TOKENS)
    first = decoder.feed_last(torch.randint(0, 250, (rows, CONTEXT))).argmax(-1, keepdim=True)
    decoder.snapshot()

    def run() -> None:
        ids = first
        for _ in range(NEW_TOKENS):
            ids = decoder.feed_last(ids).argmax(-1, keepdim=True)
        decoder.rollback(0)

    return run


def generated(model: Any, ids: torch.Tensor) -> Callable[[], None]:
    """The same by `generate`, which is handed a cache of all tokens of the context but the last."""
    cache = model(ids, use_cache=True).past_key_values
    fixed = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0, "do_sample": False}

    def run() -> None:
        cache.crop(CONTEXT - 1 - cache.get_seq_length())
        model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **fixed)

    return run


def in_turn(runs: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each, one after the other in each round; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            begun = clock()
            run()
            if turn:
                seconds[name].append(clock() - begun)
    return seconds


def step_bytes(model: Any) -> int:
    """What one step reads: every weight once, and the keys and values of the context."""
    config = model.config
    tensors = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    width = next(model.parameters()).element_size() * config.num_key_value_heads * config.head_dim
    return sum(tensors.values()) + 2 * width * CONTEXT * config.num_hidden_layers


def told(seconds: dict[str, list[float]], num_bytes: dict[str, int], flat_bytes: int) -> dict[str, Any]:
    """Rates and ratios, from medians and from the quickest rounds."""
    found: dict[str, Any] = {}
    for name, of in (("median", statistics.median), ("least", min)):
        each = {key: of(values) for key, values in seconds.items()}
        bandwidth = flat_bytes / each["read 512 MB"]
        rates = {key: NEW_TOKENS / s for key, s in each.items() if key.startswith(("trans", "plain", "compiled"))}
        rates |= {key: ROWS * rate for key, rate in rates.items() if key.endswith("rows")}
        best = {who: max(rate for key, rate in rates.items() if is_one(key, who)) for who in ("trans", "plain")}
        compiled = {kind: rates[f"compiled, {kind}"] for kind in num_bytes}
        rows = {
            who: max(rate for key, rate in rates.items() if key.startswith(who) and key.endswith("rows"))
            for who in ("plain", "compiled")
        }
        prefill = {
            who: min(s for key, s in each.items() if key.startswith(f"prefill, {who}"))
            for who in ("plain", "compiled", "transformers")
        }
        with_cache, without = (each[f"a token at 512 {word} a cache, fp32"] for word in ("with", "without"))
        found[name] = {
            "GB/s": bandwidth / 1e9,
            "tokens/s": rates,
            "compiled / transformers (best)": {kind: rate / best["trans"] for kind, rate in compiled.items()},
            "compiled / plain (best)": {kind: rate / best["plain"] for kind, rate in compiled.items()},
            "plain (best) / transformers (best)": best["plain"] / best["trans"],
            "share of the bandwidth": {kind: num_bytes[kind] * rate / bandwidth for kind, rate in compiled.items()},
            f"{ROWS} rows / one row, plain": rows["plain"] / best["plain"],
            f"{ROWS} rows / one row, compiled": {
                kind: rates[f"compiled, {kind}, {ROWS} rows"] / rate for kind, rate in compiled.items()
            },
            f"{ROWS} rows, compiled / one row, plain": rows["compiled"] / best["plain"],
            f"{ROWS} rows, compiled / plain": rows["compiled"] / rows["plain"],
            "prefill: transformers / ours, seconds": {
                who: prefill["transformers"] / prefill[who] for who in ("plain", "compiled")
            },
            "cache: without / with, seconds a token at 512": without / with_cache,
        }
    return json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.4g}"))


def is_one(key: str, who: str) -> bool:
    return key.startswith(who) and not key.endswith("rows")


def first_token(directory: Path, times: int) -> dict[str, float]:
    """Seconds of `generate` for one token, everything included: CPU and wall, the least of a few."""
    command = [sys.executable, "-m", "tiny_transformer", "generate", "--ckpt", str(directory), "--prompt", "a"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    cpu, wall = [], []
    for _ in range(times):
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([*command, "--max_new_tokens", "1"], check=True, capture_output=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        wall.append(time.perf_counter() - begun)
    return {"CPU seconds": round(min(cpu), 2), "wall seconds": round(min(wall), 2)}


if __name__ == "__main__":
    main()
