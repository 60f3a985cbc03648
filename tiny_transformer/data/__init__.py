"""From text a person has to token files, and from token files to batches."""
