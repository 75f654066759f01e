"""Gradients in bf16 by AMX, emulated and, where there is one, by the processor: against fp64, and in layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compared import error
from tiles import in_use, normalisation, normed, random
from torch import Tensor, nn

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.engine.memory import estimate_training_bytes, is_out_of_memory
from hat_plugin.kernels.feed_forward import feed_forward, plain_feed_forward
from hat_plugin.kernels.operands import Layer, Norm
from hat_plugin.kernels.products import products_by
from hat_plugin.kernels.tile_gradients import convolution_gradient, feed_forward_gradient, linear_gradient
from hat_plugin.layers.feed_forward import Mlp, add_feed_forward
from hat_plugin.layers.residual import DropPath


def operands(
    *shape: int, hidden: int, stream: torch.dtype = torch.float32, bias: bool = True
) -> tuple[Tensor, Tensor, Norm, Layer, Layer]:
    """x, the gradient of the result, and what the MLP is made of."""
    channels = shape[-1]
    x, grad = ((random(*shape, seed=seed) * 3 + 1).to(stream) for seed in (0, 8))
    up, down = random(hidden, channels, seed=1) / channels**0.5, random(channels, hidden, seed=5) / hidden**0.5
    biases = (random(hidden, seed=2), random(channels, seed=6)) if bias else (None, None)
    return x, grad, normalisation(channels), Layer(up, biases[0]), Layer(down, biases[1])


def wide(x: Tensor, norm: Norm, up: Layer, down: Layer) -> list[Tensor]:
    """Leaves in fp64."""
    tensors = x, norm.weight, norm.bias, up.weight, up.bias, down.weight, down.bias
    return [tensor.double().requires_grad_() for tensor in tensors if tensor is not None]


# What goes round a layer, the types of its input and of its result's gradient.
AROUND = [
    ('norm', torch.float32, torch.bfloat16), ('norm', torch.bfloat16, torch.bfloat16),
    ('scaled', torch.bfloat16, torch.float32), ('scaled', torch.bfloat16, torch.bfloat16),
    ('nothing', torch.float32, torch.float32),
]  # fmt: skip


@pytest.mark.parametrize(('around', 'stream', 'kind'), AROUND)
@pytest.mark.parametrize(
    'size', [(1, 20, 30, 180, 540), (2, 7, 9, 13, 5), (3, 5, 31, 33, 48), (1, 1, 1, 3, 3), (1, 1, 257, 16, 17)], ids=str
)
def test_a_layer(amx, size: tuple[int, ...], around: str, stream: torch.dtype, kind: torch.dtype) -> None:
    """Of a normalised input, of which something else has a gradient, too; with a branch added times a factor."""
    *image, inputs, outputs = size
    x, grad = (random(*image, inputs, seed=0) * 3 + 1).to(stream), random(*image, outputs, seed=8).to(kind)
    layer = Layer(random(outputs, inputs, seed=1) / inputs**0.5, random(outputs, seed=2))
    named: dict[str, Any] = {}
    leaves = [tensor.double().requires_grad_() for tensor in (x, layer.weight, layer.bias)]
    y = leaves[0]
    if around == 'norm':
        named = {'norm': normalisation(inputs), 'add': random(*image, inputs, seed=9)}
        leaves += [tensor.double().requires_grad_() for tensor in named['norm'][:2]]
        y = F.layer_norm(y, (inputs,), *leaves[3:], 1e-5)
    total = (F.linear(y, *leaves[1:3]) * grad.double()).sum()
    if around == 'norm':
        total = total + (y * named['add'].double()).sum()
    if around == 'scaled':
        named = {'scaled': (random(*image, outputs, seed=9), random(image[0], 1, 1, outputs, seed=10))}
        leaves += [tensor.double().requires_grad_() for tensor in named['scaled']]
        total = total + (leaves[3] * leaves[4] * grad.double()).sum()
    found = [tensor for tensor in linear_gradient(x, grad, layer, **named, library=amx) if tensor is not None]
    assert found[0].dtype == stream and found[1].dtype == torch.float32
    for one, leaf, expected in zip(found, leaves, torch.autograd.grad(total, leaves), strict=True):
        assert one.shape == leaf.shape and one.is_contiguous()
        assert error(one, expected) < 2e-2


# (B, H, W, channels, hidden): tiles, squares and spans of pixels whole and cut; one of each; many channels.
SIZES = [
    (1, 20, 30, 180, 360), (2, 7, 9, 13, 5), (1, 17, 31, 33, 48), (1, 1, 1, 3, 3), (1, 1, 257, 16, 17),
    (1, 3, 5, 400, 40),
]  # fmt: skip


@pytest.mark.parametrize('stream', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_an_mlp(amx, size: tuple[int, ...], stream: torch.dtype) -> None:
    x, grad, norm, up, down = operands(*size[:4], hidden=size[4], stream=stream)
    leaves = wide(x, norm, up, down)
    layers = Norm(leaves[1], leaves[2], norm.eps), Layer(*leaves[3:5]), Layer(*leaves[5:])
    expected = torch.autograd.grad(plain_feed_forward(leaves[0], *layers), leaves, grad.double())
    found = feed_forward_gradient(x, grad, norm, up, down, library=amx)
    assert [tensor.dtype for tensor in found] == [stream, *6 * [torch.float32]]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.is_contiguous()
        assert error(one, other) < 2e-2


@pytest.mark.parametrize('stream', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ('size', 'outputs'), [((1, 16, 64, 180), 60), ((2, 9, 63, 31), 16), ((3, 1, 1, 16), 33), ((1, 2, 130, 64), 180)]
)
def test_a_convolution(amx, size: tuple[int, ...], outputs: int, stream: torch.dtype) -> None:
    """Of an image as it is, and of one that is normalised first, with zeros around that."""
    x, grad = (random(*size, seed=0) * 3 + 1).to(stream), random(*size[:3], outputs, seed=8)
    for norm in (None, normalisation(size[3])):
        image = x.double() if norm is None else normed(x, norm)
        leaves = [
            torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in ((outputs, size[3], 3, 3), outputs)
        ]
        made = F.conv2d(image.permute(0, 3, 1, 2), *leaves, padding=1).permute(0, 2, 3, 1)
        found = convolution_gradient(x, grad, norm=norm, library=amx)
        for one, leaf, expected in zip(found, leaves, torch.autograd.grad(made, leaves, grad.double()), strict=True):
            assert one.shape == leaf.shape and one.dtype == torch.float32
            assert error(one, expected) < 1e-2


@pytest.mark.parametrize('of', ['an MLP', 'a layer', 'a convolution'])
def test_the_same_again_and_by_one_thread_as_by_many(amx, of: str) -> None:
    x, grad, norm, up, down = operands(1, 40, 41, 20, hidden=40)

    def gradients() -> tuple[Tensor, ...]:
        if of == 'an MLP':
            return feed_forward_gradient(x, grad, norm, up, down, library=amx)
        if of == 'a layer':
            return linear_gradient(x, torch.cat([grad, grad], -1), up, norm=norm, library=amx)[:5]
        return convolution_gradient(x, grad.bfloat16(), library=amx)

    first = gradients()
    assert all(map(torch.equal, first, gradients()))
    before = torch.get_num_threads()
    try:
        for threads in (1, 5):
            torch.set_num_threads(threads)
            for one, other in zip(gradients(), first, strict=True):
                assert error(one, other) < 1e-5
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize('drop_path', [0.0, 0.5])
def test_it_is_what_trains_a_layer_under_autocast_and_keeps_only_the_input(amx, monkeypatch, drop_path: float) -> None:
    in_use(amx, monkeypatch)
    monkeypatch.setattr(DropPath, '_draw', lambda self, x: torch.ones(len(x), dtype=torch.bool))
    torch.manual_seed(0)
    norm, mlp, path = nn.LayerNorm(24), Mlp(24, 48), DropPath(drop_path).train()
    x, leaves = torch.randn(2, 8, 8, 24, requires_grad=True), [*norm.parameters(), *mlp.parameters()]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    gradients, held = {}, []
    for name, half in (('cpp', True), ('torch', True), ('torch', False)):
        torch.manual_seed(1)
        kept.clear()
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with products_by(name), torch.autocast('cpu', torch.bfloat16, enabled=half), hooks:
            out = add_feed_forward(x, norm, mlp, path)
        assert out.dtype == torch.float32
        gradients[name if half else 'exact'] = torch.autograd.grad(out.square().sum(), [x, *leaves])
        held.append(sum(size for size in kept.values() if size >= x.numel()))
    assert held[0] == x.numel() < held[1]
    for one, other, exact in zip(*(gradients[name] for name in ('cpp', 'torch', 'exact')), strict=True):
        assert one.dtype == torch.float32
        assert (one - exact).norm() < 1.5 * (other - exact).norm()


def test_of_weights_in_bf16_without_biases_any_strides_and_frozen_ones(amx, monkeypatch) -> None:
    in_use(amx, monkeypatch)
    x, grad, norm, up, down = operands(2, 6, 5, 12, hidden=20, bias=False)
    x, grad = (tensor.transpose(1, 2) for tensor in (x, grad))
    up = Layer(up.weight.t().contiguous().t())
    inputs = [tensor.requires_grad_() for tensor in (x, norm.weight, down.weight)]
    found = torch.autograd.grad(feed_forward(x, norm, up, down), inputs, grad)
    expected = torch.autograd.grad(plain_feed_forward(x, norm, up, down), inputs, grad)
    for leaf, one, other in zip(inputs, found, expected, strict=True):
        assert one.dtype == leaf.dtype and error(one, other) < 2e-2


def test_gradients_of_gradients(amx, monkeypatch) -> None:
    in_use(amx, monkeypatch)
    x, grad, norm, up, down = operands(1, 3, 4, 6, hidden=9)
    inputs = [x, norm.weight, norm.bias, *up[:2], *down[:2]]
    found = []
    for computed in (feed_forward, plain_feed_forward):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        out = computed(leaves[0], Norm(leaves[1], leaves[2], 1e-5), Layer(*leaves[3:5]), Layer(*leaves[5:]))
        (slope,) = torch.autograd.grad(out, leaves[0], grad, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), leaves, allow_unused=True))
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        assert one is None or error(one, other) < 1e-5


def test_estimates_of_memory_know_it(amx, monkeypatch) -> None:
    in_use(amx, monkeypatch)
    net = HAT(embed_dim=16, depths=[2], num_heads=[2], window_size=8, mlp_ratio=2.0, squeeze_factor=4, upscale=1)
    sizes = {}
    for name in ('cpp', 'torch'):
        with products_by(name):
            sizes[name] = estimate_training_bytes(net.train(), (2, 3, 64, 64), amp='bf16')
    before_gelu = 3 * 2 * 64 * 64 * 32 * 2  # of three MLPs
    assert 0.95 * before_gelu < sizes['torch'] - sizes['cpp'] < 2 * before_gelu


def test_what_does_not_fit_is_refused(emulated) -> None:
    """Beyond is raw memory."""
    x, grad, norm, up, down = operands(1, 3, 4, 6, hidden=9)
    with pytest.raises(ValueError, match='does not fit'):
        feed_forward_gradient(x, grad[:, :2], norm, up, down, library=emulated)
    with pytest.raises(ValueError, match='back to as many'):
        feed_forward_gradient(x, grad[..., :5], norm, up, Layer(down.weight[:5]), library=emulated)
    with pytest.raises(ValueError, match=r'gradient torch\.bfloat16'):
        feed_forward_gradient(x, grad.bfloat16(), norm, up, down, library=emulated)
    with pytest.raises(ValueError, match='give torch.float32'):
        feed_forward_gradient(x, grad, norm, Layer(up.weight.float()), down, library=emulated)
    with pytest.raises(ValueError, match=r'add \(1, 3, 4, 6\) does not fit'):
        linear_gradient(x, grad, up, library=emulated)
    grad = random(1, 3, 4, 9, seed=0)
    with pytest.raises(ValueError, match=r'add \(1, 3, 4, 6\), torch\.float32: give \(1, 3, 4, 6\), bf16'):
        linear_gradient(x, grad, up, norm=norm, add=x, library=emulated)
    with pytest.raises(ValueError, match=r'scaled \(1, 3, 4, 6\)'):
        linear_gradient(x, grad, up, scaled=(x, grad[:, :1, :1]), library=emulated)
    with pytest.raises(ValueError, match='give .B, H, W, C. each, and bf16'):
        convolution_gradient(x, grad.float(), library=emulated)
    with pytest.raises(ValueError, match=r'add \(1, 3, 3, 9\) does not fit'):
        convolution_gradient(x, grad[:, :, :3], library=emulated)


def test_without_memory_or_amx_it_says_so() -> None:
    given = operands(1, 3, 4, 6, hidden=9)
    for code, message in ((1, "no memory left for an MLP's gradients over 12 pixels"), (2, 'no AMX')):
        library = SimpleNamespace(hat_tile_feed_forward_gradient=lambda call, code=code: code)
        with pytest.raises(RuntimeError, match=message) as caught:
            feed_forward_gradient(*given, library=library)
        assert is_out_of_memory(caught.value) == (code == 1)
    with pytest.raises(RuntimeError, match="no memory left for a convolution's gradients over 12 pixels"):
        library = SimpleNamespace(hat_tile_convolution_gradient=lambda call: 1)
        convolution_gradient(given[0], given[1].bfloat16(), library=library)
    empty = SimpleNamespace(hat_tile_linear_gradient=lambda call: 1)
    with pytest.raises(RuntimeError, match="no memory left for a layer's gradients over 12 pixels"):
        linear_gradient(given[0], given[1], Layer(random(6, 6, seed=0)), library=empty)
