"""The classic decoder: `model.py` holds the whole architecture."""
