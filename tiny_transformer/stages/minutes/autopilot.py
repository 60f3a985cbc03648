"""Minutes in, settings out: which model, batch, rates and length make the most of a given time on a given machine.

The choice is arithmetic: a pure function of seconds, text and speed, with no clock and no tensors. Where its numbers
come from:

- size against tokens: the loss that a model of N parameters reaches after D tokens is modelled as E + A / N^a + B / D^a
  (Hoffmann et al., "Training compute-optimal large language models", 2022). N and D are tied by speed: in a given time
  a model twice as large sees about half the tokens.
- little text: repeated tokens and parameters beyond what the text can fill count for less and less (Muennighoff et al.,
  "Scaling data-constrained language models", 2023, equations 5 and 6). The constants are those of their fit.
- batch: 0.58 D^0.571 tokens a step (Li et al., "Predictable scale: part I, Step Law", 2025), rounded down to a power of
  two of sequences.
- rates: Muon's update has the same size in every matrix, so one rate fits all widths (the spectral condition of Yang,
  Simon and Bernstein, 2023); 0.01, and 3e-3 for what AdamW takes, are the best of our own trials. With `adamw` for
  everything the rate is Step Law's, 1.79 N^-0.713 D^0.307.
- dropout once the text is seen more than four times (Xue et al., "To repeat or not to repeat", 2023).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from tiny_transformer.training.plan import in_steps

# Muennighoff et al., appendix A: the exponent is the same for parameters and tokens
OF_PARAMETERS, OF_TOKENS, EXPONENT = 521.0, 1488.0, 0.3527
HALF_WORTH_OF_REPEATS, HALF_WORTH_OF_EXCESS = 15.39, 5.31
MOST_PASSES = 40  # beyond, Muennighoff et al. (section 6) find further passes worth nothing
MANY_PASSES = 4  # up to here a repeated token is nearly as good as a new one (the same, section 5)

# (width, layers): neighbours differ by a factor of about two in arithmetic. It begins at the smallest that is good for
# something: 64 wide and 4 layers lost 0.19 nats to 128 wide and 2 layers in half a minute (docs/LOG.md).
SHAPES = (
    *((128, 2), (128, 3), (128, 4), (192, 4), (256, 4), (256, 6), (320, 6), (384, 8), (512, 8)),
    *((640, 10), (768, 12), (1024, 16), (1280, 20)),
)
SHORTEST, LONGEST = 64, 512  # tokens in a sequence
OVERHEAD = 0.06  # of the time: evaluations, saves, samples
EVALUATIONS = 0.05  # of the time at most, with the checkpoints they lead to
ONE_EVALUATION = 0.005  # of the time at most
AUTO_EVALUATIONS = 8  # of a run whose eval_steps is auto: spread anew whenever its length changes
SAVE_SECONDS, SAVED_PARAMETERS_PER_SECOND = 0.3, 5e6  # 12 bytes each, on a slow disk
MINUTES_BETWEEN_SAVES = 10


@dataclass(frozen=True)
class Candidate:
    """A model that might be trained.

    Attributes:
        model: the keys of its shape, as in the section `model` of a config.
        parameters: all of them, shared ones once.
        block_parameters: without embedding and head, which at this size can be half of all (so counted by Kaplan et
            al., "Scaling laws for neural language models", 2020).
        token_operations: of a training step, for each token.
        update_operations: of one update of the weights, however many tokens it stands for.
        token_elements: that matrix products write for each token.
    """

    model: dict[str, Any]
    parameters: int
    block_parameters: int
    token_operations: float
    update_operations: float
    token_elements: float

    def work(self, num_tokens: int) -> tuple[float, float, float]:
        """Blocks (embedding and head as one more), operations and elements of one update on so many tokens."""
        operations = self.token_operations * num_tokens + self.update_operations
        return self.model["num_hidden_layers"] + 1, operations, self.token_elements * num_tokens


def ladder(vocab_size: int, seq_len: int) -> list[Candidate]:
    """Qwen3 shapes, small to large: heads of 32, from 512 wide on of 64, two query heads to a key/value head."""
    candidates = []
    for width, layers in SHAPES:
        head_dim = 32 if width < 512 else 64
        heads = width // head_dim
        shape = {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
            "head_dim": head_dim,
            "intermediate_size": 3 * width,
        }
        candidates.append(dense(shape, vocab_size, seq_len))
    return candidates


def dense(model: dict[str, Any], vocab_size: int, seq_len: int) -> Candidate:
    """What a tied Qwen3 of this shape costs.

    An operation is a multiplication or an addition. There are three passes, each query meets the keys before it, and
    Muon orthogonalises each matrix in five rounds of three products.
    """
    width, layers = model["hidden_size"], model["num_hidden_layers"]
    queries = model["num_attention_heads"] * model["head_dim"]
    keys = model["num_key_value_heads"] * model["head_dim"]
    wide = (width, model["intermediate_size"])
    matrices = [(width, queries), (width, queries), (width, keys), (width, keys), wide, wide, wide]
    weights = layers * sum(rows * columns for rows, columns in matrices)
    norms = layers * (2 * width + 2 * model["head_dim"]) + width
    rounds = (5 * 2 * (2 * min(m) ** 2 * max(m) + min(m) ** 3) for m in matrices)
    return Candidate(
        model,
        parameters=weights + norms + vocab_size * width,
        block_parameters=weights + norms,
        token_operations=6.0 * (weights + vocab_size * width) + 6.0 * layers * queries * seq_len,
        update_operations=float(layers * sum(rounds)),
        token_elements=float(layers * (3 * width + 2 * queries + 2 * keys + 3 * wide[1]) + 2 * vocab_size),
    )


@dataclass(frozen=True)
class SpeedModel:
    """How long a step takes: the sum of three kinds of work. Tried on nineteen shapes and batches, the sum is within a
    tenth of the measured time (docs/LOG.md).

    Attributes:
        launch: seconds for each block, even if there is nothing to compute.
        operation: seconds for each operation of a matrix product.
        element: seconds for each element that a product writes.
    """

    launch: float
    operation: float
    element: float

    def step_seconds(self, candidate: Candidate, num_tokens: int) -> float:
        """One update on so many tokens."""
        launches, operations, elements = candidate.work(num_tokens)
        return self.launch * launches + self.operation * operations + self.element * elements

    @classmethod
    def fit(cls, timings: Sequence[tuple[Candidate, int, float]]) -> SpeedModel:
        """From measured steps `(candidate, tokens, seconds)`: least squares of relative errors, nothing negative."""
        work = np.array([candidate.work(num_tokens) for candidate, num_tokens, _ in timings])
        relative = work / np.array([seconds for _, _, seconds in timings])[:, None]
        scale = np.maximum(relative.max(axis=0), 1e-300)  # a kind of work that no candidate has keeps its zeros
        best, least = np.zeros(3), math.inf
        for kinds in [c for size in (1, 2, 3) for c in combinations(range(3), min(size, len(timings)))]:
            factors = np.zeros(3)
            factors[list(kinds)] = np.linalg.lstsq(relative[:, kinds] / scale[list(kinds)], np.ones(len(work)))[0]
            error = float(((relative / scale @ factors - 1) ** 2).sum())
            if factors.min() >= 0 and error < least - 1e-9:
                best, least = factors / scale, error
        return cls(*best.tolist())


@dataclass(frozen=True)
class Corpus:
    """What the choice must know of a data set: tokens to train on and to evaluate on, documents, size of the
    vocabulary."""

    train_tokens: int
    val_tokens: int
    num_documents: int
    vocab_size: int

    @property
    def seq_len(self) -> int:
        """Sequences that hold a document of average length, as a power of two. Little text is cut into ten or more,
        since the tokens after the last whole sequence are never read."""
        mean = self.train_tokens / max(1, self.num_documents)
        wanted = 2 ** math.ceil(math.log2(max(2.0, mean)))
        most = 2 ** int(math.log2(max(2, self.train_tokens - 1)))
        tenth = 2 ** int(math.log2(max(2, self.train_tokens / 10)))
        return min(max(SHORTEST, min(LONGEST, wanted, tenth)), most)


@dataclass(frozen=True)
class Option:
    """A candidate with what the time buys for it.

    Attributes:
        candidate: the model.
        rows: sequences a step.
        step_seconds: expected.
        steps: that fit.
        tokens: they see together.
        passes: over the text.
        excess: what the law predicts the loss to be above the irreducible one, on a scale of its own.
        is_cut: the text, not the time, ends the run.
    """

    candidate: Candidate
    rows: int
    step_seconds: float
    steps: int
    tokens: int
    passes: float
    excess: float
    is_cut: bool


@dataclass(frozen=True)
class Length:
    """How long a run is to be at most, besides its minutes, where somebody has said so."""

    steps: int | None = None
    tokens: int | None = None

    def of(self, option: Option) -> str | None:
        """In words, when it ends the run of an option before its time does."""
        if option.steps == self.steps:
            return in_steps(option.steps)
        return f"{self.tokens:,} tokens" if option.tokens == self.tokens else None


@dataclass(frozen=True)
class Choice:
    """What is to be trained, and why.

    Attributes:
        best: the option taken.
        options: all that were compared, small to large.
        seq_len: tokens in a sequence.
        seconds: of training that were given.
        length: of the run, as asked.
    """

    best: Option
    options: tuple[Option, ...]
    seq_len: int
    seconds: float
    length: Length = Length()


def choose(
    seconds: float,
    corpus: Corpus,
    speed: SpeedModel,
    candidates: Iterable[Candidate],
    seq_len: int,
    rows: int | None = None,
    length: Length = Length(),
) -> Choice:
    """The candidate that the law predicts the lowest loss for.

    Args:
        seconds: of the whole run.
        corpus: the text.
        speed: of this machine.
        candidates: to choose from, small to large.
        seq_len: tokens in a sequence.
        rows: sequences a step, where that is settled.
        length: what else ends the run; then the text is read as often as that asks for.
    """
    left = seconds * (1 - OVERHEAD)
    options = [_option(left, corpus, speed, candidate, seq_len, rows, length) for candidate in candidates]
    least = min(option.excess for option in options)
    best = next(option for option in options if option.excess <= 1.001 * least)  # of equals, the smallest
    return Choice(best, tuple(options), seq_len, seconds, length)


def _option(
    seconds: float,
    corpus: Corpus,
    speed: SpeedModel,
    candidate: Candidate,
    seq_len: int,
    asked_rows: int | None,
    length: Length,
) -> Option:
    is_asked = length != Length()
    most = (length.tokens or math.inf) if is_asked else MOST_PASSES * corpus.train_tokens
    rows = asked_rows or 1
    while True:  # more sequences a step, more tokens in all, so more sequences a step; it ends as tokens are limited
        fitting = max(1, int(seconds / speed.step_seconds(candidate, rows * seq_len)))
        steps = min(fitting, length.steps or fitting)
        tokens = steps * rows * seq_len
        if asked_rows or batch_rows(int(min(tokens, most)), seq_len) <= rows:
            break
        rows *= 2
    is_cut = tokens > most and not is_asked
    if tokens > most:
        steps, tokens = max(1, int(most) // (rows * seq_len)), int(most)
    excess = predicted_excess(candidate.block_parameters, tokens, corpus.train_tokens)
    step_seconds = speed.step_seconds(candidate, rows * seq_len)
    return Option(candidate, rows, step_seconds, steps, tokens, tokens / corpus.train_tokens, excess, is_cut)


def predicted_excess(parameters: float, tokens: float, unique_tokens: float) -> float:
    """The two terms of Muennighoff et al., equations 5 and 6, that fall with size and tokens. On texts and at sizes
    unlike theirs only ratios mean anything."""
    unique = min(tokens, unique_tokens)
    worth = unique * (1 + _saturating(tokens / unique - 1, HALF_WORTH_OF_REPEATS))
    fitting = min(parameters, unique * (OF_PARAMETERS / OF_TOKENS) ** (1 / EXPONENT))
    strength = fitting * (1 + _saturating(parameters / fitting - 1, HALF_WORTH_OF_EXCESS))
    return OF_PARAMETERS / strength**EXPONENT + OF_TOKENS / worth**EXPONENT


def _saturating(excess: float, scale: float) -> float:
    return scale * (1 - math.exp(-excess / scale))


def batch_rows(tokens: float, seq_len: int) -> int:
    """Sequences in a step of a run over so many tokens: a power of two."""
    return 2 ** max(0, int(math.log2(max(1.0, 0.58 * tokens**0.571 / seq_len))))


def settings(choice: Choice, corpus: Corpus, *, on_cpu: bool, optimizer: str = "muon") -> dict[str, dict[str, Any]]:
    """The choice as keys of a config, all of them.

    Args:
        choice: what was chosen.
        corpus: the text.
        on_cpu: decides how much is computed at once.
        optimizer: of the config.
    """
    best = choice.best
    together = (8_192 if on_cpu else 65_536) // choice.seq_len
    by_logits = 2 ** (27 if on_cpu else 30) // (corpus.vocab_size * choice.seq_len)
    rows = min(best.rows, 2 ** int(math.log2(max(1, min(together, by_logits)))))
    tokens_per_second = best.rows * choice.seq_len / best.step_seconds
    # evaluating a token is the forward third of its training
    part = int(ONE_EVALUATION * choice.seconds * 3 * tokens_per_second)
    most = max(part, 8 * choice.seq_len)
    seconds = min(part, corpus.val_tokens) / (3 * tokens_per_second)
    seconds += SAVE_SECONDS + best.candidate.parameters / SAVED_PARAMETERS_PER_SECOND
    count = min(10, max(1, int(EVALUATIONS * choice.seconds / seconds)))
    eval_steps = max(1, math.ceil(best.steps / count))
    saves = max(1, round(eval_steps * best.step_seconds / (60 * MINUTES_BETWEEN_SAVES)))
    step_law = 1.79 * best.candidate.parameters**-0.713 * best.tokens**0.307
    training = {
        "micro_batch_size": rows,
        "grad_accum_steps": best.rows // rows,
        "optimizer": "muon",
        "learning_rate": 3e-3 if optimizer == "muon" else float(f"{min(5e-3, max(1e-4, step_law)):.2g}"),
        "muon_learning_rate": 0.01,
        "zero_residual": True,
        "schedule": "linear",
        "warmup_fraction": 0.02,
        "decay_fraction": 0.6,
        "final_rate_fraction": 0.0,
        "dropout": 0.1 if best.passes > MANY_PASSES else 0.0,
        "eval_steps": eval_steps if count < AUTO_EVALUATIONS else "auto",
        "eval_tokens": None if most >= corpus.val_tokens else most,
        "save_steps": max(1, eval_steps // saves),
        "log_steps": max(1, best.steps // 300),
        "max_tokens": best.tokens if best.is_cut else None,
    }
    model = {**best.candidate.model, "max_position_embeddings": max(LONGEST, choice.seq_len)}
    return {"model": model, "data": {"seq_len": choice.seq_len}, "training": training}
