"""`python -m tiny_transformer.prepare_dataset`: `tiny-transformer prepare` as a module.

Its default source is the introductions of Wikipedia articles, which needs the Hugging Face hub.
"""

from __future__ import annotations

import sys

from tiny_transformer.cli import main

if __name__ == "__main__":
    main(["prepare", "--source", "wiki-intros", *sys.argv[1:]], prog="python -m tiny_transformer.prepare_dataset")
