"""`python -m tiny_transformer.prepare_dataset`: `tiny-transformer prepare`, with introductions of Wikipedia articles as the default source."""

from __future__ import annotations

import sys

from tiny_transformer.cli import main

if __name__ == "__main__":
    main(["prepare", "--source", "wiki-intros", *sys.argv[1:]], prog="python -m tiny_transformer.prepare_dataset")
