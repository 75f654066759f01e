"""The ways of multiplying bf16: each that this processor has, and that of AMX emulated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from compared import error
from torch import Tensor

from hat_plugin.kernels import build, check, library
from hat_plugin.kernels.geometry import Geometry
from hat_plugin.kernels.native import run_image, run_image_gradient, run_windows
from hat_plugin.kernels.window_attention import plain_image_attention
from hat_plugin.layers.windows import shift_masks

AMX = 2


def tokens(windows: int, heads: int, queries: int, keys: int, width: int) -> list[Tensor]:
    torch.manual_seed(queries * keys + width)
    shapes = (windows, heads, queries, width), (windows, heads, keys, width), (windows, heads, keys, width)
    return [torch.randn(shape).bfloat16() for shape in (*shapes, (heads, queries, keys))]


SHAPES = [(2, 3, 256, 256, 30), (1, 2, 256, 576, 30), (2, 1, 1, 1, 1), (1, 2, 17, 35, 33), (2, 2, 9, 100, 64)]
SHAPES += [(1, 1, 15, 31, 16), (3, 2, 49, 49, 24), (1, 1, 7, 33, 100)]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('bias_dtype', [torch.float32, torch.bfloat16])
def test_amx_is_as_near_to_fp64_as_torchs_own_kernel(emulated, shape, bias_dtype):
    q, k, v, bias = tokens(*shape)
    wide = [x.double() for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*wide, bias[None].double())
    torchs = F.scaled_dot_product_attention(q, k, v, bias[None])
    found = run_windows(emulated, q, k, v, bias.to(bias_dtype), None, shape[-1] ** -0.5)
    assert error(found, expected) < max(1.3 * error(torchs, expected), 5e-3)


@pytest.mark.parametrize(('overlap', 'shift'), [(8, 0), (8, 3), (12, 0)])
def test_amx_agrees_with_wide_products_in_an_image(emulated, overlap, shift):
    torch.manual_seed(0)
    qkv, bias = torch.randn(2, 24, 16, 90).bfloat16(), torch.randn(2, 64, overlap**2).bfloat16()
    masks = shift_masks(8, shift) if shift else None
    call = emulated, qkv, bias, masks, Geometry(15**-0.5, 2, 8, overlap, shift)
    found, softmax = run_image(*call, threads=1)
    again = run_image(*call, threads=3)
    assert torch.equal(again[0], found) and torch.equal(again[1], softmax)
    try:
        assert emulated.hat_bf16_way(0) == 0
        wide, wide_softmax = run_image(*call)
        assert error(found, wide) < 1e-2
        torch.testing.assert_close(softmax, wide_softmax, rtol=1e-4, atol=1e-4)
    finally:
        emulated.hat_bf16_way(AMX)


SIZES = [(16, 16, 0, 30), (16, 24, 0, 30), (8, 8, 3, 15), (8, 12, 0, 40), (7, 7, 0, 17), (5, 5, 2, 8), (2, 4, 0, 3)]


@pytest.mark.parametrize(('window', 'overlap', 'shift', 'width'), SIZES)
@pytest.mark.parametrize('bias_dtype', [torch.float32, torch.bfloat16])
def test_amx_differentiates_as_well_as_wide_products(emulated, window, overlap, shift, width, bias_dtype):
    torch.manual_seed(window * overlap + width)
    height, breadth, heads = 2 * window, 3 * window, 2
    qkv = torch.randn(1, height, breadth, 3 * heads * width).bfloat16()
    grad = torch.randn(1, height, breadth, heads * width).bfloat16()
    bias = torch.randn(heads, window**2, overlap**2).to(bias_dtype)
    masks = shift_masks(window, shift) if shift else None
    geometry = Geometry(width**-0.5, heads, window, overlap, shift)
    inputs = [x.double().requires_grad_() for x in (qkv, bias)]
    out = plain_image_attention(inputs[0], inputs[1], masks.double() if shift else None, geometry)
    expected = torch.autograd.grad(out, inputs, grad.double())
    results = run_image(emulated, qkv, bias, masks, geometry)
    found = run_image_gradient(emulated, grad, qkv, *results, bias, masks, geometry, threads=1)
    again = run_image_gradient(emulated, grad, qkv, *results, bias, masks, geometry, threads=3)
    assert torch.equal(found[0], again[0])
    assert error(found[1], again[1]) < (1e-5 if bias_dtype == torch.float32 else 1e-2)
    for one, other in zip(found, expected, strict=True):
        assert error(one, other) < 1e-2
        assert (one.double() - other).norm() < 5e-3 * other.norm()


def test_amx_keeps_numbers_that_are_none_to_their_rows(emulated):
    q, k, v, bias = tokens(1, 1, 20, 40, 8)
    bias[:, :, 20:] = -torch.inf
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), bias[None].double())
    assert error(run_windows(emulated, q, k, v, bias, None, 8**-0.5), expected) < 1e-2
    q[0, 0, 3, 2] = torch.nan
    found = run_windows(emulated, q, k, v, bias, None, 0.3)
    assert found.isnan().any(-1).flatten().tolist() == [row == 3 for row in range(20)]


def test_every_way_passes_the_builds_check(emulated, built):
    assert list(check.faults(next(built.folder.glob('*.so')))) == []
    assert list(check.faults(Path(emulated._name))) == []
    assert emulated.hat_bf16_way(-1) == AMX and emulated.hat_bf16_way(7) == AMX


def test_where_amx_fails_the_kernels_are_compiled_without(monkeypatch, tmp_path, caplog):
    """A compiler whose first library is damaged, on a machine that has AMX."""
    compiler = build._compiler()
    wrapper = tmp_path / 'compiler'
    wrapper.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\n'
        f'case "$*" in *{library.WITHOUT_TILES}*) touch {tmp_path}/without;; esac\n'
        f'case "$*" in -shared*) test -e {tmp_path}/without || {{ for last; do :; done; : > "$last"; exit; }};; esac\n'
        f'exec {" ".join(compiler)} "$@" -O1\n'
    )
    wrapper.chmod(0o700)
    monkeypatch.setenv('CXX', str(wrapper))
    monkeypatch.setenv('HAT_KERNEL_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(build, 'has_amx', lambda: True)
    assert build.build().is_file()
    assert 'once more, without AMX' in caplog.text
    calls = (tmp_path / 'calls').read_text().splitlines()
    compiling = [True] * len(library.SOURCES)
    assert [library.WITHOUT_TILES in call for call in calls] == [*(not c for c in compiling), False, *compiling, False]


def test_denormals_are_zeros_within_a_call_alone(built):
    loaded = library.open_library(next(built.folder.glob('*.so')))
    q, k, v, bias = (x.float() for x in tokens(1, 1, 4, 4, 4))
    assert v.abs().mean() * 1e-39 != 0
    assert not run_windows(loaded, q, k, v * 1e-39, bias, None, 0.5).any()
    assert torch.tensor(1e-38) * 0.1 != 0
