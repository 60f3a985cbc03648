"""Looking at what a model reads; later, at what it computes."""
