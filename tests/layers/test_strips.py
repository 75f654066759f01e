"""Strips: the values of the whole, whatever the size of a strip, and memory that stays bounded."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.engine.memory import estimate_forward_bytes
from hat_plugin.layers import hybrid, overlap, strips
from hat_plugin.layers.linear import Linear, linear
from hat_plugin.layers.local import CAB
from hat_plugin.layers.precision import PRECISIONS, prepare_for_inference
from hat_plugin.layers.resample import reconstruction
from hat_plugin.layers.strips import Block, blocks_of, flat_steps, read_windows, strips_of_rows, write_windows

SMALL: dict[str, Any] = {
    'embed_dim': 12, 'depths': [2], 'num_heads': [2], 'window_size': 4, 'compress_ratio': 2, 'squeeze_factor': 4,
    'conv_scale': 1.0, 'mlp_ratio': 2.0, 'upscale': 2, 'upsampler': 'pixelshuffle', 'num_feat': 8,
}  # fmt: skip


def build(**changes: Any) -> HAT:
    torch.manual_seed(0)
    net = HAT(**{**SMALL, **changes}).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net


def image(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many strips as there can be."""
    monkeypatch.setattr(strips, '_CORE_TOKENS', 32)
    monkeypatch.setattr(strips, '_HEAD_BYTES', 1)
    monkeypatch.setattr(strips, '_MAP_TOKENS', 1)
    monkeypatch.setattr(strips, '_MAP_SHARE', 1 << 20)


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {'upscale': 4},
    {'upscale': 3, 'qkv_bias': False},
    {'upsampler': 'nearest+conv', 'upscale': 4, 'resi_connection': '3conv'},
    {'upsampler': 'pixelshuffledirect', 'upscale': 5, 'resi_connection': 'identity'},
    {'upsampler': '', 'upscale': 1, 'overlap_ratio': 0.0},
    {'window_size': 7, 'overlap_ratio': 0.3, 'patch_norm': False},
]


@pytest.mark.usefixtures('narrow')
@pytest.mark.parametrize('changes', CONFIGURATIONS, ids=str)
@pytest.mark.parametrize('size', [(16, 20), (4, 12), (3, 3)])
def test_strips_are_the_whole(changes: dict[str, Any], size: tuple[int, int]) -> None:
    net, x = build(**changes), image(*size)
    whole = net(x).detach()  # with gradients there are no strips
    with torch.no_grad():
        stripped = net(x)
    assert (stripped - whole).abs().max() < 1e-6 * max(1.0, float(whole.abs().max()))


@pytest.mark.usefixtures('narrow')
@pytest.mark.parametrize('upsampler', ['pixelshuffle', 'nearest+conv', 'pixelshuffledirect'])
@pytest.mark.parametrize('rows', [1, 4, 99])
def test_rows_of_a_chain_of_convolutions(upsampler: str, rows: int) -> None:
    steps = flat_steps(reconstruction(upsampler, 4, 6, 5, 3).values())
    x = torch.randn(2, 6, 11, 7)
    with torch.no_grad():
        parts = list(strips_of_rows(steps, lambda top, bottom: x[:, :, top:bottom], 11, rows))
        whole = nn.Sequential(*steps)(x)
    assert [(top, bottom) for top, bottom, _ in parts] == [
        (4 * top, 4 * min(11, top + rows)) for top in range(0, 11, rows)
    ]
    torch.testing.assert_close(torch.cat([part for _, _, part in parts], 2), whole)


@pytest.mark.parametrize(('most', 'count'), [(1, 24), (2, 16), (3, 8), (6, 4), (100, 2)])
def test_blocks_tile_each_sample(most: int, count: int) -> None:
    seen = torch.zeros(2, 4 * 8, 3 * 8)
    blocks = list(blocks_of(2, 4, 3, 8, most))
    for block in blocks:
        seen[block.sample, block.top : block.top + block.height, block.left : block.left + block.width] += 1
        assert block.height * block.width <= max(1, most) * 64
    assert (seen == 1).all()
    assert len(blocks) == count


def test_a_block_comes_round_at_the_border() -> None:
    x = torch.randn(2, 8, 12, 3)
    block = Block(1, 6, 10, 4, 4)
    windows = read_windows(x, block, 4)
    assert torch.equal(windows, torch.roll(x, (-6, -10), (1, 2))[1, :4, :4].reshape(1, 16, 3))
    y = x.clone()
    write_windows(y, block, windows + 1, 4)
    changed = torch.roll(y - x, (-6, -10), (1, 2))
    torch.testing.assert_close(changed[1, :4, :4], torch.ones(4, 4, 3))
    assert changed.abs().sum() == pytest.approx(48, abs=1e-3)


def test_channel_attention_block() -> None:
    block, x = CAB(12, 2, 4), torch.randn(2, 9, 10, 12)
    with torch.no_grad():
        features, weights = block.in_strips(x, lambda part: part * 2)
        torch.testing.assert_close(features * weights, block(x * 2))


class Peak(TorchDispatchMode):
    """The largest storage that any operation returned, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.bytes = max(self.bytes, *sizes, 0)
        return result


def test_nothing_larger_than_a_feature_map_or_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither queries, keys and values of the whole picture, nor an MLP's hidden layer, nor the head's features."""
    monkeypatch.setattr(strips, '_CORE_TOKENS', 256)
    monkeypatch.setattr(strips, '_HEAD_BYTES', 1 << 16)
    monkeypatch.setattr(strips, '_MAP_TOKENS', 512)
    net, x = build(), image(96, 96, 1)
    feature_map, result = 96 * 96 * 12 * 4, 96 * 96 * 4 * 3 * 4
    with torch.no_grad(), Peak() as peak:
        net(x)
    assert peak.bytes == max(feature_map, result)


def test_three_feature_maps_are_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a group came with, what a block reads and what it writes; strips and windows come on top."""
    monkeypatch.setattr(strips, '_CORE_TOKENS', 32)
    monkeypatch.setattr(strips, '_HEAD_BYTES', 1 << 16)
    monkeypatch.setattr(strips, '_MAP_TOKENS', 1)
    net = build(embed_dim=24, depths=[2, 2], num_heads=[2, 2], upsampler='', upscale=1)
    feature_map = 192 * 192 * 24 * 4
    assert 3 * feature_map < estimate_forward_bytes(net, (1, 3, 192, 192)) < 4 * feature_map


@pytest.mark.usefixtures('narrow')
@pytest.mark.parametrize('changes', CONFIGURATIONS[:4], ids=str)
def test_an_estimate_by_two_strips_is_that_by_all(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    net = build(**changes)
    by_two = estimate_forward_bytes(net, (2, 3, 40, 36))
    for module in strips, hybrid, overlap:
        monkeypatch.setattr(module, 'enough', lambda some: some)
    assert by_two == pytest.approx(estimate_forward_bytes(net, (2, 3, 40, 36)), rel=0.01)


def test_an_estimate_elsewhere_does_not_shorten_a_pass() -> None:
    with strips.estimating(), ThreadPoolExecutor(1) as pool:
        assert list(strips.enough(range(5))) == [0, 2]
        assert list(strips.enough(range(1))) == [0]
        assert list(pool.submit(strips.enough, range(5)).result()) == [0, 1, 2, 3, 4]
    assert list(strips.enough(range(5))) == [0, 1, 2, 3, 4]


def test_blocks_are_of_about_one_size() -> None:
    assert [block.width for block in blocks_of(1, 1, 40, 16, 32)] == [20 * 16, 20 * 16]
    assert [block.height for block in blocks_of(1, 10, 4, 16, 16)] == [64, 64, 32]


@pytest.mark.parametrize('precision', PRECISIONS)
def test_precisions(precision: str) -> None:
    exact, net, x = build(), prepare_for_inference(build(), precision), image(16, 20)
    with torch.no_grad():
        expected, y = exact(x), net(x)
        plain = net(x.requires_grad_()) if precision == 'fp32' else y
    error = float((y - expected).square().mean())
    assert y.dtype == torch.float32
    assert (error < 1e-12) == (precision == 'fp32')
    assert 10 * math.log10(float(expected.var()) / max(error, 1e-20)) > 30
    torch.testing.assert_close(plain, y)


def test_mixed_keeps_the_residual_stream_and_works_without_strips() -> None:
    exact, x = build(), image(16, 20)
    net = prepare_for_inference(build(), 'mixed')
    assert net.conv_first.weight.dtype == net.norm.weight.dtype == torch.float32
    assert net.get_submodule('layers.0.residual_group.blocks.0.attn.qkv').weight.dtype == torch.bfloat16
    with torch.no_grad():
        stripped, expected = net(x), exact(x)
        low = prepare_for_inference(build(), 'bf16')(x)
        assert (stripped - expected).square().mean() < (low - expected).square().mean()
        whole = torch.compile(net, backend='eager', fullgraph=True)(x)
    torch.testing.assert_close(whole, stripped, rtol=0.05, atol=0.02)


def test_unknown_precision_is_refused_unchanged() -> None:
    net = build()
    with pytest.raises(ValueError, match="'fp8' is unknown"):
        prepare_for_inference(net, 'fp8')
    assert net.norm.weight.dtype == torch.float32


def test_linear_is_torchs() -> None:
    layer = Linear(7, 5)
    x = torch.randn(3, 4, 7)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(linear(x, layer.weight), expected - layer.bias)
        torch.testing.assert_close(layer(x.transpose(0, 1)), expected.transpose(0, 1))
        with torch.autocast('cpu', torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert layer(x[:0]).shape == (0, 4, 5)
