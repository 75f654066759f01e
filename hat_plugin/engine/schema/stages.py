"""Stages of progressive training: three lists that must go together, and with the rest of an option file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hat_plugin.engine.schema.report import section_of
from hat_plugin.engine.schema.values import positive_whole, world_size
from hat_plugin.engine.stages import STAGE_KEYS

Problems = list[str]
# The largest number of a list -> the key that must have it: memory, and BasicSR's own pipeline, are planned by it.
_LARGEST = {'mini_batch_sizes': 'batch_size_per_gpu', 'gt_sizes': 'gt_size'}


def stage_problems(opt: Mapping[str, Any]) -> Problems:
    """What is wrong with ``mini_batch_sizes``, ``iters`` and ``gt_sizes``; what is no number is told of elsewhere."""
    section = section_of(section_of(opt, 'datasets'), 'train')
    given = {key: section[key] for key in STAGE_KEYS if section.get(key) is not None}
    if not given:
        return []
    missing = [key for key in STAGE_KEYS if key not in given]
    if missing:
        return [f'datasets: train: {key}: missing beside {", ".join(given)}; add it' for key in missing]
    if not all(isinstance(values, list) and values and all(map(positive_whole, values)) for values in given.values()):
        return []
    if len({len(values) for values in given.values()}) > 1:
        counts = ', '.join(f'{key} {len(values)}' for key, values in given.items())
        return [f'datasets: train: stages: the lists must be of one length, a number a stage; they have: {counts}']
    return [*_largest_problems(section), *_scale_problems(opt, section), *_batch_problems(opt, section)]


def _largest_problems(section: Mapping[str, Any]) -> Problems:
    return [
        f'datasets: train: {key}: {section.get(key)!r} is not the largest of {listed}; write {max(section[listed])}'
        for listed, key in _LARGEST.items()
        if section.get(key) != max(section[listed])
    ]


def _scale_problems(opt: Mapping[str, Any], section: Mapping[str, Any]) -> Problems:
    if opt.get('gt_size') is not None:
        remedy = 'remove mini_batch_sizes, iters and gt_sizes'
        return [f'datasets: train: gt_sizes: {opt.get("model_type")} cuts patches of its own gt_size; {remedy}']
    scale = positive_whole(opt.get('scale')) or 1
    odd = [side for side in section['gt_sizes'] if side % scale]
    return [f'datasets: train: gt_sizes: {odd}: no multiples of scale {scale}; change them'] if odd else []


def _batch_problems(opt: Mapping[str, Any], section: Mapping[str, Any]) -> Problems:
    """Each stage's batch is as many of its mini-batches as the total is of batch_size_per_gpu."""
    total = positive_whole(section_of(opt, 'train').get('total_batch_size'))
    ranks = positive_whole(opt.get('world_size')) or world_size()
    step = ranks * (positive_whole(section.get('batch_size_per_gpu')) or 1)
    if total % step == 0:
        return []
    return [
        f'train: total_batch_size: {total} is no multiple of {step} (batch_size_per_gpu times processes), as stages of'
        f' other mini_batch_sizes need; write {total // step * step + step}'
    ]
