"""The C++ attention kernel: what it computes, how torch sees it, and what happens where it cannot be had."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compared import error
from torch import Tensor, nn

from hat_plugin.kernels import library, native
from hat_plugin.kernels.geometry import Geometry
from hat_plugin.kernels.native import run_gather
from hat_plugin.kernels.window_attention import (
    available,
    gathered_bias,
    image_window_attention,
    supports,
    supports_image,
    window_attention,
)
from hat_plugin.layers.attention import gather_bias
from hat_plugin.layers.windows import (
    overlapping_windows,
    relative_position_index,
    shift_masks,
    window_partition,
    window_reverse,
)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """A machine on which nothing has been built."""
    monkeypatch.setenv('HAT_KERNEL_CACHE', str(tmp_path))
    library.load.cache_clear()
    yield
    library.load.cache_clear()


def exact(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v, bias = (x.double() for x in (q, k, v, bias))
    bias = bias if mask is None else bias + mask.double()
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias).softmax(-1) @ v


def tokens(windows: int, heads: int, queries: int, keys: int, width: int, dtype=torch.float32) -> list[Tensor]:
    """q, k, v as views of what linear layers make, and a bias."""
    torch.manual_seed(queries * keys + width)
    q = torch.randn(windows, queries, 3, heads, width).to(dtype)[:, :, 1].transpose(1, 2)
    k, v = torch.randn(windows, keys, 2, heads, width).to(dtype).permute(2, 0, 3, 1, 4)
    return [q, k, v, torch.randn(heads, queries, keys).to(dtype)]


SHAPES = [
    (2, 3, 256, 256, 30),
    (1, 2, 256, 576, 30),
    (3, 2, 49, 49, 24),
    (2, 1, 1, 1, 1),
    (1, 2, 17, 35, 33),
    (2, 2, 9, 100, 64),
]
SHAPES += [(1, 1, 8, 31, 7), (1, 1, 7, 33, 100), (20, 2, 16, 16, 16), (1, 3, 64, 65, 48)]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_fp32_is_exact_to_2e_6_of_the_range(kernel, shape):
    q, k, v, bias = tokens(*shape)
    found = window_attention(q, k, v, bias, q.shape[-1] ** -0.5)
    assert found.shape == q.shape and found.transpose(1, 2).is_contiguous()
    assert error(found, exact(q, k, v, bias)) < 2e-6


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('bias_dtype', [torch.float32, torch.bfloat16])
def test_bf16_is_as_near_to_fp64_as_torchs_own_kernel(kernel, shape, bias_dtype):
    q, k, v, bias = tokens(*shape, dtype=torch.bfloat16)
    expected = exact(q, k, v, bias)
    torchs = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
    found = window_attention(q, k, v, bias.to(bias_dtype), q.shape[-1] ** -0.5)
    assert found.dtype == torch.bfloat16
    assert error(found, expected) < max(1.3 * error(torchs, expected), 5e-3)
    mean = (found.double() - expected).pow(2).mean().sqrt()
    assert mean < 1.1 * (torchs.double() - expected).pow(2).mean().sqrt() + 1e-4


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_mask_is_added_for_every_head(kernel, dtype):
    q, k, v, bias = tokens(2, 3, 64, 64, 30, dtype)
    mask = shift_masks(8, 4)[2]
    found = window_attention(q, k, v, bias, 30**-0.5, mask)
    assert error(found, exact(q, k, v, bias, mask)) < (2e-6 if dtype == torch.float32 else 1e-2)
    assert torch.equal(found, window_attention(q, k, v, bias + mask.to(dtype), 30**-0.5))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_strides_do_not_matter_and_nothing_beyond_a_row_is_read(kernel, dtype):
    q, k, v, bias = tokens(2, 2, 25, 36, 13, dtype)
    expected = window_attention(q, k, v, bias, 0.3)
    wide = [torch.full((*x.shape[:3], 40), float('nan'), dtype=dtype)[..., 5:18].copy_(x) for x in (q, k, v)]
    sparse = [torch.full((*x.shape[:3], 26), float('nan'), dtype=dtype)[..., ::2].copy_(x) for x in (q, k, v)]
    by_key = bias.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(window_attention(*wide, bias, 0.3), expected)
    assert torch.equal(window_attention(*sparse, by_key, 0.3), expected)
    shared = [x[:1].expand(2, -1, -1, -1) for x in (q, k, v)]
    assert torch.equal(window_attention(*shared, bias, 0.3)[1], expected[0])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_threads_do_not_change_a_bit(kernel, dtype):
    q, k, v, bias = tokens(19, 3, 20, 20, 30, dtype)
    results = [native.run_windows(kernel, q, k, v, bias, None, 0.2, threads=count) for count in (1, 2, 3)]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_extreme_logits(kernel):
    q, k, v, bias = tokens(1, 1, 16, 40, 8)
    huge = bias * 1e4
    assert error(window_attention(q, k, v, huge, 0.3), exact(q * 0.3 * 8**0.5, k, v, huge)) < 2e-6
    bias[:, :, 20:] = -torch.inf
    assert error(window_attention(q, k, v, bias, 8**-0.5), exact(q, k, v, bias)) < 2e-6
    q[0, 0, 3, 2] = torch.nan
    assert window_attention(q, k, v, bias, 0.3).isnan().any(-1).flatten().tolist() == [i == 3 for i in range(16)]
    assert window_attention(q[:0], k[:0], v[:0], bias, 0.3).shape == (0, 1, 16, 8)


def published(qkv, bias, heads, window, overlap=None, shift=0, masks=None) -> Tensor:
    """Attention in an image, as the published code goes about it: roll, cut, mask of every window, reverse; in fp64."""
    _, height, width, _ = qkv.shape
    if shift:
        qkv = torch.roll(qkv, (-shift, -shift), (1, 2))
    q, k, v = qkv.chunk(3, dim=-1)
    q = window_partition(q, window)
    k, v = (overlapping_windows(x, window, overlap or window) for x in (k, v))
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2).double() for x in (q, k, v))
    every = torch.zeros(height // window, width // window, 1, *bias.shape[1:])
    if shift:
        every[-1], every[:, -1], every[-1, -1] = masks[0], masks[1], masks[2]
    every = every.flatten(0, 1).repeat(q.shape[0] // every[..., 0, 0, 0].numel(), 1, 1, 1)
    x = exact(q, k, v, bias, every).transpose(1, 2).flatten(2)
    x = window_reverse(x, window, height, width)
    return torch.roll(x, (shift, shift), (1, 2)) if shift else x


@pytest.mark.parametrize('compiled', [True, False], ids=['kernel', 'torch'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('size', [(24, 16), (8, 24), (8, 8)], ids=str)
@pytest.mark.parametrize(('overlap', 'shift'), [(None, 0), (None, 4), (None, 3), (12, 0), (20, 0)])
def test_windows_of_an_image(kernel, monkeypatch, compiled, dtype, size, overlap, shift):
    """The output, and the gradients of q, k, v and the bias."""
    if not compiled:
        monkeypatch.setattr('hat_plugin.kernels.window_attention.load', lambda: None)
    torch.manual_seed(0)
    qkv = torch.randn(2, *size, 3 * 2 * 15).to(dtype).requires_grad_()
    bias = torch.randn(2, 64, (overlap or 8) ** 2).to(dtype).requires_grad_()
    masks = shift_masks(8, shift) if shift else None
    sizes = {'num_heads': 2, 'window_size': 8, 'overlap_size': overlap, 'shift_size': shift, 'masks': masks}
    found = image_window_attention(qkv, bias, scale=15**-0.5, **sizes)
    assert found.is_contiguous() and found.dtype == dtype
    expected = published(qkv, bias, 2, 8, overlap, shift, masks)
    bound = 2e-6 if dtype == torch.float32 else 1.5e-2
    assert error(found, expected) < bound
    slope = torch.randn(found.shape).to(dtype)
    of_qkv, of_bias = torch.autograd.grad(found, (qkv, bias), slope)
    exact_qkv, exact_bias = torch.autograd.grad(expected, (qkv, bias), slope.double())
    assert of_qkv.dtype == of_bias.dtype == dtype
    parts = zip(of_qkv.chunk(3, dim=-1), exact_qkv.chunk(3, dim=-1), strict=True)
    assert all(error(one, other.double()) < bound for one, other in parts)
    assert error(of_bias, exact_bias.double()) < bound


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('overlap', [7, 11])
def test_what_the_gradient_needs_of_the_weights(kernel, dtype, overlap):
    """Each query's largest logit and the sum of all exponentials, and no way through them for a gradient."""
    torch.manual_seed(0)
    qkv, bias = torch.randn(2, 14, 21, 3 * 2 * 15).to(dtype), torch.randn(2, 49, overlap**2).to(dtype)
    q, k, _ = qkv.chunk(3, dim=-1)
    q, k = window_partition(q, 7), overlapping_windows(k, 7, overlap)
    q, k = (x.unflatten(-1, (2, -1)).transpose(1, 2).double() for x in (q, k))
    logits = q @ k.transpose(-2, -1) * 0.3 + bias.double()
    peaks = logits.amax(-1)
    expected = torch.stack([peaks, (logits - peaks[..., None]).exp().sum(-1)], -1)
    _, softmax = native.run_image(kernel, qkv, bias, None, Geometry(0.3, 2, 7, overlap, 0))
    assert softmax.shape == expected.shape and error(softmax, expected) < (1e-6 if dtype == torch.float32 else 1e-4)
    operator = torch.ops.hat_plugin.image_window_attention
    out, softmax = operator(qkv.requires_grad_(), bias, None, 0.3, 2, 7, overlap, 0)
    assert out.requires_grad and not softmax.requires_grad


@pytest.mark.parametrize(('window', 'overlap', 'width'), [(7, 9, 33), (16, 24, 30), (2, 2, 1), (3, 3, 64), (4, 12, 7)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_gradients_of_windows_that_fill_no_vector(kernel, dtype, window, overlap, width):
    torch.manual_seed(window)
    qkv = torch.randn(1, 2 * window, 3 * window, 9 * width)[:, :, :, ::1].to(dtype).requires_grad_()
    bias = torch.randn(3, window**2, overlap**2, requires_grad=True)
    sizes = {'num_heads': 3, 'window_size': window, 'overlap_size': overlap}
    found = image_window_attention(qkv, bias, scale=0.3, **sizes)
    expected = published(
        (qkv * torch.tensor([0.3 * width**0.5, 1, 1]).repeat_interleave(3 * width)), bias, 3, window, overlap
    )
    slope = torch.randn(found.shape).to(dtype)
    results = torch.autograd.grad(found, (qkv, bias), slope)
    for one, other in zip(results, torch.autograd.grad(expected, (qkv, bias), slope.double()), strict=True):
        assert error(one, other.double()) < (5e-6 if dtype == torch.float32 else 2e-2)


def test_gradients_of_large_logits(kernel):
    """Where one key has nearly all of a query's weight."""
    torch.manual_seed(0)
    qkv, bias = torch.randn(1, 16, 24, 3 * 2 * 15, requires_grad=True), torch.randn(2, 64, 64) * 100
    found = image_window_attention(qkv, bias.requires_grad_(), scale=0.3, num_heads=2, window_size=8)
    expected = published(qkv * torch.tensor([0.3 * 15**0.5, 1, 1]).repeat_interleave(30), bias, 2, 8)
    slope = torch.randn(found.shape)
    results = torch.autograd.grad(found, (qkv, bias), slope)
    for one, other in zip(results, torch.autograd.grad(expected, (qkv, bias), slope.double()), strict=True):
        assert error(one, other.double()) < 1e-4


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_each_time(kernel, dtype):
    """Bit by bit, so that training can be resumed; for another number of threads but for the order of a sum."""
    torch.manual_seed(0)
    qkv, bias = torch.randn(2, 48, 32, 60).to(dtype), torch.randn(1, 64, 144)
    slope = torch.randn(2, 48, 32, 20).to(dtype)
    geometry = Geometry(0.2, 1, 8, 12, 0)
    results = native.run_image(kernel, qkv, bias, None, geometry)
    runs = [
        native.run_image_gradient(kernel, slope, qkv, *results, bias, None, geometry, threads=n)
        for n in (3, 3, 3, 1, 2)
    ]
    for of_qkv, of_bias in runs[1:3]:
        assert torch.equal(of_qkv, runs[0][0]) and torch.equal(of_bias, runs[0][1])
    for of_qkv, of_bias in runs[3:]:
        assert torch.equal(of_qkv, runs[0][0])
        assert error(of_bias, runs[0][1].double()) < 1e-5


def test_a_gradient_penalty_goes_through(kernel):
    """The gradient of a gradient, by finite differences of the kernel's own gradients."""
    torch.manual_seed(0)
    qkv, bias = torch.randn(1, 4, 4, 12, requires_grad=True), torch.randn(1, 4, 4, requires_grad=True)

    def first(qkv, bias):
        out = image_window_attention(qkv, bias, scale=0.5, num_heads=1, window_size=2)
        return torch.autograd.grad(out.square().sum(), (qkv, bias), create_graph=True)

    second = torch.autograd.grad(sum(x.square().sum() for x in first(qkv, bias)), (qkv, bias))
    for place, (given, found) in enumerate(zip((qkv, bias), second, strict=True)):
        direction, step = torch.randn(given.shape), 1e-2
        sums = []
        for sign in (1, -1):
            moved = [x.detach() + (sign * step * direction if n == place else 0) for n, x in enumerate((qkv, bias))]
            sums.append(sum(x.double().square().sum() for x in first(*(x.requires_grad_() for x in moved))))
        assert ((sums[0] - sums[1]) / (2 * step)).item() == pytest.approx((found * direction).sum().item(), rel=2e-2)


def test_torch_sees_sound_operators(kernel):
    q, k, v, bias = tokens(2, 2, 16, 16, 6)
    windows, image = torch.ops.hat_plugin.window_attention, torch.ops.hat_plugin.image_window_attention
    torch.library.opcheck(windows.default, (q, k, v, bias, None, 0.4))
    torch.library.opcheck(windows.default, (q, k, v, bias, torch.zeros(16, 16), 0.4))
    qkv = torch.randn(1, 8, 8, 36, requires_grad=True)
    torch.library.opcheck(image.default, (qkv, bias.requires_grad_(), shift_masks(4, 2), 0.4, 2, 4, 4, 2))


def test_compile_and_export_see_one_operator(kernel):
    class Net(torch.nn.Module):
        def forward(self, q, k, v, bias):
            assert supports(q, k, v, bias)
            return window_attention(q * 2, k, v, bias, 0.4).transpose(1, 2).flatten(2)

    arguments = tokens(2, 2, 16, 16, 6)
    expected = Net()(*arguments)
    assert torch.equal(torch.compile(Net(), backend='eager', fullgraph=True)(*arguments), expected)
    assert torch.equal(torch.compile(Net(), backend='aot_eager', fullgraph=True, dynamic=True)(*arguments), expected)
    program = torch.export.export(Net(), tuple(arguments))
    assert [str(node.target) for node in program.graph.nodes].count('hat_plugin.window_attention.default') == 1
    assert torch.equal(program.module()(*arguments), expected)


def test_gradients_of_windows_are_left_to_others(kernel):
    q, k, v, bias = tokens(1, 1, 4, 4, 4)
    assert supports(q, k, v, bias)
    bias.requires_grad_()
    assert not supports(q, k, v, bias)
    with torch.no_grad():
        assert supports(q, k, v, bias)
    with pytest.raises(RuntimeError, match='no autograd formula'):
        window_attention(q, k, v, bias, 0.5).sum().backward()
    assert not supports(*(x.half() for x in (q, k, v, bias.detach())))


def test_without_the_library_torch_computes_the_same(kernel, missing):
    q, k, v, bias = tokens(2, 3, 16, 36, 30)
    assert not available() and not supports(q, k, v, bias) and not supports_image(q)
    found = window_attention(q, k, v, bias, 30**-0.5)
    assert error(found, exact(q, k, v, bias)) < 2e-6
    assert found.transpose(1, 2).is_contiguous()


def test_arguments_that_do_not_fit_are_refused(kernel):
    q, k, v, bias = tokens(2, 2, 16, 16, 6)
    for wrong, message in [
        ((q, k[:, :, 1:], v, bias), 'do not fit'),
        ((q, k, v, bias[:1]), 'bias .* does not fit'),
        ((q, k.bfloat16(), v, bias), 'give fp32 or bf16'),
        ((q.double(), k.double(), v.double(), bias), 'give fp32 or bf16'),
        ((q, k[:, :, :0], v[:, :, :0], bias[:, :, :0]), 'one head, key and channel'),
    ]:
        with pytest.raises(ValueError, match=message):
            window_attention(*wrong, 0.4)
    with pytest.raises(ValueError, match='mask .* does not fit'):
        window_attention(q, k, v, bias, 0.4, torch.zeros(15, 16))
    image = torch.randn(1, 8, 8, 36)
    for sizes, message in [
        ({'window_size': 3}, 'does not fall into windows'),
        ({'window_size': 4, 'overlap_size': 7}, 'plus an even number'),
        ({'window_size': 4, 'shift_size': 2}, 'no masks'),
        ({'window_size': 4, 'shift_size': 4, 'masks': torch.zeros(3, 16, 16)}, 'less than the window'),
    ]:
        with pytest.raises(ValueError, match=message):
            image_window_attention(image, bias, scale=0.4, num_heads=2, **sizes)
    with pytest.raises(ValueError, match='give \\(B, H, W, 3'):
        image_window_attention(image[..., 1:], bias, scale=0.4, num_heads=2, window_size=4)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('shape', [(961, 6, 256, 256), (9, 1, 4, 4), (49, 3, 16, 25)])
def test_the_bias_is_gathered(kernel, dtype, shape) -> None:
    rows, heads, queries, keys = shape
    table = torch.randn(rows, heads).to(dtype)
    index = torch.randint(rows, (queries, keys))
    index[0, 0], index[-1, -1] = 0, rows - 1
    if queries == 256:
        index[:128] = relative_position_index(16)[64:192]
    expected = table[index].permute(2, 0, 1)
    assert torch.equal(gather_bias(table, index), expected)
    assert torch.equal(run_gather(kernel, table.t().contiguous().t(), index, threads=3), expected)
    learning = table.clone().requires_grad_()
    assert gathered_bias(learning, index) is None
    with torch.no_grad():
        assert torch.equal(gathered_bias(nn.Parameter(table), index), expected)
    assert gathered_bias(table.double(), index) is None and gathered_bias(table.to('meta'), index) is None
    for wrong in (-1, rows):
        index[1, 1] = wrong
        with pytest.raises(IndexError, match=f'{rows} rows'):
            run_gather(kernel, table, index)


def test_gradients_of_another_image_are_refused(kernel):
    """Beyond is raw memory."""
    qkv, bias, geometry = torch.randn(1, 8, 8, 3 * 12), torch.randn(2, 64, 64), Geometry(0.3, 2, 8, 8, 0)
    out, softmax = native.run_image(kernel, qkv, bias, None, geometry)
    for grad in (out.bfloat16(), out[:, :4]):
        with pytest.raises(ValueError, match='grad .* is not of qkv'):
            native.run_image_gradient(kernel, grad, qkv, out, softmax, bias, None, geometry)
