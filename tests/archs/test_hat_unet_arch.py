"""HATUNet against a plain reading of its definition; sizes, scales, precisions, errors; no option without effect."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hat_plugin.archs.hat_unet_arch import HATUNet, hat_unet, hat_unet_s
from hat_plugin.engine.macs import count_macs
from hat_plugin.layers.attention import attention_backend
from hat_plugin.layers.precision import prepare_for_inference

SMALL: dict[str, Any] = {
    'embed_dim': 8,
    'depths': [2, 1, 2],
    'num_heads': [1, 2, 2],
    'refinement_depth': 1,
    'window_size': 4,
}


def small(**changes: Any) -> HATUNet:
    """A few thousand weights that matter: none is near zero, the last convolution included."""
    net = HATUNet(**{**SMALL, **changes})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(net.named_parameters()):
            value = torch.randn(parameter.shape, generator=generator)
            if 'table' in name or parameter.ndim == 1:
                value = 0.3 * value + float('norm' in name and name.endswith('weight'))
            else:
                value = value * 0.7 / parameter[0].numel() ** 0.5
            parameter.copy_(value)
    return net.eval()


def image(channels: int = 3, height: int = 32, width: int = 48) -> Tensor:
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(2))


# -- the definition, read plainly: NCHW, a mask for the whole picture, one step a line --------------------------------


def plain_attention(attn: Any, x: Tensor, shift: int) -> Tensor:
    side, heads = attn.window_size, attn.num_heads
    batch, channels, height, width = x.shape
    label = torch.zeros(height, width)
    if shift:
        x = torch.roll(x, (-shift, -shift), (2, 3))
        label[-shift:] += 1
        label[:, -shift:] += 2
    out = torch.zeros_like(x)
    for top in range(0, height, side):
        for left in range(0, width, side):
            part = x[:, :, top : top + side, left : left + side].flatten(2).transpose(1, 2)
            q, k, v = (
                F.linear(part, attn.qkv.weight, attn.qkv.bias).view(batch, -1, 3, heads, channels // heads).unbind(2)
            )
            logits = torch.einsum('bnhd,bmhd->bhnm', q, k) * attn.scale
            same = label[top : top + side, left : left + side].flatten()
            for one in range(side * side):
                for other in range(side * side):
                    down, right = one // side - other // side + side - 1, one % side - other % side + side - 1
                    logits[:, :, one, other] += attn.relative_position_bias_table[down * (2 * side - 1) + right]
            logits = logits.masked_fill(same[:, None] != same[None], -100.0)
            part = torch.einsum('bhnm,bmhd->bnhd', logits.softmax(-1), v).flatten(2)
            part = F.linear(part, attn.proj.weight, attn.proj.bias).transpose(1, 2)
            out[:, :, top : top + side, left : left + side] = part.view(batch, channels, side, side)
    return torch.roll(out, (shift, shift), (2, 3)) if shift else out


def plain_norm(norm: Any, x: Tensor) -> Tensor:
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)


def plain_linear(layer: Any, x: Tensor) -> Tensor:
    return torch.einsum('oc,bchw->bohw', layer.weight, x) + layer.bias.view(1, -1, 1, 1)


def plain_local(local: Any, x: Tensor) -> Tensor:
    y = F.gelu(local.norm1(local.conv(x)))
    y = local.proj(F.gelu(local.norm2(local.depthwise(y))))
    if not isinstance(local.weigh, nn.Identity):
        first, second = local.weigh.attention[1], local.weigh.attention[3]
        y = y * torch.sigmoid(second(F.relu(first(y.mean((2, 3), keepdim=True)))))
    return x + y


def plain_block(block: Any, x: Tensor, options: dict[str, Any]) -> Tensor:
    y = plain_norm(block.norm1, x)
    attended = plain_attention(block.attn, y, block.shift_size)
    if not options.get('local_enhancement', True):
        mixed = attended
    elif options.get('arrangement') == 'sequential':
        mixed = plain_local(block.local, attended)
    else:
        enhanced, fusion = plain_local(block.local, y), options.get('fusion', 'add')
        if fusion == 'add':
            mixed = attended + enhanced
        elif fusion == 'concat':
            mixed = plain_linear(block.fusion.proj, torch.cat([attended, enhanced], 1))
        else:
            share = torch.sigmoid(plain_linear(block.fusion.gate, torch.cat([attended, enhanced], 1)))
            mixed = share * attended + (1 - share) * enhanced
    x = x + mixed
    y = plain_linear(block.mlp.fc1, plain_norm(block.norm2, x))
    if options.get('feed_forward') == 'gated':
        gate, value = block.mlp.depthwise(y).chunk(2, 1)
        return x + plain_linear(block.mlp.fc2, F.gelu(gate) * value)
    return x + plain_linear(block.mlp.fc2, F.gelu(y))


def plain_forward(net: Any, image: Tensor, **options: Any) -> Tensor:
    def level(blocks: Any, x: Tensor) -> Tensor:
        for block in blocks.blocks:
            x = plain_block(block, x, options)
        return x

    x, skips = net.conv_first(image), []
    for blocks, down in zip(net.encoder, net.down, strict=True):
        skips.append(level(blocks, x))
        x = down.body(skips[-1])
    x = level(net.bottleneck, x)
    for blocks, up in zip(net.decoder, net.up, strict=True):
        x, skip = up.body(x), skips.pop()
        x = x + skip if options.get('skip') == 'add' else plain_linear(up.merge, torch.cat([x, skip], 1))
        x = level(blocks, x)
    return image + net.conv_last(level(net.refinement, x))


VARIANTS: list[dict[str, Any]] = [
    {},
    {'fusion': 'concat', 'lem_norm': 'instance', 'downsampler': 'pixelunshuffle'},
    {'fusion': 'gate', 'squeeze_factor': 4, 'level_upsampler': 'interpolate'},
    {'arrangement': 'sequential', 'lem_norm': 'batch', 'level_upsampler': 'pixelshuffle'},
    {'local_enhancement': False, 'feed_forward': 'gated', 'skip': 'add'},
]


@pytest.mark.parametrize('options', VARIANTS)
def test_is_what_it_says(options: dict[str, Any]) -> None:
    net, x = small(**options), image()
    expected = plain_forward(net, x, **options)
    with torch.no_grad():
        assert (net(x) - expected).abs().max() < 1e-5 * expected.abs().max()
    found = torch.autograd.grad(net(x).square().mean(), list(net.parameters()))
    wanted = torch.autograd.grad(plain_forward(net, x, **options).square().mean(), list(net.parameters()))
    scale = max(float(value.abs().max()) for value in wanted)
    assert max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True)) < 1e-5 * scale


@pytest.mark.parametrize('backend', ['sdpa', 'cpp', 'recompute', 'reference'])
def test_attention_runs_through_every_backend(backend: str) -> None:
    net, x = small(overlap_ratio=0.5), image()
    with torch.no_grad():
        expected = net(x)
        with attention_backend(backend):
            assert (net(x) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (16, 16), (15, 33), (40, 2)])
@pytest.mark.parametrize('upscale', [1, 2, 3, 4])
def test_any_size_and_scale(size: tuple[int, int], upscale: int) -> None:
    with torch.no_grad():
        y = small(upscale=upscale, in_chans=1)(image(1, *size))
    assert y.shape == (2, 1, size[0] * upscale, size[1] * upscale)
    assert y.isfinite().all()


def test_untrained_it_hands_the_image_through() -> None:
    net, x = HATUNet(**SMALL).eval(), image()
    assert torch.equal(net(x), x)
    larger = HATUNet(**SMALL, upscale=2).eval()(x)
    assert torch.equal(larger, F.interpolate(x, scale_factor=2, mode='bicubic', align_corners=False))


EFFECTS: list[dict[str, Any]] = [
    {'window_size': 8},
    {'mlp_ratio': 1.0},
    {'qkv_bias': False},
    {'qk_scale': 0.1},
    {'shift': False},
    {'local_enhancement': False},
    {'arrangement': 'sequential'},
    {'fusion': 'concat'},
    {'fusion': 'gate'},
    {'compress_ratio': 4},
    {'lem_norm': 'instance'},
    {'lem_norm': 'batch'},
    {'squeeze_factor': 2},
    {'feed_forward': 'gated'},
    {'overlap_ratio': 0.5},
    {'downsampler': 'pixelunshuffle'},
    {'level_upsampler': 'interpolate'},
    {'level_upsampler': 'pixelshuffle'},
    {'skip': 'add'},
    {'refinement_depth': 0},
    {'depths': [2, 1, 3]},
    {'num_heads': [2, 2, 2]},
    {'norm_layer': lambda dim: nn.LayerNorm(dim, eps=0.1)},
]


@pytest.mark.parametrize(
    'changes',
    EFFECTS,
    ids=lambda changes: ' '.join(f'{key}={getattr(value, "__name__", value)}' for key, value in changes.items()),
)
def test_every_option_has_an_effect(changes: dict[str, Any]) -> None:
    x = image()
    with torch.no_grad():
        assert not torch.equal(small(**changes)(x), small()(x))


@pytest.mark.parametrize('changes', [{'drop_rate': 0.2}, {'attn_drop_rate': 0.2}, {'drop_path_rate': 0.5}], ids=str)
def test_dropout_is_for_training_alone(changes: dict[str, Any]) -> None:
    net, plain, x = small(**changes), small(), image()
    with torch.no_grad():
        assert torch.equal(net(x), plain(x))
        assert not torch.equal(net.train()(x), plain.train()(x))


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'depths': [2, 2], 'num_heads': [1, 2, 2]}, r'depths \[2, 2\] and num_heads'),
        ({'embed_dim': 9, 'num_heads': [2, 2, 2]}, 'embed_dim 9 cannot be shared by 2 heads'),
        ({'window_size': 1}, 'window_size 1 is too small'),
        ({'upscale': 5}, 'upscale 5 is out of reach'),
        ({'refinement_depth': -1}, 'refinement_depth -1'),
        ({'fusion': 'mean'}, "fusion 'mean' is unknown"),
        ({'arrangement': 'serial'}, "arrangement 'serial' is unknown"),
        ({'arrangement': 'sequential', 'fusion': 'gate'}, "fusion 'gate' needs two branches"),
        ({'local_enhancement': False, 'fusion': 'gate'}, 'local_enhancement false leaves attention alone'),
        ({'local_enhancement': False, 'arrangement': 'sequential'}, 'leave it out'),
        ({'lem_norm': 'layer'}, "lem_norm 'layer' is unknown"),
        ({'compress_ratio': 9}, 'compress_ratio 9 leaves'),
        ({'feed_forward': 'glu'}, "feed_forward 'glu' is unknown"),
        ({'skip': 'mul'}, "skip 'mul' is unknown"),
        ({'downsampler': 'pool'}, "downsampler 'pool'"),
        ({'level_upsampler': 'nearest'}, "level_upsampler 'nearest' is unknown"),
        ({'overlap_ratio': 0.25}, 'overlap_ratio 0.25'),
        ({'drop_path_rate': 1.0}, 'drop_path_rate 1.0'),
    ],
)
def test_wrong_arguments_raise(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        HATUNet(**{**SMALL, **changes})


def test_wrong_input_raises() -> None:
    with pytest.raises(ValueError, match=r'HATUNet takes \(B, 3, H, W\), not \(3, 8, 8\)'):
        small()(torch.rand(3, 8, 8))


@pytest.mark.parametrize('count', [True, 3])
def test_checkpointing_changes_memory_alone(count: bool | int) -> None:
    plain, net, x = small(overlap_ratio=0.5), small(overlap_ratio=0.5, use_checkpoint=count), image()
    saved = {}
    for label, one in (('plain', plain), ('recomputed', net)):
        saved[label] = 0

        def count_bytes(tensor: Tensor, label: str = label) -> Tensor:
            saved[label] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count_bytes, lambda tensor: tensor):
            one.train()(x).square().mean().backward()
    assert saved['recomputed'] < saved['plain']
    for (name, a), b in zip(plain.named_parameters(), net.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize('precision', ['bf16', 'mixed'])
def test_reduced_precision_stays_close(precision: str) -> None:
    net, x = small(overlap_ratio=0.5, fusion='gate', squeeze_factor=4), image()
    with torch.no_grad():
        expected = net(x)
        found = prepare_for_inference(copy.deepcopy(net), precision)(x)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_weights_load_into_a_network_made_without_memory() -> None:
    net, x = small(), image()
    with torch.device('meta'):
        empty = HATUNet(**SMALL)
    empty = empty.to_empty(device='cpu').eval()
    empty.load_state_dict(net.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(empty(x), net(x))


def test_compiles_in_one_piece() -> None:
    net, x = small(fusion='gate'), image()
    explained = torch._dynamo.explain(net)(x)
    assert explained.graph_break_count == 0


def test_two_sizes() -> None:
    with torch.device('meta'):
        light, large = hat_unet_s(), hat_unet()
    counts = [sum(p.numel() for p in net.parameters()) / 1e6 for net in (light, large)]
    macs = [count_macs(net, (1, 3, 256, 256)).total / 1e9 for net in (light, large)]
    assert counts == pytest.approx([6.192, 25.972], abs=0.001)
    assert macs == pytest.approx([24.2, 137.2], abs=0.05)
