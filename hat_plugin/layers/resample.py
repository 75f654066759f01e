"""Changing the size of features: from the input's to the output image's, and between the levels of a U-Net.

Source: the HAT paper (CVPR 2023), section 3.1, for 'pixelshuffle'; SwinIR (ICCVW 2021) for the other ways up to the
image, which the published HAT accepts and ignores.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hat_plugin.layers.convolution import Conv2d


def upsampling_steps(scale: int, user: str) -> list[int]:
    """The factors of the small steps whose product is the scale.

    Args:
        scale: factor of the whole.
        user: name of the upsampler, for the message.

    Returns:
        A list of 2s, [3], or [] for scale 1.

    Raises:
        ValueError: the scale is neither a power of two nor 3.
    """
    if scale == 3:
        return [3]
    if scale >= 1 and scale & (scale - 1) == 0:
        return [2] * (scale.bit_length() - 1)
    raise ValueError(
        f"upscale {scale} is out of reach for upsampler '{user}': give 1, 2, 3, 4, 8 or another power of two, "
        "or upsampler 'pixelshuffledirect', which takes every whole number"
    )


class Upsample(nn.Sequential):
    """Convolutions and pixel shuffles, a factor of 2 (or one of 3) at a time.

    Args:
        scale: a power of two, or 3; 1 does nothing.
        num_feat: number of channels.

    Raises:
        ValueError: the scale is neither a power of two nor 3.
    """

    def __init__(self, scale: int, num_feat: int) -> None:
        layers: list[nn.Module] = []
        for step in upsampling_steps(scale, 'pixelshuffle'):
            layers += [Conv2d(num_feat, step * step * num_feat, 3, padding=1), nn.PixelShuffle(step)]
        super().__init__(*layers)


class UpsampleOneStep(nn.Sequential):
    """One convolution to the image's channels and one pixel shuffle: few parameters, any scale.

    Args:
        scale: any whole number.
        num_feat: number of channels that come in.
        num_out_ch: number of channels of the image.
    """

    def __init__(self, scale: int, num_feat: int, num_out_ch: int) -> None:
        super().__init__(Conv2d(num_feat, scale * scale * num_out_ch, 3, padding=1), nn.PixelShuffle(scale))


class LeakyConv(nn.Conv2d):
    """A 3x3 convolution followed by a leaky ReLU of slope 0.2, under one name.

    Args:
        num_feat: number of channels.
    """

    def __init__(self, num_feat: int) -> None:
        super().__init__(num_feat, num_feat, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return F.leaky_relu(super().forward(input), 0.2)


class NearestConv(LeakyConv):
    """A nearest-neighbour step smoothed by a convolution: no grid of a pixel shuffle under adversarial losses.

    Args:
        scale: factor of this step.
        num_feat: number of channels.
    """

    def __init__(self, scale: int, num_feat: int) -> None:
        super().__init__(num_feat)
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H * scale, W * scale)."""
        return super().forward(F.interpolate(input, scale_factor=self.scale, mode='nearest'))


def reconstruction(upsampler: str, scale: int, embed_dim: int, num_feat: int, num_out_ch: int) -> dict[str, nn.Module]:
    """The modules of a way of going up, in their order, under the names that published weights give them.

    Args:
        upsampler: 'pixelshuffle' (classical), 'pixelshuffledirect' (light), 'nearest+conv' (for real photographs and
            GANs) or '' (same size; the network predicts what to add to its input).
        scale: factor between input and output.
        embed_dim: channels of the features that come in.
        num_feat: channels of the features on the way up.
        num_out_ch: channels of the image.

    Returns:
        Name to module.

    Raises:
        ValueError: an unknown upsampler, or a scale that it cannot reach.
    """
    if scale < 1:
        raise ValueError(f'upscale {scale} is no factor: give a whole number, 1 or more')
    before = nn.Sequential(Conv2d(embed_dim, num_feat, 3, padding=1), nn.LeakyReLU(inplace=True))
    last = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)
    if upsampler == 'pixelshuffle':
        return {'conv_before_upsample': before, 'upsample': Upsample(scale, num_feat), 'conv_last': last}
    if upsampler == 'pixelshuffledirect':
        return {'upsample': UpsampleOneStep(scale, embed_dim, num_out_ch)}
    if upsampler == 'nearest+conv':
        ups = {
            f'conv_up{number}': NearestConv(step, num_feat)
            for number, step in enumerate(upsampling_steps(scale, upsampler), start=1)
        }
        return {'conv_before_upsample': before, **ups, 'conv_hr': LeakyConv(num_feat), 'conv_last': last}
    if upsampler == '' and scale == 1:
        return {'conv_last': nn.Conv2d(embed_dim, num_out_ch, 3, padding=1)}
    if upsampler == '':
        raise ValueError(
            f"upsampler '' restores at the same size, but upscale is {scale}: give upscale 1, "
            "or upsampler 'pixelshuffle', 'pixelshuffledirect' or 'nearest+conv'"
        )
    raise ValueError(
        f"upsampler '{upsampler}' is unknown: give 'pixelshuffle', 'pixelshuffledirect', 'nearest+conv' "
        "or '' (same size, upscale 1)"
    )


DOWNSAMPLERS = ('conv', 'pixelunshuffle')
UPSAMPLERS = ('transposed', 'interpolate', 'pixelshuffle')


def downsampling(name: str, dim: int) -> nn.Module:
    """One level down in a U-Net: (B, dim, H, W) to (B, 2 * dim, H / 2, W / 2); H and W are even.

    Args:
        name: 'conv', a 2x2 convolution of stride 2, or 'pixelunshuffle', a 3x3 convolution and a pixel-unshuffle.
        dim: number of channels, even for 'pixelunshuffle'.

    Raises:
        ValueError: an unknown name, or an odd number of channels.
    """
    if name == 'conv':
        return nn.Conv2d(dim, 2 * dim, 2, stride=2)
    if name == 'pixelunshuffle' and dim % 2 == 0:
        return nn.Sequential(Conv2d(dim, dim // 2, 3, padding=1), nn.PixelUnshuffle(2))
    raise ValueError(
        f"downsampler '{name}' with embed_dim {dim}: give 'conv', or 'pixelunshuffle' where embed_dim is even"
    )


def upsampling(name: str, dim: int) -> nn.Module:
    """One level up in a U-Net: (B, 2 * dim, H, W) to (B, dim, 2 * H, 2 * W).

    Args:
        name: 'transposed', a 2x2 transposed convolution of stride 2; 'interpolate', bilinear and a 3x3 convolution; or
            'pixelshuffle', a 1x1 convolution and a pixel shuffle.
        dim: number of channels that come out.

    Raises:
        ValueError: an unknown name.
    """
    if name == 'transposed':
        return nn.ConvTranspose2d(2 * dim, dim, 2, stride=2)
    if name == 'interpolate':
        twice = nn.Upsample(scale_factor=2, mode='bilinear', align_corners=False)
        return nn.Sequential(twice, Conv2d(2 * dim, dim, 3, padding=1))
    if name == 'pixelshuffle':
        return nn.Sequential(nn.Conv2d(2 * dim, 4 * dim, 1), nn.PixelShuffle(2))
    raise ValueError(f"level_upsampler '{name}' is unknown: give one of {', '.join(UPSAMPLERS)}")
