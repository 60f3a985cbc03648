"""tiny-transformer: read, train and own a language model on a laptop or one GPU.

Importing the package is cheap (no torch): every room is imported when it is first needed.
"""

__version__ = "0.1.0"
