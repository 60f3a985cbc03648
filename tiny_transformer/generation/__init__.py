"""Writing text with a trained model: finding the checkpoint, the decode loop, sampling, text as it is written.

The road is `find.find_checkpoint`, `models.load_model`, then `text.complete` or `text.stream`.
"""
