"""Models of other programs: files of theirs read into Hugging Face directories."""
