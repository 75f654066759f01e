"""The Triton kernels against the plain formula: on the CPU by triton's interpreter, `gpu` on a GPU.

TRITON_INTERPRET is set in tests/conftest.py where there is no CUDA device, before anything imports triton.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip('triton')

from compared import error
from compiling import compiled

from hat_plugin.archs.hat_arch import HAT, hat_s
from hat_plugin.kernels import triton_launch
from hat_plugin.kernels.triton_attention import plain_image_attention, triton_attention
from hat_plugin.kernels.triton_launch import Sizes, TritonError
from hat_plugin.layers.attention import attention_backend
from hat_plugin.layers.self_attention import WindowAttention
from hat_plugin.layers.windows import relative_position_index, shift_masks

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}  # of the largest value


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the kernels run."""
    if request.param == 'cpu' and not triton_launch.interpreted():
        pytest.skip("triton's interpreter is off here: TRITON_INTERPRET=1 turns it on")
    return request.param


class Case(NamedTuple):
    """A window, an image and heads that make one code path or another."""

    window: int
    overlap: int | None
    shift: int
    image: tuple[int, int, int]  # B, H, W
    heads: int
    width: int

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.width**-0.5, self.heads, self.window, self.overlap, self.shift)

    def operands(self, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """One qkv tensor, a table as far from zero as trained ones, and a gradient of the output."""
        random = torch.Generator().manual_seed(0)
        channels = self.heads * self.width
        qkv = torch.randn(*self.image, 3 * channels, generator=random).to(dtype)
        table = torch.randn(self.sizes.table_rows, self.heads, generator=random)
        grad = torch.randn(*self.image, channels, generator=random).to(dtype)
        return qkv.to(device).requires_grad_(), table.to(device).requires_grad_(), grad.to(device)


def kernel(q: Tensor, k: Tensor, v: Tensor, table: Tensor, sizes: Sizes) -> Tensor:
    scale, heads, window, overlap, shift = vars(sizes).values()
    return triton_attention(
        q, k, v, table, scale=scale, num_heads=heads, window_size=window, overlap_size=overlap, shift_size=shift
    )


def check(case: Case, dtype: torch.dtype, device: str) -> None:
    """Output and the gradients of q, k, v and table, from views of one tensor, against fp64."""
    qkv, table, grad = case.operands(dtype, device)
    exact = [x.detach().double().requires_grad_() for x in (qkv, table)]
    found = kernel(*qkv.chunk(3, dim=-1), table, case.sizes)
    expected = plain_image_attention(*exact[0].chunk(3, dim=-1), exact[1], case.sizes)
    assert found.dtype == dtype and found.is_contiguous()
    assert error(found.detach(), expected.detach()) < BOUNDS[dtype]
    of_qkv, of_table = torch.autograd.grad(found, (qkv, table), grad)
    exact_qkv, exact_table = torch.autograd.grad(expected, exact, grad.double())
    for one, other in zip(of_qkv.chunk(3, dim=-1), exact_qkv.chunk(3, dim=-1), strict=True):
        assert error(one, other) < BOUNDS[dtype]
    assert of_table.dtype == torch.float32
    assert error(of_table, exact_table) < BOUNDS[dtype]


CASES = [
    Case(4, None, 0, (2, 4, 8), 2, 6),
    Case(4, None, 2, (2, 8, 4), 2, 30),
    Case(4, None, 1, (1, 8, 12), 1, 17),
    Case(4, 6, 0, (2, 8, 4), 2, 30),
    Case(4, 4, 0, (1, 4, 8), 1, 8),  # no overlap, and still the index of overlapping windows
    Case(4, 14, 0, (1, 4, 12), 1, 6),  # a window sees beyond its neighbours
    Case(2, 4, 0, (1, 2, 4), 1, 3),
    Case(7, None, 3, (1, 14, 7), 2, 30),
    Case(7, 9, 0, (1, 7, 14), 1, 30),
    Case(8, None, 4, (2, 8, 16), 1, 30),
    Case(8, 10, 0, (1, 8, 16), 1, 24),
    Case(8, 12, 0, (1, 16, 8), 1, 30),
    Case(16, None, 8, (1, 16, 32), 1, 30),
    Case(16, 20, 0, (1, 16, 16), 1, 30),
    Case(16, 24, 0, (1, 16, 16), 1, 40),
]
PUBLISHED = [
    Case(16, None, 0, (2, 64, 48), 6, 30),
    Case(16, None, 8, (2, 64, 48), 6, 30),
    Case(16, 24, 0, (2, 64, 48), 6, 30),
    Case(16, 24, 0, (1, 16, 64), 6, 24),
]


@pytest.mark.parametrize('case', CASES, ids=str)
def test_fp32_output_and_gradients(case: Case, device: str) -> None:
    check(case, torch.float32, device)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('case', [CASES[1], CASES[7], CASES[8], CASES[11]], ids=str)
def test_half_precision(case: Case, dtype: torch.dtype, device: str) -> None:
    check(case, dtype, device)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', list(BOUNDS), ids=str)
@pytest.mark.parametrize('case', PUBLISHED, ids=str)
def test_published_sizes(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, 'cuda')


@pytest.mark.gpu
@pytest.mark.parametrize('case', PUBLISHED, ids=str)
def test_gradients_repeat_themselves_to_the_bit(case: Case) -> None:
    qkv, table, grad = case.operands(torch.bfloat16, 'cuda')
    runs = []
    for _ in range(3):
        y = kernel(*qkv.chunk(3, dim=-1), table, case.sizes)
        runs.append([y, *torch.autograd.grad(y, (qkv, table), grad)])
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(run, runs[0], strict=True))


@pytest.mark.parametrize('programs', [1, 512])
@pytest.mark.parametrize('case', [CASES[2], CASES[3]], ids=str)
def test_shares_of_the_windows(monkeypatch: pytest.MonkeyPatch, device: str, case: Case, programs: int) -> None:
    """One program for all windows, or one for each."""
    monkeypatch.setattr(triton_launch, '_PROGRAMS', programs)
    check(case, torch.float32, device)


def test_strides_do_not_matter_and_nothing_else_is_read(device: str) -> None:
    case = Case(4, 6, 0, (1, 4, 8), 2, 6)
    qkv, table, _ = case.operands(torch.float32, device)
    q, k, v = qkv.detach().chunk(3, dim=-1)
    expected = kernel(q, k, v, table.detach(), case.sizes)
    wide = torch.full((1, 9, 16, 50), float('nan'), device=device)
    views = [wide[:, 2:6, 3:11, start : start + 12].copy_(x) for start, x in ((1, q), (15, k), (29, v))]
    assert torch.equal(kernel(*views, table.detach(), case.sizes), expected)
    sparse = [torch.full((*x.shape[:3], 24), float('nan'), device=device)[..., ::2].copy_(x) for x in (q, k, v)]
    assert torch.equal(kernel(sparse[0], k.contiguous(), sparse[2], table.detach(), case.sizes), expected)
    assert kernel(q[:0], k[:0], v[:0], table.detach(), case.sizes).shape == (0, 4, 8, 12)


def test_extreme_logits(device: str) -> None:
    """A softmax that does not subtract the largest logit would overflow."""
    case = Case(4, None, 2, (1, 4, 8), 1, 6)
    qkv, table, _ = case.operands(torch.float32, device)
    q, k, v = qkv.detach().chunk(3, dim=-1)
    table = table.detach() * 1e3
    expected = plain_image_attention(q.double(), k.double(), v.double(), table.double(), case.sizes)
    assert error(kernel(q, k, v, table, case.sizes), expected) < 1e-4


def test_gradients_of_gradients(device: str) -> None:
    case = Case(4, 6, 0, (1, 4, 4), 1, 6)
    found = []
    for function in (kernel, plain_image_attention):
        qkv, table, grad = case.operands(torch.float32, device)
        y = function(*qkv.chunk(3, dim=-1), table, case.sizes)
        first = torch.autograd.grad(y, (qkv, table), grad, create_graph=True)
        found.append(torch.autograd.grad(sum(x.square().sum() for x in first), (qkv, table)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_operators_follow_torchs_rules(device: str) -> None:
    """Schema, fake tensors, autograd registration, dynamic shapes."""
    case = Case(2, 4, 0, (1, 2, 2), 1, 4)
    qkv, table, grad = case.operands(torch.float32, device)
    tensors = [x.detach().clone().requires_grad_() for x in (*qkv.chunk(3, dim=-1), table)]
    numbers = tuple(vars(case.sizes).values())
    forward = torch.ops.hat_plugin.triton_attention
    torch.library.opcheck(forward, (*tensors, *numbers))
    out, lse = forward(*(x.detach() for x in tensors), *numbers)
    backward = torch.ops.hat_plugin.triton_attention_backward
    rules = ('test_schema', 'test_autograd_registration', 'test_faketensor')
    torch.library.opcheck(backward, (grad, *tensors, out, lse, *numbers), test_utils=rules)


SMALL = {
    'embed_dim': 12, 'depths': [2], 'num_heads': [2], 'window_size': 4, 'compress_ratio': 2, 'squeeze_factor': 4,
    'conv_scale': 1.0, 'mlp_ratio': 2.0, 'upscale': 2, 'upsampler': 'pixelshuffle', 'num_feat': 8,
}  # fmt: skip


def perturbed(make: Callable[[], nn.Module], device: str) -> nn.Module:
    """With weights that hide nothing."""
    torch.manual_seed(0)
    net = make()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net.to(device)


def outputs_and_gradients(net: nn.Module, x: Tensor, backend: str, dtype: torch.dtype) -> list[Tensor]:
    """Of inference (which goes in strips where it can) and of training; under autocast unless dtype is fp32."""
    with attention_backend(backend), torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        with torch.no_grad():
            alone = net.eval()(x)
        y = net.train()(x)
        loss = (y.float() * torch.linspace(-1, 1, y.numel(), device=x.device).view(y.shape)).sum()
    return [alone, y.detach(), *torch.autograd.grad(loss, list(net.parameters()))]


@pytest.mark.parametrize(('dtype', 'bound'), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)], ids=str)
def test_a_whole_network(device: str, dtype: torch.dtype, bound: float) -> None:
    net = perturbed(lambda: HAT(**SMALL, drop_path_rate=0.0), device)
    x = torch.rand(1, 3, 8, 7, generator=torch.Generator().manual_seed(1)).to(device)
    found = outputs_and_gradients(net, x, 'triton', dtype)
    expected = outputs_and_gradients(net, x, 'reference', dtype)
    for one, other in zip(found, expected, strict=True):
        assert error(one, other.double()) < bound


@pytest.mark.gpu
def test_a_published_network() -> None:
    net = perturbed(hat_s, 'cuda')
    x = torch.rand(1, 3, 50, 64, generator=torch.Generator().manual_seed(1)).cuda()
    with torch.no_grad():
        with attention_backend('triton'):
            found = net.eval()(x)
        with attention_backend('reference'):
            assert error(found, net(x).double()) < 1e-4


def test_with_dropout_windows_are_cut_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = WindowAttention(12, 4, 2, attn_drop=0.5)
    x, index, masks = torch.randn(1, 8, 8, 12), relative_position_index(4), shift_masks(4, 2)
    monkeypatch.setattr(torch.ops.hat_plugin, 'triton_attention', None)
    with attention_backend('triton'):
        assert not torch.equal(layer(x, index, masks, 2), layer(x, index, masks, 2))


def test_without_gradients_the_operator_is_passed_by_but_for_whom_it_must_see(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    case = Case(4, None, 2, (2, 4, 8), 1, 6)
    qkv, table, _ = case.operands(torch.float32, device)
    expected = plain_image_attention(*qkv.chunk(3, dim=-1), table, case.sizes)
    monkeypatch.setattr(torch.ops.hat_plugin, 'triton_attention', None)
    with torch.no_grad():
        assert error(kernel(*qkv.chunk(3, dim=-1), table, case.sizes), expected.double()) < 1e-5
        with pytest.raises(TypeError, match='NoneType'):  # the operator was called
            torch.func.vmap(lambda x: kernel(*x[None].chunk(3, dim=-1), table, case.sizes))(qkv)
    with pytest.raises(TypeError, match='NoneType'):
        kernel(*qkv.chunk(3, dim=-1), table, case.sizes)


def test_nothing_of_token_pairs_is_made(device: str) -> None:
    """The largest tensor kept for the backward pass is one of queries, keys and values."""
    layer = WindowAttention(12, 4, 2).to(device)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes() // 4)
        return tensor

    x = torch.randn(1, 4, 8, 12, device=device)
    with attention_backend('triton'), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x, relative_position_index(4).to(device), shift_masks(4, 2).to(device), 2).sum().backward()
    assert max(kept) == 3 * x.numel()


def test_the_backend_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[0]
    qkv, table, _ = case.operands(torch.float32, 'cpu')
    monkeypatch.setattr(triton_launch, 'interpreted', lambda: False)
    with pytest.raises(TritonError, match='TRITON_INTERPRET=1'):
        kernel(*qkv.chunk(3, dim=-1), table, case.sizes)
    monkeypatch.setattr(triton_launch.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(TritonError, match='pip install triton'), attention_backend('triton'):
        pass


def test_arguments_that_do_not_fit_are_refused(device: str) -> None:
    x, table = torch.randn(1, 8, 8, 12, device=device), torch.randn(49, 2, device=device)
    for changes, message in [
        ({'k': x[:, 1:]}, 'give three of'),
        ({'window_size': 3}, 'does not fall into windows'),
        ({'num_heads': 5}, 'does not fall into windows'),
        ({'window_size': 1}, '2 pixels or more'),
        ({'overlap_size': 7}, 'larger by an even number'),
        ({'overlap_size': 6}, 'table .* does not fit: give .81, 2.'),
        ({'overlap_size': 4, 'shift_size': 2}, 'no overlap_size'),
        ({'shift_size': 4}, 'less than window_size 4'),
        ({'q': x.double(), 'k': x.double(), 'v': x.double()}, 'give fp32, bf16 or fp16'),
        ({'v': x.half()}, 'the same for q, k, v'),
    ]:
        arguments = {'q': x, 'k': x, 'v': x, 'table': table, 'scale': 0.4, 'num_heads': 2, 'window_size': 4, **changes}
        with pytest.raises(ValueError, match=message):
            triton_attention(**arguments)


def test_a_compiler_takes_the_kernels(tmp_path: Path) -> None:
    """For a GPU that is not here: the interpreter runs what no compiler would take."""
    assert len(compiled(tmp_path, 90, 'float16', 2, 16, 4, 6, 0)) == 5


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('capability', [80, 90])
@pytest.mark.parametrize(('overlap', 'shift'), [(0, 8), (24, 0)])
def test_published_sizes_fit_a_gpu(tmp_path: Path, dtype: str, capability: int, overlap: int, shift: int) -> None:
    """Shared memory within the least of any GPU from Ampere on, and no channel that is loaded all by itself."""
    for said in compiled(tmp_path, capability, dtype, 6, 30, 16, overlap, shift).values():
        assert said['shared'] <= 99 * 1024, said
        assert '16' not in said['loads'] and said['loads'], said


def test_where_triton_cannot_run_it_is_said_and_not_taken(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """Tried once, under torch.compile, autocast and fake tensors as well; without a C compiler it fails."""
    if not triton_launch.interpreted():
        pytest.skip("triton's interpreter is off here: TRITON_INTERPRET=1 turns it on")
    device = torch.device('cpu')
    triton_launch._tried.cache_clear()
    with FakeTensorMode(), torch.autocast('cpu', torch.bfloat16):
        assert triton_launch.works(device)
    graph = torch.compile(lambda x: x + 1 if triton_launch.works(device) else x, fullgraph=True, backend='eager')
    assert graph(torch.zeros(1)) == 1

    def fails(*_: object) -> None:
        raise RuntimeError('Failed to find C compiler')

    monkeypatch.setattr(triton_launch, 'run_forward', fails)
    triton_launch._tried.cache_clear()
    try:
        assert not triton_launch.works(device) and not triton_launch.works(device)
        assert caplog.text.count('Failed to find C compiler') == 1
    finally:
        triton_launch._tried.cache_clear()
