"""GGUF files: written from our checkpoints, and read into them."""
