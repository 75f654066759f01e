"""The C++ kernels of linear layers and convolutions: values, gradients, refusals, and the layers that take them."""

from __future__ import annotations

import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from compared import error
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.kernels import library, products
from hat_plugin.kernels.operands import Layer, Norm
from hat_plugin.kernels.products import product, products_by, takes, weight_gradient
from hat_plugin.layers.convolution import Conv2d
from hat_plugin.layers.feed_forward import Mlp, add_feed_forward
from hat_plugin.layers.linear import add_linear

pytestmark = pytest.mark.usefixtures('by_cpp')


def random(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(map(sum, shapes)))
    return [torch.randn(shape, generator=generator) for shape in shapes]


# (B, H, W, inputs, outputs): panels whole, half and cut; blocks, tiles and images that end anywhere; one of each.
SIZES = [
    (1, 64, 64, 180, 540), (2, 7, 9, 13, 5), (2, 5, 7, 6, 20), (3, 4, 5, 33, 16), (1, 1, 1, 3, 3), (1, 1, 1, 1, 1),
    (1, 2, 300, 8, 17), (1, 97, 1, 24, 9),
]  # fmt: skip


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_one_layer(size: tuple[int, ...]) -> None:
    *image, inputs, outputs = size
    x, weight, kernel, bias = random((*image, inputs), (outputs, inputs), (outputs, inputs, 3, 3), (outputs,))
    d = [t.double() for t in (x, weight, kernel, bias)]
    assert error(product(x, Layer(weight, bias)), F.linear(d[0], d[1], d[3])) < 2e-6
    assert error(product(x, Layer(weight)), F.linear(d[0], d[1])) < 2e-6
    assert error(product(x, Layer(kernel, bias)), convolved(d[0], d[2], d[3])) < 3e-6
    last = kernel.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(product(x, Layer(last, bias)), product(x, Layer(kernel, bias)))


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('threads', [1, 3])
def test_all_that_goes_round_two_layers(size: tuple[int, ...], threads: int, set_threads) -> None:
    set_threads(threads)
    batch, height, width, inputs, hidden = size
    image = (batch, height, width, inputs)
    x, up, down, before, after = random(image, (hidden, inputs), (inputs, hidden), (hidden,), (inputs,))
    gain, offset, add, features, factor = random((inputs,), (inputs,), image, image, (batch, inputs))
    found = product(
        x, Layer(up, before, gelu=True), Layer(down, after), norm=Norm(gain, offset, 1e-5), add=add,
        scaled=(features, factor),
    )  # fmt: skip
    d = {name: t.double() for name, t in locals().items() if isinstance(t, Tensor)}
    normal = F.layer_norm(d['x'], (inputs,), d['gain'], d['offset'], 1e-5)
    result = F.linear(F.gelu(F.linear(normal, d['up'], d['before'])), d['down'], d['after'])
    expected = result + d['add'] + d['features'] * d['factor'][:, None, None]
    assert error(found, expected) < 3e-6


@pytest.fixture
def set_threads() -> Iterator[object]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_views_are_read_where_they_are() -> None:
    wide, weight, kernel = random((2, 12, 10, 40), (20, 24), (20, 24, 3, 3))
    part = wide[:, 2:9, 1:, 8:32]
    torch.testing.assert_close(product(part, Layer(weight)), product(part.contiguous(), Layer(weight)))
    torch.testing.assert_close(product(part, Layer(kernel)), product(part.contiguous(), Layer(kernel)))
    turned = weight.t().contiguous().t()
    torch.testing.assert_close(product(part, Layer(turned)), product(part, Layer(weight)))
    first = wide.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)  # channels apart: copied
    torch.testing.assert_close(product(first[..., :24], Layer(weight)), product(wide[..., :24], Layer(weight)))


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_gradients(size: tuple[int, ...], set_threads) -> None:
    *image, inputs, outputs = size
    x, kernel, grad = random((*image, inputs), (outputs, inputs, 3, 3), (*image, outputs))
    wide = [t.double().requires_grad_() for t in (x, kernel)]
    dx, dkernel = torch.autograd.grad(convolved(*wide), wide, grad.double())
    assert error(products.input_gradient(grad, kernel), dx) < 3e-6
    found = weight_gradient(x, grad, kernel)
    assert error(found, dkernel) < 1e-5
    set_threads(3)
    assert torch.equal(weight_gradient(x, grad, kernel), found)  # whatever the number of threads


def test_a_gelu_of_anything() -> None:
    x = torch.cat([torch.linspace(-9, 9, 4001), torch.tensor([0.0, 1e-30, -1e4, 1e30])]).view(1, 1, -1, 1)
    found = product(x, Layer(torch.ones(1, 1), gelu=True))
    torch.testing.assert_close(found.double(), F.gelu(x.double()), rtol=1e-6, atol=2e-6)
    assert product(torch.full((1, 1, 1, 1), float('nan')), Layer(torch.ones(1, 1), gelu=True)).isnan().all()


def test_what_does_not_fit_is_refused() -> None:
    x, weight, bias = random((1, 4, 4, 6), (8, 6), (8,))
    for message, call in (
        (r'x \(4, 4, 6\) and 1 layers', lambda: product(x[0], Layer(weight))),
        (r'weight 0 \(8, 6\) does not fit', lambda: product(x[..., :5], Layer(weight))),
        (r'bias 0 \(7,\)', lambda: product(x, Layer(weight, bias[:7]))),
        (r'weight \(8, 6, 5, 5\)', lambda: product(x, Layer(weight.new_ones(8, 6, 5, 5)))),
        (r'\(8,\): give \(outputs, inputs\) or a 3x3 kernel', lambda: product(x, Layer(weight.new_ones(8)))),
        (r'weight \(8, 8, 3, 3\): give \(outputs, inputs\)$',
         lambda: product(x, Layer(weight), Layer(weight.new_ones(8, 8, 3, 3)))),
        (r'add \(1, 4, 4, 6\) does not fit', lambda: product(x, Layer(weight), add=x)),
        (r'factor \(8,\)', lambda: product(x, Layer(weight), scaled=(x.new_ones(1, 4, 4, 8), bias))),
        (r'x is torch.float64', lambda: product(x.double(), Layer(weight))),
        (r'weight 0 is torch.bfloat16', lambda: product(x, Layer(weight.bfloat16()))),
        (r'gradient of \(1, 4, 4, 6\) is not that', lambda: weight_gradient(x, x, weight.new_ones(8, 6, 3, 3))),
        (r'grad is torch.bfloat16', lambda: weight_gradient(x, x.bfloat16(), weight.new_ones(6, 6, 3, 3))),
        (r'weight \(8, 6\): give a 3x3 kernel', lambda: weight_gradient(x, x, weight)),
        (r'weight \(8, 6, 3, 3\): give \(outputs, inputs\)$',
         lambda: product(x, Layer(weight.new_ones(8, 6, 3, 3), gelu=True))),
        (r'norm.weight \(8,\)', lambda: product(x, Layer(weight), norm=Norm(bias, bias, 1e-5))),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


def test_what_takes_it_and_what_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    x = torch.ones(1, 2, 2, 3)
    assert takes(x, None, nn.Parameter(x))
    assert not takes(x, x.double()) and not takes(x.bfloat16()) and not takes(x[:0]) and not takes(x.to('meta'))
    with FakeTensorMode() as mode:
        assert not takes(mode.from_tensor(x))
    with torch.autocast('cpu'):
        assert not takes(x)
    assert torch.func.vmap(lambda part: part * takes(part))(x).sum() == 0
    with products_by('torch'):
        assert not takes(x)
    with products_by('auto'):
        assert takes(x) == (library.load().hat_vector_bits() >= 256)
    message = "products 'mkl' are unknown: set HAT_PRODUCTS to one of auto, cpp, triton, torch"
    with pytest.raises(ValueError, match=message), products_by('mkl'):
        pass
    monkeypatch.setenv('HAT_KERNEL_CACHE', str(tmp_path))
    library.load.cache_clear()
    assert not takes(x)
    with pytest.raises(RuntimeError, match=r'python -m hat_plugin\.kernels\.build'):
        product(x, Layer(torch.ones(3, 3)))
    library.load.cache_clear()


def build() -> HAT:
    torch.manual_seed(0)
    sizes = {'window_size': 4, 'compress_ratio': 1, 'squeeze_factor': 4, 'embed_dim': 24, 'mlp_ratio': 2}
    net = HAT(depths=[2], num_heads=[2], upscale=2, upsampler='pixelshuffle', conv_scale=0.5, num_feat=16, **sizes)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net


@pytest.mark.parametrize('size', [(2, 3, 12, 16), (1, 3, 150, 140)], ids=str)
def test_a_network_is_the_same_with_it(size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = build().eval(), torch.rand(size)  # the larger goes in strips
    calls = []
    monkeypatch.setattr(products, 'product', lambda *a, **k: calls.append(len(a)) or product(*a, **k))
    with torch.inference_mode():
        found = net(x)
        assert {2, 3} <= set(calls)  # projections and MLPs
        with products_by('torch'):
            expected = net(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_networks_gradients_are_the_same_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = build().train(), torch.rand(2, 3, 8, 12)
    calls = []
    monkeypatch.setattr(products, 'weight_gradient', lambda *a: calls.append(a[2].shape) or weight_gradient(*a))

    def gradients() -> list[Tensor]:
        torch.manual_seed(0)  # drop path
        return list(torch.autograd.grad(net(x).square().sum(), list(net.parameters())))

    found = gradients()
    assert len(calls) == 8  # of each block two, after the group and the body, before and for the upsampling
    with products_by('torch'):
        expected = gradients()
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_a_convolution_has_second_derivatives() -> None:
    x, weight = (t.requires_grad_() for t in random((1, 16, 5, 4), (17, 16, 3, 3)))
    conv = Conv2d(16, 17, 3, padding=1)

    def penalty() -> tuple[Tensor, ...]:
        image = x.contiguous(memory_format=torch.channels_last)
        y = torch.func.functional_call(conv, {'weight': weight}, (image,)).pow(3).sum()
        slope = torch.cat([t.flatten() for t in torch.autograd.grad(y, (x, weight), create_graph=True)])
        return torch.autograd.grad(slope.square().sum(), (x, weight))

    found = penalty()
    with products_by('torch'):
        expected = penalty()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3 * float(other.abs().max()))


def test_unusual_parts_go_through_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, 'product', lambda *_, **__: pytest.fail('the kernel was called'))
    (x,) = random((2, 3, 4, 8))
    norm, mlp, calls = nn.LayerNorm(8), Mlp(8, 16), []
    expected = x + mlp(norm(x))
    for mlp.act in (nn.GELU(approximate='tanh'), nn.Identity(), nn.ReLU()):
        other = x + mlp(norm(x))
        torch.testing.assert_close(add_feed_forward(x, norm, mlp), other)
        with torch.no_grad():
            torch.testing.assert_close(add_feed_forward(x, norm, mlp.eval()), other)
    mlp.act = nn.GELU()
    mlp.train()
    with mlp.fc2.register_forward_hook(lambda *_: calls.append('fc2')):
        torch.testing.assert_close(add_feed_forward(x, norm, mlp), expected)
    assert calls == ['fc2']
    assert add_feed_forward(x, norm, Mlp(8, 16, drop=0.5)).shape == x.shape
    with torch.no_grad():
        torch.testing.assert_close(add_feed_forward(x, nn.Identity(), mlp.eval()), x + mlp(x))
        wide = mlp.double()
        assert add_feed_forward(x.double(), norm.double(), wide).dtype == torch.float64
        linear = nn.Linear(8, 8).bfloat16()
        assert add_linear(x, x, linear).dtype == torch.float32


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='limits of Linux')
def test_no_memory_is_said_and_survived() -> None:
    code = textwrap.dedent("""
        import resource, torch
        from hat_plugin.engine.memory import is_out_of_memory
        from hat_plugin.kernels.products import Layer, product
        x, weight = torch.ones(1, 64, 64, 64), torch.ones(20000, 64)
        small = product(x[:, :2], Layer(weight[:64]))
        used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
        weights, result = weight.numel() * 4, x.numel() // 64 * 20000 * 4
        resource.setrlimit(resource.RLIMIT_AS, (used + result + weights // 2, resource.RLIM_INFINITY))
        try:
            product(x, Layer(weight))
        except RuntimeError as error:
            assert is_out_of_memory(error), error
            print(error)
        assert torch.equal(product(x[:, :2], Layer(weight[:64])), small)
    """)
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'no memory left for a layer over (1, 64, 64, 64)' in done.stdout
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
