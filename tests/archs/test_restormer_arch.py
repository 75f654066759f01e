"""Restormer against a plain reading of the paper, and against an independent implementation where it is installed.

That implementation is spandrel's, in a package of its own because it is not for commercial use:
`pip install spandrel_extra_arches`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hat_plugin.archs.restormer_arch import Restormer
from hat_plugin.engine.macs import count_macs

SMALL: dict[str, Any] = {
    'dim': 4,
    'num_blocks': [1, 2, 1, 1],
    'num_refinement_blocks': 1,
    'heads': [1, 2, 4, 8],
    'ffn_expansion_factor': 2.66,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {'LayerNorm_type': 'BiasFree', 'inp_channels': 1, 'out_channels': 1},
    {'bias': True, 'heads': [2, 2, 1, 4], 'ffn_expansion_factor': 1.5},
    {'dual_pixel_task': True, 'inp_channels': 6},
    {'dual_pixel_task': True, 'inp_channels': 2, 'out_channels': 1, 'bias': True, 'LayerNorm_type': 'BiasFree'},
]


def small(**changes: Any) -> Restormer:
    """A few thousand weights that hide nothing: temperatures, biases and scales are far from their initial values."""
    net = Restormer(**{**SMALL, **changes})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(net.named_parameters()):
            value = torch.randn(parameter.shape, generator=generator)
            if name.endswith('temperature'):
                value = 3 * value  # attention that is far from uniform
            elif parameter.ndim == 1:
                value = 0.5 * value + float('norm' in name and name.endswith('weight'))
            else:
                value = value / parameter[0].numel() ** 0.5
            parameter.copy_(value)
    return net.eval()


def image(net: Any = None, height: int = 16, width: int = 24, dtype: torch.dtype = torch.float32) -> Tensor:
    channels = net.inp_channels if net is not None else 3
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=dtype)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference by the range of what it is compared with, zero being within the range."""
    return float((ours - theirs).abs().max() / (theirs.max().clamp(min=0) - theirs.min().clamp(max=0)))


# -- the paper, read plainly: one head and one sum at a time -----------------------------------------------------------


class Plain:
    """Section 3, on weights by their published names."""

    def __init__(self, net: Restormer, heads: list[int]) -> None:
        self.weights = dict(net.named_parameters())
        self.heads = heads

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weights[f'{name}.weight'], self.weights.get(f'{name}.bias')
        groups = x.shape[1] if weight.shape[1] == 1 and x.shape[1] == weight.shape[0] else 1
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=groups)

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        deviation = ((x - mean).square().mean(1, keepdim=True) + 1e-5).sqrt()
        weight, bias = self.weights[f'{name}.body.weight'], self.weights.get(f'{name}.body.bias')
        if bias is None:
            return x / deviation * weight.view(1, -1, 1, 1)
        return (x - mean) / deviation * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)

    def attention(self, name: str, x: Tensor, heads: int) -> Tensor:
        qkv = self.conv(f'{name}.qkv_dwconv', self.conv(f'{name}.qkv', x))
        parts = []
        for head, (q, k, v) in enumerate(zip(*(part.chunk(heads, 1) for part in qkv.chunk(3, 1)), strict=True)):
            q, k = (part / part.square().sum((2, 3), keepdim=True).sqrt() for part in (q, k))
            logits = torch.einsum('bchw,bdhw->bcd', q, k) * self.weights[f'{name}.temperature'][head, 0, 0]
            parts.append(torch.einsum('bcd,bdhw->bchw', logits.softmax(-1), v))
        return self.conv(f'{name}.project_out', torch.cat(parts, 1))

    def level(self, name: str, x: Tensor, level: int) -> Tensor:
        number = 0
        while f'{name}.{number}.attn.temperature' in self.weights:
            block = f'{name}.{number}'
            x = x + self.attention(f'{block}.attn', self.norm(f'{block}.norm1', x), self.heads[level])
            y = self.conv(f'{block}.ffn.dwconv', self.conv(f'{block}.ffn.project_in', self.norm(f'{block}.norm2', x)))
            gate, value = y.chunk(2, 1)
            x = x + self.conv(f'{block}.ffn.project_out', F.gelu(gate) * value)
            number += 1
        return x

    def __call__(self, image: Tensor) -> Tensor:
        shallow = self.conv('patch_embed.proj', image)
        skips, x = [], shallow
        for level, down in enumerate(('down1_2', 'down2_3', 'down3_4')):
            skips.append(self.level(f'encoder_level{level + 1}', x, level))
            x = F.pixel_unshuffle(self.conv(f'{down}.body.0', skips[-1]), 2)
        x = self.level('latent', x, 3)
        for level, up in ((2, 'up4_3'), (1, 'up3_2'), (0, 'up2_1')):
            x = torch.cat([F.pixel_shuffle(self.conv(f'{up}.body.0', x), 2), skips[level]], 1)
            if level:
                x = self.conv(f'reduce_chan_level{level + 1}', x)
            x = self.level(f'decoder_level{level + 1}', x, level)
        x = self.level('refinement', x, 0)
        if 'skip_conv.weight' in self.weights:
            return self.conv('output', x + self.conv('skip_conv', shallow))
        return self.conv('output', x) + image


def as_the_paper(net: Restormer, changes: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    return Plain(net, changes.get('heads', SMALL['heads']))


def as_spandrel(net: Restormer, changes: dict[str, Any]) -> nn.Module:
    reference = pytest.importorskip('spandrel_extra_arches.architectures.Restormer').Restormer
    other: nn.Module = reference(**{**SMALL, **changes}).eval()
    other.load_state_dict(net.state_dict(), strict=True)
    return other


@pytest.mark.parametrize('reference', [as_the_paper, as_spandrel])
@pytest.mark.parametrize('changes', VARIANTS, ids=str)
def test_same_output(reference: Any, changes: dict[str, Any]) -> None:
    net = small(**changes)
    x = image(net)
    with torch.no_grad():
        assert relative(net(x), reference(net, changes)(x)) < 2e-6  # asked for: 1e-5


@pytest.mark.parametrize('reference', [as_the_paper, as_spandrel])
@pytest.mark.parametrize('changes', VARIANTS, ids=str)
def test_same_gradients(reference: Any, changes: dict[str, Any]) -> None:
    """In fp64, where rounding hides nothing: every parameter's and the input's."""
    net = small(**changes).double()
    other = reference(net, changes)
    theirs = net
    if isinstance(other, nn.Module):  # the plain reading works on our weights themselves
        theirs = other.double()
        theirs.load_state_dict(net.state_dict(), strict=True)
    x = image(net, 8, 16, torch.float64).requires_grad_()
    found = torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()])
    wanted = torch.autograd.grad(other(x).square().sum(), [x, *theirs.parameters()])
    for name, mine, value in zip(['input', *dict(net.named_parameters())], found, wanted, strict=True):
        assert value.abs().max() > 0, name
        assert relative(mine, value) < 1e-9, name


@pytest.mark.parametrize('changes', VARIANTS, ids=str)
def test_state_dict_is_the_published_one(changes: dict[str, Any]) -> None:
    """Names and shapes, both ways, and the order that an optimiser's state relies on."""
    net = small(**changes)
    other = as_spandrel(net, changes)
    net.load_state_dict(other.state_dict(), strict=True)
    assert [(name, value.shape) for name, value in net.named_parameters()] == [
        (name, value.shape) for name, value in other.named_parameters()
    ]


@pytest.mark.parametrize('size', [(1, 1), (9, 31), (8, 3), (17, 23)])
@pytest.mark.parametrize('changes', VARIANTS[::3], ids=str)
def test_size_that_is_no_multiple_equals_the_padded_image(changes: dict[str, Any], size: tuple[int, int]) -> None:
    net = small(**changes)
    x = image(net, *size)
    padded = x
    for dim, side in ((2, size[0]), (3, size[1])):
        for _ in range(-side % 8):  # mirrored; where the side is too short, its last pixel
            mirrored = -side % 8 < side
            last = 2 * (side - 1) - padded.shape[dim] if mirrored else padded.shape[dim] - 1
            padded = torch.cat([padded, padded.narrow(dim, last, 1)], dim)
    with torch.no_grad():
        expected = net(padded)[:, :, : size[0], : size[1]]
        assert relative(net(x), expected) < 1e-6


@pytest.mark.parametrize(('norm', 'parameters'), [('WithBias', 26_126_644), ('BiasFree', 26_111_668)])
def test_published_size(norm: str, parameters: int) -> None:
    with torch.device('meta'):
        net = Restormer(LayerNorm_type=norm)
    macs = count_macs(net, (1, 3, 256, 256))
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert macs.without_attention_products / 1e9 == pytest.approx(140.99, abs=0.005)  # the paper's figure
    assert macs.total / 1e9 == pytest.approx(154.9, abs=0.05)


EFFECTS: list[dict[str, Any]] = [
    {'dim': 8},
    {'num_blocks': [1, 1, 1, 1]},
    {'num_refinement_blocks': 0},
    {'heads': [1, 1, 1, 1]},
    {'ffn_expansion_factor': 2.0},
    {'bias': True},
    {'LayerNorm_type': 'BiasFree'},
]


@pytest.mark.parametrize('changes', EFFECTS, ids=str)
def test_every_option_has_an_effect(changes: dict[str, Any]) -> None:
    with torch.no_grad():
        assert not torch.allclose(small(**changes)(image()), small()(image()))


def test_dual_pixels_are_two_views() -> None:
    """Both have their say, and neither is added to the result."""
    net = small(dual_pixel_task=True, inp_channels=6)
    x = image(net)
    with torch.no_grad():
        y = net(x)
        assert y.shape == (2, 3, 16, 24)
        for view in (slice(0, 3), slice(3, 6)):
            other = x.clone()
            other[:, view] = x[:, view].flip(3)
            assert not torch.allclose(net(other), y)
        nn.init.zeros_(net.output.weight)
        assert not net(x).any()


@pytest.mark.parametrize('count', [True, 3])
def test_checkpointing_changes_memory_alone(count: bool | int) -> None:
    plain, net, x = small(), small(use_checkpoint=count), image()
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


@pytest.mark.parametrize('changes', [{}, {'LayerNorm_type': 'BiasFree'}], ids=str)
def test_compiles_in_one_piece(changes: dict[str, Any]) -> None:
    explained = torch._dynamo.explain(small(**changes))(image())
    assert explained.graph_break_count == 0


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'inp_channels': 0, 'out_channels': 0}, 'inp_channels 0 and out_channels 0'),
        ({'inp_channels': 6}, 'inp_channels is 6 and out_channels 3.*or dual_pixel_task true'),
        ({'inp_channels': 1}, 'inp_channels is 1 and out_channels 3: give the same number in both$'),
        ({'dual_pixel_task': True}, 'give inp_channels 6, or dual_pixel_task false'),
        ({'num_blocks': [1, 1, 1]}, r'num_blocks \[1, 1, 1\] and heads .* give 4 numbers'),
        ({'heads': [1, 2]}, r'heads \[1, 2\]: give 4 numbers'),
        ({'num_blocks': [1, 1, 1, -1]}, 'numbers of blocks are 0 or more'),
        ({'num_refinement_blocks': -1}, 'num_refinement_blocks -1'),
        ({'dim': 5}, 'dim 5 cannot be halved'),
        ({'heads': [1, 3, 4, 8]}, '8 channels of level 2 cannot be shared by 3 heads'),
        ({'ffn_expansion_factor': 0.1}, 'ffn_expansion_factor 0.1 leaves nothing'),
        ({'LayerNorm_type': 'Bias'}, "LayerNorm_type 'Bias' is unknown: give WithBias or BiasFree"),
        ({'use_checkpoint': -1}, 'use_checkpoint -1'),
    ],
)
def test_wrong_arguments_raise(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Restormer(**{**SMALL, **changes})


def test_wrong_input_raises() -> None:
    with pytest.raises(ValueError, match=r'Restormer takes \(B, 3, H, W\), not \(3, 8, 8\)'):
        small()(torch.rand(3, 8, 8))
