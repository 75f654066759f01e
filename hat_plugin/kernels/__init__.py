"""Kernels of our own, compiled on the user's machine where a compiler is at hand; without them nothing is missing."""
