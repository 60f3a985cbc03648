"""The proof that nothing moved: twelve short runs, of which weights, optimizer state, counters and log have a SHA-256.

Whoever moves code without meaning to change what it computes runs this before and after:

    python tests/golden/twelve_runs.py --check                      # against the hashes in twelve_runs.json
    python tests/golden/twelve_runs.py --against OTHER_CHECKOUT     # runs both trees here, and compares them

A hash of floating point numbers belongs to a processor and a version of PyTorch, so --check compares only on a machine
like the one the file was made on, and elsewhere says that it cannot; --against works anywhere. Whoever changes the
numbers on purpose writes the file anew (--write FILE; with --only, those rows of it) and says why in docs/LOG.md.

Runs go through the command line in processes of their own, and what is made up (the clock, fp16 on a CPU) replaces
functions of Python and PyTorch, never ours: the package may be rearranged at will.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TREE = Path(__file__).resolve().parents[2]
STORED = Path(__file__).with_name("twelve_runs.json")
COUNTERS = (
    *("step", "num_tokens", "best_val_loss", "best_step", "evaluations_without_gain"),
    *("loss_scale", "steps_at_loss_scale", "metrics", "counts"),
)
CLOCK_KEYS = {"elapsed_seconds", "tokens_per_second", "seconds", "peak_memory_bytes", "peak_device_memory_bytes"}
PREPARE = ["--source", "stories", "--tokenizer", "byte", "--max_bytes", "60000", "--val_fraction", "0.05"]

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
LLAMA = {"model_type": "llama", **SHAPE}
QWEN3 = {"model_type": "qwen3", **SHAPE}
NEXT = {
    "model_type": "qwen3_next",
    **SHAPE,
    "full_attention_interval": 2,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
TRAINING: dict[str, Any] = {
    "device": "cpu",
    "precision": "fp32",
    "seed": 7,
    "steps": 12,
    "micro_batch_size": 4,
    "eval_steps": 5,
    "save_steps": 4,
    "log_steps": 1,
    "sample_prompts": [],
}
DOCUMENTS = {"packing": "documents"}
ACCUMULATION = {"micro_batch_size": 2, "grad_accum_steps": 4}


def row(
    model: dict[str, Any],
    *,
    data: dict[str, Any] | None = None,
    num_processes: int = 1,
    made_up: str | None = None,
    **training: Any,
) -> dict[str, Any]:
    """One run: its config, how many processes share it, and which of `MADE_UP` it needs."""
    given = {name: value for name, value in {**TRAINING, **training}.items() if value is not None}
    config = {"model": model, "data": {"seq_len": 32, **(data or {})}, "training": given}
    return {"config": config, "num_processes": num_processes, "made_up": made_up}


ROWS: dict[str, dict[str, Any]] = {
    "llama, adamw": row(LLAMA),
    "llama, layernorm, tied, muon, dropout, linear": row(
        {**LLAMA, "norm_type": "layernorm", "tie_word_embeddings": True},
        optimizer="muon",
        dropout=0.1,
        schedule="linear",
        decay_fraction=0.6,
    ),
    "llama, window, documents, wsd": row({**LLAMA, "sliding_window": 9}, data=DOCUMENTS, schedule="wsd"),
    "qwen3, adamw, documents, fading dropout": row(QWEN3, data=DOCUMENTS, dropout=0.2, final_dropout=0.0),
    "qwen3, muon, samples": row(QWEN3, optimizer="muon", sample_prompts=["Once"], sample_tokens=8),
    "qwen3, accumulation, checkpointing, window": row(
        {**QWEN3, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
        **ACCUMULATION,
        gradient_checkpointing=True,
        dropout=0.1,
        zero_residual=True,
    ),
    "qwen3_next, dense, adamw": row({**NEXT, "num_experts": 0}),
    "qwen3_next, experts and MTP, muon, documents, dropout": row(
        {**NEXT, **EXPERTS, "num_nextn_predict_layers": 1}, data=DOCUMENTS, optimizer="muon", dropout=0.1
    ),
    "qwen3, fp16": row(  # so few targets that the first loss scale is too large, and halved
        QWEN3, data={"seq_len": 2}, made_up="fp16", precision="fp16", micro_batch_size=1, learning_rate=0.01
    ),
    "qwen3, minutes, muon, dropout": row(
        QWEN3, made_up="clock", steps=None, max_train_minutes=0.02, optimizer="muon", dropout=0.1
    ),
    "2 processes, qwen3, documents, accumulation, dropout": row(
        QWEN3, num_processes=2, made_up="end", data=DOCUMENTS, **ACCUMULATION, dropout=0.1
    ),
    "2 processes, fsdp, llama, muon": row(LLAMA, num_processes=2, made_up="end", parallelism="fsdp", optimizer="muon"),
}


# ------------------------------------------------------------------------------------------------------------
# What is made up. Everything that a run's process has replaced stands here: functions of Python and
# PyTorch, before the package is imported.


def make_up_clock() -> None:
    """Time passes only when work is done: a model called, a gradient found. Reading it is free, and so is writing:
    which function of which library writes is a tree's own affair."""
    import torch

    now = 0.0

    def taking(seconds: float, work: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: Any, **kwargs: Any) -> Any:
            nonlocal now
            now += seconds
            return work(*args, **kwargs)

        return slow

    time.monotonic = time.perf_counter = lambda: now
    torch.nn.Embedding.forward = taking(0.004, torch.nn.Embedding.forward)
    torch.autograd.backward = taking(0.010, torch.autograd.backward)


def make_up_fp16() -> None:
    """The processor multiplies fp16 in hardware, as it says."""
    import torch

    capabilities = torch.cpu.get_capabilities() | {"avx512_fp16": True}
    torch.cpu.get_capabilities = lambda: capabilities


MADE_UP: dict[str, Callable[[], None]] = {"clock": make_up_clock, "fp16": make_up_fp16, "end": lambda: None}


def run_made_up(name: str, arguments: list[str]) -> None:
    """The command line of the package, in a process in which something is made up.

    The process ends at once: as the interpreter winds down, one of several processes may abort ("terminate called
    without an active exception"), as one run in three did when this was written. That fault is real, and no matter of
    this proof, which wants the values.
    """
    MADE_UP[name]()
    sys.argv = ["tiny-transformer", *arguments]
    code: Any = 0
    try:
        from tiny_transformer.cli import main

        main()
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


# ------------------------------------------------------------------------------------------------------------


def run_python(tree: Path, directory: Path, *arguments: str) -> str:
    """Python with the package of a tree, one thread; what it printed."""
    single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "COLUMNS": "200"}
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env={**os.environ, **single, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    if ended.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {ended.returncode}:\n{ended.stdout[-4000:]}")
    return ended.stdout


def prepare(tree: Path, directory: Path) -> str:
    """Write the stories into `directory/data`; the SHA-256 of the tokens."""
    found = run_python(tree, directory, "-c", "import tiny_transformer; print(tiny_transformer.__file__)").strip()
    if not Path(found).is_relative_to(tree):
        raise SystemExit(f"Python imports {found}, not the package in {tree}")
    run_python(tree, directory, "-m", "tiny_transformer", "prepare", *PREPARE, "--seq_len", "32", "--out_dir", "data")
    return sha256((directory / "data/train.bin").read_bytes() + (directory / "data/val.bin").read_bytes())


def command_of(name: str) -> list[str]:
    """The arguments of Python that make a run, in a directory with its `config.json` and the data."""
    num_processes, made_up = ROWS[name]["num_processes"], ROWS[name]["made_up"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    package = [str(Path(__file__).resolve()), "--made-up", made_up] if made_up else ["-m", "tiny_transformer"]
    train = ["train", "--config", "config.json", "--data_dir", "data", "--out_dir", "run", "--overwrite"]
    return [*(launcher if num_processes > 1 else []), *package, *train]


def hashes_of(name: str, tree: Path, directory: Path) -> dict[str, str]:
    """Make one run with the package of a tree, in a directory that `prepare` has filled, and hash what it left."""
    (directory / "config.json").write_text(json.dumps(ROWS[name]["config"]), encoding="utf-8")
    run_python(tree, directory, *command_of(name))
    checkpoint, log = directory / "run/last", (directory / "run/log.jsonl").read_text(encoding="utf-8")
    state = json.loads((checkpoint / "trainer_state/state.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in log.splitlines()]
    timeless = [{key: value for key, value in record.items() if key not in CLOCK_KEYS} for record in records]
    return {
        "weights": sha256((checkpoint / "model.safetensors").read_bytes()),
        "optimizer": sha256((checkpoint / "trainer_state/optimizer.safetensors").read_bytes()),
        "counters": sha256(json.dumps({key: state[key] for key in COUNTERS}, sort_keys=True).encode()),
        "log": sha256(json.dumps(timeless, sort_keys=True).encode()),
    }


def all_hashes(tree: Path, directory: Path, names: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The hashes of the data and of each row in turn, made with the package of a tree in an empty directory."""
    yield "data", {"tokens": prepare(tree, directory)}
    for name in names:
        yield name, hashes_of(name, tree, directory)


def sha256(data: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def machine() -> dict[str, Any]:
    """What the last digits of a floating point sum depend on."""
    import torch

    wanted = ("model name", "cpu family", "model", "stepping")
    facts: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()]
        facts = {key.strip(): value.strip() for key, _, value in lines if key.strip() in wanted}
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": facts or platform.processor(),
        "capabilities": sorted(name for name, there in torch.cpu.get_capabilities().items() if there is True),
        "torch": torch.__version__,
    }


def compare(found: Iterator[tuple[str, dict[str, str]]], wanted: Iterator[tuple[str, dict[str, str]]]) -> int:
    """Show row by row what is the same; how many rows are not."""
    num_moved = 0
    for (name, here), (_, there) in zip(found, wanted, strict=True):
        moved = [kind for kind in here if here[kind] != there.get(kind)]
        num_moved += bool(moved)
        print(f"MOVED  {name}: {', '.join(moved)}" if moved else f"same   {name}", flush=True)
    print(f"{num_moved} MOVED" if num_moved else "nothing moved")
    return num_moved


def main() -> int:
    """0: nothing moved; 1: something did, or a run failed; 2: it cannot be told on this machine."""
    parser = argparse.ArgumentParser(description="Twelve short runs and their SHA-256.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="make each run twice, and keep the hashes (with --only: in FILE as it is)",
    )
    action.add_argument("--check", type=Path, nargs="?", const=STORED, metavar="FILE", help="compare with kept hashes")
    action.add_argument("--against", type=Path, metavar="CHECKOUT", help="make each run with both trees, and compare")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the runs with this in their name")
    parser.add_argument("--without", default=[], nargs="+", metavar="KEY", help="leave these keys of the log out")
    options = parser.parse_args()
    CLOCK_KEYS.update(options.without)
    names = [name for name in ROWS if options.only in name]
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        found = all_hashes(TREE, Path(one), names)
        if options.check:
            kept = json.loads(options.check.read_text(encoding="utf-8"))
            if kept["machine"] != machine():
                print(f"cannot compare: made on {kept['machine']}, this is {machine()}; use --against CHECKOUT")
                return 2
            return min(1, compare(found, ((name, kept["rows"].get(name, {})) for name in ("data", *names))))
        if options.against:
            return min(1, compare(found, all_hashes(options.against.resolve(), Path(other), names)))
        kept = (
            json.loads(options.write.read_text(encoding="utf-8"))
            if options.only
            else {"machine": machine(), "rows": {}}
        )
        if kept["machine"] != machine():
            print(f"not written: the other rows were made on {kept['machine']}, this is {machine()}")
            return 2
        first = dict(found)
        if compare(iter(first.items()), all_hashes(TREE, Path(other), names)):
            print("not written: the same run twice gives different hashes")
            return 1
    kept["rows"].update(first)
    options.write.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--made-up"]:
        run_made_up(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
