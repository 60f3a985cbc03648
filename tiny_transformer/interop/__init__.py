"""Models of other programs read into ours, ours written for other programs, and which program opens what."""
