"""What all readers share: what they hand back, and how numbers are read off names and shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class Detected:
    """A network as its weights show it.

    Args:
        architecture: name in `hat_plugin.restore.detect.ARCHITECTURES`.
        arguments: for the constructor.
        scale: enlargement.
        channels: of pictures in and out.
        window: sides that the network works on are multiples of this; 1 for any.
        assumed: what the weights do not show and was taken as published or by default, one phrase each.
    """

    architecture: str
    arguments: dict[str, Any]
    scale: int
    channels: int
    window: int
    assumed: tuple[str, ...] = ()


def read_upsampler(weights: StateDict, channels: int, scale: int | None) -> tuple[str, int, tuple[str, ...]]:
    """(upsampler, scale, assumptions) by the convolutions on the way up."""
    if 'conv_hr.weight' in weights:
        steps = sum(1 for number in range(1, 9) if f'conv_up{number}.weight' in weights)
        if steps == 1:  # one step looks the same for 2 and 3
            return 'nearest+conv', scale or 2, () if scale else ('scale 2 (--scale 3 for the other)',)
        return 'nearest+conv', 2**steps, ()
    if 'conv_before_upsample.0.weight' in weights:
        features = weights['conv_last.weight'].shape[1]
        shuffles = [key for key in weights if key.startswith('upsample.') and key.endswith('.weight')]
        factors = [math.isqrt(weights[key].shape[0] // features) for key in shuffles]
        return 'pixelshuffle', math.prod(factors), ()
    if 'upsample.0.weight' in weights:
        return 'pixelshuffledirect', math.isqrt(weights['upsample.0.weight'].shape[0] // channels), ()
    return '', 1, ()


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


def ratio_of(part: int, whole: int) -> float:
    """A ratio with ``int(whole * ratio) == part``."""
    ratio = part / whole
    return ratio if int(whole * ratio) == part else (part + 0.5) / whole
