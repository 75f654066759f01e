"""How far a result is from what it should be."""

from __future__ import annotations

from torch import Tensor


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest value; in fp64."""
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()
