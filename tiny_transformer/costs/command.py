"""What `tiny-transformer profile` does: read a config, count what it costs, show it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from tiny_transformer.config.load import config_name, load_run_config
from tiny_transformer.costs.profile import make_profile
from tiny_transformer.costs.profile_tables import print_profile


def run_profile(config: str | None, overrides: Sequence[str], *, as_json: bool, console: Console) -> None:
    """What `tiny-transformer profile` does.

    Args:
        config: a file, a preset, or None for the defaults.
        overrides: `section.key=value` strings, stronger than the file.
        as_json: print one JSON object instead of tables.
        console: where it is printed.

    Raises:
        UserError: a wrong config, a device that is not there, or a damaged tokenizer.
    """
    checked = load_run_config(config, overrides)
    with console.status("counting"):
        profile = make_profile(checked, config_name(config))
    if as_json:
        console.file.write(json.dumps(asdict(profile), indent=2) + "\n")
    else:
        print_profile(profile, console)
