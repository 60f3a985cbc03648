"""Whether what is resumed is the run that was started: what may differ, what may differ with a warning, what may not.

Each key of the schema says which of the three it is. A checkpoint holds the settings it was made with, so nothing
depends on the files beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from tiny_transformer.config.schema import OnResume, RunConfig, on_resume, sections_of
from tiny_transformer.config.secrets import last_parts
from tiny_transformer.errors import UserError
from tiny_transformer.storage import RunDirectory
from tiny_transformer.storage.runs import readable_states

BATCH = "training.micro_batch_size x grad_accum_steps"
DATA = "the data (hash of train.bin)"
TOKENIZER = "the tokenizer (hash)"
BASE = "the base (hash of its weights)"
OWN_CONFIG = "resume with the run's own config (leave out --config), or start a new run in another --out_dir"
NEW_RUN = "prepare it again as it was, name it with --data_dir, or start a new run from these weights with --init_from"
BASE_BACK = "put the base back as it was, or start a new run in another --out_dir"
REMEDIES = {DATA: NEW_RUN, TOKENIZER: NEW_RUN, BASE: BASE_BACK}
WHERE = "data.data_dir"  # where the data is says nothing: what it is does


def identity_of(config: RunConfig, fingerprints: dict[str, str]) -> dict[str, Any]:
    """Every setting as flat `section.key: value`, the size of a batch, and data and tokenizer by content. No absolute
    path: a checkpoint is given away."""
    training = config.training
    return {**_settings(config), BATCH: training.examples_per_step, **fingerprints}


def check_changes(saved: dict[str, Any], now: RunConfig, identity: dict[str, Any], where: Path, console: Console):
    """Compare what a checkpoint was made with and what it is taken up with; every difference is shown.

    Args:
        saved: the identity in the checkpoint. A key it does not have yet had its default.
        now: the config of the resumption.
        identity: its identity.
        where: the checkpoint.
        console: where differences that are no reason to refuse are printed.

    Raises:
        UserError: a difference that would make it another run, with both values.
    """
    defaults = _settings(type(now)(model=type(now.model)()))
    saved = _without_places(saved)
    changed = {
        key: (saved.get(key, defaults.get(key)), identity.get(key))
        for key in [*identity, *(key for key in saved if key not in identity)]
        if saved.get(key, defaults.get(key)) != identity.get(key)
    }
    for key, (before, after) in changed.items():
        if class_of(key, now) == "refuse":
            raise UserError(
                f"cannot resume: {key} was {_short(before)} and is now {_short(after)}",
                where=str(where),
                remedy=REMEDIES.get(key, OWN_CONFIG),
            )
    for key, (before, after) in changed.items():
        also = (
            "; from here on this is a different run from the one that was started"
            if class_of(key, now) == "warn"
            else ""
        )
        text = f"changed: {key} was {_short(before)} and is now {_short(after)}{also}"
        console.print(text, highlight=False, markup=False)


def check_data(run: RunDirectory, fingerprints: dict[str, str]) -> None:
    """Refuse data or a tokenizer that a run was not trained with, as far as its checkpoints tell.

    Raises:
        UserError: a difference, with both values.
    """
    saved = next((state["identity"] for state in readable_states(run.path)), fingerprints)
    for key, now in fingerprints.items():
        if saved.get(key) != now:
            raise UserError(
                f"this is not what the run was trained on: {key} was {_short(saved.get(key))} and is now {_short(now)}",
                where=str(run.path),
                remedy="restore the data, or set data.data_dir in the run's config.yaml to where it is now",
            )


def class_of(key: str, config: RunConfig) -> OnResume:
    """What a changed `section.key` means."""
    section, _, name = key.rpartition(".")
    fields = type(getattr(config, section, config)).model_fields
    return on_resume(fields[name]) if name in fields else "refuse"


def _settings(config: RunConfig) -> dict[str, Any]:
    """The sections; where the run stands, and where it began, is no part of what it is."""
    tree = config.model_dump(mode="json", include=set(sections_of(type(config))))
    return _without_places(
        {f"{section}.{key}": value for section, values in tree.items() for key, value in values.items()}
    )


def _without_places(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: last_parts(value) if isinstance(value, str) else value for key, value in settings.items() if key != WHERE
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
