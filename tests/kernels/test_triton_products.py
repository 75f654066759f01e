"""The Triton kernels for linear layers and convolutions against plain formulas: interpreted, `gpu` on a GPU."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip('triton')

from compared import error
from compiling import compiled

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.kernels import triton_launch, triton_products
from hat_plugin.kernels.operands import Layer, Norm
from hat_plugin.kernels.products import products_by
from hat_plugin.layers.attention import attention_backend
from hat_plugin.layers.precision import PRECISIONS, prepare_for_inference

BOUNDS = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}  # of the largest value
DTYPES = list(BOUNDS)


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the kernels run."""
    if request.param == 'cpu' and not triton_launch.interpreted():
        pytest.skip("triton's interpreter is off here: TRITON_INTERPRET=1 turns it on")
    return request.param


def need_room(device: str, dtype: torch.dtype) -> None:
    """fp32 takes more shared memory than GPUs for desks have: there it is torch's."""
    if device == 'cuda' and not triton_products._present(torch.device('cuda', 0), dtype):
        pytest.skip(f'{dtype} is left to torch on this GPU')


def random(*shape: int, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device, dtype)


@pytest.mark.parametrize('stream', [torch.float32, None], ids=['fp32 stream', 'one type'])
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize(('inputs', 'outputs'), [(180, 70), (12, 36), (48, 48), (64, 17), (6, 180)])
def test_linear(device: str, inputs: int, outputs: int, dtype: torch.dtype, stream: torch.dtype | None) -> None:
    """Normalised; and with what is added: an image, and one that has a factor for each channel."""
    need_room(device, dtype)
    stream = stream or dtype
    x, weight, bias = (random(*shape, dtype=dtype, device=device, seed=seed) for seed, shape in enumerate(
        [(2, 3, 5, inputs), (outputs, inputs), (outputs,)]
    ))  # fmt: skip
    x, weight = x.to(stream) * 3 + 1, weight / inputs**0.5
    norm = Norm(*(random(inputs, dtype=stream, device=device, seed=seed) for seed in (3, 4)), 1e-5)
    normed = F.layer_norm(x.double(), (inputs,), norm.weight.double(), norm.bias.double(), norm.eps)
    found, found_normed = triton_products.linear(x, Layer(weight, bias), norm=norm)
    assert found.dtype == found_normed.dtype == dtype
    assert error(found_normed, normed) < BOUNDS[dtype]
    assert error(found, F.linear(normed, weight.double(), bias.double())) < BOUNDS[dtype]
    attended = x.to(dtype)
    add, features = (random(2, 3, 5, outputs, dtype=kind, device=device, seed=5) for kind in (stream, dtype))
    for samples in (1, 2):
        factor = random(samples, 1, 1, outputs, dtype=dtype, device=device, seed=7)
        found, same = triton_products.linear(attended, Layer(weight), add=add, scaled=(features, factor))
        expected = F.linear(attended.double(), weight.double()) + add.double() + features.double() * factor.double()
        assert found.dtype == stream and same is attended
        assert error(found, expected) < BOUNDS[dtype]


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize(('channels', 'hidden'), [(180, 100), (12, 24), (64, 200), (3, 5)])
def test_feed_forward(device: str, channels: int, hidden: int, dtype: torch.dtype) -> None:
    need_room(device, dtype)
    x = random(1, 7, 20, channels, dtype=torch.float32, device=device, seed=0) * 2 - 1
    norm = Norm(*(random(channels, dtype=torch.float32, device=device, seed=seed) for seed in (1, 2)), 1e-5)
    weight1, weight2 = (
        random(*shape, dtype=dtype, device=device, seed=3) / shape[1] ** 0.5
        for shape in ((hidden, channels), (channels, hidden))
    )
    bias1, bias2 = (random(size, dtype=dtype, device=device, seed=4) for size in (hidden, channels))
    up, down = Layer(weight1, bias1), Layer(weight2, bias2)
    y = F.layer_norm(x.double(), (channels,), norm.weight.double(), norm.bias.double(), norm.eps)
    y = F.gelu(F.linear(y, up.weight.double(), up.bias.double()))
    expected = x.double() + F.linear(y, down.weight.double(), down.bias.double())
    found = triton_products.feed_forward(x, norm, up, down)
    assert found.dtype == torch.float32 and error(found, expected) < BOUNDS[dtype]


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize(('inputs', 'outputs'), [(180, 60), (60, 180), (12, 6), (6, 12), (64, 3)])
def test_convolution(device: str, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    x = random(2, 5, 7, inputs, dtype=dtype, device=device, seed=0)
    weight = random(outputs, inputs, 3, 3, dtype=dtype, device=device, seed=1) / (3 * inputs**0.5)
    bias = random(outputs, dtype=dtype, device=device, seed=2)
    expected = F.conv2d(x.double().permute(0, 3, 1, 2), weight.double(), bias.double(), padding=1).permute(0, 2, 3, 1)
    assert error(triton_products.convolution(x, Layer(weight, bias)), expected) < BOUNDS[dtype]
    add = random(*expected.shape, dtype=torch.float32, device=device, seed=3)
    found = triton_products.convolution(x, Layer(weight, bias, gelu=True), add=add)
    assert found.dtype == torch.float32 and error(found, F.gelu(expected) + add) < BOUNDS[dtype]


SMALL = {
    'embed_dim': 12, 'depths': [2], 'num_heads': [2], 'window_size': 4, 'compress_ratio': 2, 'squeeze_factor': 4,
    'conv_scale': 1.0, 'mlp_ratio': 2.0, 'upscale': 2, 'upsampler': 'pixelshuffle', 'num_feat': 8,
    'drop_path_rate': 0.0,
}  # fmt: skip


@pytest.mark.parametrize('precision', ['mixed', 'bf16', 'mixed_fp16', 'fp32'])
def test_a_whole_network(device: str, precision: str) -> None:
    """Its error is that of torch's kernels in the same precision, and it goes through all of ours."""
    need_room(device, PRECISIONS[precision][0])
    torch.manual_seed(0)
    net = HAT(**SMALL)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    net, x = net.to(device).eval(), torch.rand(2, 3, 8, 7).to(device)
    with torch.no_grad(), attention_backend('reference'), products_by('torch'):
        exact = copy.deepcopy(net).double()(x.double())
    prepare_for_inference(net, precision)
    found = {}
    with torch.no_grad(), attention_backend('triton'):
        for name in ('triton', 'torch'):
            with products_by(name):
                found[name] = error(net(x), exact)
    assert found['triton'] != found['torch']
    assert found['triton'] < 2 * found['torch'] + (1e-5 if precision == 'fp32' else 1e-3)


@pytest.mark.parametrize('amp', [None, torch.bfloat16], ids=['fp32', 'amp bf16'])
def test_gradients_of_a_whole_network(device: str, amp: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A normalisation and the layer behind it are one kernel in training too; gradients are as exact as torch's."""
    need_room(device, amp or torch.float32)
    torch.manual_seed(0)
    net, x = HAT(**SMALL).to(device).train(), torch.rand(2, 3, 8, 8).to(device)
    wide = copy.deepcopy(net).double()
    with attention_backend('reference'), products_by('torch'):
        exact = torch.autograd.grad(wide(x.double()).square().mean(), list(wide.parameters()))
    found: dict[str, float] = {}
    calls, layer = [], triton_products.linear
    monkeypatch.setattr(triton_products, 'linear', lambda *a, **named: (calls.append(named), layer(*a, **named))[1])
    for name in ('triton', 'torch'):
        calls.clear()
        with products_by(name), attention_backend('triton'):
            with torch.autocast(x.device.type, amp, enabled=amp is not None):
                loss = net(x).float().square().mean()
            assert sum('norm' in named for named in calls) == (6 if name == 'triton' else 0)
            gradients = torch.autograd.grad(loss, list(net.parameters()))
        apart = [(one.double() - other).norm() for one, other in zip(gradients, exact, strict=True)]
        found[name] = (torch.stack(apart).norm() / torch.stack([other.norm() for other in exact]).norm()).item()
    assert found['triton'] < 2 * found['torch'] + (1e-5 if amp is None else 1e-3)


def test_what_does_not_fit_is_refused(device: str) -> None:
    """Beyond is no safety net."""
    x, weight, bias = (
        random(*shape, dtype=torch.float16, device=device, seed=0) for shape in ((2, 3, 4, 8), (6, 8), (6,))
    )
    norm, kernel = Norm(x[0, 0, 0], x[0, 0, 0], 1e-5), weight.new_ones(6, 8, 3, 3)
    for message, call in (
        (r'weight 0 \(6, 7\)', lambda: triton_products.linear(x, Layer(weight[:, :7]))),
        (r'add \(2, 3, 4, 8\)', lambda: triton_products.linear(x, Layer(weight), add=x)),
        (r'add is torch.bfloat16', lambda: triton_products.linear(x, Layer(weight), add=x[..., :6].bfloat16())),
        (r'weight 1 \(6, 8\)', lambda: triton_products.feed_forward(x, norm, Layer(weight, bias), Layer(weight, bias))),
        (r'without a bias', lambda: triton_products.feed_forward(x, norm, Layer(weight), Layer(weight.t()))),
        (r'weight 0 \(6, 8, 3, 3\)', lambda: triton_products.convolution(x[..., :7], Layer(kernel))),
        (r'add \(2, 3, 4, 8\)', lambda: triton_products.convolution(x, Layer(kernel), add=x)),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_products_by_triton_are_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(triton_launch.TritonError, match='HAT_PRODUCTS'), products_by('triton'):
        pass


def test_a_compiler_takes_the_kernels(tmp_path: Path) -> None:
    """For a GPU that is not here: the interpreter runs what no compiler would take."""
    assert len(compiled(tmp_path, 90, 'bfloat16', 24, 48, 8)) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ('dtype', 'capability', 'kilobytes'),
    [('bfloat16', 80, 99), ('bfloat16', 90, 99), ('float16', 90, 99), ('float32', 80, 163), ('float32', 90, 227)],
)
@pytest.mark.parametrize('sizes', [(180, 360, 60), (144, 288, 6)], ids=['HAT', 'HAT-S'])
def test_published_sizes_fit_a_gpu(
    tmp_path: Path, dtype: str, capability: int, kilobytes: int, sizes: tuple[int, int, int]
) -> None:
    """Shared memory within the least of any GPU from Ampere on; of fp32, within that of an A100 and an H100."""
    for said in compiled(tmp_path, capability, dtype, *sizes).values():
        assert said['shared'] <= kilobytes * 1024, said
