"""What the blocks of a network are told: sizes, shared tables, how many recompute, how often each is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn


@dataclass(frozen=True)
class BlockConfig:
    """What the blocks of one group have in common; the names are those of the published options.

    Attributes:
        dim: number of channels (embed_dim).
        num_heads: number of heads; divides dim.
        window_size: side of a window in pixels, at least 2.
        compress_ratio: of `CAB`.
        squeeze_factor: of `CAB`.
        conv_scale: factor of the convolution branch.
        overlap_ratio: by how much of its side an overlapping window is larger; the pixels gained, rounded down, are
            even, 0 or more.
        mlp_ratio: hidden channels of an MLP by dim.
        qkv_bias: whether queries, keys and values have a learnable bias.
        qk_scale: factor of the products; None for (dim / num_heads) ** -0.5.
        drop: probability with which an output is left out in training.
        attn_drop: the same for attention weights.
        norm_layer: makes a normalisation over the last of its input's dimensions from the number of channels.

    Raises:
        ValueError: heads, window or overlap do not fit; the message has the value and the remedy.
    """

    dim: int
    num_heads: int
    window_size: int
    compress_ratio: int = 3
    squeeze_factor: int = 30
    conv_scale: float = 0.01
    overlap_ratio: float = 0.5
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_scale: float | None = None
    drop: float = 0.0
    attn_drop: float = 0.0
    norm_layer: Callable[[int], nn.Module] = nn.LayerNorm

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.dim % self.num_heads:
            raise ValueError(
                f'embed_dim {self.dim} cannot be shared by {self.num_heads} heads: '
                f'give an embed_dim that is a multiple of num_heads, such as '
                f'{-(-self.dim // max(1, self.num_heads)) * max(1, self.num_heads)}'
            )
        if self.window_size < 2:
            raise ValueError(f'window_size {self.window_size} is too small: give 2 or more (published: 16)')
        for name, probability in (('drop_rate', self.drop), ('attn_drop_rate', self.attn_drop)):
            if not 0 <= probability < 1:
                raise ValueError(f'{name} {probability} is no probability below 1: give one in [0, 1), such as 0.1')
        overlap = int(self.window_size * self.overlap_ratio)
        if overlap < 0 or overlap % 2:
            better = (max(0, overlap) + overlap % 2) / self.window_size
            raise ValueError(
                f'overlap_ratio {self.overlap_ratio} of window_size {self.window_size} is {overlap} pixels, which '
                f'cannot be shared by two sides: give an overlap_ratio that yields an even number, such as {better:.6f}'
            )

    @property
    def overlap_size(self) -> int:
        """Side of an overlapping window in pixels; the ratio is rounded down as in the published code."""
        return self.window_size + int(self.window_size * self.overlap_ratio)


class WindowTables(NamedTuple):
    """What every block of a network shares; the network owns it as buffers.

    Attributes:
        self_index: `relative_position_index`, (N, N).
        overlap_index: `overlapping_position_index`, (N, M), its negative entries counted from the table's start.
        masks: `shift_masks` for a shift by half a window, (3, N, N).
    """

    self_index: Tensor
    overlap_index: Tensor
    masks: Tensor


def check_counts(depths: Sequence[int], num_heads: Sequence[int], in_chans: int, img_range: float = 1.0) -> None:
    """Raise a ValueError where counts are impossible whatever the rest is."""
    if len(depths) != len(num_heads) or not depths or min(depths) < 1:
        raise ValueError(
            f'depths {list(depths)} and num_heads {list(num_heads)} do not describe the same groups: '
            'give one number of blocks (1 or more) and one number of heads for each group'
        )
    if in_chans < 1:
        raise ValueError(f'in_chans {in_chans} is no number of channels: give 1 (gray), 3 (RGB) or more')
    if img_range <= 0:
        raise ValueError(f'img_range {img_range} would leave nothing of the image: give 1.0, as published, or 255.0')


def checkpointed_blocks(use_checkpoint: bool | int, blocks: Sequence[int]) -> list[int]:
    """How many first blocks of each group recompute, from how many it has."""
    left = sum(blocks) if use_checkpoint is True else int(use_checkpoint)
    if left < 0:
        raise ValueError(f'use_checkpoint {use_checkpoint}: give True, False or the number of blocks, 0 or more')
    counts = []
    for block_count in blocks:
        counts.append(min(left, block_count))
        left -= counts[-1]
    return counts


def drop_paths(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """The probability of each block, rising from 0 at the first to the rate at the last, by group."""
    if not 0 <= rate < 1:
        raise ValueError(f'drop_path_rate {rate} is no probability below 1: give one in [0, 1), such as 0.1')
    total = sum(depths)
    rates = iter(rate * number / max(1, total - 1) for number in range(total))
    return [[next(rates) for _ in range(depth)] for depth in depths]
