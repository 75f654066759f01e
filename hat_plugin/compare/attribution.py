"""Local attribution maps: which pixels of its input a network uses for a part of its output, and how many.

Source: Gu and Dong, Interpreting Super-Resolution Networks with Local Attribution Maps, CVPR 2021. Gradients of the
amount of detail in a part of the output are integrated along a path of pictures that begins with a blurred input and
ends with the input itself. HAT's paper argues with these maps (figure 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from hat_plugin.errors import HatPluginError

SIGMA, KERNEL = 1.2, 9  # of the blur that the path begins with, in input pixels
STEPS = 50
TINY = 1e-12


@dataclass(frozen=True)
class Attribution:
    """What a part of the output depends on.

    Attributes:
        map: (h, w) over the input, at least 0, with a largest value of 1.
        diffusion: the diffusion index, 0 (one pixel does it all) to 100 (all pixels alike).
    """

    map: np.ndarray
    diffusion: float


def attribute(
    net: Callable[[Tensor], Tensor], image: Tensor, top: int, left: int, window: int, steps: int = STEPS
) -> Attribution:
    """The local attribution map of a window of the output.

    Args:
        net: maps (1, C, h, w) to (1, C', H, W), with gradients.
        image: its input, (1, C, h, w), in [0, 1].
        top, left, window: the window, in output pixels.
        steps: along the path; more are more exact, and as many passes forward and back.

    Raises:
        HatPluginError: the window lies outside of the output.
    """
    found = integrated(net, image, top, left, window, steps)[0].sum(0).abs().double().cpu().numpy()
    return Attribution(found / max(found.max(), TINY), 100 * (1 - gini(found)))


def integrated(
    net: Callable[[Tensor], Tensor], image: Tensor, top: int, left: int, window: int, steps: int = STEPS
) -> Tensor:
    """Signed contributions of the input's values, (1, C, h, w); they sum up to what the path adds to the detail."""
    path = [image if step == steps else _blurred(image, step / steps) for step in range(steps + 1)]
    total = torch.zeros_like(image)
    for before, after in pairwise(path):
        with torch.enable_grad():
            point = after.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(detail(net(point), top, left, window), point)
        total += gradient * (after - before)
    return total


def _blurred(image: Tensor, alpha: float) -> Tensor:
    return gaussian_blur(image, [KERNEL, KERNEL], [(1 - alpha) * SIGMA] * 2)


def detail(output: Tensor, top: int, left: int, window: int) -> Tensor:
    """The sum of a window's gradient magnitudes: what a network that adds detail raises."""
    height, width = output.shape[-2:]
    if min(top, left) < 0 or top + window >= height or left + window >= width:
        raise HatPluginError(
            f'a window of {window} pixels at row {top}, column {left} does not lie inside the output, {width}x{height} '
            'pixels with one to spare; choose another place'
        )
    part = output[..., top : top + window + 1, left : left + window + 1]
    down = part[..., 1:, :-1] - part[..., :-1, :-1]
    right = part[..., :-1, 1:] - part[..., :-1, :-1]
    return (down.square() + right.square() + TINY).sqrt().sum()


def gini(values: np.ndarray) -> float:
    """Gini's coefficient of values of at least 0: 0 where all are equal, towards 1 where one has everything."""
    ordered = np.sort(values, axis=None)
    total = ordered.sum()
    if total <= 0:
        return 0.0
    ranks = np.arange(1, ordered.size + 1)
    return float(((2 * ranks - ordered.size - 1) * ordered).sum() / (ordered.size * total))
