"""What an option file says that changes nothing here: allowed, because BasicSR's files say it, but worth knowing."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from hat_plugin.engine.schema.data import required_keys
from hat_plugin.engine.schema.models import model_facts
from hat_plugin.engine.schema.report import section_of
from hat_plugin.engine.stages import STAGE_KEYS

_FOR_TRAINING = ('use_shuffle', 'batch_size_per_gpu', 'dataset_enlarge_ratio', 'gt_size', 'use_hflip', 'use_rot')
_AUGMENTATIONS = ('use_flip', 'geometric_augs')  # as NAFNet's and Restormer's files call them
_FOR_GANS = ('optim_d', 'gan_opt', 'ldl_opt', 'feature_matching_opt', 'net_d_iters', 'net_d_init_iters')
# What this plugin's models read on top of BasicSR's: section -> keys.
_EXTENSIONS = {
    'train': ('losses', 'amp', 'grad_clip', 'compile', 'cuda_graphs', 'channels_last', 'max_nonfinite'),
    'logger': ('keep_checkpoints',),
}


def notes(opt: Mapping[str, Any], *, is_train: bool) -> list[str]:
    """One line for each option without effect, or whose effect may surprise; see `inert_options`."""
    return [*inert_options(opt, is_train=is_train), *(_schedule_notes(opt) if is_train else ())]


def inert_options(opt: Mapping[str, Any], *, is_train: bool) -> list[str]:
    """One line for each option without effect: ``place: has no effect here: reason``.

    Args:
        opt: checked options, as in the file or prepared.
        is_train: training or test.
    """
    found = [*_data_notes(opt, is_train), *_path_notes(opt), *_model_notes(opt, is_train)]
    if not is_train:
        found += [f'{key}: has no effect here: it is for training' for key in ('train', 'logger') if opt.get(key)]
        val, path = opt.get('val') or {}, opt.get('path') or {}
        for place, section, keys in (('val', val, ('val_freq', 'at_start')), ('path', path, ('resume_state',))):
            found += [f'{place}: {key}: has no effect here: it is for training' for key in keys if section.get(key)]
        found += _published_notes(opt)
    elif ((opt.get('logger') or {}).get('wandb') or {}).get('project') and not opt['logger'].get('use_tb_logger'):
        found.append('logger: wandb: has no effect here: it mirrors TensorBoard; set use_tb_logger: true')
    if is_train and (opt.get('val') or {}).get('suffix'):
        found.append('val: suffix: has no effect here: it is for tests')
    return found


def _data_notes(opt: Mapping[str, Any], is_train: bool) -> list[str]:
    found = []
    for key, section in opt['datasets'].items():
        if not isinstance(section, Mapping):
            continue
        if section.get('num_prefetch_queue') is not None and section.get('prefetch_mode') != 'cpu':
            found.append(f'datasets: {key}: num_prefetch_queue: has no effect here: only with prefetch_mode: cpu')
        if is_train and key != 'train' and not opt.get('val'):
            found.append(f'datasets: {key}: has no effect here: there is no val section that says when to validate')
        if key.split('_')[0] != 'train':
            found += [
                f'datasets: {key}: {name}: has no effect here: it is for training'
                for name in (*_FOR_TRAINING, *_AUGMENTATIONS, *STAGE_KEYS)
                if section.get(name) is not None and name not in required_keys(section.get('type'))
            ]
    return found


def measured_names(opt: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Names of a file's data sets, and of its metrics."""
    blocks = section_of(opt, 'datasets').values()
    sets = {str(block.get('name')) for block in blocks if isinstance(block, Mapping)}
    return sets, {str(name) for name in section_of(section_of(opt, 'val'), 'metrics')}


def _published_notes(opt: Mapping[str, Any]) -> list[str]:
    sets, metrics = measured_names(opt)
    found = []
    for name, row in section_of(section_of(opt, 'published'), 'figures').items():
        left_out = [key for key in row if name not in sets or key not in metrics]
        if left_out:
            told = 'no test set of that name' if name not in sets else f'{", ".join(left_out)} is not measured'
            found.append(f'published: figures: {name}: has no effect here: {told}')
    return found


def _path_notes(opt: Mapping[str, Any]) -> list[str]:
    path = opt.get('path') or {}
    found = [f'path: {key}: has no effect here' for key in ('root', 'ignore_resume_networks') if path.get(key)]
    for label in ('g', 'd'):
        if path.get(f'pretrain_network_{label}') is None and path.get(f'param_key_{label}') is not None:
            found.append(f'path: param_key_{label}: has no effect here: pretrain_network_{label} names no weights')
    if path.get('pretrain_network_d') and not opt.get('network_d'):
        found.append('path: pretrain_network_d: has no effect here: there is no network_d')
    return found


def _model_notes(opt: Mapping[str, Any], is_train: bool) -> list[str]:
    """What the model does not read, where it is known."""
    model, train = opt['model_type'], opt.get('train') or {}
    facts = model_facts(model)
    if facts.foreign:
        return []
    found: list[str] = []
    for place, schema in (('train', facts.train), ('val', facts.val)) if is_train else (('val', facts.val),):
        pairs = schema.without_effect(opt.get(place) or {})
        found += [f'{place}: {key}: has no effect here: {reason}' for key, reason in pairs]
    if opt.get('tile') and (opt.get('val') or {}).get('grids'):
        found.append('tile: has no effect here: val: grids cuts the pictures')
    if is_train and not facts.adversarial:
        reason = f'{model} trains without a discriminator'
        found += [f'train: {key}: has no effect here: {reason}' for key in _FOR_GANS if train.get(key) is not None]
        found += [f'network_d: has no effect here: {reason}'] if opt.get('network_d') else []
    if not facts.extended:
        reason = f"{model} is BasicSR's, which does not know it"
        for section, keys in _EXTENSIONS.items() if is_train else ():
            given = opt.get(section) or {}
            found += [f'{section}: {key}: has no effect here: {reason}' for key in keys if given.get(key) is not None]
        found += [f'tile: has no effect here: {reason}'] if opt.get('tile') else []
    return found


def _schedule_notes(opt: Mapping[str, Any]) -> list[str]:
    train = opt['train']
    total, warmup = train['total_iter'], train.get('warmup_iter') or -1
    late = [step for step in train['scheduler'].get('milestones') or [] if step >= total]
    found = []
    if late:
        found.append(f'train: scheduler: milestones: {late} come at or after total_iter {int(total)}')
    if warmup > total:
        found.append(f'train: warmup_iter: {int(warmup)} is longer than the training ({int(total)})')
    train_set = opt['datasets']['train']
    begins = list(accumulate(train_set.get('iters') or ()))[:-1]
    if begins and begins[-1] >= total:
        never = sum(begin >= total for begin in begins)
        found.append(f'datasets: train: iters: the last {never} of {len(begins) + 1} stages begin after {int(total)}')
    ema = train.get('ema_decay')
    if ema and total * (1 - ema) < 5:
        found.append(
            f'train: ema_decay: {ema} averages over {round(1 / (1 - ema))} steps, long for total_iter {int(total)}'
        )
    return found
