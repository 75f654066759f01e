"""Restormer, the transformer whose attention is across channels: published arguments, published weights, any size.

Written from the paper, "Restormer: Efficient Transformer for High-Resolution Image Restoration" (CVPR 2022), section 3;
the published code is not for commercial use, and nothing of it is here but the names that its weights files need.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hat_plugin.layers.chain import Chain
from hat_plugin.layers.config import checkpointed_blocks
from hat_plugin.layers.embedding import pad_to_multiple
from hat_plugin.layers.norm import BiasFreeNorm, ChannelNorm

NORMS = {'WithBias': ChannelNorm, 'BiasFree': BiasFreeNorm}
_LEVELS = 4  # the published names are those of four


class TransposedAttention(nn.Module):
    """Multi-Dconv head transposed attention (MDTA): each channel gathers from the channels of its head.

    The map of weights is (channels / heads) squared, whatever the size of the image.

    Args:
        dim: number of channels.
        num_heads: divides dim.
        bias: whether convolutions have one.

    Source: section 3.1, equation 1.
    """

    def __init__(self, dim: int, num_heads: int, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=bias)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        size = x.shape[2:]
        heads = self.qkv_dwconv(self.qkv(x)).flatten(2).unflatten(1, (3, self.num_heads, -1))
        query, key, value = heads.unbind(1)  # (B, heads, C / heads, H * W)
        weights = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1) * self.temperature
        gathered = weights.softmax(-1) @ value
        return self.project_out(gathered.flatten(1, 2).unflatten(2, size))


class GatedFeedForward(nn.Module):
    """Gated-Dconv feed-forward network (GDFN): of two halves one, through a GELU, weighs the other.

    Args:
        dim: number of channels.
        hidden: number of channels of each half.
        bias: whether convolutions have one.

    Source: section 3.2, equation 2.
    """

    def __init__(self, dim: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(dim, 2 * hidden, 1, bias=bias)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias)
        self.project_out = nn.Conv2d(hidden, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class TransformerBlock(nn.Module):
    """Attention, then the feed-forward network, each behind a normalisation and with a residual.

    Args:
        dim: number of channels.
        num_heads: divides dim.
        hidden: number of channels of each half of the feed-forward network.
        bias: whether convolutions have one.
        norm: makes a normalisation over channels.
    """

    def __init__(self, dim: int, num_heads: int, hidden: int, bias: bool, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm1 = _under('body', norm(dim, eps=1e-5))
        self.attn = TransposedAttention(dim, num_heads, bias)
        self.norm2 = _under('body', norm(dim, eps=1e-5))
        self.ffn = GatedFeedForward(dim, hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Restormer(nn.Module):
    """Restoration transformer, a U-Net of four levels, for denoising, deblurring, deraining and defocus.

    A level has twice the channels and half the sides of the one above it; the first level's decoder and the refinement
    keep the skip's channels beside their own. The output is the input plus what the network makes.

    Args:
        inp_channels: channels of the image: 3 (RGB), 1 (gray) or more; with dual_pixel_task of both views together.
        out_channels: channels of the result; inp_channels, or half of them with dual_pixel_task.
        dim: channels of the first level; even.
        num_blocks: number of blocks of each level; the last is the deepest, the others serve encoder and decoder.
        num_refinement_blocks: number of blocks behind the decoder.
        heads: number of heads of each level; divides the level's channels.
        ffn_expansion_factor: channels of a half inside the feed-forward network by the level's channels, rounded down.
        bias: whether convolutions have one (the first and those between levels never have).
        LayerNorm_type: 'WithBias', or 'BiasFree' (published for denoising), which leaves the mean.
        dual_pixel_task: the input is a left and a right view, one after the other in its channels, and the result one
            image; as neither view is that image, features of both are added in the place of the input.
        use_checkpoint: recompute activations in the backward pass: True for all blocks, a number for that many first
            ones, False for none. Same gradients, less memory, more time.

    Attributes:
        inp_channels, dual_pixel_task: as given.
        size_multiple: inputs are padded to a multiple of it, 8, inside `forward`.

    Raises:
        ValueError: arguments that do not fit each other; the message has the value and the remedy.
    """

    def __init__(
        self,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        LayerNorm_type: str = 'WithBias',
        dual_pixel_task: bool = False,
        use_checkpoint: bool | int = False,
    ) -> None:
        super().__init__()
        _check_channels(inp_channels, out_channels, dual_pixel_task)
        _check_sizes(dim, num_blocks, num_refinement_blocks, heads, ffn_expansion_factor)
        if LayerNorm_type not in NORMS:
            raise ValueError(f"LayerNorm_type '{LayerNorm_type}' is unknown: give {' or '.join(NORMS)}")
        self.inp_channels = inp_channels
        self.dual_pixel_task = dual_pixel_task
        self.size_multiple = 1 << (_LEVELS - 1)
        counts = [*num_blocks, *reversed(num_blocks[:-1]), num_refinement_blocks]
        recomputed = iter(checkpointed_blocks(use_checkpoint, counts))

        def blocks(count: int, level: int, width: int) -> Chain:
            hidden, norm = int(width * ffn_expansion_factor), NORMS[LayerNorm_type]
            chain = (TransformerBlock(width, heads[level], hidden, bias, norm) for _ in range(count))
            return Chain(chain, next(recomputed))

        widths = [dim << level for level in range(_LEVELS)]
        self.patch_embed = _under('proj', nn.Conv2d(inp_channels, dim, 3, padding=1, bias=False))
        self.encoder_level1 = blocks(num_blocks[0], 0, widths[0])
        self.down1_2 = _halve(widths[0])
        self.encoder_level2 = blocks(num_blocks[1], 1, widths[1])
        self.down2_3 = _halve(widths[1])
        self.encoder_level3 = blocks(num_blocks[2], 2, widths[2])
        self.down3_4 = _halve(widths[2])
        self.latent = blocks(num_blocks[3], 3, widths[3])
        self.up4_3 = _double(widths[3])
        self.reduce_chan_level3 = nn.Conv2d(2 * widths[2], widths[2], 1, bias=bias)
        self.decoder_level3 = blocks(num_blocks[2], 2, widths[2])
        self.up3_2 = _double(widths[2])
        self.reduce_chan_level2 = nn.Conv2d(2 * widths[1], widths[1], 1, bias=bias)
        self.decoder_level2 = blocks(num_blocks[1], 1, widths[1])
        self.up2_1 = _double(widths[1])
        self.decoder_level1 = blocks(num_blocks[0], 0, 2 * dim)
        self.refinement = blocks(num_refinement_blocks, 0, 2 * dim)
        if dual_pixel_task:
            self.skip_conv = nn.Conv2d(dim, 2 * dim, 1, bias=bias)
        self.output = nn.Conv2d(2 * dim, out_channels, 3, padding=1, bias=bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """What encoder, deepest level, decoder and refinement make of an image.

        Args:
            x: (B, inp_channels, H, W); H and W are multiples of size_multiple.

        Returns:
            (B, 2 * dim, H, W).
        """
        shallow = self.patch_embed(x.contiguous(memory_format=torch.channels_last))
        level1 = self.encoder_level1(shallow)
        level2 = self.encoder_level2(self.down1_2(level1))
        level3 = self.encoder_level3(self.down2_3(level2))
        x = self.latent(self.down3_4(level3))
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat([self.up4_3(x), level3], 1)))
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(x), level2], 1)))
        x = self.decoder_level1(torch.cat([self.up2_1(x), level1], 1))
        x = self.refinement(x)
        return x + self.skip_conv(shallow) if self.dual_pixel_task else x

    def forward_head(self, x: Tensor) -> Tensor:
        """What is added to the input, or the image itself with dual_pixel_task.

        Args:
            x: (B, 2 * dim, H, W).

        Returns:
            (B, out_channels, H, W).
        """
        return self.output(x)

    def forward(self, x: Tensor) -> Tensor:
        """Restore an image of any size from 1x1 up.

        Args:
            x: (B, inp_channels, H, W), RGB or gray, float in [0, 1], noise may lead beyond it. Its dtype may be wider
                than the weights'.

        Returns:
            (B, out_channels, H, W), in x's dtype; near [0, 1], not clamped.

        Raises:
            ValueError: x is no batch of images of inp_channels channels.
        """
        if x.ndim != 4 or x.shape[1] != self.inp_channels:
            raise ValueError(
                f'Restormer takes (B, {self.inp_channels}, H, W), not {tuple(x.shape)}: '
                'add the batch dimension, or build the network with inp_channels equal to the channels of the image'
            )
        height, width = x.shape[2:]
        padded = pad_to_multiple(x, self.size_multiple).to(self.output.weight.dtype)
        y = self.forward_head(self.forward_features(padded))[:, :, :height, :width].to(x.dtype)
        return y if self.dual_pixel_task else x + y


def _under(name: str, module: nn.Module) -> nn.Sequential:
    """A module one level deeper, where the published names have it."""
    step = nn.Sequential()
    step.add_module(name, module)
    return step


def _halve(width: int) -> nn.Sequential:
    """Half the sides, twice the channels."""
    return _under('body', nn.Sequential(nn.Conv2d(width, width // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2)))


def _double(width: int) -> nn.Sequential:
    """Twice the sides, half the channels."""
    return _under('body', nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.PixelShuffle(2)))


def _check_channels(inp_channels: int, out_channels: int, dual_pixel_task: bool) -> None:
    if min(inp_channels, out_channels) < 1:
        raise ValueError(
            f'inp_channels {inp_channels} and out_channels {out_channels}: give 1 (gray), 3 (RGB) or more in both'
        )
    if dual_pixel_task and inp_channels != 2 * out_channels:
        raise ValueError(
            f'dual_pixel_task takes two views of the image that it makes, but inp_channels is {inp_channels} and '
            f'out_channels {out_channels}: give inp_channels {2 * out_channels}, or dual_pixel_task false'
        )
    if not dual_pixel_task and inp_channels != out_channels:
        twice = inp_channels == 2 * out_channels
        raise ValueError(
            f'the input is added to the result, but inp_channels is {inp_channels} and out_channels {out_channels}: '
            'give the same number in both' + (', or dual_pixel_task true' if twice else '')
        )


def _check_sizes(
    dim: int, num_blocks: Sequence[int], num_refinement_blocks: int, heads: Sequence[int], expansion: float
) -> None:
    if len(num_blocks) != _LEVELS or len(heads) != _LEVELS:
        raise ValueError(
            f'num_blocks {list(num_blocks)} and heads {list(heads)}: give {_LEVELS} numbers in both, one for each level'
        )
    if min(*num_blocks, num_refinement_blocks) < 0:
        raise ValueError(
            f'num_blocks {list(num_blocks)}, num_refinement_blocks {num_refinement_blocks}: '
            'numbers of blocks are 0 or more'
        )
    if dim < 2 or dim % 2:
        raise ValueError(f'dim {dim} cannot be halved between levels: give an even number, 48 as published')
    for level, count in enumerate(heads):
        if count < 1 or (dim << level) % count:
            raise ValueError(
                f'heads {list(heads)}: {dim << level} channels of level {level + 1} cannot be shared by {count} heads; '
                'give a divisor of them'
            )
    if int(dim * expansion) < 1:
        raise ValueError(f'ffn_expansion_factor {expansion} leaves nothing of {dim} channels: give 2.66 as published')
