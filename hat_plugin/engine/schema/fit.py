"""Sections held against each other: scale, channels, batches, names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hat_plugin.engine.schema.classes import registered
from hat_plugin.engine.schema.data import dataset_schema
from hat_plugin.engine.schema.report import section_of, shown
from hat_plugin.engine.schema.stages import stage_problems
from hat_plugin.engine.schema.values import INPUT_CHANNELS, positive_whole, world_size

Problems = list[str]
# How sections say that their pictures have one channel; otherwise they have three.
_ONE_CHANNEL = {'gray': True, 'in_ch': 1, 'color': 'y', 'channels': 1}


def fit_problems(opt: Mapping[str, Any], *, is_train: bool) -> Problems:
    """What does not fit together; what is wrong by itself is told of elsewhere."""
    return [
        *_scale_problems(opt, is_train),
        *_channel_problems(opt),
        *_batch_problems(opt),
        *((*_schedule_problems(opt), *stage_problems(opt)) if is_train else ()),
        *_name_problems(opt),
    ]


def _channel_problems(opt: Mapping[str, Any]) -> Problems:
    """Pictures must have as many channels as the network takes; only where both say it in words known here."""
    name = next((key for key in INPUT_CHANNELS if key in section_of(opt, 'network_g')), None)
    wanted = positive_whole(section_of(opt, 'network_g')[name]) if name else 0
    problems: Problems = []
    for key, section in section_of(opt, 'datasets').items() if wanted else []:
        keys = _keys(section)
        if not (keys >= {'color', 'mean', 'std'} or 'in_ch' in keys):  # it may make anything of its pictures
            continue
        given = 1 if any(section.get(option) == value for option, value in _ONE_CHANNEL.items()) else 3
        if given != wanted:
            gray = next(f'{option}: {str(value).lower()}' for option, value in _ONE_CHANNEL.items() if option in keys)
            problems.append(
                f'datasets: {key}: gives pictures of {given} channel{"s" * (given > 1)}, network_g: {name} is {wanted};'
                f' write {name}: {given}' + (f', or {gray} here' if wanted == 1 else '')
            )
    return problems


def _keys(section: Any) -> set[str]:
    """The keys that a section's data set reads, as far as it says."""
    kind = registered('DATASET_REGISTRY', section.get('type')) if isinstance(section, Mapping) else None
    schema = dataset_schema(kind, training=False) if kind is not None else None
    return set(schema.model_fields) if schema is not None else set()


def _scale_problems(opt: Mapping[str, Any], is_train: bool) -> Problems:
    problems: Problems = []
    scale, upscale = positive_whole(opt.get('scale')), positive_whole(section_of(opt, 'network_g').get('upscale'))
    if scale and upscale and scale != upscale:
        problems.append(
            f'network_g: upscale: {upscale} differs from the top-level scale: {scale}; write the same number in both'
        )
    for key, section in section_of(opt, 'datasets').items() if is_train else []:
        gt_size = positive_whole(section.get('gt_size')) if isinstance(section, Mapping) else 0
        if scale and gt_size % scale:
            near = gt_size // scale * scale
            remedy = f'write {near + scale}' + (f' or {near}' if near else '')
            problems.append(f'datasets: {key}: gt_size: {gt_size} is no multiple of scale {scale}; {remedy}')
    return problems


def _batch_problems(opt: Mapping[str, Any]) -> Problems:
    total = positive_whole(section_of(opt, 'train').get('total_batch_size'))
    ranks = positive_whole(opt.get('world_size')) or world_size()
    if total % ranks == 0:
        return []
    remedy = f'write a multiple of {ranks}'
    return [f'train: total_batch_size: {total} cannot be shared by {ranks} processes; {remedy}']


def _schedule_problems(opt: Mapping[str, Any]) -> Problems:
    """A schedule that ends before the training does would stop it in the middle."""
    train = section_of(opt, 'train')
    schedule, total = section_of(train, 'scheduler'), positive_whole(train.get('total_iter'))
    lengths = {'total_steps': positive_whole(schedule.get('total_steps'))}
    periods, weights = schedule.get('periods'), schedule.get('restart_weights', [1])
    if isinstance(periods, list) and isinstance(weights, list) and len(periods) == len(weights):  # else refused anyway
        lengths['periods'] = sum(positive_whole(period) for period in periods)
    return [
        f'train: scheduler: {key}: ends after {length} of {total} iterations (total_iter); make it as long'
        for key, length in lengths.items()
        if 0 < length < total
    ]


def _name_problems(opt: Mapping[str, Any]) -> Problems:
    """Two sets under one name would overwrite each other's pictures and figures (a training set has none)."""
    holders: dict[str, str] = {}
    problems: Problems = []
    for key, section in section_of(opt, 'datasets').items():
        name = section.get('name') if isinstance(section, Mapping) else None
        if not isinstance(name, str) or str(key).split('_')[0] == 'train':
            continue
        holder = holders.setdefault(name, str(key))
        if holder != key:
            problems.append(f'datasets: {key}: name: {shown(name)} is taken by {holder}; give it another')
    return problems
