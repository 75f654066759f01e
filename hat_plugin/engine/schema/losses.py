"""Losses: their arguments, their names in the log, and a trial on a pair of patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hat_plugin.engine.schema.classes import Kind, class_problems, of_registry, trial
from hat_plugin.engine.schema.report import Place, at, section_of, shown
from hat_plugin.engine.schema.values import INPUT_CHANNELS

LOSS = of_registry('LOSS_REGISTRY', 'loss')
LISTED_LOSS = of_registry('LOSS_REGISTRY', 'loss', also=('name',))
# What the log calls losses of BasicSR's slots, and the losses that only a slot can call.
RESERVED = {'pix', 'percep', 'style', 'gan'}
SLOTTED = {'PerceptualLoss': 'perceptual_opt', 'GANLoss': 'gan_opt', 'MultiScaleGANLoss': 'gan_opt'}


def patch_shape(opt: Mapping[str, Any]) -> tuple[int, int, int]:
    """(C, H, W) of the patches that an option file trains on, as far as it says; some losses want large ones."""
    training = section_of(section_of(opt, 'datasets'), 'train')
    side = training.get('gt_size', opt.get('gt_size'))
    side = int(side) if isinstance(side, int | float) and 0 < side < 4096 else 256
    network = section_of(opt, 'network_g')
    gray = 1 in [network.get(name) for name in INPUT_CHANNELS]
    return (1 if gray else 3, side, side)


def loss_problems(kind: Kind, section: Any, place: Place, *, shape: tuple[int, ...] | None) -> list[str]:
    """Check a loss's section.

    Args:
        kind: where losses are found.
        section: the section.
        place: where it stands.
        shape: (C, H, W) of a pair of patches on which one of BasicSR's losses or of ours is tried, or None for a loss
            that compares no pictures.

    Returns:
        One line a problem.
    """
    problems = class_problems(kind, section, place)
    if problems or not isinstance(section, Mapping):
        return problems
    problems = _loss_name_problems(section, place) if 'name' in kind.also else []
    target = kind.find(section['type'])
    if target is None or shape is None or target.__module__.split('.')[0] not in ('basicsr', 'hat_plugin'):
        return problems
    if section['type'] in SLOTTED:
        wanted = f'it is no loss of two pictures; write it under train: {SLOTTED[section["type"]]}'
        return [*problems, f'{at((*place, "type"))}: {shown(section["type"])}: {wanted}']
    return problems + trial(lambda: _try_loss(target(**kind.arguments(section)), shape), place)


def _loss_name_problems(section: Mapping[str, Any], place: Place) -> list[str]:
    """Names in the log must be told from those of the slots, and be names."""
    name = section.get('name', section['type'])
    free = isinstance(name, str) and name.isidentifier() and name not in RESERVED
    if free and not name.startswith(('g_', 'd_')) and not hasattr(dict, name):
        return []
    taken = f'{", ".join(sorted(RESERVED))} and what begins with g_ or d_ are taken'
    return [f'{at((*place, "name"))}: {shown(name)}: a name of letters, digits and _ is wanted; {taken}']


def _try_loss(loss: Callable[..., Any], shape: tuple[int, ...]) -> None:
    import torch

    found = loss(*torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_())
    if not torch.is_tensor(found) or found.numel() != 1:
        raise ValueError('it gives no single number; write reduction: mean')
