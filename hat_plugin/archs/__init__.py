"""The networks that ARCH_REGISTRY gets."""
