"""`python -m tiny_transformer` is `tiny-transformer`."""

from tiny_transformer.cli import main

if __name__ == "__main__":
    main(prog="python -m tiny_transformer")
