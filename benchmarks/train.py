"""How fast a training step is: ours, its peers as they come, its peers tuned, and what the machine can do at most.

    make peers                                    # transformers' Trainer and litgpt, beside the environment
    python benchmarks/train.py --shapes a b       # the figures of docs/LOG.md
    python benchmarks/train.py --quick            # a smoke test of a minute

Each implementation lives in a process of its own and keeps its model; they take turns, a few steps each, round by
round, so that a busy moment of the machine meets all of them. Figures are medians over all steps. The peak is that of
matrix products of the shape's own sizes (forward and both gradients), measured in the same rounds. "Tuned" is compiled,
with bf16 autocast where the device has bf16 arithmetic. On CUDA, where models are large and nobody else computes, they
come one after another instead; `gpu.py` asks for that.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from machine import CORES, keep, machine

PEERS = Path(__file__).resolve().parent.parent / ".cache" / "peers"
NAMES = (
    "peak",
    "ours",
    "ours, compiled",
    "transformers, eager",
    "transformers, Trainer",
    "transformers, tuned",
    "nanoGPT",
    "nanoGPT, tuned",
    "litgpt, tuned",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["a"], help="of peers.SHAPES")
    parser.add_argument("--only", nargs="+", default=list(NAMES), help="implementations")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="in a row, each time it is an implementation's turn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, two rounds, no result file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.shapes[0], options.device)
        return
    if options.quick:
        options.shapes, options.rounds, options.steps = ["tiny"], 2, 2
    about = machine(["torch", "transformers"])
    shapes = {name: compare(name, options) for name in options.shapes}
    results = {"machine": about, "threads": int(os.environ.get("OMP_NUM_THREADS", CORES)), "shapes": shapes}
    print(json.dumps(results, indent=1))
    if not options.quick:
        print(f"kept in {keep('-'.join(['train', *options.shapes]), results)}")


# --- the one that compares


def compare(shape_name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of every implementation at one shape, and the ratios that count."""
    from peers import SHAPES

    shape = SHAPES[shape_name]
    together = [options.only] if options.device == "cpu" else [[name] for name in options.only]
    samples: dict[str, list[float]] = {name: [] for name in options.only}
    facts: dict[str, dict[str, Any]] = {}
    for names in together:
        workers = {name: Worker(name, shape_name, options.device) for name in names}
        for worker in workers.values():
            worker.ask(3)  # compile and warm up
        for _ in range(options.rounds):
            for name, worker in workers.items():
                samples[name] += worker.ask(options.steps)
        facts |= {name: worker.close() for name, worker in workers.items()}
    peak = statistics.median(samples.pop("peak", [float("nan")]))  # FLOPs a second
    speed = {name: shape.tokens / statistics.median(seconds) for name, seconds in samples.items()}
    ours = max(speed.get("ours", 0.0), speed.get("ours, compiled", 0.0))
    tuned = {name: value for name, value in speed.items() if name.endswith("tuned")}
    return {
        "shape": vars(shape) | {"flops_per_token": shape.flops_per_token},
        "peak_gflops": round(peak / 1e9, 1),
        "tokens_per_second": {name: round(value) for name, value in speed.items()},
        "of_peak": {name: round(value * shape.flops_per_token / peak, 3) for name, value in speed.items()},
        "ours / transformers, Trainer": ratio(ours, speed.get("transformers, Trainer")),
        "ours, eager / transformers, Trainer": ratio(speed.get("ours", 0.0), speed.get("transformers, Trainer")),
        "ours / best tuned peer": ratio(ours, max(tuned.values(), default=None)),
        "facts": {name: fact for name, fact in facts.items() if fact},
    }


def ratio(ours: float, theirs: float | None) -> float | None:
    return round(ours / theirs, 3) if theirs else None


class Worker:
    """One implementation in a process of its own."""

    def __init__(self, name: str, shape: str, device: str) -> None:
        arguments = ["--worker", name, "--shapes", shape, "--device", device]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PEERS), os.environ.get("PYTHONPATH", "")])}
        self._process = subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, steps: int) -> list[float]:
        """Seconds of each of so many steps (FLOPs a second from the one that measures the peak)."""
        return self._say(str(steps))

    def close(self) -> dict[str, Any]:
        """What else it noticed."""
        facts = self._say("end")
        self._process.wait()
        return facts

    def _say(self, line: str) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"a worker died: {self._process.args}")
        return json.loads(answer)


# --- the ones that are compared


def work(name: str, shape_name: str, device: str) -> None:
    """Answer each line of stdin, a number of steps, with their times."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is not an answer
    with tempfile.TemporaryDirectory() as scratch:
        facts: dict[str, Any] = {}
        steps = make(name, shape_name, device, Path(scratch), facts)
        for line in sys.stdin:
            answer = facts if line == "end\n" else steps(int(line))
            print(json.dumps(answer), file=answers, flush=True)
            if line == "end\n":
                return


def make(name: str, shape_name: str, device: str, scratch: Path, facts: dict[str, Any]) -> Callable[[int], list[float]]:
    """A function that makes some steps and gives the seconds of each."""
    import peers
    import torch

    from tiny_transformer.hardware import has_fast_bf16, keep_freed_memory

    shape, where = peers.SHAPES[shape_name], torch.device(device)
    torch.manual_seed(0)
    if name == "peak":
        keep_freed_memory()  # as in training: pages that come and go cost a third of it
        dtype = torch.bfloat16 if has_fast_bf16(where) else torch.float32
        facts["dtype"] = str(dtype)
        return lambda steps: [matmul_speed(shape, where, dtype) for _ in range(steps)]
    if name.startswith("ours"):
        return our_steps(shape, where, scratch, compiled=name.endswith("compiled"), facts=facts)
    if name == "transformers, Trainer":
        return trainer_steps(shape, device, scratch)
    models = {"transformers": peers.HuggingFace, "nanoGPT": peers.NanoGPT, "litgpt": peers.LitGPT}
    tuned = name.endswith("tuned")
    step = peers.plain_steps(
        models[name.split(",")[0]](shape),
        random_batches(shape),
        device=where,
        dtype=torch.bfloat16 if tuned and has_fast_bf16(where) else None,
        compiled=tuned,
    )
    return lambda steps: [timed(step, where) for _ in range(steps)]


def timed(step: Callable[[], None], device: Any) -> float:
    import torch

    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def random_batches(shape: Any) -> Iterator[Any]:
    import torch

    while True:
        rows = torch.randint(shape.vocab, (shape.batch, shape.seq_len + 1))
        yield rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def matmul_speed(shape: Any, device: Any, dtype: Any) -> float:
    """FLOPs a second of a linear layer from C to F and back, forward and backward, over one step's tokens."""
    import torch
    from torch.nn import functional as F

    hidden = torch.randn(shape.tokens, shape.hidden, device=device, dtype=dtype, requires_grad=True)
    up = torch.randn(shape.feed_forward, shape.hidden, device=device, dtype=dtype, requires_grad=True)
    down = torch.randn(shape.hidden, shape.feed_forward, device=device, dtype=dtype, requires_grad=True)

    def product() -> None:
        F.linear(F.linear(hidden, up), down).backward(hidden.detach())
        hidden.grad = up.grad = down.grad = None

    product()
    seconds = timed(lambda: [product() for _ in range(8)] and None, device)
    return 8 * 3 * 2 * 2 * shape.tokens * shape.hidden * shape.feed_forward / seconds


def our_steps(
    shape: Any, device: Any, scratch: Path, *, compiled: bool, facts: dict[str, Any]
) -> Callable[[int], list[float]]:
    """The product's own loop over prepared data, logging included; each turn goes on with the same run."""
    from rich.console import Console

    from tiny_transformer.config.load import load_run_config
    from tiny_transformer.config.schema import DataConfig
    from tiny_transformer.data.prepare.command import prepare
    from tiny_transformer.hardware import choose_hardware, keep_freed_memory
    from tiny_transformer.parallel.processes import ALONE
    from tiny_transformer.stages.attention import settle_attention
    from tiny_transformer.stages.pretrain import Pretraining
    from tiny_transformer.stages.run import Run
    from tiny_transformer.stages.stage import Request
    from tiny_transformer.storage import RunDirectory
    from tiny_transformer.training.loop import train
    from tiny_transformer.training.plan import Pace, plan_for_counts

    keep_freed_memory()
    text = DataConfig(source="stories", tokenizer="byte", max_bytes=3_000_000, seq_len=shape.seq_len)
    prepare(text, scratch / "data")
    tree = {
        "model": {
            "hidden_size": shape.hidden,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "intermediate_size": shape.feed_forward,
            "max_position_embeddings": shape.seq_len,
            "vocab_size": shape.vocab,
        },
        "data": {"data_dir": str(scratch / "data"), "seq_len": shape.seq_len},
        "training": {"steps": 1_000_000, "micro_batch_size": shape.batch, "device": device.type, "compile": compiled},
    }
    config = load_run_config(tree)
    hardware = choose_hardware(device.type)
    request = Request(config, "benchmark", command=["benchmark"])
    console = Console(file=io.StringIO())
    stage = Pretraining.open(request, scratch / "run", hardware, ALONE, console)
    stage.config = settle_attention(stage.config, scratch / "run", hardware, ALONE, console, resume=False)
    facts["attention"] = stage.config.training.attention
    run = Run(request, stage, RunDirectory(scratch / "run"), hardware, console)
    pace = Pace(plan_for_counts(config.training, shape.tokens), config.training, None, lambda plan: None)
    watch = Watch()
    log = (scratch / "log.jsonl").open("w")
    job = run.job(
        pace,
        save=lambda state, status, is_best: None,
        log=lambda record: print(json.dumps(record), file=log),
        progress=watch,
    )

    spent: list[float] = []  # share of each turn but the first, which warms up

    def steps(number: int) -> list[float]:
        before = dict(run.state.seconds)
        watch.begin()
        end = run.state.step + number
        train(job, run.state, lambda: run.state.step >= end)
        core = sum(run.state.seconds[kind] - before.get(kind, 0.0) for kind in ("forward_backward", "optimizer"))
        if before:
            spent.append(1 - core / sum(watch.seconds))
            facts["outside forward, backward and optimizer"] = round(statistics.median(spent), 4)
        facts["precision"] = hardware.precision
        return watch.seconds

    return steps


class Watch:
    """Notes how long each step took; the loop's progress."""

    def begin(self) -> None:
        self.seconds: list[float] = []
        self._mark = time.perf_counter()

    def step(self, state: Any, tokens_per_second: float) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._mark)
        self._mark = now

    def length(self, total_steps: int) -> None:
        pass


def trainer_steps(shape: Any, device: str, scratch: Path) -> Callable[[int], list[float]]:
    """transformers' Trainer as a user gets it; it runs in a thread that waits between turns."""
    import queue
    import threading

    import torch
    from peers import transformers_model
    from transformers import Trainer, TrainerCallback, TrainingArguments

    asked: queue.Queue[int] = queue.Queue()
    given: queue.Queue[list[float]] = queue.Queue()

    class Turns(TrainerCallback):
        def __init__(self) -> None:
            self.left, self.seconds, self.mark = 0, [], 0.0

        def wait(self) -> None:
            self.left, self.seconds = asked.get(), []
            self.mark = time.perf_counter()

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            now = time.perf_counter()
            self.seconds.append(now - self.mark)
            self.mark, self.left = now, self.left - 1
            if self.left == 0:
                given.put(self.seconds)
                self.wait()

    rows = torch.randint(shape.vocab, (4096, shape.seq_len))
    data = [{"input_ids": row, "labels": row} for row in rows]
    arguments = TrainingArguments(
        output_dir=str(scratch / "trainer"),
        per_device_train_batch_size=shape.batch,
        max_steps=1_000_000,
        save_strategy="no",
        report_to=[],
        use_cpu=device == "cpu",
        disable_tqdm=True,
    )
    trainer = Trainer(model=transformers_model(shape), args=arguments, train_dataset=data, callbacks=[Turns()])
    threading.Thread(target=trainer.train, daemon=True).start()

    def steps(number: int) -> list[float]:
        asked.put(number)
        return given.get()

    return steps


if __name__ == "__main__":
    main()
