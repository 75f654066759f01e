"""Restormer."""

from __future__ import annotations

from hat_plugin.restore.readers.shapes import Detected, StateDict, count, ratio_of


def read_restormer(weights: StateDict, scale: int | None) -> Detected:
    """Restormer in any size; all of it is visible."""
    dim, channels = weights['patch_embed.proj.weight'].shape[:2]
    levels = ('encoder_level1', 'encoder_level2', 'encoder_level3', 'latent')
    # Any factor that gives the deepest level its hidden width gives the others theirs, which are halves, rounded down.
    deepest, hidden = weights['latent.0.ffn.project_out.weight'].shape[:2]
    arguments = {
        'inp_channels': channels,
        'out_channels': weights['output.weight'].shape[0],
        'dim': dim,
        'num_blocks': [count(weights, f'{level}.{{}}.') for level in levels],
        'num_refinement_blocks': count(weights, 'refinement.{}.'),
        'heads': [weights[f'{level}.0.attn.temperature'].shape[0] for level in levels],
        'ffn_expansion_factor': ratio_of(hidden, deepest),
        'bias': 'output.bias' in weights,
        'LayerNorm_type': 'WithBias' if 'latent.0.norm1.body.bias' in weights else 'BiasFree',
        'dual_pixel_task': 'skip_conv.weight' in weights,
    }
    return Detected('Restormer', arguments, 1, channels, 8)
