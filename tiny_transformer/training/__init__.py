"""Training: one loop, and the stages that hand it a model, batches and a loss."""
