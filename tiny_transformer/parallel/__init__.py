"""Several processes, one run: what they tell each other, how they share the work, and how a lost one is found."""
