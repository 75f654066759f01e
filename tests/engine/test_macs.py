"""MACs against the published figures, and against counts made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.engine.macs import count_macs

SMALL = {'embed_dim': 144, 'compress_ratio': 24, 'squeeze_factor': 24}
LARGE = {'depths': [6] * 12, 'num_heads': [6] * 12}


@pytest.mark.parametrize(
    ('upscale', 'changes', 'millions', 'giga'),
    [
        (4, {}, 20_772_507, 103.9),
        (2, SMALL, 9_473_471, 52.1),
        (4, SMALL, 9_621_183, 54.6),
        (4, LARGE, 40_846_575, 203.0),
    ],
)
def test_published_networks(upscale: int, changes: dict[str, object], millions: int, giga: float) -> None:
    options: dict[str, object] = {
        'window_size': 16, 'compress_ratio': 3, 'squeeze_factor': 30, 'conv_scale': 0.01, 'overlap_ratio': 0.5,
        'depths': [6] * 6, 'embed_dim': 180, 'num_heads': [6] * 6, 'mlp_ratio': 2, 'upsampler': 'pixelshuffle',
    }  # fmt: skip
    with torch.device('meta'):
        net = HAT(upscale=upscale, **{**options, **changes})
    macs = count_macs(net, (1, 3, 64, 64))
    assert sum(parameter.numel() for parameter in net.parameters()) == millions
    assert macs.total / 1e9 == pytest.approx(giga, abs=0.05)


class Attention(nn.Module):
    """Three linear maps and one attention over 6 tokens of width 8 with 2 heads."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.qkv = nn.Linear(8, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).reshape(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        if self.fused:
            return functional.scaled_dot_product_attention(query, key, value=value)
        return (query @ key.transpose(-2, -1)).softmax(-1) @ value


@pytest.mark.parametrize('fused', [True, False])
def test_both_ways_of_attention_count_the_same(fused: bool) -> None:
    macs = count_macs(Attention(fused), (5, 6, 8))
    assert macs.attention_products == 5 * 2 * 6 * 6 * (4 + 4)
    assert macs.without_attention_products == 5 * 6 * 8 * 24


def test_the_network_is_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert count_macs(net, (2, 3, 5, 7)).total == 2 * 5 * 7 * 3 * 4 * 9
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
