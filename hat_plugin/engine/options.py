"""From an option file to the options of a run: read, changed by --force_yml, checked, prepared.

The file is BasicSR's YAML. Unlike BasicSR's parser this one evaluates nothing, names every mistake at once and touches
the disk only to see whether a file is there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hat_plugin.engine.schema.check import RUNTIME_KEYS, check_all
from hat_plugin.engine.schema.classes import registered
from hat_plugin.engine.schema.data import BackendOptions, LoaderOptions, renamed
from hat_plugin.engine.schema.disk import missing_files
from hat_plugin.engine.schema.models import RealDegradationOptions, model_facts
from hat_plugin.engine.schema.notes import inert_options, notes
from hat_plugin.engine.schema.report import nearest, section_problems, shown
from hat_plugin.engine.schema.sections import LoggerOptions, PublishedOptions, RootOptions, TileOptions
from hat_plugin.engine.schema.values import (
    Count,
    CountOrZero,
    Flag,
    Float,
    PerChannel,
    Positive,
    Probability,
    Range,
    Section,
    Text,
    takes_whole,
)
from hat_plugin.engine.schema.yaml import parse_yaml, plain_copy, read_yaml
from hat_plugin.errors import OptionsError

__all__ = [
    'BackendOptions',
    'Count',
    'CountOrZero',
    'Flag',
    'Float',
    'LoaderOptions',
    'Options',
    'PerChannel',
    'Positive',
    'Probability',
    'PublishedOptions',
    'Range',
    'RealDegradationOptions',
    'RootOptions',
    'Section',
    'Text',
    'apply_force_yml',
    'check_options',
    'inert_options',
    'load_options',
    'notes',
    'prepare_options',
    'read_yaml',
    'registered',
    'section_problems',
]

Options = dict[str, Any]
DEBUG_FREQUENCY = 8


def apply_force_yml(opt: Mapping[str, Any], entries: Sequence[str], source: str = '--force_yml') -> Options:
    """Change options from the command line.

    Args:
        opt: the options; left as they are.
        entries: ``train:optim_g:lr=1e-4`` each. The value is YAML and may hold ``=``; a number among the keys names an
            item of a list (``train:losses:0:loss_weight=2``). New keys may be made; `check_options` says whether they
            are known.
        source: what an error calls the command line.

    Returns:
        A changed copy.

    Raises:
        OptionsError: an entry is not of that form, its place does not exist, or its value is no YAML; all are listed.
    """
    changed: Options = plain_copy(opt)
    problems: list[str] = []
    for entry in entries:
        try:
            _apply_one(changed, entry, source)
        except OptionsError as error:
            problems += error.problems
    if problems:
        raise OptionsError(source, problems)
    return changed


def _apply_one(opt: Options, entry: str, source: str) -> None:
    place, separator, text = entry.partition('=')
    keys = [key.strip() for key in place.split(':')]
    if not separator or not all(keys):
        raise OptionsError(source, [f'{shown(entry)}: write it as section:key=value, train:total_iter=1000 say'])
    try:
        value = parse_yaml(text, source)
    except OptionsError as error:
        raise OptionsError(source, [f'{shown(entry)}: {problem}' for problem in error.problems]) from error
    known = {*RealDegradationOptions.model_fields, *opt} - RUNTIME_KEYS
    if keys[0] not in known:
        match = nearest(keys[0], known)
        remedy = f"did you mean '{match}'?" if match else f'known here: {", ".join(sorted(known))}'
        raise OptionsError(source, [f'{shown(entry)}: unknown option {keys[0]!r}; {remedy}'])
    target: Any = opt
    for depth, key in enumerate(keys[:-1]):
        target = _step_into(target, key, keys[: depth + 1], entry, source)
    _assign(target, keys[-1], value, entry, source)


def _step_into(target: Any, key: str, place: list[str], entry: str, source: str) -> Any:
    if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
        return target[int(key)]
    if not isinstance(target, dict):
        raise OptionsError(source, [f'{shown(entry)}: there is no section {": ".join(place)}'])
    if target.get(key) is None:
        target[key] = {}
    return target[key]


def _assign(target: Any, key: str, value: Any, entry: str, source: str) -> None:
    if isinstance(target, dict):
        target[key] = value
    elif isinstance(target, list) and key.isdecimal() and int(key) < len(target):
        target[int(key)] = value
    else:
        raise OptionsError(
            source, [f'{shown(entry)}: {key!r} stands in no section, and in no list that has such an item']
        )


def check_options(opt: Mapping[str, Any], source: str, *, is_train: bool, need_data: bool = True) -> None:
    """Refuse options that are wrong, naming everything that is.

    Args:
        opt: options as read; left as they are.
        source: the file's name, for the error.
        is_train: training options (a ``train`` section and data set are wanted) or test options.
        need_data: whether the data, weights and states that they name must exist.

    Raises:
        OptionsError: with one line a problem: place, value, remedy.
    """
    problems = check_all(opt, is_train=is_train)
    if need_data:
        problems += missing_files(opt, is_train=is_train)
    if problems:
        raise OptionsError(source, list(dict.fromkeys(problems)))


def prepare_options(
    opt: Mapping[str, Any], *, root_path: str | os.PathLike[str], is_train: bool, debug: bool = False
) -> Options:
    """Fill in what BasicSR's models, data sets and pipelines look up besides what the file says.

    Args:
        opt: checked options; left as they are.
        root_path: the folder in which experiments/, results/ and tb_logger/ lie.
        is_train: training or test.
        debug: name the run ``debug_...``; validate, log and save often.

    Returns:
        A plain dict of its own, with `is_train`, `root_path`, each data set's `phase` and `scale`, expanded ``~``,
        `num_gpu` as a number, and the run's folders in `path`.
    """
    prepared: Options = plain_copy(opt)
    prepared['is_train'] = is_train
    prepared['root_path'] = os.fspath(root_path)
    for key, value in {'dist': False, 'rank': 0, 'world_size': 1, 'auto_resume': False}.items():
        prepared.setdefault(key, value)
    if debug and not prepared['name'].startswith('debug'):
        prepared['name'] = f'debug_{prepared["name"]}'
    prepared['num_gpu'] = _number_of_gpus(prepared.get('num_gpu'))
    _drop_empty(prepared)
    _prepare_whole_numbers(prepared)
    _prepare_datasets(prepared)
    _prepare_val(prepared)
    _prepare_paths(prepared, Path(root_path))
    if is_train and debug:
        prepared['logger'].update(print_freq=1, save_checkpoint_freq=DEBUG_FREQUENCY)
        if prepared.get('val'):
            prepared['val']['val_freq'] = DEBUG_FREQUENCY
    return prepared


def _drop_empty(opt: Options) -> None:
    """``key: ~`` means what leaving the key out means. BasicSR's models look some up even so: these stay."""
    for section in ('train', 'val', 'tile', 'logger'):
        if isinstance(opt.get(section), dict):
            opt[section] = {key: value for key, value in opt[section].items() if value is not None or key == 'suffix'}
    if isinstance(opt.get('logger'), dict):
        opt['logger'].setdefault('use_tb_logger', False)  # BasicSR's message logger looks it up
    for place, keys in (
        (opt, RealDegradationOptions.model_fields.keys() - RootOptions.model_fields.keys()),
        (opt.get('path') or {}, ('strict_load_g', 'strict_load_d', 'param_key_g', 'param_key_d')),
    ):
        for key in keys:
            if key in place and place[key] is None:
                del place[key]


def _prepare_whole_numbers(opt: Options) -> None:
    """Files write them as 5e3, too."""
    facts = model_facts(opt.get('model_type'))
    schemas: dict[str, type[Section]] = {'train': facts.train, 'val': facts.val}
    schemas |= {'logger': LoggerOptions, 'tile': TileOptions}
    whole = [(takes_whole(RealDegradationOptions), opt)]
    whole += [(takes_whole(schema), opt.get(key) or {}) for key, schema in schemas.items()]
    whole += [({'gt_size', *takes_whole(LoaderOptions)}, section) for section in opt['datasets'].values()]
    whole += [({'milestones', 'periods', 'total_steps', 'T_max'}, (opt.get('train') or {}).get('scheduler') or {})]
    for keys, section in whole:
        for key in keys & section.keys():
            section[key] = _whole(section[key])


def _whole(value: Any) -> Any:
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number_of_gpus(value: Any) -> int:
    import torch

    there = torch.cuda.device_count()  # published files say how many their authors had
    return min(int(value), there) if isinstance(value, int | float) else there


def _prepare_datasets(opt: Options) -> None:
    opt['datasets'] = {key: renamed(dataset) for key, dataset in opt['datasets'].items()}
    for key, dataset in opt['datasets'].items():
        dataset['phase'] = str(key).split('_')[0]
        if opt.get('scale') is not None:
            dataset['scale'] = opt['scale']
        for name, value in dataset.items():
            if str(name).startswith(('dataroot', 'meta_info')) and isinstance(value, str):
                dataset[name] = os.path.expanduser(value)


def _prepare_val(opt: Options) -> None:
    if opt['is_train'] and not opt.get('val'):
        return
    # A test without a val section has no other result than its pictures.
    save = not opt['is_train'] and not opt.get('val')
    opt['val'] = {'save_img': save, 'suffix': None, **(opt.get('val') or {})}


def _prepare_paths(opt: Options, root: Path) -> None:
    path: Options = dict(opt.get('path') or {})
    for key, value in path.items():
        if isinstance(value, str) and ('resume_state' in key or 'pretrain_network' in key):
            path[key] = os.path.expanduser(value)
    if opt['is_train']:
        run = root / 'experiments' / opt['name']
        folders = {
            'experiments_root': run,
            'models': run / 'models',
            'training_states': run / 'training_states',
            'log': run,
            'visualization': run / 'visualization',
        }
        path.setdefault('resume_state', None)
    else:
        run = root / 'results' / opt['name']
        folders = {'results_root': run, 'log': run, 'visualization': run / 'visualization'}
    opt['path'] = {**path, **{key: str(folder) for key, folder in folders.items()}}


def load_options(
    path: str | os.PathLike[str],
    *,
    root_path: str | os.PathLike[str],
    is_train: bool,
    force_yml: Sequence[str] = (),
    debug: bool = False,
    need_data: bool = True,
) -> Options:
    """Read, change, check and prepare an option file.

    Args:
        path: the file.
        root_path: the folder in which experiments/ and results/ lie.
        is_train: training or test.
        force_yml: changes, see `apply_force_yml`.
        debug: see `prepare_options`.
        need_data: whether the data and weights that it names must exist.

    Raises:
        OptionsError: anything is wrong with it; all of it is listed.
    """
    opt = apply_force_yml(read_yaml(path), force_yml)
    check_options(opt, os.fspath(path), is_train=is_train, need_data=need_data)
    return prepare_options(opt, root_path=root_path, is_train=is_train, debug=debug)
