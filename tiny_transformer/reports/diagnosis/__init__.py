"""What went wrong with a run, in plain words: pure functions of its log, settings and facts."""
