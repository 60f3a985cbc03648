"""Which options and keys are secrets by their name: their values are neither shown nor written."""

from __future__ import annotations

import re

HIDDEN = "***"
WHERE_THEY_GO = (
    "secrets stay off the command line and out of configs: the libraries find them where `hf auth login` and "
    "`wandb login` put them, or in the environment (HF_TOKEN, WANDB_API_KEY)"
)
# At the end of a name: `hf_token`, `WANDB_API_KEY`; `max_tokens` and `num_key_value_heads` are none.
_SECRET = re.compile(r"(?:^|[-_.])(?:token|secret|password|passwd|pwd|api_?key|key|credentials?|auth)$", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a value of this name should stay with the user: `--hf_token`, `api_key`."""
    return _SECRET.search(name.strip()) is not None
