"""What a config will cost, told before anything runs: parameters, arithmetic, memory, time, tokens, who can open it.

`costs.accounting` counts; here the counts become answers. Importing this module does not import torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tiny_transformer.config.schema import DataConfig, RunConfig
from tiny_transformer.config.shapes import DecoderConfig
from tiny_transformer.data.meta import Meta, read_meta
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.interop.gguf.tokenizer import name_refusal
from tiny_transformer.interop.portability import portability
from tiny_transformer.tokenizers.make import choose_vocab_size

if TYPE_CHECKING:
    from tiny_transformer.hardware import Hardware

TOKENS_PER_PARAMETER = 20  # Hoffmann et al., "Training Compute-Optimal Large Language Models", 2022, table 3
PUBLISHED_VOCABULARIES = {"byte": 257, "gpt2": 50_257, "qwen3": 151_669, "qwen2.5": 151_665}
ASSUMED_TEXT_BYTES = 16_000_000  # what the demo reads


@dataclass(frozen=True)
class Profile:
    """What a config will cost. Memory in bytes, time in seconds.

    Attributes:
        name: of the config.
        model: the shape in words.
        vocab_size, vocab_source: rows of the embedding, and where that number comes from.
        parameters: by part; shared ones once.
        active_parameters: of all of them, those that work on one token.
        forward, training: operations per token, `matrices`, `attention`, and `causal_attention`: what is left of
            `attention` when no query meets a key after it (or outside its window); absent where the architecture
            does not say who may see whom.
        training_memory: of tensors by kind, at the highest point of a step.
        most_memory: the same, each kind at its own highest point.
        generation_memory: by kind, while a prompt as long as a training sequence is read with a cache for the full
            context.
        cache_bytes_per_token: what each further token of context adds.
        program_memory: this program with its libraries, before any tensor.
        batch: micro-batch, accumulation, sequence length.
        device: in words.
        product_speed: measured, operations per second.
        memory_speed: measured, bytes copied and written per second.
        unsteadiness: how many times as long as the fastest try of these measurements the middle one took.
        utilisation: the share of `product_speed` that a step of this shape is expected to reach.
        step_seconds, tokens_per_second: expected.
        steps, tokens, seconds: of the whole run as the config asks.
        length_source: which key of the config asks for that.
        suggested_tokens: `TOKENS_PER_PARAMETER` for each parameter at work.
        readers: for each program that might open the model, None, or why it cannot.
    """

    name: str
    model: str
    vocab_size: int
    vocab_source: str
    parameters: dict[str, int]
    active_parameters: int
    forward: dict[str, float]
    training: dict[str, float]
    training_memory: dict[str, int]
    most_memory: dict[str, int]
    generation_memory: dict[str, int]
    cache_bytes_per_token: int
    program_memory: int
    batch: dict[str, int]
    device: str
    product_speed: float
    memory_speed: float
    unsteadiness: float
    utilisation: float
    step_seconds: float
    tokens_per_second: float
    steps: int
    tokens: int
    seconds: float
    length_source: str
    suggested_tokens: int
    readers: dict[str, str | None]


def make_profile(config: RunConfig, name: str) -> Profile:
    """Count what a run of this config costs, and measure this machine for about half a second."""
    from tiny_transformer.costs import accounting
    from tiny_transformer.hardware import choose_hardware

    vocab_size, vocab_source = find_vocab_size(config, name)
    tokenizer = name_refusal(config.data.tokenizer, _data_dir(config, name))
    config = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": vocab_size})})
    hardware = choose_hardware(config.training.device, config.training.precision)
    program_memory = _resident_bytes()
    parts, active = accounting.count_parameters(config.model)
    seq_len, batch = config.data.seq_len, config.training.micro_batch_size
    accumulation = config.training.grad_accum_steps
    step = accounting.count_step(config, hardware)
    generation = accounting.count_generation(config.model, seq_len, hardware)
    product_speed, memory_speed, unsteadiness = measure_machine(hardware)
    products = accumulation * step.training.total() + step.update
    moved = accumulation * step.moved_by_gradient + step.moved_by_update
    step_seconds = products / product_speed + moved / memory_speed
    tokens_per_step = batch * accumulation * seq_len
    meta = _prepared(config, name)
    steps, length_source = _length(config, step_seconds, meta.train.num_tokens if meta else None)
    return Profile(
        name=name,
        model=_in_words(config.model),
        vocab_size=vocab_size,
        vocab_source=vocab_source,
        parameters=dict(parts),
        active_parameters=active,
        forward=_per_token(step.forward, config, passes=1),
        training=_per_token(step.training, config, passes=3),
        training_memory=dict(step.memory),
        most_memory=dict(step.most),
        generation_memory=dict(generation),
        cache_bytes_per_token=accounting.cache_bytes_per_token(config.model),
        program_memory=program_memory,
        batch={"micro_batch_size": batch, "grad_accum_steps": accumulation, "seq_len": seq_len},
        device=hardware.describe(),
        product_speed=product_speed,
        memory_speed=memory_speed,
        unsteadiness=unsteadiness,
        utilisation=products / product_speed / step_seconds,
        step_seconds=step_seconds,
        tokens_per_second=tokens_per_step / step_seconds,
        steps=steps,
        tokens=steps * tokens_per_step,
        seconds=steps * step_seconds,
        length_source=length_source,
        suggested_tokens=TOKENS_PER_PARAMETER * active,
        readers={verdict.reader: verdict.reason for verdict in portability(config.model, tokenizer)},
    )


def find_vocab_size(config: RunConfig, name: str) -> tuple[int, str]:
    """The rows of the embedding, and where the number comes from: the config, prepared data, the tokenizer, or a
    guess."""
    if config.model.vocab_size is not None:
        return config.model.vocab_size, "model.vocab_size"
    data: DataConfig = config.data
    data_dir = _data_dir(config, name)
    if (meta := _prepared(config, name)) is not None:
        return meta.vocab_size, f"the data in {data_dir}"
    if data.vocab_size is not None:
        return data.vocab_size, "data.vocab_size"
    if data.tokenizer in PUBLISHED_VOCABULARIES:
        return PUBLISHED_VOCABULARIES[data.tokenizer], f"the tokenizer {data.tokenizer}"
    size = choose_vocab_size(data.max_bytes or ASSUMED_TEXT_BYTES)
    amount = f"{(data.max_bytes or ASSUMED_TEXT_BYTES) / 1e6:g} MB of text"
    return size, f"a guess for {amount}; model.vocab_size sets it"


def _data_dir(config: RunConfig, name: str) -> Path:
    """Where the prepared data are, or will be."""
    return config.data.data_dir or Path("data") / name


def _prepared(config: RunConfig, name: str) -> Meta | None:
    """What is known of the prepared data; None where there are none yet."""
    try:
        return read_meta(_data_dir(config, name))
    except UserError as error:
        if error.exit_code != ExitCode.USAGE:  # damaged, or of another version
            raise
        return None


def measure_machine(hardware: Hardware) -> tuple[float, float, float]:
    """Operations per second of one large product of matrices, bytes per second read and written by a copy, and how
    many times as long as the fastest try the middle one took, of the two the worse.

    The best of repeated tries in half a second altogether: other programs can only make a try slower.
    """
    import torch

    on_cpu = hardware.device.type == "cpu"
    size, num_bytes = (1024, 2**26) if on_cpu else (8192, 2**29)
    left, right = (torch.ones(size, size, device=hardware.device, dtype=hardware.autocast_dtype) for _ in range(2))
    source = torch.ones(num_bytes, dtype=torch.uint8, device=hardware.device)
    target = torch.empty_like(source)
    products = _tries(lambda: left @ right, hardware)
    copies = _tries(lambda: target.copy_(source), hardware)
    unsteadiness = max(median(tries) / min(tries) for tries in (products, copies))
    return 2 * size**3 / min(products), 2 * num_bytes / min(copies), unsteadiness


def _tries(work: Callable[[], Any], hardware: Hardware) -> list[float]:
    """Seconds of each of at least three tries in a quarter of a second; the very first, which warms up, left out."""
    import torch

    work()
    seconds, started = [], time.perf_counter()
    while len(seconds) < 3 or time.perf_counter() - started < 0.25:
        before = time.perf_counter()
        work()
        if hardware.device.type != "cpu":
            getattr(torch, hardware.device.type).synchronize()
        seconds.append(time.perf_counter() - before)
    return seconds


def _per_token(products: dict[str, int], config: RunConfig, *, passes: int) -> dict[str, float]:
    """Operations per token; `passes` is 1 for forward and 3 for forward and backward."""
    num_tokens = config.training.micro_batch_size * config.data.seq_len
    matrices, attention = products.get("matrices", 0) / num_tokens, products.get("attention", 0) / num_tokens
    unseen = unseen_products(config.model, config.data.seq_len)
    causal = {} if unseen is None else {"causal_attention": attention - passes * unseen}
    return {"matrices": matrices, "attention": attention, **causal}


def unseen_products(config: DecoderConfig, seq_len: int) -> float | None:
    """Operations per token, forward, that softmax attention would spend on keys a query may not see; None: the
    architecture does not tell which."""
    per_pair = 4 * config.num_attention_heads * config.head_dim  # query times key, weight times value
    lengths = config.attention_lengths(seq_len)
    if lengths is None:
        return None
    pairs = 0.0
    for length, window in lengths:
        reach = min(window or length, length)
        seen = reach * (reach + 1) / 2 + (length - reach) * reach
        pairs += length * length - seen
    return per_pair * pairs / seq_len


def _length(config: RunConfig, step_seconds: float, num_tokens: int | None) -> tuple[int, str]:
    """Steps of the whole run, and which key asks for them: of several the one that ends first.

    `num_tokens` is an epoch's; None as long as the data are not prepared.
    """
    from tiny_transformer.training.plan import DEFAULT_STEPS

    training, choices = config.training, []
    if training.steps is not None:
        choices.append((training.steps, f"steps {training.steps:,}"))
    if training.max_tokens is not None:
        steps = math.ceil(training.max_tokens / config.tokens_per_step)
        choices.append((steps, f"max_tokens {training.max_tokens:,}"))
    if training.epochs is not None and num_tokens is not None:
        steps = math.ceil(math.ceil(training.epochs * num_tokens) / config.tokens_per_step)
        choices.append((steps, f"epochs {training.epochs:g}"))
    if training.max_train_minutes is not None:
        fitting = max(1, int(60 * training.max_train_minutes / step_seconds))
        choices.append((fitting, f"max_train_minutes {training.max_train_minutes:g}"))
    default = (DEFAULT_STEPS, f"steps {DEFAULT_STEPS:,}, the default")
    steps, reason = min(choices, key=lambda choice: choice[0], default=default)
    if training.epochs is not None and num_tokens is None:
        reason = f"{reason.removesuffix(', the default')}; epochs {training.epochs:g} are counted once "
        reason += "the data are prepared"
    return steps, reason


def _in_words(config: DecoderConfig) -> str:
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    shared = f"{heads} heads" if heads == groups else f"{heads} query and {groups} key/value heads"
    return (
        f"{config.model_type}, {config.num_hidden_layers} layers of {config.hidden_size}, {shared} of {config.head_dim}"
    )


def _resident_bytes() -> int:
    """Memory of this process now; 0 where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return 1024 * int(line.split()[1])
    return 0
