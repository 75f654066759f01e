"""The networks of the restoration files, as their sections `network_g`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Network:
    """What a restoration file needs to know of a network.

    Attributes:
        label: how files and runs call it.
        size: parameters, and MACs of a picture of 256x256.
        options: `network_g`.
        model: the model class that trains it.
        key: under which its published weights lie; ours lie under params_ema.
    """

    label: str
    size: str
    options: dict[str, Any]
    model: str = 'RestorationModel'
    key: str = 'params_ema'


def hat(channels: int = 3) -> Network:
    """HAT at the size of its input: no upsampler, the input is added at the end."""
    options = {
        'type': 'HAT', 'upscale': 1, 'in_chans': channels, 'window_size': 16, 'compress_ratio': 3, 'squeeze_factor': 30,
        'conv_scale': 0.01, 'overlap_ratio': 0.5, 'img_range': 1.0, 'depths': [6] * 6, 'embed_dim': 180,
        'num_heads': [6] * 6, 'mlp_ratio': 2, 'upsampler': '', 'resi_connection': '1conv',
    }  # fmt: skip
    return Network('HAT', '20.4 M parameters, 1,605 G MACs at 256x256', options, model='HATModel')


HATUNET = Network(
    'HATUNet',
    '26.0 M parameters, 137.2 G MACs at 256x256',
    {
        'type': 'HATUNet', 'in_chans': 3, 'embed_dim': 48, 'depths': [6, 8, 8, 6], 'num_heads': [2, 4, 8, 16],
        'refinement_depth': 4, 'window_size': 8, 'fusion': 'gate',
    },
)  # fmt: skip
HATUNET_LIGHT = Network(
    'HATUNet-light',
    '0.51 M parameters, 6.8 G MACs at 256x256',
    {
        'type': 'HATUNet', 'in_chans': 3, 'embed_dim': 24, 'depths': [1, 2, 2], 'num_heads': [1, 2, 4],
        'refinement_depth': 1, 'window_size': 8, 'fusion': 'gate',
    },
)  # fmt: skip
SWINIR = Network(
    'SwinIR',
    '11.5 M parameters, 800 G MACs at 256x256',
    {
        'type': 'SwinIR', 'upscale': 1, 'in_chans': 3, 'img_size': 128, 'window_size': 8, 'img_range': 1.0,
        'depths': [6] * 6, 'embed_dim': 180, 'num_heads': [6] * 6, 'mlp_ratio': 2, 'upsampler': '',
        'resi_connection': '1conv',
    },
    key='params',
)  # fmt: skip


def restormer(norm: str) -> Network:
    """Restormer; `norm` is 'BiasFree' for denoising and 'WithBias' otherwise."""
    options = {
        'type': 'Restormer', 'inp_channels': 3, 'out_channels': 3, 'dim': 48, 'num_blocks': [4, 6, 6, 8],
        'num_refinement_blocks': 4, 'heads': [1, 2, 4, 8], 'ffn_expansion_factor': 2.66, 'bias': False,
        'LayerNorm_type': norm, 'dual_pixel_task': False,
    }  # fmt: skip
    return Network(
        'Restormer', '26.1 M parameters, 154.9 G MACs at 256x256', options, model='ImageCleanModel', key='params'
    )


def nafnet(kind: str, size: str, encoder: list[int], middle: int, decoder: list[int]) -> Network:
    """NAFNet of width 64; NAFNetLocal takes its means over patches of the training's size in evaluation."""
    options = {
        'type': kind, 'width': 64, 'enc_blk_nums': encoder, 'middle_blk_num': middle, 'dec_blk_nums': decoder,
    }  # fmt: skip
    return Network('NAFNet', size, options, model='ImageRestorationModel', key='params')


NAFNET_SIDD = nafnet(
    'NAFNet', '116.0 M parameters, 63.2 G MACs at 256x256', [2, 2, 4, 8], 12, [2, 2, 2, 2]
)  # fmt: skip
NAFNET_GOPRO = nafnet(
    'NAFNetLocal', '67.9 M parameters, 63.1 G MACs at 256x256', [1, 1, 1, 28], 1, [1, 1, 1, 1]
)  # fmt: skip
