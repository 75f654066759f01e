"""Which network a weights file belongs to, read off its names and shapes.

To add an architecture, write a reader of its weights and put it into `ARCHITECTURES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hat_plugin.errors import CheckpointError

StateDict = Mapping[str, Tensor]

_GROUP = 'layers.{}.residual_group.'
_BLOCK = 'layers.{}.residual_group.blocks.{}.'


@dataclass(frozen=True)
class Detected:
    """A network as its weights show it.

    Args:
        architecture: name in `ARCHITECTURES`.
        arguments: for the constructor.
        scale: enlargement.
        channels: of pictures in and out.
        window: sides that the network works on are multiples of this; 1 for any.
        assumed: what the weights do not show and was taken as published, one phrase each.
    """

    architecture: str
    arguments: dict[str, Any]
    scale: int
    channels: int
    window: int
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Architecture:
    """How a network is told from others and built.

    Args:
        target: ``module:attribute`` of the class.
        marks: entries that all its weights have.
        foreign: an entry with one of these in its name belongs to another architecture.
        read: from the weights and the scale that the user gave, if any, to what `Detected` holds.
        pads: whether its forward pass takes any size.
    """

    target: str
    marks: tuple[str, ...]
    read: Callable[[StateDict, int | None], Detected]
    pads: bool
    foreign: tuple[str, ...] = ()

    def owns(self, state_dict: StateDict) -> bool:
        """Whether the weights are of this architecture, by their names."""
        if any(mark not in state_dict for mark in self.marks):
            return False
        return not any(word in key for word in self.foreign for key in state_dict)


def detect(state_dict: StateDict, source: str, scale: int | None = None) -> Detected:
    """Find the architecture and its arguments.

    Args:
        state_dict: the weights, without ``module.``.
        source: the file's name, for errors.
        scale: enlargement that the user expects; None: whatever the weights show.

    Raises:
        CheckpointError: no known architecture, weights that contradict themselves, or another scale.
    """
    name = next((name for name, architecture in ARCHITECTURES.items() if architecture.owns(state_dict)), None)
    if name is None:
        raise CheckpointError(
            f'{source}: the weights belong to none of {", ".join(ARCHITECTURES)} (they begin with '
            f'{", ".join(list(state_dict)[:3])}); name the option file they were trained with: --opt X.yml'
        )
    try:
        found = ARCHITECTURES[name].read(state_dict, scale)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(
            f'{source}: looks like {name}, but {error} is missing or has an odd shape; the file may be incomplete'
        ) from error
    if scale is not None and scale != found.scale:
        raise CheckpointError(f'{source}: the network enlarges {found.scale} times, not {scale}; leave out --scale')
    return found


def _read_hat(weights: StateDict, scale: int | None) -> Detected:
    """HAT in any size. Not visible: conv_scale, img_range (and what acts in training alone)."""
    common, found_scale, channels, assumed = _read_swin_common(weights, scale, 'overlap_attn')
    dim, window = common['embed_dim'], common['window_size']
    block = _BLOCK.format(0, 0)
    side = math.isqrt(weights[_GROUP.format(0) + 'overlap_attn.relative_position_bias_table'].shape[0])
    arguments = {
        **common,
        'compress_ratio': dim // weights[f'{block}conv_block.cab.0.weight'].shape[0],
        'squeeze_factor': dim // weights[f'{block}conv_block.cab.3.attention.1.weight'].shape[0],
        'overlap_ratio': _ratio(side + 1 - 2 * window, window),
        'conv_scale': 0.01,
        'img_range': 1.0,
    }
    if arguments['upsampler'] in ('pixelshuffle', 'nearest+conv'):
        arguments['num_feat'] = weights['conv_last.weight'].shape[1]
    return Detected('HAT', arguments, found_scale, channels, window, ('conv_scale 0.01', 'img_range 1', *assumed))


def _read_swinir(weights: StateDict, scale: int | None) -> Detected:
    """SwinIR in any size. Not visible: img_range, which is 255 in the published JPEG networks (window 7), else 1."""
    common, found_scale, channels, assumed = _read_swin_common(weights, scale, 'blocks.0.attn')
    window = common['window_size']
    img_range = 255.0 if window == 7 and common['upsampler'] == '' else 1.0
    arguments = {**common, 'img_range': img_range}
    if 'img_size' not in arguments:
        arguments['img_size'] = _swinir_training_size(weights, window)
    return Detected('SwinIR', arguments, found_scale, channels, window, (f'img_range {img_range:g}', *assumed))


def _swinir_training_size(weights: StateDict, window: int) -> int:
    """The side of the training crop: SwinIR keeps the attention masks for it among its weights."""
    masks = [tensor for key, tensor in weights.items() if key.endswith('.attn_mask')]
    if masks:
        return math.isqrt(masks[0].shape[0]) * window
    whole = any(key.endswith('relative_position_index') for key in weights)
    # Buffers are there, but no mask: the crop was one window, and no block shifts.
    return window if whole else 8 * window


def _read_restormer(weights: StateDict, scale: int | None) -> Detected:
    """Restormer in any size; all of it is visible."""
    dim, channels = weights['patch_embed.proj.weight'].shape[:2]
    levels = ('encoder_level1', 'encoder_level2', 'encoder_level3', 'latent')
    # Any factor that gives the deepest level its hidden width gives the others theirs, which are halves, rounded down.
    deepest, hidden = weights['latent.0.ffn.project_out.weight'].shape[:2]
    arguments = {
        'inp_channels': channels,
        'out_channels': weights['output.weight'].shape[0],
        'dim': dim,
        'num_blocks': [_count(weights, f'{level}.{{}}.') for level in levels],
        'num_refinement_blocks': _count(weights, 'refinement.{}.'),
        'heads': [weights[f'{level}.0.attn.temperature'].shape[0] for level in levels],
        'ffn_expansion_factor': _ratio(hidden, deepest),
        'bias': 'output.bias' in weights,
        'LayerNorm_type': 'WithBias' if 'latent.0.norm1.body.bias' in weights else 'BiasFree',
        'dual_pixel_task': 'skip_conv.weight' in weights,
    }
    return Detected('Restormer', arguments, 1, channels, 8)


def _read_nafnet(weights: StateDict, scale: int | None) -> Detected:
    """NAFNet in any size. Not visible: whether it is tested with local statistics, as its deblurring networks are."""
    width, channels = weights['intro.weight'].shape[:2]
    levels = range(_count(weights, 'downs.{}.'))
    arguments = {
        'img_channel': channels,
        'width': width,
        'middle_blk_num': _count(weights, 'middle_blks.{}.'),
        'enc_blk_nums': [_count(weights, f'encoders.{level}.{{}}.') for level in levels],
        'dec_blk_nums': [_count(weights, f'decoders.{level}.{{}}.') for level in levels],
    }
    local = arguments['enc_blk_nums'] == [1, 1, 1, 28]  # GoPro's and REDS's; SIDD's has [2, 2, 4, 8]
    name, statistics = ('NAFNetLocal', 'local') if local else ('NAFNet', 'global')
    return Detected(name, arguments, 1, channels, 1 << len(levels), (f'{statistics} statistics ({name})',))


def _read_swin_common(
    weights: StateDict, scale: int | None, attention: str
) -> tuple[dict[str, Any], int, int, tuple[str, ...]]:
    """What HAT and SwinIR share: (arguments, scale, channels, assumptions)."""
    dim, channels = weights['conv_first.weight'].shape[:2]
    groups = _count(weights, 'layers.{}.')
    block = _BLOCK.format(0, 0)
    heads = f'{attention}.relative_position_bias_table'
    table_side = math.isqrt(weights[f'{block}attn.relative_position_bias_table'].shape[0])
    upsampler, upscale, assumed = _read_upsampler(weights, channels, scale)
    arguments: dict[str, Any] = {
        'in_chans': channels,
        'embed_dim': dim,
        'depths': [_count(weights, f'layers.{group}.residual_group.blocks.{{}}.') for group in range(groups)],
        'num_heads': [weights[_GROUP.format(group) + heads].shape[1] for group in range(groups)],
        'window_size': (table_side + 1) // 2,
        'mlp_ratio': _ratio(weights[f'{block}mlp.fc1.weight'].shape[0], dim),
        'qkv_bias': f'{block}attn.qkv.bias' in weights,
        'patch_norm': 'patch_embed.norm.weight' in weights,
        'upscale': upscale,
        'upsampler': upsampler,
        'resi_connection': _residual_connection(weights),
    }
    if 'absolute_pos_embed' in weights:
        arguments |= {'ape': True, 'img_size': math.isqrt(weights['absolute_pos_embed'].shape[1])}
    return arguments, upscale, channels, assumed


def _read_upsampler(weights: StateDict, channels: int, scale: int | None) -> tuple[str, int, tuple[str, ...]]:
    """(upsampler, scale, assumptions) by the convolutions on the way up."""
    if 'conv_hr.weight' in weights:
        steps = sum(1 for number in range(1, 9) if f'conv_up{number}.weight' in weights)
        if steps == 1:  # one step looks the same for 2 and 3
            return 'nearest+conv', scale or 2, () if scale else ('scale 2 (--scale 3 for the other)',)
        return 'nearest+conv', 2**steps, ()
    if 'conv_before_upsample.0.weight' in weights:
        features = weights['conv_last.weight'].shape[1]
        shuffles = [key for key in weights if key.startswith('upsample.') and key.endswith('.weight')]
        factors = [math.isqrt(weights[key].shape[0] // features) for key in shuffles]
        return 'pixelshuffle', math.prod(factors), ()
    if 'upsample.0.weight' in weights:
        return 'pixelshuffledirect', math.isqrt(weights['upsample.0.weight'].shape[0] // channels), ()
    return '', 1, ()


def _residual_connection(weights: StateDict) -> str:
    if 'conv_after_body.weight' in weights:
        return '1conv'
    return '3conv' if 'conv_after_body.0.weight' in weights else 'identity'


def _count(weights: StateDict, pattern: str) -> int:
    """How many numbers from 0 on the pattern takes among the names. That the last ones are missing is not seen.

    Raises:
        KeyError: one is missing in between; without it a smaller network would seem to be there.
    """
    before, after = pattern.split('{}')
    rests = (key.removeprefix(before) for key in weights if key.startswith(before))
    numbers = {int(rest.partition(after)[0]) for rest in rests if rest.partition(after)[0].isdecimal()}
    for number in range(len(numbers)):
        if number not in numbers:
            raise KeyError(f'{pattern.format(number)}*')
    return len(numbers)


def _ratio(part: int, whole: int) -> float:
    """A ratio with ``int(whole * ratio) == part``."""
    ratio = part / whole
    return ratio if int(whole * ratio) == part else (part + 0.5) / whole


# Both have the same weights: the reader, which is asked once, tells which of the two it is.
_NAFNET_MARKS = ('intro.weight', 'ending.weight', 'middle_blks.0.beta', 'middle_blks.0.sca.1.weight')

ARCHITECTURES = {
    'HAT': Architecture(
        'hat_plugin.archs.hat_arch:HAT',
        (
            'conv_first.weight',
            'layers.0.residual_group.overlap_attn.relative_position_bias_table',
            'layers.0.residual_group.blocks.0.conv_block.cab.0.weight',
        ),
        _read_hat,
        pads=True,
    ),
    'SwinIR': Architecture(
        'basicsr.archs.swinir_arch:SwinIR',
        ('conv_first.weight', 'layers.0.residual_group.blocks.0.attn.relative_position_bias_table'),
        _read_swinir,
        pads=False,
        foreign=('overlap_attn', 'conv_block', 'logit_scale'),
    ),
    'Restormer': Architecture(
        'hat_plugin.archs.restormer_arch:Restormer',
        ('patch_embed.proj.weight', 'encoder_level1.0.attn.temperature', 'latent.0.ffn.project_out.weight'),
        _read_restormer,
        pads=True,
    ),
    'NAFNet': Architecture('hat_plugin.archs.nafnet_arch:NAFNet', _NAFNET_MARKS, _read_nafnet, pads=True),
    'NAFNetLocal': Architecture('hat_plugin.archs.nafnet_arch:NAFNetLocal', _NAFNET_MARKS, _read_nafnet, pads=True),
}
