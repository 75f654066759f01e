"""All of one option file's sections checked."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from hat_plugin.engine.schema.classes import (
    NETWORK,
    class_problems,
    optimizer_problems,
    registered,
    registered_names,
    scheduler_problems,
)
from hat_plugin.engine.schema.data import dataset_problems
from hat_plugin.engine.schema.fit import fit_problems
from hat_plugin.engine.schema.losses import LISTED_LOSS, LOSS, loss_problems, patch_shape
from hat_plugin.engine.schema.metrics import metric_problems
from hat_plugin.engine.schema.models import ModelFacts, model_facts
from hat_plugin.engine.schema.notes import measured_names
from hat_plugin.engine.schema.report import (
    nearest,
    section_of,
    section_problems,
    unknown_line,
    unregistered_line,
)
from hat_plugin.engine.schema.sections import LoggerOptions, PathOptions

Problems = list[str]
SLIP = 0.8  # how much a name equals the one that was meant
LOSS_SLOTS = ('pixel_opt', 'perceptual_opt', 'ldl_opt', 'gan_opt', 'feature_matching_opt')
# Keys that the run's own machinery puts at the top level; an option file that was printed back may hold them.
RUNTIME_KEYS = {'dist', 'rank', 'world_size', 'is_train', 'auto_resume', 'root_path'}
RUNTIME_PATHS = {'experiments_root', 'models', 'training_states', 'log', 'visualization', 'results_root'}
PATH_REMEDIES = {
    'pretrain_net_g': 'pretrain_network_g',
    'pretrain_network': 'pretrain_network_g',
    'pretrain_model_g': 'pretrain_network_g',
    'pretrain_net': 'pretrain_network_g',
    'pretrain_net_d': 'pretrain_network_d',
    'strict_load': 'strict_load_g',
    'param_key': 'param_key_g',
}


def check_all(opt: Mapping[str, Any], *, is_train: bool) -> Problems:
    """Every problem of an option file that can be seen without its data and weights."""
    if 'networks' in opt and 'network_g' not in opt:
        return ['networks: this is a comparison file, of several networks; run `basicsr compare` with it']
    facts = model_facts(opt.get('model_type'))
    return [
        *_root_problems(opt, facts, is_train),
        *_model_problems(opt),
        *_network_problems(opt, facts),
        *_path_problems(opt, facts),
        *(_train_problems(opt, facts) if is_train else ()),
        *_val_problems(opt, facts, is_train),
        *_published_problems(opt, is_train),
        *_datasets_problems(opt, is_train),
        *(_logger_problems(opt) if is_train else ()),
        *fit_problems(opt, is_train=is_train),
    ]


def _root_problems(opt: Mapping[str, Any], facts: ModelFacts, is_train: bool) -> Problems:
    content = {key: value for key, value in opt.items() if key not in RUNTIME_KEYS}
    problems = section_problems(facts.top_level, content, lenient=facts.foreign)
    if facts.foreign:  # a model of somebody else's may have other networks, and use other names for the same
        problems = [line for line in problems if not line.startswith('network_g: missing')]
    if is_train and opt.get('train') is None:
        problems.append('train: missing (how to train); add it, or run `basicsr test` if this is a test file')
    if is_train and opt.get('logger') is None:
        problems.append('logger: missing (print_freq and save_checkpoint_freq at least); add it')
    return problems


def _model_problems(opt: Mapping[str, Any]) -> Problems:
    name = opt.get('model_type')
    if not isinstance(name, str) or not name or registered('MODEL_REGISTRY', name) is not None:
        return []
    return [unregistered_line(('model_type',), name, registered_names('MODEL_REGISTRY'), 'model')]


def _network_problems(opt: Mapping[str, Any], facts: ModelFacts) -> Problems:
    problems: Problems = []
    for key, section in opt.items():
        if isinstance(key, str) and key.startswith('network_') and isinstance(section, Mapping):
            problems += class_problems(NETWORK, section, (key,))
    if facts.adversarial and opt.get('train') is not None and not opt.get('network_d'):
        problems.append(f'network_d: missing ({opt["model_type"]} trains against a discriminator); add it')
    return problems


def _path_problems(opt: Mapping[str, Any], facts: ModelFacts) -> Problems:
    path = {key: value for key, value in section_of(opt, 'path').items() if key not in RUNTIME_PATHS}
    if facts.foreign:  # weights of its other networks
        networks = {key.removeprefix('network_') for key in opt if isinstance(key, str) and key.startswith('network_')}
        stems = ('pretrain_network', 'param_key', 'strict_load')
        own = {f'{stem}_{network}' for stem in stems for network in networks} - PathOptions.model_fields.keys()
        path = {key: value for key, value in path.items() if key not in own}
    return section_problems(PathOptions, path, ('path',), lenient=facts.foreign, remedies=PATH_REMEDIES)


def _train_problems(opt: Mapping[str, Any], facts: ModelFacts) -> Problems:
    train = section_of(opt, 'train')
    if not train:
        return []
    problems = section_problems(facts.train, train, ('train',), lenient=facts.foreign)
    if train.get('cuda_graphs') is True and train.get('compile') is True:
        problems.append('train: cuda_graphs: not together with compile; write one of them')
    if train.get('cuda_graphs') is True and section_of(opt, 'network_g').get('use_checkpoint'):
        problems.append(
            'train: cuda_graphs: not together with network_g: use_checkpoint, which draws random numbers anew; '
            'write one of them'
        )
    for key in ('optim_g', 'optim_d'):
        if isinstance(train.get(key), Mapping):
            problems += optimizer_problems(train[key], ('train', key))
    if isinstance(train.get('scheduler'), Mapping):
        found = scheduler_problems(train['scheduler'], ('train', 'scheduler'))
        # A model of somebody else's may bring its own schedules.
        problems += [line for line in found if not (facts.foreign and 'is no known' in line)]
    return [*problems, *_loss_problems(opt, facts)]


def _loss_problems(opt: Mapping[str, Any], facts: ModelFacts) -> Problems:
    problems: Problems = []
    train, shape = section_of(opt, 'train'), patch_shape(opt)
    for slot in LOSS_SLOTS:
        if isinstance(train.get(slot), Mapping):
            problems += loss_problems(LOSS, train[slot], ('train', slot), shape=shape if slot == 'pixel_opt' else None)
    losses = train.get('losses')
    for index, section in enumerate(losses if isinstance(losses, list) else []):
        problems += loss_problems(LISTED_LOSS, section, ('train', 'losses', index), shape=shape)
    if train.get('total_batch_size') and 'sum' in _reductions(train):
        problems.append(
            'train: total_batch_size: with reduction: sum a loss depends on how it is split; write reduction: mean'
        )
    if not facts.foreign and not losses and not any(train.get(slot) for slot in LOSS_SLOTS):
        problems.append('train: pixel_opt: missing, and there is no other loss; add one, type: L1Loss say')
    if facts.adversarial:
        wanted = {'gan_opt': 'the GAN loss', 'optim_d': "the discriminator's optimiser"}
        problems += [f'train: {key}: missing ({what}); add it' for key, what in wanted.items() if not train.get(key)]
    return problems


def _reductions(train: Mapping[str, Any]) -> set[Any]:
    listed = train.get('losses')
    sections = [*(train.get(slot) for slot in LOSS_SLOTS), *(listed if isinstance(listed, list) else [])]
    return {section.get('reduction') for section in sections if isinstance(section, Mapping)}


def _val_problems(opt: Mapping[str, Any], facts: ModelFacts, is_train: bool) -> Problems:
    val = section_of(opt, 'val')
    if not val:
        return []
    problems = section_problems(facts.val, val, ('val',), lenient=facts.foreign)
    if is_train and val.get('val_freq') is None:
        problems.append('val: val_freq: missing (validate every so many iterations); add it, or remove the val section')
    if val.get('metrics') is not None:
        problems += metric_problems(val['metrics'], ('val', 'metrics'))
    return problems


def _published_problems(opt: Mapping[str, Any], is_train: bool) -> Problems:
    """Slips in names; figures of sets or metrics that were left out of the file are no mistake, see `notes`."""
    figures = section_of(section_of(opt, 'published'), 'figures')
    if figures and is_train:
        return ['published: has no effect on a training; put it into the test file']
    sets, metrics = measured_names(opt)
    problems = [
        unknown_line(('published', 'figures', str(name)), sets - set(figures), 'test set')
        for name in figures
        if name not in sets and nearest(str(name), sets - set(figures), cutoff=SLIP)
    ]
    for name, row in figures.items():
        problems += [
            unknown_line(('published', 'figures', str(name), str(key)), metrics - set(row), 'metric')
            for key in (row if isinstance(row, Mapping) else ())
            if key not in metrics and nearest(str(key), metrics - set(row), cutoff=SLIP)
        ]
    return problems


def _logger_problems(opt: Mapping[str, Any]) -> Problems:
    logger = section_of(opt, 'logger')
    problems = section_problems(LoggerOptions, logger, ('logger',)) if logger else []
    if section_of(logger, 'wandb').get('project') and importlib.util.find_spec('wandb') is None:
        problems.append('logger: wandb: the package is not installed; `pip install wandb`, or set wandb: ~')
    return problems


def _datasets_problems(opt: Mapping[str, Any], is_train: bool) -> Problems:
    datasets = opt.get('datasets')
    if not isinstance(datasets, Mapping):
        return []
    phases = ('train', 'val') if is_train else ('val', 'test')
    filled_in = {'phase': 'it follows from the name of the block'}
    scale = opt.get('scale')
    if scale is not None:
        filled_in['scale'] = "the top level's is taken"
    problems: Problems = []
    for key, section in datasets.items():
        phase = str(key).split('_')[0]
        if phase not in phases:
            problems.append(_phase_line(str(key), phases, is_train))
            continue
        if isinstance(section, Mapping):
            given = [name for name in filled_in if section.get(name) is not None]
            problems += [f'datasets: {key}: {name}: has no effect: {filled_in[name]}; remove it' for name in given]
            section = {name: value for name, value in section.items() if name not in given} | {'phase': phase}
            if type(scale) is int and scale > 0:  # what else it may be is told of at the top level
                section['scale'] = scale
        training = is_train and phase == 'train'
        problems += dataset_problems(section, ('datasets', key), training=training)
    sets = [key for key in datasets if str(key).split('_')[0] == 'train']
    if is_train and 'train' not in datasets:
        remedy = f'rename {sets[0]}' if sets else 'add it'
        problems.append(f'datasets: train: missing (what to train on); {remedy}')
    elif is_train and len(sets) > 1:
        problems.append(f'datasets: {sets[1]}: a second training set; put the pictures into one')
    if not is_train and not datasets:
        problems.append('datasets: test_1: missing (what to test on); add it')
    return problems


def _phase_line(key: str, phases: tuple[str, ...], is_train: bool) -> str:
    if key.split('_')[0] in ('train', 'test'):
        other = 'basicsr test' if is_train else 'basicsr train'
        return f'datasets: {key}: this set is of another phase; remove it, or run `{other}` instead'
    match = nearest(key.split('_')[0], phases)
    remedy = f"did you mean '{match}'?" if match else f'a data set is called {" or ".join(phases)}, or val_1, val_2'
    return f'datasets: {key}: unknown phase; {remedy}'
