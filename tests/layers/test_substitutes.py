"""Kernels take the place of torch's own layers, and of nobody else's: not of subclasses, nor of hooked ones."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import remove_weight_norm, weight_norm

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.kernels.products import products_by
from hat_plugin.layers.precision import prepare_for_inference

SIZES: dict[str, Any] = {
    'embed_dim': 32, 'depths': [2], 'num_heads': [2], 'window_size': 4, 'squeeze_factor': 4, 'upscale': 1,
    'conv_scale': 0.5, 'compress_ratio': 2,
}  # fmt: skip
NORMED = ['attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2', 'conv_block.cab.0', 'conv_block.cab.2', 'conv_block.cab.3']


class Doubled(nn.LayerNorm):
    """Twice what a layer normalisation gives."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def network(**changes: Any) -> HAT:
    torch.manual_seed(0)
    net = HAT(**{**SIZES, **changes})
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net.eval()


def places(net: HAT) -> list[nn.Module]:
    """Layers of all kinds, in both kinds of blocks and after them."""
    group = net.layers[0]
    found = [group.residual_group.blocks[1].get_submodule(name) for name in NORMED[:-1]]
    overlapping = group.residual_group.overlap_attn
    return [*found, overlapping.qkv, overlapping.proj, overlapping.mlp.fc2, group.conv, net.conv_after_body]


@pytest.mark.parametrize('precision', ['fp32', 'mixed', 'bf16'])
@pytest.mark.parametrize('size', [(8, 12), (40, 72)])
def test_weights_that_a_hook_makes_are_those_of_the_pass(precision: str, size: tuple[int, int]) -> None:
    net = prepare_for_inference(network(), precision)
    x = torch.rand(1, 3, *size)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # deprecated; people's weights have it
        plain = net(x)
        layers = places(net)
        for layer in layers:
            weight_norm(layer)
            layer.weight_g.mul_(1.5)  # `weight` itself is stale until the next pass
        found = net(x)
        for layer in layers:
            remove_weight_norm(layer)
        expected = net(x)
    assert (expected - plain).abs().max() > 0.05
    assert (found - expected).abs().max() < (1e-5 if precision == 'fp32' else 0.03) * expected.abs().max()


def test_another_normalisation_is_called() -> None:
    net, x = network(norm_layer=Doubled), torch.rand(1, 3, 8, 12)
    with torch.no_grad():
        found = net(x)
        with products_by('torch'):
            assert (found - net(x)).abs().max() < 1e-5
    with torch.enable_grad():
        assert (found - net(x)).abs().max() < 1e-5  # as in training


@pytest.mark.parametrize('precision', ['fp32', 'mixed', 'bf16'])
@pytest.mark.parametrize('size', [(8, 12), (40, 72)])
def test_hooked_channel_attention_is_called(precision: str, size: tuple[int, int]) -> None:
    net, seen, x = prepare_for_inference(network(), precision), [], torch.rand(1, 3, *size)
    with torch.no_grad():
        expected = net(x)
        net.layers[0].residual_group.blocks[0].conv_block.cab[3].register_forward_hook(lambda *_: seen.append(1))
        found = net(x)
    assert seen == [1]
    assert (found - expected).abs().max() < (1e-5 if precision == 'fp32' else 0.03) * expected.abs().max()


@pytest.mark.parametrize('learning', [False, True])
def test_tangents_of_forward_mode_are_not_lost(learning: bool) -> None:
    net, x, along = network(), torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    with torch.set_grad_enabled(learning), torch.autograd.forward_ad.dual_level():
        y = net(torch.autograd.forward_ad.make_dual(x, along))
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    step = 1e-3
    net, x, along = net.double(), x.double(), along.double()
    with torch.no_grad():
        expected = (net(x + step * along) - net(x - step * along)) / (2 * step)
    assert (tangent.detach() - expected).norm() < 1e-3 * expected.norm()
