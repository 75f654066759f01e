"""NAFNet against an independent implementation, spandrel's; local statistics against means taken one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hat_plugin.archs.nafnet_arch import NAFNet, NAFNetLocal
from hat_plugin.engine.macs import count_macs
from hat_plugin.layers.local_statistics import LocalAveragePool

SMALL: dict[str, Any] = {'width': 6, 'middle_blk_num': 2, 'enc_blk_nums': [1, 2], 'dec_blk_nums': [2, 1]}
SIDD: dict[str, Any] = {'enc_blk_nums': [2, 2, 4, 8], 'middle_blk_num': 12, 'dec_blk_nums': [2, 2, 2, 2]}
GOPRO: dict[str, Any] = {'enc_blk_nums': [1, 1, 1, 28], 'middle_blk_num': 1, 'dec_blk_nums': [1, 1, 1, 1]}
VARIANTS: list[dict[str, Any]] = [
    {},
    {'img_channel': 1, 'width': 5},
    {'enc_blk_nums': [0, 1, 1], 'dec_blk_nums': [1, 0, 2], 'middle_blk_num': 0},
    {'enc_blk_nums': [], 'dec_blk_nums': []},
]


def randomise(net: nn.Module) -> nn.Module:
    """Weights that hide nothing: betas and gammas, zero at first, are as large as the others."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(net.named_parameters()):
            value = torch.randn(parameter.shape, generator=generator)
            if name.endswith(('beta', 'gamma')) or parameter.ndim == 1:
                value = 0.5 * value + float('norm' in name and name.endswith('weight'))
            else:
                value = value / parameter[0].numel() ** 0.5
            parameter.copy_(value)
    return net.eval()


def small(kind: type[NAFNet] = NAFNet, **changes: Any) -> NAFNet:
    net = randomise(kind(**{**SMALL, **changes}))
    assert isinstance(net, NAFNet)
    return net


def image(channels: int = 3, height: int = 16, width: int = 24, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=dtype)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference by the range of what it is compared with, zero being within the range."""
    return float((ours - theirs).abs().max() / (theirs.max().clamp(min=0) - theirs.min().clamp(max=0)))


def pair(**changes: Any) -> tuple[NAFNet, nn.Module]:
    """A small NAFNet, and spandrel's with the same weights."""
    reference = pytest.importorskip('spandrel.architectures.NAFNet').NAFNet
    net = small(**changes)
    other = reference(**{**SMALL, **changes}).eval()
    other.load_state_dict(net.state_dict(), strict=True)
    return net, other


@pytest.mark.parametrize('changes', VARIANTS, ids=str)
@pytest.mark.parametrize('size', [(16, 24), (13, 7), (1, 1)])
def test_same_output(changes: dict[str, Any], size: tuple[int, int]) -> None:
    ours, theirs = pair(**changes)
    x = image(ours.img_channel, *size)
    with torch.no_grad():
        assert relative(ours(x), theirs(x)) < 2e-6  # asked for: 1e-5


@pytest.mark.parametrize('changes', VARIANTS, ids=str)
def test_same_gradients(changes: dict[str, Any]) -> None:
    """In fp64, where rounding hides nothing: every parameter's and the input's."""
    gradients = []
    for net in pair(**changes):
        x = image(changes.get('img_channel', 3), 8, 12, torch.float64).requires_grad_()
        y = net.double()(x)
        y.backward(image(*y.shape[1:], dtype=torch.float64))
        gradients.append({'input': x.grad, **{name: value.grad for name, value in net.named_parameters()}})
    assert gradients[0].keys() == gradients[1].keys()
    for name, theirs in gradients[1].items():
        assert theirs.abs().max() > 0, name
        assert relative(gradients[0][name], theirs) < 1e-10, name


@pytest.mark.parametrize('changes', VARIANTS, ids=str)
def test_state_dict_is_the_published_one(changes: dict[str, Any]) -> None:
    """Names and shapes, both ways, and the order that an optimiser's state relies on."""
    ours, theirs = pair(**changes)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert [(name, value.shape) for name, value in ours.named_parameters()] == [
        (name, value.shape) for name, value in theirs.named_parameters()
    ]
    small(NAFNetLocal, **changes).load_state_dict(theirs.state_dict(), strict=True)


@pytest.mark.parametrize(
    ('width', 'task', 'parameters', 'giga'),
    [
        (64, SIDD, 115_982_915, 63.2),
        (64, GOPRO, 67_888_835, 63.1),
        (32, SIDD, 29_159_715, 16.0),
        (32, GOPRO, 17_111_907, 16.0),
    ],
)
def test_published_sizes(width: int, task: dict[str, Any], parameters: int, giga: float) -> None:
    with torch.device('meta'):
        net = NAFNet(width=width, **task)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    macs = count_macs(net, (1, 3, 256, 256))
    assert macs.total / 1e9 == pytest.approx(giga, abs=0.05)
    assert macs.attention_products == 0


# -- local statistics -------------------------------------------------------------------------------------------------


def window_means(x: Tensor, high: int, wide: int) -> Tensor:
    """Each pixel's mean, one by one: of the window around it, moved inwards where it would leave the picture."""
    height, width = x.shape[2:]
    high, wide = min(high, height), min(wide, width)
    result = torch.empty_like(x)
    for row in range(height):
        for column in range(width):
            top = min(max(row - (high - 1) // 2, 0), height - high)
            left = min(max(column - (wide - 1) // 2, 0), width - wide)
            result[:, :, row, column] = x[:, :, top : top + high, left : left + wide].mean((2, 3))
    return result


@pytest.mark.parametrize('kernel_size', [(4, 4), (5, 3), (1, 6), (40, 6), (6, 40), (12, 40)])
def test_local_mean_is_the_mean_of_a_window(kernel_size: tuple[int, int]) -> None:
    x = image(3, 13, 17, torch.float64)
    pool = LocalAveragePool(kernel_size).eval()
    assert torch.allclose(pool(x), window_means(x, *kernel_size), atol=1e-12)
    assert torch.equal(pool.train()(x), F.adaptive_avg_pool2d(x, 1))


def test_local_mean_is_the_whole_mean_where_the_window_holds_all() -> None:
    x = image(3, 13, 17)
    assert torch.equal(LocalAveragePool((13, 20)).eval()(x), F.adaptive_avg_pool2d(x, 1))


def test_local_mean_keeps_its_digits_on_a_large_picture() -> None:
    x = image(1, 700, 900)
    exact = LocalAveragePool((384, 384)).eval()(x.double())
    assert (LocalAveragePool((384, 384)).eval()(x) - exact).abs().max() < 1e-6


def test_local_equals_global_on_small_pictures_and_in_training() -> None:
    local, plain = small(NAFNetLocal, train_size=(1, 3, 16, 32)), small()
    with torch.no_grad():
        for size in ((24, 48), (16, 20)):
            assert torch.equal(local(image(3, *size)), plain(image(3, *size)))
        x = image(3, 28, 48)
        assert (local(x) - plain(x)).abs().max() > 1e-3
        assert torch.equal(local.train()(x), plain.train()(x))


def test_each_level_has_its_window() -> None:
    """Published: 384 pixels at the first level, 24 at the fifth, whatever the picture's size."""
    with torch.device('meta'):
        net = NAFNetLocal(width=4, **SIDD)
    stages = [*net.encoders, net.middle_blks, *net.decoders]
    sides = [384, 192, 96, 48, 24, 48, 96, 192, 384]
    assert [stage[-1].sca[0].kernel_size for stage in stages] == [(side, side) for side in sides]


def test_the_local_network_is_the_plain_one_with_window_means() -> None:
    local, plain, x = small(NAFNetLocal, train_size=(1, 3, 8, 8)), small(), image(3, 20, 28)

    class Oracle(nn.Module):
        def __init__(self, side: int) -> None:
            super().__init__()
            self.side = side

        def forward(self, y: Tensor) -> Tensor:
            return window_means(y, self.side, self.side)

    for side, stages in ((12, (plain.encoders[0], plain.decoders[1])), (6, (plain.encoders[1], plain.decoders[0]))):
        for block in (block for stage in stages for block in stage):
            block.sca[0] = Oracle(side)
    for block in plain.middle_blks:
        block.sca[0] = Oracle(3)
    with torch.no_grad():
        assert relative(local(x), plain(x)) < 2e-6


# -- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', [NAFNet, NAFNetLocal])
def test_untrained_blocks_hand_their_input_on(kind: type[NAFNet]) -> None:
    """As published: beta and gamma are zero at first."""
    net, x = kind(**SMALL).eval(), image()
    with torch.no_grad():
        shallow = net.intro(x)
        assert torch.allclose(net.encoders[0](shallow), shallow)


@pytest.mark.parametrize('count', [True, 2])
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


@pytest.mark.parametrize('kind', [NAFNet, NAFNetLocal])
def test_compiles_in_one_piece(kind: type[NAFNet]) -> None:
    changes = {'train_size': (1, 3, 8, 8)} if kind is NAFNetLocal else {}
    explained = torch._dynamo.explain(small(kind, **changes))(image())
    assert explained.graph_break_count == 0


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'enc_blk_nums': [1]}, r'enc_blk_nums \[1\] and dec_blk_nums \[2, 1\] do not have the same levels'),
        ({'enc_blk_nums': [1, -1]}, 'numbers of blocks are 0 or more'),
        ({'middle_blk_num': -1}, 'middle_blk_num -1'),
        ({'img_channel': 0}, 'img_channel 0'),
        ({'width': 0}, 'width 0'),
        ({'use_checkpoint': -1}, 'use_checkpoint -1'),
    ],
)
def test_wrong_arguments_raise(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        NAFNet(**{**SMALL, **changes})


def test_wrong_train_size_raises() -> None:
    with pytest.raises(ValueError, match=r'train_size \[256, 256\]'):
        NAFNetLocal(**SMALL, train_size=(256, 256))


@pytest.mark.parametrize('kind', [NAFNet, NAFNetLocal])
def test_wrong_input_raises(kind: type[NAFNet]) -> None:
    with pytest.raises(ValueError, match=rf'{kind.__name__} takes \(B, 3, H, W\), not \(2, 1, 16, 24\)'):
        small(kind)(image(1))
