"""The blocks alone: layouts, stochastic depth, upsamplers, padding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hat_plugin.layers.config import BlockConfig
from hat_plugin.layers.embedding import pad_to_multiple, positions_at
from hat_plugin.layers.local import CAB
from hat_plugin.layers.resample import reconstruction, upsampling_steps
from hat_plugin.layers.residual import DropPath, residual_convolution


class Layouts(TorchDispatchMode):
    """Whether each convolution's 4-D input was channels_last, and how many copies were made."""

    def __init__(self) -> None:
        super().__init__()
        self.channels_last: list[bool] = []
        self.copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.name()
        if 'convolution' in name and args[0].shape[-1] > 1:
            self.channels_last.append(args[0].is_contiguous(memory_format=torch.channels_last))
        self.copies += name in ('aten::clone', 'aten::copy_', 'aten::_to_copy')
        return func(*args, **(kwargs or {}))


def test_convolutions_take_the_body_as_it_lies() -> None:
    block, x = CAB(12, 3, 4), torch.randn(2, 8, 9, 12)
    with torch.no_grad(), Layouts() as layouts:
        y = block(x)
    assert layouts.channels_last == [True, True]
    assert layouts.copies == 0
    assert y.is_contiguous()


def test_drop_path_leaves_whole_samples_out_and_keeps_the_mean() -> None:
    layer, x = DropPath(0.25), torch.ones(4000, 2, 2)
    torch.manual_seed(0)
    y = layer.train()(x)
    values = y.flatten(1)
    assert (values == values[:, :1]).all()
    assert sorted(values[:, 0].unique().tolist()) == pytest.approx([0.0, 4 / 3])
    assert y.mean().item() == pytest.approx(1.0, abs=0.05)
    assert layer.eval()(x) is x


@pytest.mark.parametrize(('scale', 'steps'), [(1, []), (2, [2]), (3, [3]), (4, [2, 2]), (8, [2, 2, 2])])
def test_steps(scale: int, steps: list[int]) -> None:
    assert upsampling_steps(scale, 'pixelshuffle') == steps


@pytest.mark.parametrize('scale', [0, -2, 5, 6, 7])
def test_scale_out_of_reach(scale: int) -> None:
    with pytest.raises(ValueError, match=f'upscale {scale} '):
        reconstruction('pixelshuffle', scale, 8, 8, 3)


def test_names_of_published_weights() -> None:
    assert list(reconstruction('pixelshuffle', 4, 8, 8, 3)) == ['conv_before_upsample', 'upsample', 'conv_last']
    assert list(reconstruction('pixelshuffledirect', 4, 8, 8, 3)) == ['upsample']
    names = ['conv_before_upsample', 'conv_up1', 'conv_up2', 'conv_hr', 'conv_last']
    assert list(reconstruction('nearest+conv', 4, 8, 8, 3)) == names
    assert list(reconstruction('', 1, 8, 8, 3)) == ['conv_last']


def test_three_convolutions_are_lighter_than_one() -> None:
    one, three = (residual_convolution(name, 16) for name in ('1conv', '3conv'))
    x = torch.randn(1, 16, 5, 5)
    assert three(x).shape == one(x).shape == x.shape
    assert sum(p.numel() for p in three.parameters()) < sum(p.numel() for p in one.parameters())
    assert residual_convolution('identity', 16)(x) is x
    with pytest.raises(ValueError, match='embed_dim is 4 or more'):
        residual_convolution('3conv', 3)


@pytest.mark.parametrize(('ratio', 'size'), [(0.0, 16), (0.25, 20), (0.3, 20), (0.5, 24), (1.0, 32)])
def test_overlap_is_rounded_down_as_published(ratio: float, size: int) -> None:
    assert BlockConfig(dim=12, num_heads=2, window_size=16, overlap_ratio=ratio).overlap_size == size


@pytest.mark.parametrize(
    ('height', 'width', 'modes'), [(9, 10, ('reflect', 'reflect')), (3, 5, ('replicate', 'reflect'))]
)
def test_padding(height: int, width: int, modes: tuple[str, str]) -> None:
    x = torch.randn(1, 2, height, width)
    y = pad_to_multiple(x, 8)
    across = F.pad(x, (0, -width % 8, 0, 0), mode=modes[1])
    assert torch.equal(y, F.pad(across, (0, 0, 0, -height % 8), mode=modes[0]))
    assert pad_to_multiple(y, 8) is y


def test_positions_at_their_own_size_are_unchanged() -> None:
    embedding = torch.randn(1, 12, 5)
    assert torch.equal(positions_at(embedding, (3, 4), (3, 4)), embedding.reshape(1, 3, 4, 5))
    flat = positions_at(torch.ones(1, 12, 5), (3, 4), (8, 16))
    torch.testing.assert_close(flat, torch.ones(1, 8, 16, 5))
