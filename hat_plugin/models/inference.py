"""A whole picture through a network, padded and in tiles where that is needed; used by validation, test and restore."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.archs.hat_unet_arch import HATUNet
from hat_plugin.engine.tiles import tiled_forward
from hat_plugin.errors import HatPluginError
from hat_plugin.layers.embedding import pad_to_multiple
from hat_plugin.layers.precision import prepare_for_inference

Precision = Literal['fp32', 'bf16', 'fp16']
HALVES = {'bf16': torch.bfloat16, 'fp16': torch.float16}
MIXED = {'bf16': 'mixed', 'fp16': 'mixed_fp16'}  # of `prepare_for_inference`


class AnySize(nn.Module):
    """A network with padding, cropping and precision around it; it counts how often it was called.

    Args:
        net: maps (B, C, h, w) to (B, C, h * scale, w * scale).
        pad_to: h and w that `net` is given are multiples of this (BasicSR's SwinIR needs it); mirrored.
        scale: enlargement.
        precision: 'bf16' and 'fp16' compute products and convolutions in half precision and the rest in float32, by
            weights that `convert` converted, else by autocast; 'fp32' in what the weights are.
    """

    def __init__(self, net: nn.Module, pad_to: int, scale: int, precision: Precision = 'fp32') -> None:
        super().__init__()
        self.net, self.pad_to, self.scale, self.precision, self.calls = net, pad_to, scale, precision, 0
        half = HALVES.get(precision)
        converted = any(parameter.dtype == half for parameter in net.parameters())
        self._autocast = None if converted else half

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to (B, C, H * scale, W * scale), float32."""
        self.calls += 1
        height, width = image.shape[-2:]
        with torch.autocast(image.device.type, self._autocast, enabled=self._autocast is not None):
            output = self.net(pad_to_multiple(image, self.pad_to))
        return output[..., : height * self.scale, : width * self.scale].float()


def precision_of(opt: dict[str, Any]) -> Precision:
    """``val: precision`` of a run's options."""
    return (opt.get('val') or {}).get('precision') or 'fp32'


def convert(net: nn.Module, precision: Precision) -> nn.Module:
    """Convert a network's weights for inference, once and in place; of those that autocast serves none are."""
    if precision in MIXED and isinstance(net, HAT | HATUNet):
        return prepare_for_inference(net, MIXED[precision])
    return net


def check_precision(precision: str, device: torch.device | str) -> None:
    """Refuse what a device has no use for.

    Raises:
        HatPluginError: an unknown precision, or fp16 on a CPU, which multiplies it by way of fp32 or not at all.
    """
    if precision != 'fp32' and precision not in HALVES:
        raise HatPluginError(f'precision is {precision!r}; it must be fp32, bf16 or fp16')
    if precision == 'fp16' and torch.device(device).type == 'cpu':
        raise HatPluginError('precision fp16 is for GPUs, and the device is a CPU; give bf16 or fp32')


def window_of(net: nn.Module, opt: dict[str, Any]) -> int:
    """What tiles are multiples of: the network's window, and ``val: window_size`` of Restormer's files."""
    own = (opt.get('network_g') or {}).get('window_size') or getattr(net, 'window_size', 1) or 1
    own = getattr(net, 'size_multiple', own)  # a U-Net's: the window at its deepest level
    return math.lcm(int(own), _asked_for(opt))


def padding_of(net: nn.Module, opt: dict[str, Any]) -> int:
    """What pictures are padded to multiples of: `window_of`, unless the network pads in a way of its own (NAFNet's)."""
    return _asked_for(opt) if hasattr(net, 'size_multiple') else window_of(net, opt)


def _asked_for(opt: dict[str, Any]) -> int:
    return int((opt.get('val') or {}).get('window_size') or 1)


@torch.no_grad()
def restore_batch(net: nn.Module, lq: Tensor, opt: dict[str, Any]) -> tuple[Tensor, bool]:
    """Restore a batch of one or more pictures.

    Args:
        net: the network, in eval mode.
        lq: (B, C, H, W), RGB in [0, 1].
        opt: the run's options: ``scale``, ``tile: {tile_size, tile_pad}`` and ``val: precision`` where given,
            ``network_g: window_size``, ``val: window_size`` (pictures are padded to multiples of it).

    Returns:
        (B, C, H * scale, W * scale) in float32, and whether it was put together from tiles.
    """
    scale = int(opt.get('scale') or 1)
    window = window_of(net, opt)
    tile_opt = opt.get('tile')
    forward = AnySize(net, padding_of(net, opt), scale, precision_of(opt))
    if tile_opt is None:
        tile: int | Literal['auto'] = 'auto'
        overlap = 2 * window
    else:  # published: tiles of tile_size, each with tile_pad pixels of context on all sides
        tile = int(tile_opt['tile_size']) + 2 * int(tile_opt.get('tile_pad', 0))
        overlap = 2 * int(tile_opt.get('tile_pad', 0))
    results, tiled = [], False
    for image in lq.split(1):
        result = tiled_forward(forward, image, scale=scale, tile=tile, overlap=overlap, multiple=window)
        results.append(result)
        tiled = tiled or forward.calls > 1
        forward.calls = 0
    return torch.cat(results), tiled
