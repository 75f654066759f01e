"""The models that MODEL_REGISTRY gets: a training step and its validation."""
