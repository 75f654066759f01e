"""Recomputed attention: its gradients against finite differences and the plain path, and what it keeps in memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hat_plugin.layers import recompute
from hat_plugin.layers.attention import attention, attention_backend, best_backend
from hat_plugin.layers.config import BlockConfig, WindowTables
from hat_plugin.layers.overlap import OCAB
from hat_plugin.layers.recompute import plain_attention, recomputed_attention
from hat_plugin.layers.self_attention import WindowAttention
from hat_plugin.layers.windows import overlapping_position_index, relative_position_index, shift_masks


def operands(windows: int, tokens: int, keys: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys, values (views of a tensor, as in the network) and bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(windows, tokens, 2, 3), (windows, keys, 2, 3), (windows, keys, 2, 3)]
    tensors = [torch.randn(shape, generator=generator, dtype=dtype).transpose(1, 2) for shape in shapes]
    tensors.append(torch.randn(2, tokens, keys, generator=generator, dtype=dtype))
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.fixture(params=[1, 1 << 20], ids=['a window at a time', 'all at once'])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, '_CACHE', request.param)


@pytest.mark.usefixtures('chunks')
@pytest.mark.parametrize('keys', [4, 6])
def test_gradients_are_those_of_finite_differences(keys: int) -> None:
    def function(*tensors: Tensor) -> Tensor:
        return recomputed_attention(*tensors, 0.3)

    assert torch.autograd.gradcheck(function, operands(3, 4, keys))
    assert torch.autograd.gradgradcheck(function, operands(2, 2, keys))


@pytest.mark.usefixtures('chunks')
@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 0.03)]
)
def test_equals_the_plain_path(dtype: torch.dtype, tolerance: float) -> None:
    results = []
    for function, kind in ((recomputed_attention, dtype), (plain_attention, torch.float64)):
        tensors = [t.detach().to(dtype).to(kind).requires_grad_() for t in operands(5, 16, 36)]
        y = function(*tensors, 0.3)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=kind).reshape(y.shape))
        results.append([y.detach(), *(t.grad for t in tensors)])
    for got, expected in zip(*results, strict=True):
        assert got.dtype == dtype
        assert (got - expected).abs().max() < tolerance * expected.abs().max()


def test_operators_follow_torchs_rules() -> None:
    """Schema, fake tensors, autograd registration, dynamic shapes."""
    tensors = operands(3, 4, 6)
    torch.library.opcheck(torch.ops.hat_plugin.recomputed_attention, (*tensors, 0.3))
    grad = torch.randn(3, 2, 4, 3, dtype=torch.float64)
    torch.library.opcheck(torch.ops.hat_plugin.recomputed_attention_backward, (grad, *tensors, 0.3))


def layers(window_size: int, overlap_ratio: float) -> list[tuple[nn.Module, tuple]]:
    """Shifted self-attention, and overlapping cross-attention, with what they take beside the image."""
    config = BlockConfig(
        12, 2, window_size, compress_ratio=2, squeeze_factor=4, overlap_ratio=overlap_ratio, mlp_ratio=1.0
    )
    index, masks = relative_position_index(window_size), shift_masks(window_size, window_size // 2)
    overlap_index = overlapping_position_index(window_size, config.overlap_size)
    tables = WindowTables(index, overlap_index % (window_size + config.overlap_size - 1) ** 2, masks)
    torch.manual_seed(0)
    return [(WindowAttention(12, window_size, 2), (index, masks, window_size // 2)), (OCAB(config), (tables,))]


@pytest.mark.parametrize('kind', [0, 1], ids=['HAB', 'OCAB'])
@pytest.mark.parametrize('amp', [False, True])
def test_layers_have_the_gradients_of_the_plain_path(kind: int, amp: bool) -> None:
    gradients = []
    for backend in ('auto', 'reference'):
        layer, rest = layers(4, 0.5)[kind]
        x = torch.randn(2, 8, 12, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with attention_backend(backend), torch.autocast('cpu', torch.bfloat16, enabled=amp):
            y = layer(x, *rest) + layer(x.flip(1), *rest)  # used twice
        y.float().square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in layer.parameters())])
    for got, expected in zip(*gradients, strict=True):
        assert expected.abs().max() > 0
        assert (got - expected).abs().max() <= (0.03 if amp else 1e-5) * expected.abs().max()


@pytest.mark.parametrize('kind', [0, 1], ids=['HAB', 'OCAB'])
@pytest.mark.parametrize(('backend', 'fits'), [('auto', True), ('reference', False)])
def test_nothing_of_all_token_pairs_is_kept(kind: int, backend: str, fits: bool) -> None:
    """The largest tensor kept beside the learnable bias; the plain path shows that the test would see the weights."""
    layer, rest = layers(16, 0.25)[kind]
    x, kept = torch.randn(1, 64, 64, 12), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with attention_backend(backend), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x, *rest).sum().backward()
    assert (max(kept) < 9 * 256 * 256) == fits  # nine windows inside, six around


def test_with_checkpoint_compile_and_copies() -> None:
    layer, rest = layers(4, 0.5)[0]
    x = torch.randn(1, 8, 8, 12)

    def gradients(module: nn.Module, function: object) -> list[Tensor]:
        module.zero_grad()
        function(x, *rest).square().sum().backward()  # type: ignore[operator]
        return [p.grad.clone() for p in module.parameters()]

    expected = gradients(layer, layer)
    twin = copy.deepcopy(layer)
    for got in (
        gradients(layer, lambda *a: checkpoint(layer, *a, use_reentrant=False)),
        gradients(layer, torch.compile(layer, backend='aot_eager', fullgraph=True)),
        gradients(twin, twin),
    ):
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_chosen_where_the_bias_learns() -> None:
    q, _, _, bias = operands(1, 4, 4)
    assert best_backend(q, bias, 0.0) == 'recompute'
    assert best_backend(q, bias, 0.1) == 'sdpa'
    assert best_backend(q, bias.detach(), 0.0) == 'cpp'
    with torch.no_grad():
        assert best_backend(q, bias, 0.0) == 'cpp'


def test_dropout_takes_the_plain_path() -> None:
    tensors = operands(1, 4, 4)
    with attention_backend('recompute'):
        torch.manual_seed(0)
        one = attention(*tensors, scale=0.3, dropout=0.5)
        torch.manual_seed(0)
        with attention_backend('reference'):
            other = attention(*tensors, scale=0.3, dropout=0.5)
    assert torch.equal(one, other)
