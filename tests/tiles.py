"""What tests of the kernels for AMX have in common."""

from __future__ import annotations

import ctypes

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hat_plugin.kernels import tile_blocks, tile_gradients, tile_products
from hat_plugin.kernels.operands import Norm

SMALL = {
    'embed_dim': 32, 'depths': [2], 'num_heads': [2], 'window_size': 8, 'compress_ratio': 2, 'squeeze_factor': 4,
    'conv_scale': 1.0, 'mlp_ratio': 2.0, 'upscale': 2, 'upsampler': 'pixelshuffledirect',
}  # fmt: skip


def random(*shape: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def normalisation(channels: int) -> Norm:
    return Norm(random(channels, seed=3, dtype=torch.float32), random(channels, seed=4), 1e-5)


def normed(x: Tensor, norm: Norm) -> Tensor:
    return F.layer_norm(x.double(), x.shape[-1:], norm.weight.double(), norm.bias.double(), norm.eps)


def in_use(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library for all that AMX does, till the end of a test."""
    monkeypatch.setattr(tile_products, 'load', lambda: library)
    for module in (tile_products, tile_blocks, tile_gradients):
        monkeypatch.setattr(module, 'require', lambda: library)
