"""The same prompts continued again and again while a model learns, so that one can watch it learn.

Greedy and short: no random number is drawn, so training does not notice, and a resumed run writes the same texts. They
stand in samples.json beside those of the end of the run, which are longer and drawn at random. Where the stage can tell
how far each skill is, that is read at the same points.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_transformer.config.schema import RunConfig
from tiny_transformer.data.prepare.sources import STORIES
from tiny_transformer.data.token_file import Dataset
from tiny_transformer.errors import ExitCode, UserError, in_words
from tiny_transformer.evaluation.skills import chances
from tiny_transformer.evaluation.stories import Reading, fresh_stories
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.text import complete
from tiny_transformer.hardware import Hardware
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.storage import atomic_write
from tiny_transformer.storage.reading import read_regular
from tiny_transformer.storage.runs import GROWTH_FILE
from tiny_transformer.tokenizers import Tokenizer
from tiny_transformer.training.patience import at_once
from tiny_transformer.training.state import TrainState

FILE = "samples.json"
MAX_PROMPTS = 3
MAX_TOKENS = 48
LESSONS = 4  # steps whose tokens a look at the skills may read
MOST_STORIES = 16  # that it reads


@dataclass(frozen=True)
class Sampler:
    """Continues the prompts and keeps the texts.

    Attributes:
        model: the one in training; its mode is put back.
        tokenizer: its own.
        prompts: those of the config, without repetitions.
        run_dir: where samples.json is.
        chances: how far each skill is, or nothing where that cannot be told; kept in growth.json.
        patiently: does work that writes, and waits while the disk is full.
    """

    model: CausalLM
    tokenizer: Tokenizer
    prompts: tuple[str, ...]
    run_dir: Path
    chances: Callable[[], dict[str, float]] = dict
    patiently: Callable[[Callable[[], None]], None] = at_once

    def texts(self) -> list[str]:
        """One continuation a prompt.

        Raises:
            UserError: this tokenizer cannot write a prompt, or the model computes no number.
        """
        settings = SamplingConfig(temperature=0.0, max_new_tokens=MAX_TOKENS)
        return complete(self.model, self.tokenizer, self.prompts, settings)

    def __call__(self, state: TrainState) -> None:
        """Add the texts of this step to samples.json; why there are none, where that fails. No text is worth a run."""
        shared = {"step": state.step, "settings": {"temperature": 0.0}}
        try:
            texts = zip(self.prompts, self.texts(), strict=True)
            new = [{"prompt": prompt, "text": text, **shared} for prompt, text in texts]
        except Exception as error:
            new = [{"prompt": prompt, "text": "", "problem": in_words(error), **shared} for prompt in self.prompts]
        try:
            self.patiently(lambda: keep_samples(self.run_dir, [*samples_before(self.run_dir, state.step), *new]))
            self._keep_growth(state)
        except (OSError, UserError) as error:  # a disk that takes no text now may take the next checkpoint
            if isinstance(error, UserError) and error.exit_code is ExitCode.STOPPED:
                raise

    def rehearse(self) -> None:
        """All that takes time, without keeping anything."""
        self.texts()
        self._growth()

    def _growth(self) -> dict[str, Any]:
        """How far each skill is; where that fails why, since no figure is worth a run."""
        try:
            chances = self.chances()
        except Exception as error:
            return {"problem": in_words(error)}
        return {"chances": chances} if chances else {}

    def _keep_growth(self, state: TrainState) -> None:
        if growth := self._growth():
            rows = [row for row in _growth_of(self.run_dir) if row["step"] < state.step]
            rows.append({"step": state.step, "num_tokens": state.num_tokens, **growth})
            text = json.dumps(rows, indent=2) + "\n"
            self.patiently(lambda: atomic_write(self.run_dir / GROWTH_FILE, text, makes_parents=False))


def _growth_of(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of growth.json; none when there is no such file or it is damaged."""
    try:
        return [row for row in json.loads(read_regular(run_dir / GROWTH_FILE)) if row["step"] >= 0]
    except (OSError, UserError, ValueError, KeyError, TypeError, RecursionError):
        return []


def distinct_prompts(prompts: tuple[str, ...]) -> tuple[str, ...]:
    """The first few different ones."""
    return tuple(dict.fromkeys(prompts))[:MAX_PROMPTS]


def samples_before(run_dir: Path, step: int) -> list[dict[str, Any]]:
    """The greedy texts of samples.json from before a step; none when there is no such file or it is damaged."""
    try:
        samples = json.loads(read_regular(run_dir / FILE))
        return [s for s in samples if s["step"] < step and s["settings"] == {"temperature": 0.0}]
    except (OSError, UserError, ValueError, KeyError, TypeError, RecursionError):
        return []


def keep_samples(run_dir: Path, samples: list[dict[str, Any]]) -> None:
    """Replace samples.json."""
    atomic_write(run_dir / FILE, json.dumps(samples, indent=2, ensure_ascii=False) + "\n", makes_parents=False)


def chances_of_stories(model: CausalLM, config: RunConfig, dataset: Dataset, hardware: Hardware) -> dict[str, float]:
    """How far each skill is that fresh stories take, if the text is the story corpus; reads as much as a few steps."""
    if dataset.meta.source != STORIES:
        return {}
    length = dataset.meta.train.num_tokens / max(1, dataset.meta.train.num_documents)
    count = min(MOST_STORIES, max(2, int(LESSONS * config.tokens_per_step / length)))
    has_first = config.data.packing == "concat" or dataset.tokenizer.begin_id is not None
    reading = Reading(dataset.tokenizer, config.data.seq_len, predicts_first=has_first, hardware=hardware)
    return chances(model, fresh_stories(count), reading)
