"""An MLP's gradients by the C++ kernel: against fp64, from run to run, of themselves, and what is refused."""

from __future__ import annotations

import pytest
import torch
from compared import error
from torch import Tensor, nn

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.engine.memory import estimate_training_bytes
from hat_plugin.kernels.feed_forward import feed_forward, feed_forward_gradient, plain_feed_forward
from hat_plugin.kernels.operands import Layer, Norm
from hat_plugin.kernels.products import products_by
from hat_plugin.layers.feed_forward import Mlp, add_feed_forward
from hat_plugin.layers.residual import DropPath

pytestmark = pytest.mark.usefixtures('by_cpp')


def tensors(*image: int, channels: int, hidden: int) -> list[Tensor]:
    """x, the gradient of the result, and the six parameters."""
    random = torch.Generator().manual_seed(channels)
    shapes = ((*image, channels), (*image, channels), (channels,), (channels,))
    shapes += ((hidden, channels), (hidden,), (channels, hidden), (channels,))
    return [torch.randn(shape, generator=random) for shape in shapes]


def layers(scale: Tensor, offset: Tensor, *pairs: Tensor | None) -> tuple[Norm, Layer, Layer]:
    return Norm(scale, offset, 1e-5), Layer(*pairs[:2]), Layer(*pairs[2:])


# (B, H, W, channels, hidden): vectors, panels and blocks whole and cut; fewer pixels than threads; one of each.
SIZES = [
    (1, 64, 64, 180, 360), (2, 7, 9, 13, 5), (2, 5, 31, 16, 32), (3, 4, 5, 33, 48), (1, 1, 1, 3, 3), (1, 1, 1, 5, 1),
    (1, 1, 97, 144, 288),
]  # fmt: skip


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_gradients(size: tuple[int, ...]) -> None:
    x, grad, *parameters = tensors(*size[:3], channels=size[3], hidden=size[4])
    inputs = [tensor.requires_grad_() for tensor in (x, *parameters)]
    out = feed_forward(x, *layers(*parameters))
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = plain_feed_forward(wide[0], *layers(*wide[1:]))
    assert error(out, expected) < 3e-6
    found = torch.autograd.grad(out, inputs, grad)
    for one, other in zip(found, torch.autograd.grad(expected, wide, grad.double()), strict=True):
        assert one.shape == other.shape
        assert error(one, other) < 1e-5


def test_same_again_and_by_one_thread_as_by_many() -> None:
    x, grad, *parameters = tensors(1, 40, 41, channels=20, hidden=40)
    first, second = (feed_forward_gradient(x, grad, *layers(*parameters)) for _ in range(2))
    assert all(map(torch.equal, first, second))
    before = torch.get_num_threads()
    try:
        for threads in (1, 5):
            torch.set_num_threads(threads)
            for one, other in zip(feed_forward_gradient(x, grad, *layers(*parameters)), first, strict=True):
                assert error(one, other.double()) < 1e-5
    finally:
        torch.set_num_threads(before)


def test_without_biases_any_strides_and_frozen_weights() -> None:
    x, grad, scale, offset, up, _, down, _ = tensors(2, 6, 5, channels=12, hidden=20)
    x, grad = (tensor.transpose(1, 2) for tensor in (x, grad))
    inputs = [tensor.requires_grad_() for tensor in (x, scale, down)]
    given = layers(scale, offset, up.t().contiguous().t(), None, down, None)
    found = torch.autograd.grad(feed_forward(x, *given), inputs, grad)
    expected = torch.autograd.grad(plain_feed_forward(x, *given), inputs, grad)
    for one, other in zip(found, expected, strict=True):
        assert error(one, other.double()) < 1e-5


def test_gradients_of_gradients() -> None:
    x, grad, *parameters = tensors(1, 3, 4, channels=6, hidden=9)
    inputs = [tensor.requires_grad_() for tensor in (x, *parameters)]
    found = []
    for computed in (feed_forward, plain_feed_forward):
        (slope,) = torch.autograd.grad(computed(x, *layers(*parameters)), x, grad, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), inputs, allow_unused=True))
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        assert one is None or error(one, other.double()) < 1e-5


def test_a_weight_changed_in_between_is_noticed() -> None:
    x, grad, *parameters = tensors(1, 3, 4, channels=6, hidden=9)
    out = feed_forward(x.requires_grad_(), *layers(*parameters))
    parameters[2].mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        out.backward(grad)


def test_what_does_not_fit_is_refused() -> None:
    x, grad, *parameters = tensors(1, 3, 4, channels=6, hidden=9)
    norm, up, down = layers(*parameters)
    with pytest.raises(ValueError, match='does not fit'):
        feed_forward_gradient(x, grad[:, :2], norm, up, down)
    with pytest.raises(ValueError, match='back to as many'):
        feed_forward_gradient(x, x.new_zeros(1, 3, 4, 5), norm, up, Layer(x.new_zeros(5, 9)))
    with pytest.raises(ValueError, match='fp32 on the CPU'):
        feed_forward_gradient(x, grad.double(), norm, up, down)


@pytest.mark.parametrize('drop_path', [0.0, 0.5])
def test_it_is_what_trains_a_layer_and_keeps_only_the_input(monkeypatch, drop_path: float) -> None:
    monkeypatch.setattr(DropPath, '_draw', lambda self, x: torch.ones(len(x), dtype=torch.bool))
    torch.manual_seed(0)
    norm, mlp, path = nn.LayerNorm(24), Mlp(24, 48), DropPath(drop_path).train()
    x = torch.randn(2, 8, 8, 24, requires_grad=True)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    gradients, held = [], []
    for name in ('cpp', 'torch'):
        torch.manual_seed(1)
        kept.clear()
        with products_by(name), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = add_feed_forward(x, norm, mlp, path)
        gradients.append(torch.autograd.grad(out.square().sum(), [x, *norm.parameters(), *mlp.parameters()]))
        held.append(sum(size for size in kept.values() if size >= x.numel()))
    assert held == [x.numel(), 3 * x.numel()]  # by torch x, and twice as much before the GELU
    for one, other in zip(*gradients, strict=True):
        assert error(one, other.double()) < 1e-5


def test_estimates_of_memory_know_it() -> None:
    net = HAT(embed_dim=16, depths=[2], num_heads=[2], window_size=8, mlp_ratio=2.0, squeeze_factor=4, upscale=1)
    sizes = {}
    for name in ('cpp', 'torch'):
        with products_by(name):
            sizes[name] = estimate_training_bytes(net.train(), (2, 3, 64, 64))
    before_gelu = 3 * 2 * 64 * 64 * 32 * 4  # of three MLPs
    assert 0.95 * before_gelu < sizes['torch'] - sizes['cpp'] < 1.5 * before_gelu
