"""A Qwen3 made of keyword arguments, with `generate` on itself: the words of an older project, working as printed.

    model = Qwen3Model(**QWEN3_CONFIG)
    generated = model.generate(context, max_new_tokens=200, temperature=0.8)

Whoever begins here needs no checkpoint; whoever has one writes `tiny_transformer.load(...)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.shapes import Qwen3Config
from tiny_transformer.errors import UserError
from tiny_transformer.generation.loaded import settings_of, token_rows
from tiny_transformer.generation.rows import continue_ids
from tiny_transformer.models.qwen3 import Model


class Qwen3Model(Model):
    """An untrained Qwen3 that writes; load weights with `load_state_dict`, whose names are Hugging Face's.

    Args:
        dtype: of the weights, a torch dtype or its name.
        config: the shape, in our words (`hidden_size`) or the older ones (`d_model`, `n_heads`, `n_kv_groups`,
            `n_layers`, `d_ff`, `max_seq_len`); `vocab_size` is needed.

    Raises:
        UserError: an unknown key, or a shape that is no Qwen3.
    """

    def __init__(self, *, dtype: torch.dtype | str = torch.float32, **config: Any) -> None:
        shape = load_run_config({"model": config}, ["data.seq_len=2"]).model  # there is no data that could be longer
        if not isinstance(shape, Qwen3Config):
            raise UserError(
                f"this is the shape of a {shape.model_type}", remedy="name n_kv_groups, or model_type qwen3"
            )
        if shape.vocab_size is None:
            raise UserError("vocab_size is not set", remedy="vocab_size=tokenizer.vocab_size")
        number = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
        if not isinstance(number, torch.dtype) or not number.is_floating_point:
            raise UserError(f"dtype = {dtype} is not possible", remedy="torch.float32, torch.bfloat16 or torch.float16")
        super().__init__(shape)
        self.to(number)

    @overload
    def generate(self, context: torch.Tensor, **options: Any) -> torch.Tensor: ...

    @overload
    def generate(self, context: Sequence[int], **options: Any) -> list[int]: ...

    def generate(self, context: Any, *, eos_token_id: int | None = None, **options: Any) -> Any:
        """The context with what follows it.

        Args:
            context: ids, (T,) or (B, T) int64, or a list of ids.
            eos_token_id: ends a row, and fills it up beside a longer one.
            options: fields of `SamplingConfig`: max_new_tokens, temperature, top_k, seed, ...

        Returns:
            A tensor with one more dimension of length than `context`, (T + new,) or (B, T + new); a list for a list.

        Raises:
            UserError: no ids, an unknown option or a value out of range.
        """
        found = token_rows(context)
        if found is None:
            raise UserError("a tensor or list of token ids is needed", remedy="tokenizer.encode(text)")
        rows, is_batch = found
        ends = () if eos_token_id is None else (eos_token_id,)
        new_ids = continue_ids(self, rows, settings_of(options), end_ids=ends)
        longest = max(map(len, new_ids))
        whole = [
            [*row, *new, *[eos_token_id or 0] * (longest - len(new))] for row, new in zip(rows, new_ids, strict=True)
        ]
        if isinstance(context, torch.Tensor):
            return torch.tensor(whole if is_batch else whole[0], device=context.device)
        return whole if is_batch else whole[0]
