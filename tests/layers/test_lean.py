"""Layers that read what is made again: values, gradients, what is kept, and when they run as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hat_plugin.kernels.products import products_by
from hat_plugin.layers.convolution import Conv2d
from hat_plugin.layers.lean import through
from hat_plugin.layers.linear import Linear


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def cases() -> dict[str, tuple[nn.Module, list[nn.Module]]]:
    """A step and what reads it, over 20 channels."""
    depthwise = nn.Conv2d(20, 20, 3, padding=1, groups=20, bias=False)
    return {
        'norm to linear': (nn.LayerNorm(20), [Linear(20, 60)]),
        'norm to both': (nn.LayerNorm(20), [nn.Linear(20, 24, bias=False), Conv2d(20, 16, 3, padding=1)]),
        'norm to all and itself': (nn.LayerNorm(20), [Linear(20, 5), nn.Conv2d(20, 7, 3, stride=2), nn.Identity()]),
        'norm without offset': (nn.LayerNorm(20, bias=False), [Linear(20, 5)]),
        'norm without weights': (nn.LayerNorm(20, elementwise_affine=False), [Linear(20, 5)]),
        'GELU to linear': (nn.GELU(), [Linear(20, 10)]),
        'GELU to convolutions': (nn.GELU(), [depthwise, nn.Conv2d(20, 3, 1)]),
    }  # fmt: skip


def as_they_are(x: Tensor, step: nn.Module, *layers: nn.Module) -> tuple[Tensor, ...]:
    y = step(x)
    return tuple(
        layer(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if isinstance(layer, nn.Conv2d) else layer(y)
        for layer in layers
    )


def slopes(
    compute: Callable[..., tuple[Tensor, ...]], x: Tensor, step: nn.Module, layers: list[nn.Module]
) -> list[Tensor]:
    inputs = [x, *step.parameters(), *(p for layer in layers for p in layer.parameters())]
    results = compute(x, step, *layers)
    loss = sum((result.float() * torch.linspace(-1, 1, result.shape[-1])).square().sum() for result in results)
    return [*results, *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize('products', ['auto', 'torch'])
@pytest.mark.parametrize('name', cases())
def test_values_and_gradients(name: str, products: str) -> None:
    step, layers = cases()[name]
    for parameter in step.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 6, 5, 20, requires_grad=True)
    with products_by(products):
        found, expected = slopes(through, x, step, layers), slopes(as_they_are, x, step, layers)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize('name', cases())
def test_gradcheck(name: str) -> None:
    step, layers = cases()[name]
    for module in (step, *layers):
        module.double()
    x = torch.randn(1, 3, 3, 20, dtype=torch.float64, requires_grad=True)

    def compute(x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        return through(x, step, *layers)

    inputs = (x, *(p for module in (step, *layers) for p in module.parameters()))
    assert torch.autograd.gradcheck(compute, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(compute, inputs, fast_mode=True)


def kept(compute: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], dict[int, int]]:
    """What it gives, and the bytes of each storage that it keeps for gradients."""
    sizes: dict[int, int] = {}
    tensors: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        tensors.append(tensor)  # so that no address comes up twice
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        return compute(), sizes


@pytest.mark.parametrize('name', cases())
def test_only_the_input_is_kept(name: str) -> None:
    step, layers = cases()[name]
    x = torch.randn(2, 32, 32, 20, requires_grad=True)
    large = x.untyped_storage().nbytes() // 2
    ours = [size for size in kept(lambda: through(x, step, *layers))[1].values() if size > large]
    assert ours == [x.untyped_storage().nbytes()]
    plain = [size for size in kept(lambda: as_they_are(x, step, *layers))[1].values() if size > large]
    assert len(plain) > 1


@pytest.mark.parametrize('name', cases())
def test_autocast(name: str) -> None:
    step, layers = cases()[name]
    x = torch.randn(2, 6, 5, 20, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        found, expected = slopes(through, x, step, layers), slopes(as_they_are, x, step, layers)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).float().norm() < 0.02 * other.float().norm()


def test_converted_layers_over_a_stream_in_fp32() -> None:
    norm, linear, convolution = nn.LayerNorm(20), Linear(20, 4).bfloat16(), Conv2d(20, 4, 3, padding=1).bfloat16()
    x = torch.randn(2, 6, 5, 20, requires_grad=True)
    results = through(x, norm, linear, convolution, nn.Identity())
    assert [result.dtype for result in results] == [torch.bfloat16, torch.bfloat16, torch.float32]
    results[1].float().sum().backward()
    assert (x.grad.dtype, convolution.weight.grad.dtype) == (torch.float32, torch.bfloat16)
    with torch.no_grad():
        for one, other in zip(through(x, norm, linear, convolution, nn.Identity()), results, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize('first', [True, False])
def test_itself_may_come_first_and_keeps_its_own_precision(first: bool) -> None:
    """Gradients that come in are left as they are, and are not rounded to what the layers multiply in."""
    norm, linear = nn.LayerNorm(20), Linear(20, 4)
    layers = [nn.Identity(), linear] if first else [linear, nn.Identity()]
    x = torch.randn(2, 6, 5, 20, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        results = through(x, norm, *layers)
    grads = [torch.randn_like(result) * (1e-6 if result.shape[-1] == 4 else 1) for result in results]
    before = [grad.clone() for grad in grads]
    (found,) = torch.autograd.grad(results, x, grads)
    assert all(map(torch.equal, grads, before))
    (expected,) = torch.autograd.grad(norm(x), x, grads[not first])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_frozen_parts_get_no_gradient() -> None:
    norm, linear, convolution = nn.LayerNorm(20), Linear(20, 4), nn.Conv2d(20, 4, 3, padding=1)
    linear.weight.requires_grad_(False)
    norm.bias.requires_grad_(False)
    x = torch.randn(2, 6, 5, 20)
    sum(result.square().sum() for result in through(x, norm, linear, convolution)).backward()
    assert linear.weight.grad is None
    assert norm.bias.grad is None
    twin, twins = copy.deepcopy(norm), [copy.deepcopy(linear), copy.deepcopy(convolution)]
    for module in (twin, *twins):
        module.zero_grad()
    sum(result.square().sum() for result in as_they_are(x, twin, *twins)).backward()
    for one, other in zip((norm, linear, convolution), (twin, *twins), strict=True):
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            assert p.grad is None or torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-5)


def test_a_weight_changed_in_between_is_noticed() -> None:
    norm, linear = nn.LayerNorm(20), Linear(20, 4)
    (y,) = through(torch.randn(2, 6, 5, 20), norm, linear)
    with torch.no_grad():
        norm.weight.mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        y.sum().backward()


def test_weights_given_for_a_call_are_those_of_its_gradients() -> None:
    """`functional_call` puts others in the modules' place, and takes them back before the backward pass."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(20), Linear(20, 4)

        def forward(self, x: Tensor) -> Tensor:
            return through(x, self.norm, self.linear)[0]

    pair, x = Pair(), torch.randn(2, 6, 5, 20)
    other = {name: torch.randn_like(p).requires_grad_() for name, p in pair.named_parameters()}
    torch.func.functional_call(pair, other, x).square().sum().backward()
    twin = Pair()
    twin.load_state_dict({name: p.detach() for name, p in other.items()})
    as_they_are(x, twin.norm, twin.linear)[0].square().sum().backward()
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(other[name].grad, parameter.grad, rtol=1e-4, atol=1e-3)
    grads = torch.func.grad(lambda p: torch.func.functional_call(pair, p, x).square().sum())(other)
    torch.testing.assert_close(grads, {name: p.grad for name, p in other.items()}, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('which', [0, 1])
def test_hooks_are_called(which: int) -> None:
    modules, calls = (nn.LayerNorm(20), Linear(20, 4)), []
    modules[which].register_forward_hook(lambda module, *_: calls.append(module))
    through(torch.randn(2, 6, 5, 20), *modules)
    assert calls == [modules[which]]


def test_inside_a_checkpoint_nothing_is_kept() -> None:
    norm, linear = nn.LayerNorm(20), Linear(20, 40)
    x = torch.randn(2, 32, 32, 20, requires_grad=True)

    def twice(x: Tensor) -> Tensor:
        return through(through(x, norm, linear)[0].narrow(-1, 0, 20), nn.GELU(), linear)[0]

    gradients = []
    for compute in (twice, lambda x: checkpoint(twice, x, use_reentrant=False)):
        (out, *_), sizes = kept(lambda compute=compute: (compute(x),))
        gradients.append(torch.autograd.grad(out.square().sum(), [x, *norm.parameters(), *linear.parameters()]))
    assert all(map(torch.equal, *gradients))
    assert not [size for size in sizes.values() if size > x.untyped_storage().nbytes()]


def test_compiled_it_is_one_graph() -> None:
    norm, linear, convolution = nn.LayerNorm(20), Linear(20, 4), Conv2d(20, 4, 3, padding=1)
    x = torch.randn(2, 6, 5, 20, requires_grad=True)
    compiled = torch.compile(lambda x: through(x, norm, linear, convolution), fullgraph=True, backend='aot_eager')
    for one, other in zip(compiled(x), through(x, norm, linear, convolution), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
