"""`python -m tiny_transformer.train`: `tiny-transformer train` as a module.

The loop itself is in `training/loop.py`.
"""

from __future__ import annotations

from tiny_transformer.cli import main

if __name__ == "__main__":
    main(prog="python -m tiny_transformer.train", verb="train")
