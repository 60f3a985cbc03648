"""A language model turned into a classifier: its head gives way to one with a score for each label.

Names are those of Hugging Face's `...ForSequenceClassification`, which opens what is saved here and, as is done here,
scores the last token that is no padding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tiny_transformer.config.hf import config_from_hf
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.models.building import empty_model, initialise
from tiny_transformer.models.checkpoint import WEIGHTS, load_weights
from tiny_transformer.models.config_file import is_classifier, read_config
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.safetensors_file import encode
from tiny_transformer.storage.commit import Staging, write_into

SCORE = "score.weight"


def make_classifier(model: CausalLM, num_labels: int, *, seed: int) -> None:
    """Put a head of `num_labels` scores in the place of the model's own; its weights are drawn anew."""
    module, weight = cast(nn.Module, model), model.model.embed_tokens.weight
    head = nn.Linear(model.config.hidden_size, num_labels, bias=False, device=weight.device, dtype=weight.dtype)
    if weight.device.type != "meta":
        generator = torch.Generator().manual_seed(seed)
        initialise(SCORE, cast(nn.Parameter, head.weight), std=model.config.initializer_range, generator=generator)
    del module.lm_head
    module.add_module("score", head)


def scores_of(model: CausalLM, input_ids: Tensor, lengths: Tensor) -> Tensor:
    """The scores (B, labels) of texts.

    Args:
        model: from `make_classifier`.
        input_ids: (B, T) int64, padded on the right with anything: attention looks back only.
        lengths: (B,) how many tokens each text has; the hidden state of the last is scored.
    """
    return model.get_submodule("score")(_last_hidden(model, input_ids, lengths))


def _last_hidden(model: CausalLM, input_ids: Tensor, lengths: Tensor) -> Tensor:
    hidden = model.backbone(input_ids).hidden  # (B, T, C)
    return hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1]


class ClassificationModel(nn.Module):
    """A classifier on top of a language model, for a training loop of your own.

    The stage `classify` trains, saves and opens classifiers without it; it is for programs that bring their own loop.

    Args:
        transformer: stays as it is, head and all; trained along unless its parameters are frozen.
        num_classes: how many scores a text gets.
    """

    def __init__(self, transformer: CausalLM, num_classes: int) -> None:
        super().__init__()
        self.transformer = cast(nn.Module, transformer)
        weight = transformer.model.embed_tokens.weight
        self.classifier = nn.Linear(
            transformer.config.hidden_size, num_classes, device=weight.device, dtype=weight.dtype
        )

    def forward(self, idx: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The scores (B, num_classes) of texts, from the hidden state of the last token.

        Args:
            idx: (B, T) int64.
            lengths: (B,) how many tokens each text has, where `idx` is padded on the right; None: all T.
        """
        if lengths is None:
            lengths = torch.full((len(idx),), idx.shape[1], device=idx.device)
        return self.classifier(_last_hidden(cast("CausalLM", self.transformer), idx, lengths))


def save_classifier(
    model: CausalLM,
    directory: Staging | Path | str,
    weights: Mapping[str, Tensor],
    labels: Sequence[str],
    **token_ids: int,
) -> None:
    """Write a classifier as transformers does: its class, its labels, its weights."""
    hf = model.config.to_hf(dtype=str(weights[SCORE].dtype).removeprefix("torch."), **token_ids)
    names = {str(i): label for i, label in enumerate(labels)}
    hf |= {
        "architectures": [name.replace("ForCausalLM", "ForSequenceClassification") for name in hf["architectures"]],
        "id2label": names,
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }
    write_into(directory, "config.json", json.dumps(hf, indent=2) + "\n")
    write_into(directory, WEIGHTS, encode(weights, {"format": "pt"}))


def load_classifier(directory: Path | str, *, device: torch.device | str = "cpu") -> tuple[CausalLM, list[str]]:
    """A classifier in evaluation mode, and its labels.

    Raises:
        UserError: see `load_model`; a model without labels.
    """
    hf, _ = read_config(directory)
    where = str(Path(directory) / "config.json")
    labels = labels_of(hf, where)
    model = empty_model(config_from_hf(hf, where), device=device)
    make_classifier(model, len(labels), seed=0)
    load_weights(model, directory)
    return model.eval(), labels


def labels_of(hf: dict[str, Any], where: str) -> list[str]:
    """The labels that a config.json names, by their numbers.

    Raises:
        UserError: it names none, or not one for each number from 0 on.
    """
    names = hf.get("id2label")
    if not is_classifier(hf) or not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
        raise UserError(
            "this is no classifier: its config.json names no labels",
            where=where,
            remedy="tiny-transformer train --stage classify --init_from RUN --source FILE makes one",
            exit_code=ExitCode.BAD_DATA,
        )
    return [str(names[str(i)]) for i in range(len(names))]
