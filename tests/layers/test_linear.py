"""A linear layer with what is added to its result, in training: against modules called one by one."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from compared import error
from torch import Tensor, nn

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.kernels.products import products_by
from hat_plugin.layers.linear import Linear, add_linear
from hat_plugin.layers.local import CAB, ChannelAttention


def operands(dtype: torch.dtype = torch.float32) -> tuple[Linear, list[Tensor]]:
    """A layer; total, x, features and factor, leaves."""
    random = torch.Generator().manual_seed(0)
    shapes = (2, 5, 6, 12), (2, 5, 6, 8), (2, 5, 6, 12), (2, 1, 1, 12)
    torch.manual_seed(0)
    leaves = [torch.randn(shape, generator=random, dtype=dtype).requires_grad_() for shape in shapes]
    return Linear(8, 12).to(dtype), leaves


def one_by_one(layer: nn.Module, total: Tensor, x: Tensor, features: Tensor, factor: Tensor) -> Tensor:
    return total + layer(x) + features * factor


@pytest.mark.parametrize('by', ['auto', 'torch'])
@pytest.mark.parametrize('branch', [True, False])
def test_gradients_and_those_of_these(by: str, branch: bool) -> None:
    layer, leaves = operands()
    inputs = [*leaves[: 4 if branch else 2], *layer.parameters()]
    with products_by(by):
        found = add_linear(leaves[0], leaves[1], layer, (leaves[2], leaves[3]) if branch else None)
    expected = one_by_one(layer, *leaves) if branch else leaves[0] + layer(leaves[1])
    assert error(found, expected) < 1e-6
    slopes = []
    for result in (found, expected):
        first = torch.autograd.grad(result.pow(3).sum(), inputs, create_graph=True)
        total = sum(slope.square().sum() for slope in first)
        slopes.append([*first, *torch.autograd.grad(total, inputs)])
    for one, other in zip(*slopes, strict=True):
        assert error(one, other) < 1e-5


def test_gradcheck() -> None:
    layer, leaves = operands(torch.float64)
    assert torch.autograd.gradcheck(lambda a, b, c, d: add_linear(a, b, layer, (c, d)), leaves)


def test_under_autocast_the_total_keeps_its_type() -> None:
    layer, leaves = operands()
    with torch.autocast('cpu', torch.bfloat16):
        found = add_linear(leaves[0], leaves[1], layer, (leaves[2], leaves[3]))
    assert found.dtype == torch.float32
    inputs = [*leaves, *layer.parameters()]
    slopes = torch.autograd.grad(found.square().sum(), inputs)
    expected = torch.autograd.grad(one_by_one(layer, *leaves).square().sum(), inputs)
    for one, other in zip(slopes, expected, strict=True):
        assert one.dtype == torch.float32 and error(one, other) < 2e-2


def test_what_is_frozen_has_no_gradient_and_hooks_are_called() -> None:
    layer, leaves = operands()
    layer.weight.requires_grad_(False)
    add_linear(leaves[0], leaves[1], layer).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None and leaves[1].grad is not None
    calls: list[Tensor] = []
    layer.register_forward_hook(lambda module, given, made: calls.append(made))
    add_linear(*leaves[:2], layer)
    assert len(calls) == 1


def test_channel_attention_apart_is_that_of_the_module() -> None:
    """Its product is left to the caller; where somebody waits for the module's call, it is called."""
    torch.manual_seed(0)
    block, x = CAB(12, 3, 4), torch.randn(2, 6, 7, 12, requires_grad=True)
    expected = block(x)
    slopes = torch.autograd.grad(expected.square().sum(), x)[0]
    calls: list[Tensor] = []
    for hooked in (False, True):
        weigh = block.cab[3]
        assert isinstance(weigh, ChannelAttention)
        if hooked:
            weigh.register_forward_hook(lambda module, given, made: calls.append(made))
        features, weights = block.expand(block.first(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        assert weights.shape == (2, 1, 1, 12)
        assert error(features * weights, expected) < 1e-6
        assert error(torch.autograd.grad((features * weights).square().sum(), x)[0], slopes) < 1e-5
    assert len(calls) == 1


@pytest.mark.parametrize('by', ['auto', 'torch'])
@pytest.mark.parametrize('trains', [False, True])
def test_one_factor_of_all_samples(by: str, trains: bool) -> None:
    torch.manual_seed(0)
    layer, total, x, features = nn.Linear(12, 12), *torch.randn(3, 2, 8, 8, 12).unbind()
    factor = torch.randn(1, 1, 1, 12)
    with products_by(by), torch.set_grad_enabled(trains):
        found = add_linear(total, x, layer, (features, factor), factor=2.5)
        assert error(found.detach(), (total + 2.5 * layer(x) + features * factor).detach()) < 1e-6
        found = add_linear(total, x, layer, (features, factor))
        assert error(found.detach(), (total + layer(x) + features * factor).detach()) < 1e-6


@pytest.mark.parametrize('by', ['auto', 'torch'])
def test_a_block_whose_parts_are_hooked_trains_alike(by: str) -> None:
    """Of two samples; channel attention and the projection are called as modules then."""
    torch.manual_seed(0)
    net = HAT(embed_dim=16, depths=[1], num_heads=[2], window_size=4, squeeze_factor=4, drop_path_rate=0.0, upscale=1)
    x, calls = torch.rand(2, 3, 8, 8), Counter[str]()
    with products_by(by):
        expected = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
        for name, module in net.named_modules():
            if name.endswith(('attn.proj', 'cab.3')):
                module.register_forward_hook(lambda module, given, made: calls.update([type(module).__name__]))
        found = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    assert calls == {'Linear': 2, 'ChannelAttention': 1}, 'projections of HAB and OCAB'
    for one, other in zip(found, expected, strict=True):
        assert error(one, other) < 1e-4
