"""`python -m tiny_transformer.sample`: `tiny-transformer generate` as a module.

The decode loop is in `generation/rows.py`.
"""

from __future__ import annotations

from tiny_transformer.cli import main

if __name__ == "__main__":
    main(prog="python -m tiny_transformer.sample", verb="generate")
