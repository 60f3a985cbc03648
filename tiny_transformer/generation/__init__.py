"""Writing text with a trained model: the decoder, the rows of a batch, sampling, text as it is written, `load`.

The road is `models.open.open_checkpoint`, then `text.complete` or `text.stream`; from Python, `loaded.load` is both.
"""
