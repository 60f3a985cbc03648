"""What a run shows and leaves behind: progress, figures, texts, checkpoints, and what a resumed run must agree with."""
