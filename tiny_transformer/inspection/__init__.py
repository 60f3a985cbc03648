"""Looking at runs and models: the run report, the table of runs."""
