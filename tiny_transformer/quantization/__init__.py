"""Trained models with weights of 8 or 4 bits: rounded, judged, written beside the model they came from."""
