"""How long a run is and, for whoever does not want to choose, how large its model."""
