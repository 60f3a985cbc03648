"""Maths that more than one model uses: tensors and numbers in, tensors out; no model config, no flags."""
