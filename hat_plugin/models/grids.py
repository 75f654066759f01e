"""A picture restored in crops that overlap, each pixel the plain mean of its crops: NAFNet's ``val: grids``.

It serves to repeat published figures. `engine.tiles`, which blends and knows of windows, is the better way otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hat_plugin.models.inference import AnySize, padding_of, precision_of


def crop_starts(length: int, crop: int, scale: int) -> list[int]:
    """Where crops begin along a side of the output: as few as cover it, spread evenly, on pixels of the input.

    Args:
        length: of the side, a multiple of `scale`.
        crop: length of a crop, a multiple of `scale`, at most `length`.
        scale: output pixels for one of the input.
    """
    gaps = (length - 1) // crop
    if not gaps:
        return [0]
    step = math.ceil((length - crop) / gaps) // scale * scale
    return [*range(0, length - crop, step), length - crop]


@torch.no_grad()
def restore_in_grids(net: nn.Module, lq: Tensor, opt: dict[str, Any]) -> tuple[Tensor, bool]:
    """Restore one picture in crops.

    Args:
        net: the network, in eval mode.
        lq: (1, C, H, W), RGB in [0, 1].
        opt: the run's options; ``val`` has ``crop_size_h`` or ``crop_size_h_ratio``, and the same for ``w``, and may
            have ``max_minibatch``, the number of crops that go through the network at a time.

    Returns:
        (1, C, H * scale, W * scale) in float32, and whether there was more than one crop.
    """
    scale, val = int(opt.get('scale') or 1), opt['val']
    height, width = (side * scale for side in lq.shape[-2:])
    crop_height, crop_width = _crop(val, 'h', height, scale), _crop(val, 'w', width, scale)
    corners = [
        (top, left) for top in crop_starts(height, crop_height, scale) for left in crop_starts(width, crop_width, scale)
    ]
    crops = torch.cat(
        [
            lq[..., top // scale : (top + crop_height) // scale, left // scale : (left + crop_width) // scale]
            for top, left in corners
        ]
    )
    forward = AnySize(net, padding_of(net, opt), scale, precision_of(opt))
    restored = torch.cat([forward(part) for part in crops.split(int(val.get('max_minibatch') or len(crops)))])
    total = restored.new_zeros(1, restored.shape[1], height, width)
    count = restored.new_zeros(1, 1, height, width)
    for (top, left), crop in zip(corners, restored, strict=True):
        total[0, :, top : top + crop_height, left : left + crop_width] += crop
        count[0, :, top : top + crop_height, left : left + crop_width] += 1
    return total / count, len(corners) > 1


def _crop(val: Mapping[str, Any], side: str, length: int, scale: int) -> int:
    """Length of a crop along a side: a number of pixels, or else a share, made a multiple of the scale that fits."""
    pixels = int(val.get(f'crop_size_{side}') or val[f'crop_size_{side}_ratio'] * length)
    return min(max(scale, pixels // scale * scale), length)
