"""`python -m tiny_transformer.prepare_dataset`: `tiny-transformer prepare` as a module.

Its default source is the introductions of Wikipedia articles, which needs the Hugging Face hub.
"""

from __future__ import annotations

from tiny_transformer.cli import main

if __name__ == "__main__":
    main(prog="python -m tiny_transformer.prepare_dataset", verb="prepare", defaults={"source": "wiki-intros"})
