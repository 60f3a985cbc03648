"""docs/CONFIG_REFERENCE.md, written from the schema: `python -m tiny_transformer.config.reference >
docs/CONFIG_REFERENCE.md`."""

from __future__ import annotations

from collections.abc import Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tiny_transformer.config.aliases import ALIASES, SWITCHES
from tiny_transformer.config.presets import PRESETS
from tiny_transformer.config.reasons import effects_markdown, reasons_markdown
from tiny_transformer.config.schema import DataConfig, LoraSection, RunConfig, TrainingConfig, on_resume, sections_of
from tiny_transformer.config.shapes import SHAPES, DecoderConfig
from tiny_transformer.config.stages import (
    AlignSection,
    AlignTraining,
    ClassifySection,
    FinetuneSection,
    FinetuneTraining,
    GrpoSection,
)

HEAD = """# Every key of a config

This page is generated from the schema by `python -m tiny_transformer.config.reference`; a test keeps it true.

A config is a `.yaml`, `.json` or `.toml` file with the sections `model`, `data` and `training`, or the name of a preset
({presets}). What it does not say has the default below. Any key can be set on the command line, which is stronger than
the file: `--training.steps 200`, `training.steps=200`, or, where one section only has such a key, `--steps 200`. One
that is true or false may stand alone (`--compile`), and a list may be one word, or several with commas
(`--loggers tensorboard,wandb`). A typo, a wrong type or an impossible combination is refused before anything starts.

**On resume**: *fixed* keys must be those of the run that is resumed. *Warns*: it may change, and then the rest of the
run is not the one that was started. *Free*: it may change, and the weights are what they would have been. *Data*: the
prepared data was made with it; asking for another value is refused with the command that makes it. The size of a
batch (`micro_batch_size x grad_accum_steps`) is fixed. Every difference is printed.
"""
ON_RESUME = {"refuse": "fixed", "warn": "warns", "allow": "free", "data": "data"}


def reference_markdown() -> str:
    """The whole page."""
    parts = [HEAD.format(presets=", ".join(f"`{name}`" for name in PRESETS))]
    sections: list[tuple[str, str, type[BaseModel]]] = [
        ("`training`", "training", TrainingConfig),
        ("`data`", "data", DataConfig),
        ("`model`, all architectures", "model", DecoderConfig),
        ("`lora`", "lora", LoraSection),
        ("`finetune`, with `stage: finetune`", "finetune", FinetuneSection),
        ("`classify`, with `stage: classify`", "classify", ClassifySection),
        ("`align`, with `stage: align`", "align", AlignSection),
        ("`grpo`, with `align.method: grpo`", "grpo", GrpoSection),
    ]
    for title, section, model in sections:
        parts.append(_table(title, section, model, list(model.model_fields)))
    for stages, theirs, before in (
        ("`finetune` and `classify`", FinetuneTraining, TrainingConfig),
        ("`align`, besides those", AlignTraining, FinetuneTraining),
    ):
        own = [n for n, field in before.model_fields.items() if theirs.model_fields[n].default != field.default]
        parts.append(_table(f"`training`, other defaults with `stage:` {stages}", "training", theirs, own))
    for model in SHAPES.values():
        names = [name for name in model.model_fields if name not in DecoderConfig.model_fields]
        title = f"`model` with `model_type: {model.model_fields['model_type'].default}`"
        parts.append(_table(title, "model", model, names))
    parts.append(
        _table(
            "Top level", "", RunConfig, [name for name in RunConfig.model_fields if name not in sections_of(RunConfig)]
        )
    )
    parts += [reasons_markdown(), effects_markdown()]
    parts.append("## Other names for these keys\n\nConfigs written for other projects load as they are.\n")
    parts.append("| name there | our key |\n| --- | --- |")
    parts += [f"| `{name}` | {', '.join(f'`{key}`' for key in keys)} |" for name, keys in sorted(ALIASES.items())]
    parts += [f"| `{name}: true` | `{key}: {value}` |" for name, (key, value) in SWITCHES.items()]
    return "\n".join(parts) + "\n"


def _table(title: str, section: str, model: type[BaseModel], names: list[str]) -> str:
    rows = [
        f"## {title}\n",
        "| key | type and range | default | on resume | what it does |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in names:
        field = model.model_fields[name]
        key = f"{section}.{name}" if section else name
        text = " ".join((field.description or "").split())
        cells = (f"`{key}`", _type(field), _default(field), ON_RESUME[on_resume(field)], text)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None:
        return "none"
    return f"`{value}`" if isinstance(value, str) else f"`{value!r}`"


def _type(field: FieldInfo) -> str:
    return _with_range(_type_words(field.annotation), field.metadata)


def _with_range(words: str, metadata: Sequence[Any]) -> str:
    limits = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [bound for one in metadata for bound in (one.metadata if isinstance(one, FieldInfo) else [one])]
    ranges = [f"{sign} {getattr(b, name):,}" for b in bounds for name, sign in limits.items() if hasattr(b, name)]
    return " ".join([words, *([", ".join(ranges)] if ranges else [])])


def _type_words(annotation: Any) -> str:
    if hasattr(annotation, "__metadata__"):  # Annotated
        return _with_range(_type_words(annotation.__origin__), annotation.__metadata__)
    arguments = [a for a in get_args(annotation) if a is not type(None)]
    if arguments and all(isinstance(a, str) for a in arguments):
        return " / ".join(f"`{a}`" for a in arguments)
    if len(arguments) == 1 and type(None) in get_args(annotation):
        return _type_words(arguments[0])
    if all(isinstance(a, type) and issubclass(a, BaseModel) for a in arguments[:1] or [annotation]):
        return "mapping"
    if get_origin(annotation) in (Union, UnionType):
        return " / ".join(_type_words(a) for a in arguments)
    if arguments:
        return f"list of {_type_words(arguments[0])}"
    names = {"int": "integer", "float": "number", "str": "text", "bool": "true / false", "Path": "path"}
    return names.get(getattr(annotation, "__name__", ""), str(annotation))


if __name__ == "__main__":
    print(reference_markdown(), end="")
