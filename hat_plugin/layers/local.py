"""What sees a neighbourhood by convolution: channel attention, HAT's block with it (CAB), local enhancement.

Source: "Image Super-Resolution Using Very Deep Residual Channel Attention Networks" (ECCV 2018), section 3.3; CAB is
that of the HAT paper (CVPR 2023), section 3.2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hat_plugin.kernels.operands import Norm, is_hooked, is_traced
from hat_plugin.layers.convolution import Conv2d
from hat_plugin.layers.lean import through
from hat_plugin.layers.recipe import is_plain
from hat_plugin.layers.strips import like_weights, map_rows, strips_of_rows


class ChannelAttention(nn.Module):
    """Weigh each channel by what the whole image has in it.

    Args:
        num_feat: number of channels.
        squeeze_factor: num_feat // squeeze_factor channels are left in between.

    Raises:
        ValueError: no channel is left in between.
    """

    def __init__(self, num_feat: int, squeeze_factor: int = 16) -> None:
        super().__init__()
        squeezed = _reduced(num_feat, squeeze_factor, 'squeeze_factor')
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(num_feat, squeezed, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(squeezed, num_feat, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x * self.attention(x)

    def weights(self, x: Tensor, means: Tensor | None = None) -> Tensor:
        """What each channel of (B, H, W, C) is weighed by, (B, 1, 1, C), in the type of the weights.

        Args:
            x: the features.
            means: theirs, (B, C), if they are known.
        """
        pool, down, _, up, _ = self.attention
        if type(pool) is not nn.AdaptiveAvgPool2d or not isinstance(down, nn.Conv2d) or not isinstance(up, nn.Conv2d):
            seen: Tensor = self.attention(like_weights(x, down).permute(0, 3, 1, 2))
            return seen.permute(0, 2, 3, 1)
        if means is None:
            means = _Means.apply(x) if torch.is_grad_enabled() and not is_traced() else _means(x)
        means = like_weights(means, down)
        y = F.linear(means, down.weight.flatten(1), down.bias)  # less to launch than convolutions of a pixel
        return F.linear(F.relu(y), up.weight.flatten(1), up.bias).sigmoid()[:, None, None]


class CAB(nn.Module):
    """Channel attention block: two convolutions through a bottleneck, then channel attention.

    Args:
        num_feat: number of channels.
        compress_ratio: num_feat // compress_ratio channels are left between the convolutions.
        squeeze_factor: as in `ChannelAttention`.

    Raises:
        ValueError: no channel is left in between.
    """

    def __init__(self, num_feat: int, compress_ratio: int = 3, squeeze_factor: int = 30) -> None:
        super().__init__()
        compressed = _reduced(num_feat, compress_ratio, 'compress_ratio')
        self.cab = nn.Sequential(
            Conv2d(num_feat, compressed, 3, padding=1),
            nn.GELU(),
            Conv2d(compressed, num_feat, 3, padding=1),
            ChannelAttention(num_feat, squeeze_factor),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape; inside, the permuted view is channels_last, so nothing is copied."""
        return self.cab(like_weights(x, self.cab[0]).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    @property
    def first(self) -> nn.Module:
        """The convolution to few channels."""
        return self.cab[0]

    def expand(self, compressed: Tensor) -> tuple[Tensor, Tensor]:
        """The rest of the block, from what `first` made, but for its last product, as in `in_strips`."""
        _, act, second, _ = self.cab
        return self._weighed(through(compressed, act, second)[0])

    def _weighed(self, features: Tensor, means: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features and the weights of their channels; means: theirs, if they are known."""
        weigh = self.cab[3]
        if isinstance(weigh, ChannelAttention) and not any(map(is_hooked, weigh.modules())):
            return features, weigh.weights(features, means)
        like = weigh.attention[1] if isinstance(weigh, ChannelAttention) else weigh
        features = weigh(like_weights(features, like).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return features, features.new_ones(features.shape[0], 1, 1, features.shape[-1])

    def in_strips(self, x: Tensor, prepare: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """The block for inference, its last product left to the caller, who reads the features anyway.

        Args:
            x: (B, H, W, C).
            prepare: what is done to each pixel first, a normalisation; (B, h, W, C) to the same shape. None: nothing.

        Returns:
            Features (B, H, W, C), in x's type or that of the convolutions, and the weights of their channels
            (B, 1, 1, C).
        """
        height = x.shape[1]
        whole = self._by_kernels(x, prepare)
        if whole is not None:
            return self._weighed(*whole)

        def source(top: int, bottom: int) -> Tensor:
            strip = x[:, top:bottom]
            return (strip if prepare is None else prepare(strip)).permute(0, 3, 1, 2)

        branch: Tensor | None = None
        for top, bottom, strip in strips_of_rows(list(self.cab.children())[:3], source, height, map_rows(x)):
            features = strip.permute(0, 2, 3, 1)
            if bottom - top == height:
                branch = features
            else:
                branch = torch.empty_like(x) if branch is None else branch
                branch[:, top:bottom] = features
            del strip, features
        assert branch is not None
        return self._weighed(branch)

    def _by_kernels(self, x: Tensor, prepare: nn.Module | None) -> tuple[Tensor, Tensor | None] | None:
        """The features of `in_strips`, and perhaps their means, where kernels go over the whole image; else None."""
        (first, act, second, _), norm = self.cab, None
        if not isinstance(first, Conv2d) or not isinstance(second, Conv2d) or type(act) is not nn.GELU:
            return None
        if not is_plain(act) or not is_plain(second):
            return None
        if prepare is not None:
            norm = Norm.of(prepare)
            if norm is None:
                return None
        if not first.takes_image(x, norm is not None):
            return None
        few = first.over_image(x, norm=norm, gelu=True)
        if norm is None:
            return second.over_image(few), None
        means = x.new_empty(x.shape[0], second.out_channels, dtype=torch.float32)
        return second.over_image(few, dtype=x.dtype, means=means), means


def _means(x: Tensor) -> Tensor:
    return x.mean((1, 2)) if x.is_cuda else x.mean(1).mean(1)  # a CPU takes a fifth of the time, in bf16


class _Means(torch.autograd.Function):
    """Those of each channel, (B, H, W, C) to (B, C); their gradient is one number a channel, and copied nowhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return _means(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        _, height, width, _ = ctx.shape
        return (grad / (height * width))[:, None, None].expand(ctx.shape)


NORMS = ('none', 'instance', 'batch')


class LocalEnhancement(nn.Module):
    """Local enhancement module: x + f(x), where f sees 5x5 pixels.

    A 3x3 convolution narrows, a depthwise 3x3 convolution between two GELUs widens the view, a 1x1 convolution goes
    back to all channels; channel attention may weigh them.

    Args:
        dim: number of channels.
        compress_ratio: dim // compress_ratio channels are left in between.
        norm: 'none', 'instance' or 'batch', after each 3x3 convolution. Without normalisation, and with that of
            batches once trained, a picture restored in tiles is what it is as a whole.
        squeeze_factor: as in `ChannelAttention`; 0 for none.

    Raises:
        ValueError: no channel is left in between, or an unknown norm.
    """

    def __init__(self, dim: int, compress_ratio: int = 2, norm: str = 'none', squeeze_factor: int = 0) -> None:
        super().__init__()
        narrow = _reduced(dim, compress_ratio, 'compress_ratio')
        self.conv = Conv2d(dim, narrow, 3, padding=1, bias=norm == 'none')
        self.norm1 = _normalisation(norm, narrow)
        self.depthwise = nn.Conv2d(narrow, narrow, 3, padding=1, groups=narrow, bias=norm == 'none')
        self.norm2 = _normalisation(norm, narrow)
        self.proj = nn.Conv2d(narrow, dim, 1)
        self.weigh = ChannelAttention(dim, squeeze_factor) if squeeze_factor else nn.Identity()
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape; inside, the permuted view is channels_last, so nothing is copied."""
        narrow = self.conv(like_weights(x, self.conv).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.widen(narrow, x)

    def widen(self, narrow: Tensor, x: Tensor) -> Tensor:
        """The rest of it, from what `conv` made of x: (B, H, W, narrow) and (B, H, W, C) to (B, H, W, C)."""
        y = self._after(narrow, self.norm1, self.depthwise)
        y = self._after(y, self.norm2, self.proj)
        return x + self.weigh(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _after(self, y: Tensor, norm: nn.Module, convolution: nn.Module) -> Tensor:
        """convolution(act(norm(y))), channels last."""
        if not isinstance(norm, nn.Identity):
            y = norm(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return through(y, self.act, convolution)[0]


def _normalisation(name: str, channels: int) -> nn.Module:
    """A normalisation of (B, C, H, W) by its name."""
    if name == 'none':
        return nn.Identity()
    if name == 'instance':
        return nn.InstanceNorm2d(channels, affine=True)
    if name == 'batch':
        return nn.BatchNorm2d(channels)
    raise ValueError(f"lem_norm '{name}' is unknown: give one of {', '.join(NORMS)}")


def _reduced(channels: int, factor: int, name: str) -> int:
    """channels // factor, at least 1."""
    if not 1 <= factor <= channels:
        raise ValueError(
            f'{name} {factor} leaves {channels // factor if factor else "no"} of {channels} channels: '
            f'give {name} between 1 and {channels}, or a larger embed_dim'
        )
    return int(channels // factor)
