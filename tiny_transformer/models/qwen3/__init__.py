"""Qwen3: `model.py` holds the whole architecture."""
