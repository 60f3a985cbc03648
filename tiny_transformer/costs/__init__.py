"""What a config will cost before anything runs: parameters, arithmetic, memory, time."""
