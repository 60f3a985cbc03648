"""What `tiny-transformer profile` does: read a config, count what it costs, show it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from tiny_transformer.config.load import config_name, load_run_config
from tiny_transformer.config.presets import PRESETS
from tiny_transformer.costs.profile import make_profile
from tiny_transformer.costs.profile_tables import print_profile
from tiny_transformer.models.find import RUNS_DIR
from tiny_transformer.storage.marks import STEP_NAME, is_mark
from tiny_transformer.storage.runs import CONFIG_FILE


def run_profile(config: str | None, overrides: Sequence[str], *, as_json: bool, console: Console) -> None:
    """What `tiny-transformer profile` does.

    Args:
        config: a file, a preset, a run or checkpoint (a path, or the run's name), or None for the defaults.
        overrides: `section.key=value` strings, stronger than the file.
        as_json: print one JSON object instead of tables.
        console: where it is printed.

    Raises:
        UserError: a wrong config, a device that is not there, or damaged data or a damaged tokenizer.
    """
    saved = _config_of_run(config)
    checked = load_run_config(saved or config, overrides)
    with console.status("counting"):
        profile = make_profile(checked, saved.resolve().parent.name if saved else config_name(config))
    if as_json:
        console.file.write(json.dumps(asdict(profile), indent=2) + "\n")
    else:
        print_profile(profile, console)


def _config_of_run(word: str | None) -> Path | None:
    """The config saved with a run, where a word means the run or one of its checkpoints."""
    if word is None or word in PRESETS:
        return None
    for path in (Path(word), RUNS_DIR / word):
        is_checkpoint = is_mark(path) or (STEP_NAME.fullmatch(path.name) and path.is_dir())
        saved = (path.parent if is_checkpoint else path) / CONFIG_FILE
        if saved.is_file():
            return saved
    return None
