"""Starting a light HAT as an interpolation, so that a short training has only the rest to learn."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from hat_plugin.archs.hat_arch import HAT

_REACH = 5  # side of what two 3x3 convolutions see


@torch.no_grad()
def start_as_interpolation_(net: HAT, response: Tensor) -> None:
    """Change a network in place so that, untrained, it computes a given linear interpolation of each channel.

    Two things are set. The deep features' last convolution becomes zero, so that the residual groups add nothing at
    first (they learn from the second step on). The convolution before the pixel shuffle is solved for: among the
    weights with which `conv_first` followed by it is the interpolation, those of least norm are taken; `conv_first`
    keeps its random filters. Within two input pixels of the image's border the convolutions' zero padding makes a
    difference.

    With a published network and schedule this is of no use: it saves the first few hundred iterations of hundreds of
    thousands. Where a training has a few minutes, they are most of it.

    Args:
        net: with upsampler 'pixelshuffledirect' and resi_connection '1conv' or '3conv'.
        response: what the interpolation makes of a 5x5 image that is 0 but for a 1 in its middle,
            (5 * upscale, 5 * upscale). An output pixel depends on 5x5 input pixels around its own at the most.

    Raises:
        ValueError: the network is built otherwise, has too few channels for it, or the response is of another size.

    Source: zero for the last layer of a residual branch: "Accurate, Large Minibatch SGD" (2017), section 5.1.
    """
    scale, channels = net.upscale, net.in_chans
    if net.upsampler != 'pixelshuffledirect':
        raise ValueError(
            f"upsampler '{net.upsampler}' has no single convolution to solve for: give 'pixelshuffledirect'"
        )
    if response.shape != (_REACH * scale, _REACH * scale):
        side = _REACH * scale
        raise ValueError(f'the response is {tuple(response.shape)}; for upscale {scale} it must be ({side}, {side})')
    first, last = net.conv_first, cast(nn.Conv2d, net.get_submodule('upsample.0'))
    wanted = _wanted_filters(response.double(), scale, channels).flatten(1)
    seen = _composed_filters(first.weight.double()).flatten(0, 2).flatten(1)
    solution = torch.linalg.pinv(seen.T) @ wanted.T
    if not torch.allclose(seen.T @ solution, wanted.T, atol=1e-6):
        raise ValueError(
            f'embed_dim {net.embed_dim} is too small to hold an interpolation of {channels} channels: '
            f'give {-(-_REACH * _REACH * channels // 9) + 1} or more'
        )
    body_end = [module for module in net.conv_after_body.modules() if isinstance(module, nn.Conv2d)]
    if not body_end:
        raise ValueError("resi_connection 'identity' leaves nothing to set to zero: give '1conv' or '3conv'")
    assert first.bias is not None and last.bias is not None  # HAT's convolutions have one
    last.weight.copy_(solution.T.unflatten(1, (net.embed_dim, 3, 3)))
    last.bias.copy_(-last.weight.sum((2, 3)) @ first.bias)  # conv_first's bias, as it arrives through the weights
    nn.init.zeros_(body_end[-1].weight)
    if body_end[-1].bias is not None:
        nn.init.zeros_(body_end[-1].bias)


def _wanted_filters(response: Tensor, scale: int, channels: int) -> Tensor:
    """The filters of the interpolation: (channels * scale**2 of the pixel shuffle, channels, 5, 5)."""
    tiles = response.unflatten(1, (_REACH, scale)).unflatten(0, (_REACH, scale))  # row, phase, column, phase
    # An input pixel two rows below an output pixel's own reaches it as the middle reaches the tile two rows above.
    kernels = tiles.permute(1, 3, 0, 2).flip(2, 3)
    filters = kernels.new_zeros(channels, scale, scale, channels, _REACH, _REACH)
    for channel in range(channels):
        filters[channel, :, :, channel] = kernels
    return filters.flatten(0, 2)


def _composed_filters(first: Tensor) -> Tensor:
    """What each weight of a 3x3 convolution after `first` (E, C, 3, 3) sees of the image: (E, 3, 3, C, 5, 5)."""
    width, channels = first.shape[:2]
    composed = first.new_zeros(width, 3, 3, channels, _REACH, _REACH)
    for row in range(3):
        for column in range(3):
            composed[:, row, column, :, row : row + 3, column : column + 3] = first
    return composed
