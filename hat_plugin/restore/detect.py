"""Which network a weights file belongs to, read off its names and shapes.

To add an architecture, write a reader of its weights in `hat_plugin.restore.readers` and put it into `ARCHITECTURES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hat_plugin.errors import CheckpointError
from hat_plugin.restore.readers.hat_unet import read_hat_unet
from hat_plugin.restore.readers.nafnet import read_nafnet
from hat_plugin.restore.readers.restormer import read_restormer
from hat_plugin.restore.readers.shapes import Detected, StateDict
from hat_plugin.restore.readers.swin import read_hat, read_swinir


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
    except ValueError as error:
        raise CheckpointError(f'{source}: looks like {name}, but an entry has an odd shape ({error})') from error
    if scale is not None and scale != found.scale:
        raise CheckpointError(f'{source}: the network enlarges {found.scale} times, not {scale}; leave out --scale')
    return found


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
        read_hat,
        pads=True,
    ),
    'SwinIR': Architecture(
        'basicsr.archs.swinir_arch:SwinIR',
        ('conv_first.weight', 'layers.0.residual_group.blocks.0.attn.relative_position_bias_table'),
        read_swinir,
        pads=False,
        foreign=('overlap_attn', 'conv_block', 'logit_scale'),
    ),
    'HATUNet': Architecture(
        'hat_plugin.archs.hat_unet_arch:HATUNet',
        (
            'conv_first.weight',
            'bottleneck.blocks.0.attn.relative_position_bias_table',
            'bottleneck.blocks.0.mlp.fc2.weight',
        ),
        read_hat_unet,
        pads=True,
    ),
    'Restormer': Architecture(
        'hat_plugin.archs.restormer_arch:Restormer',
        ('patch_embed.proj.weight', 'encoder_level1.0.attn.temperature', 'latent.0.ffn.project_out.weight'),
        read_restormer,
        pads=True,
    ),
    'NAFNet': Architecture('hat_plugin.archs.nafnet_arch:NAFNet', _NAFNET_MARKS, read_nafnet, pads=True),
    'NAFNetLocal': Architecture('hat_plugin.archs.nafnet_arch:NAFNetLocal', _NAFNET_MARKS, read_nafnet, pads=True),
}
