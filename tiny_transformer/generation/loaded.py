"""The Python face of a checkpoint: `lm = tiny_transformer.load("runs/demo")`, then `lm.generate("Once")`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from tiny_transformer.errors import UserError
from tiny_transformer.generation.drafting import speculation_of
from tiny_transformer.generation.engines import choose_engine
from tiny_transformer.generation.rows import check_prompts, continue_ids
from tiny_transformer.generation.sampling import SamplingConfig, refuse_idle
from tiny_transformer.generation.speculative import Speculation
from tiny_transformer.generation.text import Writing, encode_prompt
from tiny_transformer.models.open import OpenCheckpoint, open_checkpoint

if TYPE_CHECKING:
    from tiny_transformer.models.contract import CausalLM
    from tiny_transformer.tokenizers import Tokenizer

OPTIONS = tuple(field.name for field in fields(SamplingConfig))
DRAFTING = ("speculative", "num_draft_tokens")
OTHER_NAMES = {"max_tokens": "max_new_tokens", "max_length": "max_new_tokens"}


def load(
    path: Path | str | None = None, *, device: str = "auto", dtype: torch.dtype | None = None, engine: str = "plain"
) -> LoadedModel:
    """A trained model, ready to write.

    Args:
        path: a checkpoint directory (ours or any Hugging Face directory of a known architecture), a run directory, or a
            run's name: `load("demo")` opens runs/demo. None: the newest best checkpoint in runs/.
        device: of the weights: `auto`, `cpu`, `cuda` or `mps`.
        dtype: of the weights, such as `torch.bfloat16`; None keeps the files'.
        engine: who computes the tokens of one text: `plain`, `fast` or `auto`, see `engines.choose_engine`.

    Raises:
        UserError: nothing there, a damaged checkpoint, one that is not computed here, or another kind of dtype.
    """
    if not isinstance(dtype, torch.dtype | None):
        raise UserError(f"dtype = {dtype!r} is not possible", remedy="torch.bfloat16 or torch.float32, or leave it out")
    return LoadedModel(open_checkpoint(path, device=device, dtype=dtype), engine)


def generate_story(prompt: str, *, path: Path | str | None = None, **options: Any) -> str:
    """A prompt with what a trained model writes after it; document 002's helper. To write much, `load` once.

    Args:
        prompt: how the story begins.
        path: as of `load`; None takes the newest best checkpoint.
        options: those of `LoadedModel.generate`; `max_length` is another name of `max_new_tokens`.

    Raises:
        UserError: what `load` and `LoadedModel.generate` raise.
    """
    return prompt + load(path).generate(_text(prompt), **options)


class LoadedModel:
    """A model with its tokenizer: text or tokens in, text, tokens or logits out.

    `generate` and `stream` take the fields of `SamplingConfig` as keywords: max_new_tokens, temperature, top_k, top_p,
    min_p, repetition_penalty, stop, seed. The same call gives the same text: for another one, give another seed.

    Attributes:
        checkpoint: everything else that stands beside the weights: end ids, chat template, the run's config.
        model: a `torch.nn.Module` in evaluation mode, on its device.
        engine: which was chosen, in words.
        tokenizer: the one it was trained with.
    """

    def __init__(self, checkpoint: OpenCheckpoint, engine: str = "plain") -> None:
        self.checkpoint = checkpoint
        self.tokenizer: Tokenizer = checkpoint.tokenizer
        self.model: CausalLM = checkpoint.model
        self.engine = choose_engine(self.model, engine)

    def __repr__(self) -> str:
        return f"<{type(self.model).__name__}, {self.checkpoint.sentence}>"

    @overload
    def generate(self, prompt: str, **options: Any) -> str: ...

    @overload
    def generate(self, prompt: Sequence[str], **options: Any) -> list[str]: ...

    @overload
    def generate(self, prompt: torch.Tensor | Sequence[Any], **options: Any) -> Any: ...

    def generate(self, prompt: Any, **options: Any) -> Any:
        """How the model continues a prompt, or each prompt of a list; without the prompt and without stop strings.

        A list is written side by side, and each text is what it would be alone; the same prompt twice gives two texts.

        Args:
            prompt: a text or a list of texts, which give text; or tokens, a list of ids or a tensor (T,), or a batch of
                them: lists of any lengths or a tensor (B, T). Tokens give the list of new ids, without the end token.
            options: fields of `SamplingConfig`, no stop strings with tokens; and for texts `speculative` and
                `num_draft_tokens`, as on the command line: the same text, several tokens a pass.

        Raises:
            UserError: an unknown option, a value out of range, or a prompt that cannot be encoded or is too long.
        """
        settings, speculation = self._sorted(options)
        if (ids := token_rows(prompt)) is not None:
            rows, is_batch = ids
            if speculation is not None:
                remedy = "leave it out, or give the prompt as text"
                raise UserError("speculative needs a prompt that is text", remedy=remedy)
            sizes = {"end_ids": self.checkpoint.end_ids, "num_tokens": self.tokenizer.vocab_size}
            new_ids = continue_ids(self.model, rows, settings, **sizes)
            return new_ids if is_batch else new_ids[0]
        is_list = isinstance(prompt, list | tuple)
        prompts = [_text(one) for one in (prompt if is_list else [prompt])]
        writing = Writing(
            self.model, self.tokenizer, prompts, settings, end_ids=self.checkpoint.end_ids, speculation=speculation
        )
        texts = [continuation.text for continuation in writing.all()]
        return texts if is_list else texts[0]

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """The continuation of one text in pieces, as they are written; joined, what `generate` returns. Same errors."""
        settings, speculation = self._sorted(options)
        ends = self.checkpoint.end_ids
        writing = Writing(self.model, self.tokenizer, [_text(prompt)], settings, end_ids=ends, speculation=speculation)
        return (piece for _, piece in writing)

    def _sorted(self, options: dict[str, Any]) -> tuple[SamplingConfig, Speculation | None]:
        """The options of a call: how tokens are drawn, and how they are drafted."""
        sampling = {key: value for key, value in options.items() if key not in DRAFTING}
        return settings_of(sampling), self._speculation(options)

    def _speculation(self, options: dict[str, Any]) -> Speculation | None:
        """How texts are drafted, by the options `speculative` and `num_draft_tokens`; None: one by one."""
        name, num_draft_tokens = options.get("speculative"), options.get("num_draft_tokens", 4)
        if not isinstance(name, str | None) or type(num_draft_tokens) is not int or num_draft_tokens < 1:
            raise UserError(
                f"speculative = {name!r} with num_draft_tokens = {num_draft_tokens!r} is not possible",
                remedy="speculative: ngram, mtp or a run; num_draft_tokens: 1 or more",
            )
        if name is None and "num_draft_tokens" in options:
            remedy = 'speculative="ngram", or leave it out'
            raise UserError("num_draft_tokens is given, and nothing drafts", remedy=remedy)
        return None if name is None else speculation_of(self.checkpoint, name, num_draft_tokens)

    @torch.inference_mode()
    def logits(self, text: str) -> torch.Tensor:
        """Next-token logits (T, V) after each token of a text, which begins as the tokenizer begins a text.

        Raises:
            UserError: a text that cannot be encoded, or is longer than the model's context.
        """
        ids, config = encode_prompt(self.tokenizer, _text(text)), self.model.config
        vocab_size = config.vocab_size or self.tokenizer.vocab_size
        check_prompts([ids], vocab_size=vocab_size, context_length=config.max_position_embeddings)
        return self.model(torch.tensor([ids], device=next(self.model.parameters()).device))[0]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"a text is needed, and {value!r:.40} is of type {type(value).__name__}")
    return value


def token_rows(prompt: Any) -> tuple[list[list[int]], bool] | None:
    """Prompts given as tokens, and whether they are a batch; None for anything else, an empty list too."""
    if isinstance(prompt, torch.Tensor):
        if prompt.ndim not in (1, 2) or prompt.is_floating_point() or prompt.dtype == torch.bool:
            kind = f"{tuple(prompt.shape)} of {prompt.dtype}"
            raise UserError(f"tokens are a tensor (T,) or (B, T) of whole numbers, and this one is {kind}")
        prompt = prompt.tolist()
    if not isinstance(prompt, list | tuple) or not prompt:
        return None
    is_batch = all(isinstance(row, list | tuple | torch.Tensor) for row in prompt)
    rows = [row.tolist() if isinstance(row, torch.Tensor) else list(row) for row in prompt] if is_batch else [prompt]
    if not all(isinstance(token, int) and not isinstance(token, bool) for row in rows for token in row):
        return None
    return [list(row) for row in rows], is_batch


def settings_of(options: dict[str, Any]) -> SamplingConfig:
    """Sampling settings from keywords; the rest keep their defaults.

    Raises:
        UserError: an option that does not exist, a value out of range, or a filter beside temperature 0.
    """
    for other in options.keys() & OTHER_NAMES.keys():
        name = OTHER_NAMES[other]
        if name in options:
            raise UserError(f"{other} and {name} are the same option", remedy=f"give {name} alone")
        options = {name if key == other else key: value for key, value in options.items()}
    for name in options:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"one of {', '.join(OPTIONS)}"
            raise UserError(f"there is no option {name}", remedy=remedy)
    refuse_idle(options, options)
    return SamplingConfig(**options)
