"""The losses that LOSS_REGISTRY gets: each compares a batch of restored pictures with the truth."""
