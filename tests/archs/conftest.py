"""Small networks with weights that hide nothing: biases and tables are far from zero, as trained ones are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hat_plugin.archs.hat_arch import HAT

SMALL: dict[str, Any] = {
    'embed_dim': 12,
    'depths': [2],
    'num_heads': [2],
    'window_size': 8,
    'compress_ratio': 2,
    'squeeze_factor': 4,
    'conv_scale': 1.0,
    'mlp_ratio': 2.0,
    'upscale': 2,
    'upsampler': 'pixelshuffle',
    'num_feat': 8,
}


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter with values that matter, the same for the same names and shapes; in eval mode afterwards."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(net.named_parameters()):
            value = torch.randn(parameter.shape, generator=generator)
            if 'table' in name or parameter.ndim == 1:
                value = 0.5 * value + float('norm' in name and name.endswith('weight'))
                value += float(name.endswith('cab.3.attention.1.bias'))  # a ReLU follows, which should not be dead
            elif 'absolute_pos_embed' not in name:
                value = value * 0.8 / parameter[0].numel() ** 0.5
            parameter.copy_(value)
    return net.eval()


@pytest.fixture
def small() -> Callable[..., HAT]:
    """``small(upscale=3, ...)``: a HAT of a few thousand parameters with random weights, in eval mode."""

    def build(seed: int = 0, **changes: Any) -> HAT:
        net = randomise(HAT(**{**SMALL, **changes}), seed)
        assert isinstance(net, HAT)
        return net

    return build


@pytest.fixture
def pair(small: Callable[..., HAT]) -> Callable[..., tuple[HAT, nn.Module]]:
    """``pair(...)``: such a HAT, and spandrel's with the same weights."""
    reference = pytest.importorskip('spandrel.architectures.HAT').HAT

    def build(**changes: Any) -> tuple[HAT, nn.Module]:
        net = small(**changes)
        other = reference(**{**SMALL, **changes}).eval()
        other.load_state_dict(net.state_dict(), strict=True)
        return net, other

    return build
