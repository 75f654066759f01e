"""Crops and flips on whole-number pixels, and the one conversion to float.

Random numbers are drawn as BasicSR's ``paired_random_crop`` and ``augment`` draw them, in the same order: with the same
seed both give the same patch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import normalize

from hat_plugin.data.images import to_float_tensor
from hat_plugin.data.options import PictureOptions

# Red, green, blue of BT.601's Y for values in [0, 1], in units of 1 / 255, and its offset.
_LUMA = (65.481, 128.553, 24.966)
_LUMA_OFFSET = 16.0


def random_corner(height: int, width: int, side: int) -> tuple[int, int]:
    """Top and left of a random square of `side` in a picture that is not smaller."""
    top = random.randint(0, height - side)
    left = random.randint(0, width - side)
    return top, left


def random_flips(arrays: Sequence[np.ndarray], *, hflip: bool, rotate: bool) -> list[np.ndarray]:
    """Flip and transpose pictures (H, W, C) at random, all alike; views of the arrays.

    Args:
        arrays: pictures.
        hflip: mirror left and right with probability 1/2.
        rotate: mirror up and down, and transpose, each with probability 1/2.
    """
    mirror = hflip and random.random() < 0.5
    upset = rotate and random.random() < 0.5
    transpose = rotate and random.random() < 0.5
    turned = []
    for array in arrays:
        view = array[:: -1 if upset else 1, :: -1 if mirror else 1]
        turned.append(view.transpose(1, 0, 2) if transpose else view)
    return turned


def pad_to(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """Mirror a picture (H, W, C) at its bottom and right edge until it has the wanted size.

    The edge pixel is repeated, so that a picture and its reduced copy stay aligned.
    """
    missing = (max(0, height - array.shape[0]), max(0, width - array.shape[1]))
    return np.pad(array, ((0, missing[0]), (0, missing[1]), (0, 0)), mode='symmetric') if any(missing) else array


def finish(array: np.ndarray, options: PictureOptions) -> Tensor:
    """A picture (H, W, C), RGB or gray, as a float32 tensor (C, H, W): in [0, 1], then ``color``, ``mean``, ``std``."""
    tensor = to_float_tensor(array)
    if options.color == 'y':
        weights = torch.tensor(_LUMA if tensor.shape[0] == 3 else [sum(_LUMA)]).view(-1, 1, 1)
        tensor = ((tensor * weights).sum(0, keepdim=True) + _LUMA_OFFSET) / 255
    if options.mean is not None or options.std is not None:
        channels = tensor.shape[0]
        tensor = normalize(tensor, options.mean or [0.0] * channels, options.std or [1.0] * channels)
    return tensor
