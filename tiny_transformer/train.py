"""`python -m tiny_transformer.train`: `tiny-transformer train` as a module.

The loop itself is in `training/loop.py`.
"""

from __future__ import annotations

import sys

from tiny_transformer.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]], prog="python -m tiny_transformer.train")
