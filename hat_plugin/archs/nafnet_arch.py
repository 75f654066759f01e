"""NAFNet, the network without activation functions, and NAFNetLocal, which is tested with local statistics.

Source: "Simple Baselines for Image Restoration" (NAFNet, ECCV 2022), section 4; "Improving Image Restoration by
Revisiting Global Information Aggregation" (TLC, ECCV 2022) for NAFNetLocal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hat_plugin.layers.chain import Chain
from hat_plugin.layers.config import checkpointed_blocks
from hat_plugin.layers.local_statistics import LocalAveragePool
from hat_plugin.layers.norm import ChannelNorm


class NAFBlock(nn.Module):
    """A depthwise convolution with channel attention, then a feed-forward network; products of halves for activations.

    Args:
        channels: of the feature map.

    Source: NAFNet, section 4 and figure 3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        double = 2 * channels
        self.conv1 = nn.Conv2d(channels, double, 1)
        self.conv2 = nn.Conv2d(double, double, 3, padding=1, groups=double)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.conv4 = nn.Conv2d(channels, double, 1)
        self.conv5 = nn.Conv2d(channels, channels, 1)
        self.norm1 = ChannelNorm(channels, eps=1e-6)
        self.norm2 = ChannelNorm(channels, eps=1e-6)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        y = simple_gate(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.conv3(y * self.sca(y)) * self.beta
        y = simple_gate(self.conv4(self.norm2(x)))
        return x + self.conv5(y) * self.gamma


def simple_gate(x: Tensor) -> Tensor:
    """The product of the channels' two halves, (B, 2 C, H, W) to (B, C, H, W). Source: NAFNet, section 4."""
    first, second = x.chunk(2, dim=1)
    return first * second


class NAFNet(nn.Module):
    """Nonlinear activation free network, a U-Net: published arguments, published weights, any input size.

    A level has twice the channels and half the sides of the one above it. The output is the input plus what the
    network makes.

    Args:
        img_channel: channels of the image: 3 (RGB), 1 (gray) or more.
        width: channels of the first level.
        middle_blk_num: number of blocks at the deepest level.
        enc_blk_nums: number of blocks of each encoder level, from the first down.
        dec_blk_nums: number of blocks of each decoder level, from the deepest up; as many levels as the encoder has.
        use_checkpoint: recompute activations in the backward pass: True for all blocks, a number for that many first
            ones, False for none. Same gradients, less memory, more time.

    Attributes:
        img_channel: as given.
        size_multiple: inputs are padded to a multiple of it inside `forward`.

    Raises:
        ValueError: arguments that do not fit each other; the message has the value and the remedy.
    """

    def __init__(
        self,
        img_channel: int = 3,
        width: int = 16,
        middle_blk_num: int = 1,
        enc_blk_nums: Sequence[int] = (),
        dec_blk_nums: Sequence[int] = (),
        use_checkpoint: bool | int = False,
    ) -> None:
        super().__init__()
        _check_sizes(img_channel, width, middle_blk_num, enc_blk_nums, dec_blk_nums)
        deepest = len(enc_blk_nums)
        self.img_channel = img_channel
        self.size_multiple = 1 << deepest
        counts = [*enc_blk_nums, middle_blk_num, *dec_blk_nums]
        widths = [width << level for level in (*range(deepest + 1), *reversed(range(deepest)))]
        stages = [
            Chain((NAFBlock(channels) for _ in range(count)), recomputed)
            for channels, count, recomputed in zip(
                widths, counts, checkpointed_blocks(use_checkpoint, counts), strict=True
            )
        ]
        self.intro = nn.Conv2d(img_channel, width, 3, padding=1)
        self.ending = nn.Conv2d(width, img_channel, 3, padding=1)
        self.encoders = nn.ModuleList(stages[:deepest])
        self.decoders = nn.ModuleList(stages[deepest + 1 :])
        self.middle_blks = stages[deepest]
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, 2 * channels, 1, bias=False), nn.PixelShuffle(2))
            for channels in widths[deepest:-1]
        )
        self.downs = nn.ModuleList(nn.Conv2d(channels, 2 * channels, 2, stride=2) for channels in widths[:deepest])

    def forward_features(self, x: Tensor) -> Tensor:
        """What encoder, middle and decoder make of an image.

        Args:
            x: (B, img_channel, H, W); H and W are multiples of size_multiple.

        Returns:
            (B, width, H, W).
        """
        x = self.intro(x.contiguous(memory_format=torch.channels_last))
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            skips.append(encoder(x))
            x = down(skips[-1])
        x = self.middle_blks(x)
        for decoder, up in zip(self.decoders, self.ups, strict=True):
            x = decoder(up(x) + skips.pop())
        return x

    def forward_head(self, x: Tensor) -> Tensor:
        """What is added to the input, (B, width, H, W) to (B, img_channel, H, W)."""
        return self.ending(x)

    def forward(self, x: Tensor) -> Tensor:
        """Restore an image of any size from 1x1 up.

        Args:
            x: (B, img_channel, H, W), RGB or gray, float in [0, 1], noise may lead beyond it. Its dtype may be wider
                than the weights'.

        Returns:
            (B, img_channel, H, W), in x's dtype; near [0, 1], not clamped.

        Raises:
            ValueError: x is no batch of images of img_channel channels.
        """
        if x.ndim != 4 or x.shape[1] != self.img_channel:
            raise ValueError(
                f'{type(self).__name__} takes (B, {self.img_channel}, H, W), not {tuple(x.shape)}: '
                'add the batch dimension, or build the network with img_channel equal to the channels of the image'
            )
        height, width = x.shape[2:]
        # With zeros as published, and not mirrored: what the published weights make at the border depends on it.
        padded = F.pad(x, (0, -width % self.size_multiple, 0, -height % self.size_multiple))
        change = self.forward_head(self.forward_features(padded.to(self.intro.weight.dtype)))
        return x + change[:, :, :height, :width].to(x.dtype)


class NAFNetLocal(NAFNet):
    """`NAFNet`, same weights, whose channel attention looks at the surroundings of a pixel when it is evaluated.

    Made for networks that are trained on patches and tested on whole pictures; in training it is `NAFNet`, and so it
    is on pictures up to one and a half times the patches' size.

    Args:
        img_channel, width, middle_blk_num, enc_blk_nums, dec_blk_nums, use_checkpoint: of `NAFNet`.
        train_size: shape of a training batch, (B, C, H, W), of which the height and width of the patches count.

    Raises:
        ValueError: arguments that do not fit each other; the message has the value and the remedy.
    """

    def __init__(
        self,
        img_channel: int = 3,
        width: int = 16,
        middle_blk_num: int = 1,
        enc_blk_nums: Sequence[int] = (),
        dec_blk_nums: Sequence[int] = (),
        train_size: Sequence[int] = (1, 3, 256, 256),
        use_checkpoint: bool | int = False,
    ) -> None:
        super().__init__(img_channel, width, middle_blk_num, enc_blk_nums, dec_blk_nums, use_checkpoint)
        if len(train_size) != 4 or min(train_size) < 1:
            raise ValueError(f'train_size {list(train_size)}: give (B, C, H, W), such as (1, 3, 256, 256) as published')
        deepest = len(enc_blk_nums)
        levels = [*enumerate(self.encoders), (deepest, self.middle_blks), *enumerate(reversed(self.decoders))]
        for level, blocks in levels:
            kernel_size = (self._kernel_side(train_size[2], level), self._kernel_side(train_size[3], level))
            for block in blocks.children():
                assert isinstance(block, NAFBlock)
                block.sca[0] = LocalAveragePool(kernel_size)

    def _kernel_side(self, patch: int, level: int) -> int:
        """One and a half times a patch's side, shrunk as a patch, padded to size_multiple, is at a level."""
        padded = patch + -patch % self.size_multiple
        return max(1, (padded >> level) * int(1.5 * patch) // patch)


def _check_sizes(
    img_channel: int, width: int, middle_blk_num: int, enc_blk_nums: Sequence[int], dec_blk_nums: Sequence[int]
) -> None:
    if img_channel < 1:
        raise ValueError(f'img_channel {img_channel} is no number of channels: give 1 (gray), 3 (RGB) or more')
    if width < 1:
        raise ValueError(f'width {width} is no number of channels: give 32 or 64 as published, or any from 1 up')
    if len(enc_blk_nums) != len(dec_blk_nums):
        raise ValueError(
            f'enc_blk_nums {list(enc_blk_nums)} and dec_blk_nums {list(dec_blk_nums)} do not have the same levels: '
            'give one number of blocks for each level in both'
        )
    if min(middle_blk_num, *enc_blk_nums, *dec_blk_nums, 0) < 0:
        raise ValueError(
            f'middle_blk_num {middle_blk_num}, enc_blk_nums {list(enc_blk_nums)}, dec_blk_nums {list(dec_blk_nums)}: '
            'numbers of blocks are 0 or more'
        )
