"""Attention: the fused path against the plain one, forward and backward, and the switch between them."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from hat_plugin.layers import attention as module
from hat_plugin.layers.attention import attention, attention_backend, gather_bias
from hat_plugin.layers.fused import fused_attention
from hat_plugin.layers.self_attention import WindowAttention
from hat_plugin.layers.windows import relative_position_index, shift_masks


def operands(bias_grad: bool, dtype: torch.dtype = torch.float64, width: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2, 16, width), (3, 2, 25, width), (3, 2, 25, width), (2, 16, 25)]
    tensors = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    return [t.requires_grad_(bias_grad or t.ndim == 4) for t in tensors]


@pytest.mark.parametrize('bias_grad', [True, False])
@pytest.mark.parametrize('masked', [True, False])
@pytest.mark.parametrize('fused', ['sdpa', 'flex', 'triton'])
def test_fused_equals_plain(fused: str, bias_grad: bool, masked: bool) -> None:
    if fused == 'triton':
        pytest.importorskip('triton')
    mask = torch.where(torch.arange(400).reshape(16, 25) % 3 == 0, -100.0, 0.0).double() if masked else None
    results = []
    for backend in (fused, 'reference'):
        tensors = operands(bias_grad)
        with attention_backend(backend):
            y = attention(*tensors, scale=0.3, mask=mask)
        y.square().sum().backward()
        results.append([y.detach(), *(t.grad for t in tensors if t.requires_grad)])
    for one, plain in zip(*results, strict=True):
        torch.testing.assert_close(one, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('masked', [True, False])
@pytest.mark.filterwarnings('ignore:flex_attention called without torch.compile')
def test_flex_equals_plain(masked: bool) -> None:
    """Its own computation, which on the CPU has no gradients."""
    q, k, v, bias = (t.detach() for t in operands(False, torch.float32))
    mask = shift_masks(4, 2)[2] if masked else None
    k, v, bias = k[:, :, :16], v[:, :, :16], bias[:, :, :16]
    with attention_backend('reference'):
        expected = attention(q, k, v, bias, scale=0.3, mask=mask)
    with attention_backend('flex'), torch.no_grad():
        torch.testing.assert_close(attention(q, k, v, bias, scale=0.3, mask=mask), expected)


@pytest.mark.gpu
@pytest.mark.parametrize('width', [6, 30])
@pytest.mark.parametrize('backend', ['sdpa', 'flex'])
def test_fused_equals_plain_on_a_gpu(backend: str, width: int) -> None:
    results = []
    for name in (backend, 'reference'):
        tensors = [t.detach().cuda().requires_grad_() for t in operands(True, torch.float32, width)]
        with attention_backend(name):
            y = attention(*tensors, scale=0.3)
        y.square().sum().backward()
        results.append([y.detach(), *(t.grad for t in tensors)])
    for one, plain in zip(*results, strict=True):
        torch.testing.assert_close(one, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('width', 'multiple', 'seen'), [(6, 8, 8), (6, 1, 6), (6, 6, 6), (6, 4, 8)])
def test_padded_heads_change_nothing(monkeypatch: pytest.MonkeyPatch, width: int, multiple: int, seen: int) -> None:
    """The fused kernels of CUDA refuse HAT's width of 30: they are given more, and the result is cut."""
    q, k, v, bias = operands(True)
    expected = fused_attention(q, k, v, bias, 0.3)
    widths = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        'scaled_dot_product_attention',
        lambda q, *rest, **named: widths.append(q.shape[-1]) or fused(q, *rest, **named),
    )
    found = fused_attention(q, k, v, bias, 0.3, multiple=multiple)
    assert widths == [seen]
    torch.testing.assert_close(found, expected)
    of_found, of_expected = (torch.autograd.grad(y.square().sum(), (q, k, v, bias)) for y in (found, expected))
    for one, other in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_backend_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    module._log.cache_clear()
    q, k, v, bias = (t.detach() for t in operands(False, torch.float32))
    with caplog.at_level('INFO', module.__name__), attention_backend('sdpa'):
        for _ in range(3):
            attention(q, k, v, bias, scale=0.3)
    assert [record.getMessage() for record in caplog.records] == [
        'attention on cpu runs through sdpa (HAT_ATTENTION=sdpa)'
    ]


def test_plain_path_is_the_formula() -> None:
    q, k, v, bias = (t.detach() for t in operands(False))
    with attention_backend('reference'):
        y = attention(q, k, v, bias, scale=0.3)
    logits = torch.stack([q[1, 0, 4] @ k[1, 0, j] * 0.3 + bias[0, 4, j] for j in range(25)])
    expected = sum(w * v[1, 0, j] for j, w in enumerate(logits.exp() / logits.exp().sum()))
    torch.testing.assert_close(y[1, 0, 4], expected)


@pytest.mark.parametrize('backend', ['sdpa', 'reference'])
def test_result_has_the_dtype_of_the_queries(backend: str) -> None:
    q, k, v, bias = (t.detach() for t in operands(False, torch.float32))
    with attention_backend(backend):
        exact = attention(q, k, v, bias, scale=0.3)
        low = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), bias, scale=0.3)
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).abs().max() < 0.05


@pytest.mark.parametrize('backend', ['sdpa', 'reference'])
@pytest.mark.parametrize('bias_grad', [True, False])
def test_dropout_leaves_weights_out_and_keeps_the_mean(backend: str, bias_grad: bool) -> None:
    q, k, v, bias = operands(bias_grad, torch.float32)
    torch.manual_seed(0)
    with attention_backend(backend):
        exact = attention(q, k, v, bias, scale=0.3)
        mean = torch.stack([attention(q, k, v, bias, scale=0.3, dropout=0.5) for _ in range(300)]).mean(0)
        once = attention(q, k, v, bias, scale=0.3, dropout=0.5)
    assert (once - exact).abs().max() > 0.1
    assert (mean - exact).abs().max() < 0.3


def test_backend_is_put_back_after_an_error() -> None:
    before = module._backend
    with pytest.raises(RuntimeError), attention_backend('reference'):
        raise RuntimeError
    assert module._backend == before


def test_unknown_backend_raises_and_changes_nothing() -> None:
    before = module._backend
    with pytest.raises(ValueError, match="'flash' is unknown"), attention_backend('flash'):
        pass
    assert module._backend == before


@pytest.mark.parametrize('name', ['reference', 'nonsense'])
def test_environment_variable_chooses_the_backend(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv('HAT_ATTENTION', name)
    spec = importlib.util.spec_from_file_location('attention_again', module.__file__)
    assert spec is not None
    assert spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    if name == 'reference':
        spec.loader.exec_module(again)
        assert again._backend == 'reference'
    else:
        with pytest.raises(ValueError, match="'nonsense' is unknown"):
            spec.loader.exec_module(again)


@pytest.mark.parametrize('learning', [True, False])
def test_gathered_bias(learning: bool) -> None:
    table = torch.randn(49, 3, requires_grad=True)
    index = relative_position_index(4)
    with torch.set_grad_enabled(learning):
        bias = gather_bias(table, index)
    assert bias.is_contiguous()
    assert bias.requires_grad == learning
    assert torch.equal(bias, table[index].permute(2, 0, 1))


def test_no_copy_between_the_linear_layer_and_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries, keys and values are views of one tensor."""
    seen = []

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append({t.untyped_storage().data_ptr() for t in (q, k, v)})
        return module.sdpa_attention(q, k, v, *rest)  # type: ignore[arg-type]

    monkeypatch.setitem(module.BACKENDS, 'sdpa', spy)
    layer = WindowAttention(12, 4, 2)
    with torch.no_grad(), attention_backend('sdpa'):
        layer(torch.randn(1, 8, 8, 12), relative_position_index(4), shift_masks(4, 2), 2)
    assert [len(pointers) for pointers in seen] == [1, 1, 1, 1]


def test_shift_without_masks_raises() -> None:
    with pytest.raises(ValueError, match='shift_masks'):
        WindowAttention(12, 4, 2)(torch.randn(1, 8, 8, 12), relative_position_index(4), None, 2)


@pytest.mark.parametrize('shift', [0, 2])
def test_windows_do_not_see_each_other(shift: int) -> None:
    """A change of one pixel reaches its own (shifted) window and nothing else, not even across the border."""
    layer = WindowAttention(12, 4, 2).eval()
    masks = shift_masks(4, 2)
    x = torch.randn(1, 8, 12, 12)
    changed = x.clone()
    changed[0, 0, 0] += 1
    with torch.no_grad():
        difference = layer(x, relative_position_index(4), masks, shift) - layer(
            changed, relative_position_index(4), masks, shift
        )
    reached = difference.abs().amax(-1)[0] > 0
    side = shift or 4
    assert reached[:side, :side].all()
    assert reached.sum() == side * side
