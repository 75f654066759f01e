"""Linear layers in bf16 by AMX, emulated and, where there is one, by the processor: against formulas, in a network."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from compared import error
from tiles import SMALL, in_use, normalisation, normed, random
from torch import Tensor

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.engine.memory import is_out_of_memory
from hat_plugin.kernels import tile_blocks, tile_gradients, tile_products
from hat_plugin.kernels.operands import Layer
from hat_plugin.kernels.products import products_by
from hat_plugin.layers.convolution import Conv2d
from hat_plugin.layers.precision import prepare_for_inference


@pytest.mark.parametrize('stream', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(('inputs', 'outputs'), [(180, 540), (32, 32), (7, 50), (64, 17), (225, 16)])
def test_linear(amx, inputs: int, outputs: int, stream: torch.dtype) -> None:
    """Normalised; and with what is added: an image, and one that has a factor for each channel."""
    x = (random(2, 9, 11, inputs, seed=0) * 3 + 1).to(stream)
    weight, bias, norm = random(outputs, inputs, seed=1) / inputs**0.5, random(outputs, seed=2), normalisation(inputs)
    found, found_normed = tile_products.linear(x, Layer(weight, bias), norm=norm, library=amx)
    assert found.dtype == found_normed.dtype == torch.bfloat16
    assert error(found_normed, normed(x, norm)) < 5e-3
    assert error(found, F.linear(normed(x, norm), weight.double(), bias.double())) < 1e-2
    attended, features = x.bfloat16(), random(2, 9, 11, outputs, seed=5)
    add = random(2, 9, 11, outputs, seed=6).to(stream)
    for samples in (1, 2):
        factor = random(samples, 1, 1, outputs, seed=7)
        call = attended, Layer(weight)
        found, same = tile_products.linear(*call, add=add, scaled=(features, factor), library=amx)
        expected = F.linear(attended.double(), weight.double()) + add.double() + features.double() * factor.double()
        assert found.dtype == stream and same is attended
        assert error(found, expected) < (2e-6 if stream == torch.float32 else 5e-3)


@pytest.mark.parametrize('stream', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(('channels', 'hidden'), [(180, 360), (5, 3), (48, 100)])
def test_feed_forward(amx, channels: int, hidden: int, stream: torch.dtype) -> None:
    x, norm = random(1, 3, 50, channels, seed=0).to(stream), normalisation(channels)
    up = Layer(random(hidden, channels, seed=1) / channels**0.5, random(hidden, seed=2))
    down = Layer(random(channels, hidden, seed=5) / hidden**0.5, random(channels, seed=6))
    y = F.gelu(F.linear(normed(x, norm), up.weight.double(), up.bias.double()))
    expected = x.double() + F.linear(y, down.weight.double(), down.bias.double())
    found = tile_products.feed_forward(x, norm, up, down, library=amx)
    assert found.dtype == stream and error(found, expected) < 1e-2
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(tile_products.feed_forward(x, norm, up, down, library=amx), found)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize('stream', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ('inputs', 'outputs', 'size'),
    [(180, 60, (16, 64)), (16, 33, (1, 1)), (31, 16, (9, 63)), (64, 180, (2, 130)), (200, 32, (20, 5))],
)
def test_convolution(amx, inputs: int, outputs: int, size: tuple[int, int], stream: torch.dtype) -> None:
    """Of what was normalised, with zeros around that; with a GELU, or an image that is added; in either type."""
    x = (random(2, *size, inputs, seed=0) * 3 + 1).to(stream)
    kernel, bias, norm = random(outputs, inputs, 3, 3, seed=1), random(outputs, seed=2), normalisation(inputs)
    kernel = (kernel / (9 * inputs) ** 0.5).contiguous(memory_format=torch.channels_last)

    def expected(image: Tensor, bias: Tensor | None) -> Tensor:
        wide = image.double().permute(0, 3, 1, 2), kernel.double(), bias if bias is None else bias.double()
        return F.conv2d(*wide, padding=1).permute(0, 2, 3, 1)

    found = tile_products.convolution(x, Layer(kernel, bias, gelu=True), norm=norm, library=amx)
    assert found.dtype == torch.bfloat16
    assert error(found, F.gelu(expected(normed(x, norm), bias))) < 1e-2
    add = random(2, *size, outputs, seed=6).to(stream)
    half = x.bfloat16()
    found = tile_products.convolution(half, Layer(kernel), add=add, library=amx)
    assert found.dtype == stream
    assert error(found, expected(half, None) + add.double()) < (2e-6 if stream == torch.float32 else 5e-3)
    means = torch.empty(2, outputs)
    found = tile_products.convolution(half, Layer(kernel.contiguous(), bias), dtype=stream, means=means, library=amx)
    assert found.dtype == stream
    torch.testing.assert_close(means, found.double().mean((1, 2)).float(), rtol=1e-5, atol=1e-5)
    assert error(found, expected(half, bias)) < (2e-6 if stream == torch.float32 else 5e-3)
    turned = tile_products.convolution(half.transpose(1, 2), Layer(kernel.transpose(2, 3), bias), library=amx)
    assert error(turned.transpose(1, 2), expected(half, bias)) < 5e-3


def test_few_channels(amx, monkeypatch) -> None:
    """Fewer than the other kernels are taken for."""
    layer, image = Conv2d(32, 6, 3, padding=1).bfloat16(), random(1, 9, 7, 32, seed=0)
    with torch.no_grad():
        expected = layer(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        in_use(amx, monkeypatch)
        assert layer.takes_image(image) and not Conv2d(32, 3, 3, padding=1).bfloat16().takes_image(image)
        assert error(layer.over_image(image), expected) < 1e-2
        assert torch.equal(layer(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), layer.over_image(image))
        with products_by('torch'):
            assert not layer.takes_image(image)


def test_gradient_of_a_convolutions_input(amx, monkeypatch) -> None:
    monkeypatch.setattr(tile_products, 'require', lambda: amx)
    kernel, grad = random(33, 18, 3, 3, seed=0), random(2, 7, 9, 33, seed=1)
    image = torch.zeros(2, 18, 7, 9, dtype=torch.float64, requires_grad=True)
    F.conv2d(image, kernel.double(), padding=1).backward(grad.double().permute(0, 3, 1, 2))
    assert error(tile_products.input_gradient(grad, kernel), image.grad.permute(0, 2, 3, 1)) < 5e-3


@pytest.mark.parametrize('precision', ['mixed', 'bf16'])
@pytest.mark.parametrize('size', [(16, 24), (160, 128)], ids=['whole', 'in strips'])
def test_a_whole_network(amx, monkeypatch, precision: str, size: tuple[int, int]) -> None:
    """Its error is that of torch's kernels in the same precision; layer by layer, as where windows are too few."""
    monkeypatch.setattr(tile_blocks, 'takes', lambda *block: False)
    torch.manual_seed(0)
    net = HAT(**SMALL).eval()
    x = torch.rand(1, 3, *size)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        exact = net(x).double()
        prepare_for_inference(net, precision)
        in_use(amx, monkeypatch)
        kernels, linear, calls, found = tile_products.convolution, tile_products.linear, [], {}
        around: list[set[str]] = []  # of each linear layer, what goes round it
        monkeypatch.setattr(
            tile_products, 'convolution', lambda x, layer, **named: (calls.append(layer), kernels(x, layer, **named))[1]
        )
        monkeypatch.setattr(
            tile_products, 'linear', lambda *a, **named: (around.append({*named}), linear(*a, **named))[1]
        )
        for name in ('cpp', 'torch'):
            calls.clear()
            around.clear()
            with products_by(name):
                found[name] = net(x)
            assert ({'norm'} in around) == ({'add', 'scaled'} in around) == (name == 'cpp'), 'q, k, v and projections'
            assert sum(layer.gelu for layer in calls) == (2 if name == 'cpp' else 0), 'one in each block'
            assert (len(calls) >= 6) == (name == 'cpp'), 'with the second ones, and those of the group and the body'
    assert not torch.equal(found['cpp'], found['torch'])
    assert error(found['cpp'], exact) < 2 * error(found['torch'], exact) + 1e-3


def test_gradients_in_a_network(amx, monkeypatch) -> None:
    """Under autocast a normalisation and the layer behind it are one kernel; gradients are as exact as torch's."""
    torch.manual_seed(0)
    net, x = HAT(**SMALL, drop_path_rate=0.0).train(), torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    exact = torch.autograd.grad(net(x).square().mean(), list(net.parameters()))
    in_use(amx, monkeypatch)
    calls, layer, found = [], tile_products.linear, {}
    monkeypatch.setattr(tile_products, 'linear', lambda *a, **named: (calls.append(named), layer(*a, **named))[1])
    gradients: list[str] = []
    for kind in ('linear', 'feed_forward', 'convolution'):
        kernel = getattr(tile_gradients, f'{kind}_gradient')

        def counted(*a, kind=kind, kernel=kernel, **named):
            gradients.append(kind)
            return kernel(*a, **named)

        monkeypatch.setattr(tile_gradients, f'{kind}_gradient', counted)
    for name in ('cpp', 'torch'):
        calls.clear()
        gradients.clear()
        with products_by(name):
            with torch.autocast('cpu', torch.bfloat16):
                loss = net(x).float().square().mean()
            found[name] = torch.autograd.grad(loss, list(net.parameters()))
        assert sum('norm' in named for named in calls) == (3 if name == 'cpp' else 0)  # before q, k, v
        expected = {'linear': 6, 'feed_forward': 3, 'convolution': 6} if name == 'cpp' else {}
        assert Counter(gradients) == expected, 'around three attentions, three MLPs, two in each HAB and two behind'
    apart = {
        name: torch.stack([(one - other).norm() for one, other in zip(gradients, exact, strict=True)]).norm()
        for name, gradients in found.items()
    }
    assert apart['cpp'] < 1.5 * apart['torch']


def test_what_it_does_not_take(emulated, monkeypatch) -> None:
    monkeypatch.setattr(tile_products, 'load', lambda: emulated)
    x, weight = random(1, 2, 2, 8, seed=0), random(4, 8, seed=1)
    assert tile_products.takes(x, weight, None) and tile_products.takes(x.float(), weight)
    assert not tile_products.takes(x, weight.float()) and not tile_products.takes(x.double(), weight)
    assert not tile_products.takes(x[:0], weight) and not tile_products.takes(x.to('meta'), weight.to('meta'))
    with torch.autocast('cpu', torch.bfloat16):
        assert not tile_products.takes(x, weight)
    with products_by('torch'):
        assert not tile_products.takes(x, weight)
    emulated.hat_bf16_way(0)
    try:
        assert not tile_products.takes(x, weight)
    finally:
        emulated.hat_bf16_way(2)


def test_without_amx_it_says_so(kernel) -> None:
    if kernel.hat_bf16_way(-1) == 2:
        pytest.skip('this processor has AMX')
    with pytest.raises(RuntimeError, match='no AMX'):
        tile_products.linear(random(1, 2, 2, 8, seed=0), Layer(random(4, 8, seed=1)), library=kernel)


def test_without_memory_it_says_so() -> None:
    """In the words by which `basicsr restore` knows that smaller tiles may do."""
    empty = SimpleNamespace(hat_tile_product=lambda first, second: 1)
    with pytest.raises(RuntimeError, match='no memory left for a layer over 4 pixels') as caught:
        tile_products.linear(random(1, 2, 2, 8, seed=0), Layer(random(4, 8, seed=1)), library=empty)
    assert is_out_of_memory(caught.value)


def test_what_does_not_fit_is_refused(emulated) -> None:
    """Beyond is raw memory."""
    x, weight, bias = random(2, 3, 4, 8, seed=0), random(6, 8, seed=1), random(6, seed=2)
    image, norm = random(2, 3, 4, 6, seed=3), normalisation(8)
    for message, layer, named in (
        (r'weight 0 \(6, 7\)', Layer(weight[:, :7]), {}),
        (r'bias 0 \(5,\)', Layer(weight, bias[:5]), {}),
        (r'add \(2, 3, 4, 8\)', Layer(weight), {'add': x}),
        (r'norm.bias \(7,\)', Layer(weight), {'norm': norm._replace(bias=norm.bias[:7])}),
        (r'scaled \(1, 3, 4, 6\)', Layer(weight), {'scaled': (image[:1], image[:, :1, :1])}),
        (r'factor \(3, 6\)', Layer(weight), {'scaled': (image, image[:1, 0, :3])}),
        (r'add is torch.float16', Layer(weight), {'add': image.half()}),
        (r'x is torch.float64', Layer(weight), {}),
    ):
        with pytest.raises(ValueError, match=message):
            tile_products.linear(x.double() if 'float64' in message else x, layer, library=emulated, **named)
    with pytest.raises(ValueError, match=r'means \(2, 5\)'):
        kernel = random(6, 8, 3, 3, seed=1)
        tile_products.convolution(x, Layer(kernel), means=torch.empty(2, 5), library=emulated)
    with pytest.raises(ValueError, match=r'x \(1, 0, 4, 6\)'):
        tile_products.input_gradient(image[:1, :0], kernel)
    with pytest.raises(ValueError, match='weights are torch.float32'):
        tile_products.linear(x.float(), Layer(weight.float()), library=emulated)
    with pytest.raises(ValueError, match='weight 1'):
        tile_products.feed_forward(x, norm, Layer(weight), Layer(weight), library=emulated)
