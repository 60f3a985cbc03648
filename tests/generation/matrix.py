"""Every way to compute the next token, beside one reference: transformers in float64, whole text, no cache.

`python tests/generation/matrix.py` measures the table and writes it into docs/MATRIX.md; test_matrix.py holds each cell
to its bound and plants bugs that must turn cells red.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))

from exact_delta_rule import exact_chunk_rule, replacements

from tiny_transformer.config.shapes import LlamaConfig, Olmo2Config, Qwen3Config, Qwen3NextConfig
from tiny_transformer.generation.decoder import Decoder
from tiny_transformer.generation.drafters import MtpDrafter, NgramDrafter
from tiny_transformer.generation.engines import choose_engine
from tiny_transformer.generation.rows import continue_ids
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.speculative import Speculation, SpeculativeGeneration
from tiny_transformer.models import build_model, save_model
from tiny_transformer.models.contract import CausalLM, has_mtp_head
from tiny_transformer.models.swaps import quantize_layers, restore_layers

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 700.0,
    "head_dim": 16,
}
NEXT = {
    "full_attention_interval": 3,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "num_nextn_predict_layers": 1,
}
FAMILIES: dict[str, Any] = {
    "llama": LlamaConfig(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "qwen3_next": Qwen3NextConfig(**SHAPE, **NEXT),
    "olmo2": Olmo2Config(**{k: v for k, v in SHAPE.items() if k != "head_dim"}),
}
WINDOWED: dict[str, Any] = {
    "llama": LlamaConfig(**SHAPE, sliding_window=5),
    "qwen3": Qwen3Config(**SHAPE, use_sliding_window=True, sliding_window=5, max_window_layers=1),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# How far a logit may lie from the reference, in roundings (2^-23, 2^-7) of the largest logit. In bf16 a router of the
# hybrid may send a token to another expert where two are nearly tied: one such token moves the worst logit far.
BOUND = {"fp32": 12.0, "bf16": 3.0}
BOUND_OF_THE_HYBRID = {"fp32": 64.0, "bf16": 80.0}
TEXT = torch.randint(0, 61, (24,), generator=torch.Generator().manual_seed(5)).tolist()
OTHERS = [TEXT[::-1][:7], TEXT[3:20]]


def shaken(config: Any, dtype: torch.dtype) -> CausalLM:
    """A model of which every parameter has left its initial value, in the given dtype."""
    model = build_model(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.1, generator=generator))
    return model.to(dtype).eval()  # ty: ignore[unresolved-attribute]


@cache
def transformers() -> Any:
    """transformers with an exact delta rule, without progress bars."""
    import transformers as module

    module.utils.logging.disable_progress_bar()
    module.utils.logging.set_verbosity_error()
    return module


def theirs(model: CausalLM, text: Sequence[int]) -> Tensor:
    """(T, V) float64 logits of transformers for our weights."""
    module = transformers()
    before = [(owner, name, getattr(owner, name)) for owner, name in replacements(module)]
    for owner, name, _ in before:
        setattr(owner, name, exact_chunk_rule)
    try:
        with tempfile.TemporaryDirectory() as directory, torch.inference_mode():
            save_model(model, Path(directory), eos_token_id=0)
            other = module.AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float64, experts_implementation="eager"
            ).eval()
            return other(torch.tensor([list(text)])).logits[0].double()
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


REFERENCES: dict[tuple[str, str, str], Tensor] = {}


def reference(kind: str, family: str, dtype: str, config: Any, text: Sequence[int] = TEXT) -> Tensor:
    """`theirs`, computed once, before any bug is planted."""
    key = (f"{kind} {len(text)}", family, dtype)
    if key not in REFERENCES:
        model = shaken(config, DTYPES[dtype])
        if kind in ("int8", "int4"):
            quantize_layers(model, kind)
            restore_layers(model)
        REFERENCES[key] = theirs(model, text)
    return REFERENCES[key]


# --- the ways: each gives (T, V) logits of TEXT by a model


def uncached(model: CausalLM) -> Tensor:
    return model(torch.tensor([TEXT]))[0]


def in_chunks(model: CausalLM, sizes: Sequence[int]) -> Tensor:
    decoder, start, logits = Decoder(model, 1, len(TEXT)), 0, []
    for size in sizes:
        logits.append(decoder.feed([TEXT[start : start + size]])[0])
        start += size
    return torch.cat(logits)


def cached(model: CausalLM) -> Tensor:
    return in_chunks(model, [6, *[1] * (len(TEXT) - 6)])


def chunked(model: CausalLM) -> Tensor:
    return in_chunks(model, [5, 1, 7, 2, 9])


def batched(model: CausalLM) -> Tensor:
    """Beside a shorter and a longer row; the middle one."""
    decoder = Decoder(model, 3, len(TEXT))
    rows = [OTHERS[0], TEXT[:12], OTHERS[1]]
    logits = [decoder.feed(rows)[1, :12]]
    for token in TEXT[12:]:
        logits.append(decoder.feed([OTHERS[0][:1] if len(logits) < 9 else [], [token], []])[1, :1])
    return torch.cat(logits)


def packed(model: CausalLM) -> Tensor:
    """Behind another document in one row, at once and with a cache."""
    other = OTHERS[1]
    ids, docs = torch.tensor([other + TEXT]), torch.tensor([[0] * len(other) + [1] * len(TEXT)])
    whole = model(ids, None, docs)[0, len(other) :]
    memory, half = model.make_cache(1, ids.shape[1]), len(other) + 6
    logits = [model(ids[:, :half], None, docs[:, :half], memory)[0, len(other) :]]
    logits += [model(ids[:, n : n + 1], None, docs[:, n : n + 1], memory)[0] for n in range(half, ids.shape[1])]
    return torch.where((whole - torch.cat(logits)).abs() > 0.5, torch.inf, whole)


def window(model: CausalLM) -> Tensor:
    return cached(model)


def compiled(model: CausalLM) -> Tensor:
    """Prefill as it is, each further token by one compiled step with a cache of fixed shape."""
    memory = model.make_cache(1, len(TEXT), fixed=True)
    step = torch.compile(model.__call__, backend="aot_eager")
    logits = [model(torch.tensor([TEXT[:6]]), None, None, memory)[0]]
    logits += [step(torch.tensor([[token]]), None, None, memory)[0] for token in TEXT[6:]]
    return torch.cat(logits)


def fast(model: CausalLM) -> Tensor:
    """Prefill as it is, each further token by the compiled step of `generation/kernels.py`."""
    choose_engine(model, "fast")
    decoder = Decoder(model, 1, len(TEXT))
    logits = [decoder.feed(torch.tensor([TEXT[:6]]))[0]]
    logits += [decoder.feed(torch.tensor([[token]]))[0] for token in TEXT[6:]]
    return torch.cat([part.float() for part in logits])


def quantized(model: CausalLM, kind: str) -> Tensor:
    quantize_layers(model, kind)
    return cached(model)


def speculative(model: CausalLM) -> Tensor:
    """Read with guesses, most of them wrong and taken back; greedy text with drafters is the one without."""
    decoder, logits, read = Decoder(model, 1, 2 * len(TEXT)), [], 6
    logits.append(decoder.feed([TEXT[:6]])[0])
    while read < len(TEXT):
        right = (read * 5) % 4
        drafts = [*TEXT[read + 1 : read + 1 + right], 7, 8][:4]
        right = next((i for i, d in enumerate(drafts) if [d] != TEXT[read + 1 + i : read + 2 + i]), len(drafts))
        decoder.snapshot()
        logits.append(decoder.feed([[TEXT[read], *drafts]])[0, : right + 1])
        decoder.rollback(right + 1)
        read += right + 1
    found = torch.cat(logits)
    if has_mtp_head(model):
        roundings = 64 if found.dtype == torch.float32 else 8
        is_stale = mtp_difference(model) > roundings * torch.finfo(found.dtype).eps * found.abs().max()
        found = torch.full_like(found, torch.inf) if is_stale else found
    return found


def mtp_difference(model: Any) -> float:
    """How far the logits of drafts lie from those of the MTP head over the whole text without a cache."""
    drafter, decoder, worst = MtpDrafter(model, 60, 61), Decoder(model, 1, 40), 0.0
    decoder.feed([TEXT[:6]])
    drafter.observe(decoder.hidden)
    hidden = model.backbone(torch.tensor([TEXT])).hidden
    for read in range(6, 20, 2):
        seen: list[Tensor] = []

        def choose(logits: Tensor, drafted: Sequence[int], seen: list[Tensor] = seen) -> int:
            seen.append(logits)
            return 3

        drafter.propose(TEXT[: read + 1], 3, choose)
        out = model.draft(hidden=hidden[:, :read], next_ids=torch.tensor([TEXT[1 : read + 1]])).hidden
        worst = max(worst, (model.lm_head(out[:, -1]) - seen[0]).abs().max().item())
        decoder.feed([TEXT[read : read + 2]])
        drafter.observe(decoder.hidden)
    return worst


WAYS: dict[str, Callable[[CausalLM], Tensor]] = {
    "uncached": uncached,
    "cached": cached,
    "chunked prefill": chunked,
    "batched, unequal": batched,
    "packed": packed,
    "sliding window": window,
    "compiled": compiled,
    "fast kernels": fast,
    "int8": lambda model: quantized(model, "int8"),
    "int4": lambda model: quantized(model, "int4"),
    "speculative": speculative,
}
CELLS = [
    (way, family, dtype)
    for way in WAYS
    for family in FAMILIES
    for dtype in DTYPES
    if (way != "sliding window" or family in WINDOWED) and (way != "fast kernels" or family != "qwen3_next")
]


def bound(family: str, dtype: str) -> float:
    """See `BOUND`."""
    return (BOUND_OF_THE_HYBRID if family == "qwen3_next" else BOUND)[dtype]


def expected_of(way: str, family: str, dtype: str) -> Tensor:
    """The reference of a cell."""
    config = WINDOWED[family] if way == "sliding window" else FAMILIES[family]
    kind = way if way in ("int8", "int4", "sliding window") else "plain"
    return reference(kind, family, dtype, config)


@torch.inference_mode()
def difference(way: str, family: str, dtype: str) -> float:
    """The largest difference of a logit from the reference, in roundings of the largest logit."""
    config = WINDOWED[family] if way == "sliding window" else FAMILIES[family]
    expected = expected_of(way, family, dtype)
    found = WAYS[way](shaken(config, DTYPES[dtype])).double()
    worst = (found - expected).abs().max().nan_to_num(torch.inf)
    return float(worst / expected.abs().max() / torch.finfo(DTYPES[dtype]).eps)


def greedy_texts_agree(family: str) -> bool:
    """In fp32: the greedy text is the same with n-grams, and with the MTP head where there is one."""
    model = shaken(FAMILIES[family], torch.float32)
    settings = SamplingConfig(temperature=0, max_new_tokens=20)
    plain = continue_ids(model, [TEXT[:8]], settings)[0]
    makers: list[Any] = [lambda max_len: NgramDrafter(shortest=1)]
    if has_mtp_head(model):
        makers.append(lambda max_len: MtpDrafter(model, max_len, 61))
    for make in makers:
        rows = SpeculativeGeneration(model, [TEXT[:8]], settings, Speculation(make, adapts=False))
        if [ids[0] for ids in rows] != plain:
            return False
    return True


# --- the page

HEAD = """# The matrix: every way to compute the next token

How far logits lie from one reference, transformers {transformers} in float64 over the whole text without a cache: the
largest difference of any logit, in roundings of the largest logit (2^-23 in fp32, 2^-7 in bf16). A small model of each
family, every parameter off its initial value, 24 tokens; measured on {date} with
`python tests/generation/matrix.py`, PyTorch {torch}, {cpu}.

- *Cached*: six tokens read at once, then one by one. *Chunked prefill*: in pieces of 5, 1, 7, 2 and 9.
- *Batched, unequal*: beside a shorter and a longer row that go on or end meanwhile.
- *Packed*: behind another document in one row, with a cache and without.
- *Sliding window*: five tokens, in all layers of the Llama and two of three of the Qwen3, cached. The others have none.
- *Compiled*: each token after the sixth by one step through `torch.compile(backend="aot_eager")` over a cache of fixed
  shape: what is captured is checked here, inductor's kernels are not.
- *Fast kernels*: each token after the sixth by the step that Numba compiles; it computes the dense families.
- *int8*, *int4*: swapped linear layers, cached; the reference has the same weights written out.
- *Speculative*: read together with guesses, most of them wrong and taken back; greedy texts with drafters equal those
  without, and the MTP head with its cache says what it says over the whole text.
- Qwen3-Next: in bf16 a router sends a token to another expert where two are nearly tied; the worst logit is then that
  token's. In fp32 no router differs; what is left is the delta rule, and a reference that rounds its norms to fp32.

`tests/generation/test_matrix.py` holds each cell to a bound ({fp32:g} and {bf16:g}; the hybrid {next_fp32:g} and
{next_bf16:g}) and plants bugs (a window off by one, a state that leaks, a wrong RoPE offset, the sign of `A_log`, a
stale MTP cache, a state that is not taken back), each of which must turn named cells red.

"""


def page(differences: dict[tuple[str, str, str], float]) -> str:
    """docs/MATRIX.md from the measured cells."""
    import platform
    from datetime import UTC, datetime

    columns = [(family, dtype) for family in FAMILIES for dtype in DTYPES]
    lines = ["| way | " + " | ".join(f"{family} {dtype}" for family, dtype in columns) + " |"]
    lines.append("| --- |" + " --- |" * len(columns))
    for way in WAYS:
        cells = [differences.get((way, *column)) for column in columns]
        lines.append(f"| {way} | " + " | ".join("" if cell is None else f"{cell:.1f}" for cell in cells) + " |")
    head = HEAD.format(
        transformers=transformers().__version__,
        torch=torch.__version__,
        date=datetime.now(UTC).date(),
        cpu=platform.machine(),
        **BOUND,
        **{f"next_{dtype}": value for dtype, value in BOUND_OF_THE_HYBRID.items()},
    )
    return head + "\n".join(lines) + "\n"


if __name__ == "__main__":
    measured = {cell: difference(*cell) for cell in CELLS}
    target = Path(__file__).parent.parent.parent / "docs/MATRIX.md"
    target.write_text(page(measured), encoding="utf-8")
