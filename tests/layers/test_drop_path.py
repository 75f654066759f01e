"""Stochastic depth where a branch is computed for the samples that keep it: as if it were multiplied afterwards."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.archs.hat_unet_arch import HATUNet
from hat_plugin.kernels.products import products_by
from hat_plugin.layers.residual import DropPath, Kept

DRAWS = {'all': (1, 1, 1), 'none': (0, 0, 0), 'some': (1, 0, 1), 'one': (0, 1, 0)}
SIZES: dict[str, Any] = {'window_size': 4, 'upscale': 1, 'drop_path_rate': 0.4}


@pytest.fixture(params=['HAT', 'HATUNet'])
def net(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module
    if request.param == 'HAT':
        made = HAT(embed_dim=16, depths=[3], num_heads=[2], squeeze_factor=4, conv_scale=0.5, **SIZES)
    else:
        made = HATUNet(embed_dim=8, depths=[1, 2], num_heads=[1, 2], refinement_depth=1, feed_forward='gated', **SIZES)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made.train()


def drawn(monkeypatch: pytest.MonkeyPatch, order: list[str]) -> None:
    masks = cycle([torch.tensor(DRAWS[name], dtype=torch.bool) for name in order])
    monkeypatch.setattr(DropPath, '_draw', lambda self, x: next(masks))


def outcome(net: nn.Module, x: Tensor, half: bool) -> list[Tensor]:
    with torch.autocast('cpu', torch.bfloat16, enabled=half):
        y = net(x)
    return [y, *torch.autograd.grad(y.float().square().sum(), [x, *net.parameters()])]


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.norm().clamp_min(1e-12))


@pytest.mark.parametrize('half', [False, True])
@pytest.mark.parametrize('products', ['auto', 'torch'])
@pytest.mark.parametrize('order', [['all'], ['some', 'none', 'one'], ['none'], ['one', 'all', 'some', 'none', 'all']])
def test_it_is_the_product_with_the_draw(net, monkeypatch, order: list[str], products: str, half: bool) -> None:
    x = torch.rand(3, 3, 8, 12, requires_grad=True)
    results = []
    for alone in (True, False):
        drawn(monkeypatch, order)
        if not alone:
            monkeypatch.setattr(DropPath, 'draw', lambda self, x: None if self.drop_prob else Kept())
        with products_by(products):
            results.append(outcome(net, x, half))
    for found, expected in zip(*results, strict=True):
        assert error(found, expected) < (5e-2 if half else 2e-5)


def test_left_out_samples_are_not_computed(net, monkeypatch) -> None:
    seen = []
    block = next(
        module for module in net.modules() if getattr(module, 'drop_path', None) and module.drop_path.drop_prob
    )
    block.mlp.fc2.register_forward_hook(lambda module, given, result: seen.append(len(result)))
    for order in ('all', 'some', 'one', 'none'):
        drawn(monkeypatch, [order])
        net(torch.rand(3, 3, 8, 8))
    assert seen == [3, 2, 1, 3]  # where none is kept its weights get gradients of 0, for which DDP waits


def test_random_numbers_are_those_of_the_layer_itself(net) -> None:
    x, states = torch.rand(3, 3, 8, 8), []
    for hooked in (False, True):
        if hooked:
            for module in net.modules():
                if isinstance(module, DropPath):
                    module.register_forward_hook(lambda *_: None)
        torch.manual_seed(3)
        net(x)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
