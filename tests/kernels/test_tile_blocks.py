"""Whole blocks in bf16 by AMX, emulated and, where there is one, by the processor: against formulas, in networks."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from compared import error
from tiles import SMALL, in_use, normalisation, normed, random
from torch import Tensor

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.archs.hat_unet_arch import HATUNet
from hat_plugin.engine.memory import is_out_of_memory
from hat_plugin.kernels import tile_blocks
from hat_plugin.kernels.geometry import Geometry
from hat_plugin.kernels.operands import Layer
from hat_plugin.kernels.products import products_by
from hat_plugin.kernels.tile_blocks import BlockLayers, window_block
from hat_plugin.kernels.window_attention import plain_image_attention
from hat_plugin.layers import overlap, whole_block
from hat_plugin.layers.attention import attention_backend
from hat_plugin.layers.precision import prepare_for_inference
from hat_plugin.layers.windows import shift_masks


def block(channels: int, hidden: int, parts: int = 3, *, biased: bool = True) -> BlockLayers:
    """A block's layers, all of them of some weight beside the stream."""

    def layer(outputs: int, inputs: int, seed: int) -> Layer:
        weight = random(outputs, inputs, seed=seed) / inputs**0.5
        return Layer(weight.bfloat16(), random(outputs, seed=seed + 1) if biased else None)

    norm, mlp_norm = normalisation(channels), normalisation(channels)
    rest = layer(channels, channels, 30), mlp_norm, layer(hidden, channels, 40), layer(channels, hidden, 50)
    return BlockLayers(norm, layer(parts * channels, channels, 20), *rest)


def linear(x: Tensor, layer: Layer) -> Tensor:
    return F.linear(x, layer.weight.double(), None if layer.bias is None else layer.bias.double())


def expected(
    x: Tensor,
    layers: BlockLayers,
    bias: Tensor,
    geometry: Geometry,
    masks: Tensor | None = None,
    kv: Tensor | None = None,
    branch: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The formula, in fp64; kv: without the margin, as there are zeros around the image."""
    tokens = linear(normed(x, layers.norm), layers.queries)
    tokens = tokens if kv is None else torch.cat([tokens, kv.double()], dim=-1)
    attended = plain_image_attention(tokens, bias.double(), None if masks is None else masks.double(), geometry)
    y = x.double() + linear(attended, layers.projection)
    y = y if branch is None else y + branch[0].double() * branch[1].double()
    return y + linear(F.gelu(linear(normed(y, layers.mlp_norm), layers.up)), layers.down)


CASES = [
    (180, 360, 6, 16, 0, (32, 32), True),
    (180, 360, 6, 16, 8, (16, 48), True),
    (60, 120, 6, 8, 4, (24, 16), False),
    (34, 50, 2, 7, 3, (14, 21), True),
    (5, 3, 1, 5, 0, (5, 5), False),
]


@pytest.mark.parametrize('stream', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(('channels', 'hidden', 'heads', 'window', 'shift', 'size', 'biased'), CASES)
def test_a_block_of_windows(amx, channels, hidden, heads, window, shift, size, biased, stream) -> None:
    """Regular and shifted; with a branch that is added, whose memory takes the result, and without."""
    layers = block(channels, hidden, biased=biased)
    geometry = Geometry((channels // heads) ** -0.5, heads, window, window, shift)
    x = (random(2, *size, channels, seed=0) * 2 + 1).to(stream)
    bias = random(heads, window**2, window**2, seed=8, dtype=stream)
    masks = shift_masks(window, shift) if shift else None
    found = window_block(x, layers, bias, geometry, masks=masks, library=amx)
    assert found.dtype == stream and found.is_contiguous()
    assert error(found, expected(x, layers, bias, geometry, masks)) < 1.5e-2
    features = random(2, *size, channels, seed=6).to(stream)
    for samples in (1, 2):
        branch = features.clone(), random(samples, 1, 1, channels, seed=7)
        exact = expected(x, layers, bias, geometry, masks, branch=branch)
        given = {'masks': masks, 'branch': branch, 'library': amx}
        found = window_block(x, layers, bias, geometry, **given)
        assert torch.equal(branch[0], features)
        assert error(found, exact) < 1.5e-2
        inside = window_block(x, layers, bias, geometry, **given, out=branch[0])
        assert inside is branch[0] and torch.equal(inside, found)


@pytest.mark.parametrize('stream', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(('window', 'overlap'), [(8, 12), (4, 4), (7, 9)])
def test_keys_from_beyond_the_window(amx, window: int, overlap: int, stream: torch.dtype) -> None:
    channels, heads, margin = 48, 3, (overlap - window) // 2
    layers, geometry = block(channels, 96, 1), Geometry(0.25, heads, window, overlap, 0)
    x, kv = (
        random(2, 2 * window, 3 * window, channels, seed=0).to(stream),
        random(2, 2 * window, 3 * window, 2 * channels, seed=1),
    )
    bias = random(heads, window**2, overlap**2, seed=2)
    padded = F.pad(kv, (0, 0, margin, margin, margin, margin))
    found = window_block(x, layers, bias, geometry, keys_and_values=padded, library=amx)
    assert error(found, expected(x, layers, bias, geometry, kv=kv)) < 1.5e-2


@pytest.fixture
def three_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


def test_threads_do_not_matter(amx, three_threads) -> None:
    x, layers, geometry = random(1, 16, 40, 32, seed=0).float(), block(32, 64), Geometry(0.25, 2, 8, 8, 0)
    bias = random(2, 64, 64, seed=1)
    found = window_block(x, layers, bias, geometry, library=amx)
    torch.set_num_threads(1)
    assert torch.equal(window_block(x, layers, bias, geometry, library=amx), found)


def test_it_is_taken_where_threads_share_windows_evenly(emulated, monkeypatch, three_threads) -> None:
    in_use(emulated, monkeypatch)
    layers = block(16, 32)
    taken = {
        windows: tile_blocks.takes(random(1, 8, 8 * windows, 16, seed=0), layers, 8) for windows in (1, 2, 3, 4, 5, 9)
    }
    assert taken == {1: False, 2: False, 3: True, 4: False, 5: True, 9: True}
    assert not tile_blocks.takes(random(1, 8, 24, 16, seed=0), layers._replace(up=Layer(torch.zeros(32, 16))), 8)


def noted(monkeypatch: pytest.MonkeyPatch) -> list[Geometry]:
    """Of each block that the kernel computes from now on, how the image falls into windows."""
    calls: list[Geometry] = []
    for module in (overlap, whole_block):
        monkeypatch.setattr(
            module, 'window_block', lambda *call, **named: (calls.append(call[3]), window_block(*call, **named))[1]
        )
    return calls


@pytest.mark.parametrize('precision', ['mixed', 'bf16'])
@pytest.mark.parametrize('size', [(32, 24), (160, 128)], ids=['whole', 'in strips'])
def test_a_network_of_blocks(amx, monkeypatch, precision: str, size: tuple[int, int]) -> None:
    """All three blocks go through it, or none: where a hook or another way of attending asks for a module."""
    torch.manual_seed(0)
    net, x = HAT(**SMALL).eval(), torch.rand(1, 3, *size)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        exact = net(x)
        prepare_for_inference(net, precision)
        in_use(amx, monkeypatch)
        calls = noted(monkeypatch)
        found = net(x)
        strips = sum(geometry.overlap_size > geometry.window_size for geometry in calls)
        assert [geometry.shift_size for geometry in calls[:2]] == [0, 4] and len(calls) == 2 + strips
        assert strips == (1 if size == (32, 24) else 2)
        calls.clear()
        with attention_backend('reference'):
            other = net(x)
        seen: list[str] = []
        for module in net.modules():
            if isinstance(module, torch.nn.GELU):
                module.register_forward_hook(lambda *_: seen.append('GELU'))
        net(x)
    assert not calls
    assert error(found, exact) < 1.2 * error(other, exact) + 1e-3


@pytest.mark.parametrize('precision', ['mixed', 'bf16'])
@pytest.mark.parametrize(
    ('options', 'blocks'),
    [({}, 8), ({'local_enhancement': False}, 8), ({'overlap_ratio': 0.5}, 13), ({'fusion': 'gate'}, 0)],
    ids=['added', 'attention alone', 'with overlap', 'gated'],
)
def test_a_u_net_of_blocks(amx, monkeypatch, options: dict, blocks: int, precision: str) -> None:
    """Where what local enhancement makes is added, or there is none."""
    torch.manual_seed(0)
    sizes = {'embed_dim': 16, 'depths': (1, 2, 1), 'num_heads': (1, 2, 4), 'refinement_depth': 1, 'window_size': 4}
    net, x = HATUNet(**sizes, **options).eval(), torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        exact = net(x)
        prepare_for_inference(net, precision)
        with products_by('torch'):
            other = net(x)
        in_use(amx, monkeypatch)
        calls = noted(monkeypatch)
        found = net(x)
    assert len(calls) == blocks
    assert error(found, exact) < 1.2 * error(other, exact) + 1e-3


def test_what_does_not_fit_is_refused(emulated) -> None:
    """Beyond is raw memory."""
    x, layers, geometry = random(2, 16, 8, 16, seed=0), block(16, 32), Geometry(0.25, 2, 8, 8, 0)
    bias, wide, wide_weight = random(2, 64, 64, seed=1), Geometry(0.25, 2, 8, 12, 0), torch.zeros(16, 16)
    for message, changed in (
        (r'x \(16, 8, 16\): give \(B', {'x': x[0]}),
        ('does not fall into windows', {'x': x[:, :15]}),
        (r'bias \(2, 64, 63\)', {'bias': bias[..., 1:]}),
        ('no masks', {'geometry': Geometry(0.25, 2, 8, 8, 4)}),
        (r'queries is \(16, 16\)', {'layers': block(16, 32, 1)}),
        (r'queries is \(48, 16\)', {'keys_and_values': torch.cat([x, x], -1)}),
        (r'weight 0 \(8, 8\)', {'layers': layers._replace(projection=Layer(random(8, 8, seed=1)))}),
        ('weight 1', {'layers': layers._replace(down=layers.up)}),
        (r'norm.weight \(15,\)', {'layers': layers._replace(mlp_norm=normalisation(15))}),
        ('needs keys_and_values', {'geometry': wide, 'bias': random(2, 64, 144, seed=1)}),
        (r'give \(2, 20, 12, 32\)', {
            'geometry': wide, 'bias': random(2, 64, 144, seed=1), 'layers': block(16, 32, 1),
            'keys_and_values': torch.cat([x, x], -1),
        }),
        (r'scaled \(1, 16, 8, 16\)', {'branch': (x[:1], x[:, :1, :1])}),
        (r'branch is .*float32', {'branch': (x.float(), x[:, :1, :1])}),
        (r'out is \(2, 16, 8, 16\), torch.float32', {'out': x.float()}),
        ('out is x', {'out': x}),
        ('not contiguous', {'out': x.transpose(1, 2).contiguous().transpose(1, 2)}),
        ('weights are torch.float32', {'x': x.float(), 'layers': layers._replace(projection=Layer(wide_weight))}),
    ):  # fmt: skip
        call = {'x': x, 'layers': layers, 'bias': bias, 'geometry': geometry} | changed
        with pytest.raises(ValueError, match=message):
            window_block(**call, library=emulated)


def test_without_memory_it_says_so() -> None:
    """In the words by which `basicsr restore` knows that smaller tiles may do."""
    empty = SimpleNamespace(hat_window_block=lambda call: 1)
    call = random(1, 8, 8, 16, seed=0), block(16, 32), random(2, 64, 64, seed=1), Geometry(0.25, 2, 8, 8, 0)
    with pytest.raises(RuntimeError, match='no memory left for a block over 64 pixels') as caught:
        window_block(*call, library=empty)
    assert is_out_of_memory(caught.value)
