"""Measuring a model: loss, perplexity, bits per byte."""
