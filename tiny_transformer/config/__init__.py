"""What a run can be told: the schema, files and overrides, presets, and the shapes of models."""
