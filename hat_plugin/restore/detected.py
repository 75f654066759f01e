"""What the readers of weights share: their answer, and what they ask of names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class Detected:
    """A network as its weights show it.

    Args:
        architecture: name in `ARCHITECTURES`.
        arguments: for the constructor.
        scale: enlargement.
        channels: of pictures in and out.
        window: sides that the network works on are multiples of this; 1 for any.
        assumed: what the weights do not show and was taken as published, one phrase each.
    """

    architecture: str
    arguments: dict[str, Any]
    scale: int
    channels: int
    window: int
    assumed: tuple[str, ...] = ()


def count(weights: StateDict, pattern: str) -> int:
    """How many numbers from 0 on the pattern takes among the names. That the last ones are missing is not seen.

    Raises:
        KeyError: one is missing in between; without it a smaller network would seem to be there.
    """
    before, after = pattern.split('{}')
    rests = (key.removeprefix(before) for key in weights if key.startswith(before))
    numbers = {int(rest.partition(after)[0]) for rest in rests if rest.partition(after)[0].isdecimal()}
    for number in range(len(numbers)):
        if number not in numbers:
            raise KeyError(f'{pattern.format(number)}*')
    return len(numbers)


def ratio(part: int, whole: int) -> float:
    """A ratio with ``int(whole * ratio) == part``."""
    ratio = part / whole
    return ratio if int(whole * ratio) == part else (part + 0.5) / whole
