"""The option files of restoration at the size of the input: denoising, deblurring and JPEG."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import published
import restoration_networks as networks
import restoration_recipes as recipes
from restoration_networks import Network
from restoration_recipes import Recipe
from restoration_tasks import GOPRO, GOPRO_PAIR, MARKS, PHOTOS, POLYU, SIDD, Block, Task, blind, gaussian, jpeg
from yaml_text import option_file


@dataclass(frozen=True)
class Run:
    """A training, and the test of what it makes.

    Attributes:
        network, task, recipe: what is trained, on what, how.
        start: the run whose EMA weights it starts from, or nothing.
        weights: file name of published weights for the test; the run's own without.
        measured: what this plugin reached with the file, where it was run to its end.
    """

    network: Network
    task: Task
    recipe: Recipe
    start: str = ''
    weights: str = ''
    measured: str = ''

    @property
    def name(self) -> str:
        """Network and task."""
        return f'{self.network.label}_{self.task.name}'

    @property
    def published(self) -> Block:
        """``published`` of the test file."""
        line = self.task.figures.get(self.network.label, '')
        return {} if self.measured else published.section(self.network.label, line, self.task.test)

    @property
    def expected(self) -> str:
        """The line on the figure to expect."""
        if self.measured:
            return f'Reached: {self.measured}\n  {self.task.protocol}; docs/trainings.md'
        return f'Expected: {self.task.expected(self.network.label)}\n  {self.task.protocol}; {MARKS}'


def top(name: str, run: Run) -> Block:
    """What stands above the sections."""
    return {'name': name, 'model_type': run.network.model, 'scale': 1, 'num_gpu': 'auto', 'manual_seed': 0}


def numbered(phase: str, sets: dict[str, Block]) -> Block:
    """Validation or test sets; BasicSR takes them in alphabetical order."""
    digits = len(str(len(sets)))
    rows = enumerate(sets.items(), 1)
    return {f'{phase}_{number:0{digits}}': {'name': name, **block} for number, (name, block) in rows}


def training(run: Run) -> tuple[str, str]:
    """Name and text of a training file."""
    name = f'train_{run.name}'
    recipe, task = run.recipe, run.task
    launch = f'torchrun --nproc_per_node=8 -m hat_plugin.train -opt options/{name}.yml --launcher pytorch'
    many = f'\n  {launch} --auto_resume'
    first = f'\nFirst: options/{run.start}.yml, whose last EMA weights this run starts from.' if run.start else ''
    header = f"""\
{run.network.label}, {task.title}.

  basicsr train -opt options/{name}.yml --auto_resume{'' if run.measured else many}

Data: {task.prepare}; then basicsr check -opt ...{first}
Hardware: {recipe.hardware}
  ({run.network.size}); basicsr check --no-data prints the memory it takes.
{run.expected}
Source: {recipe.source}"""
    loading: dict[str, Any] = {'use_shuffle': True, 'num_worker_per_gpu': 0 if run.measured else 6}
    block = dict(task.train)
    if recipe.data.get('geometric_augs'):
        block['type'] = 'Dataset_PairedImage'
    train = {'name': task.name.split('_')[0] if 'dataroot_lq' in block else 'clean', **block, **recipe.data, **loading}
    start: Block = {'pretrain_network_g': f'experiments/{run.start}/models/net_g_latest.pth' if run.start else None}
    if run.start:
        start['param_key_g'] = 'params_ema'
    opt = {
        **top(name, run),
        'datasets': {'train': train, **numbered('val', task.val)},
        'network_g': run.network.options,
        'path': {**start, 'strict_load_g': True, 'resume_state': None},
        'train': recipe.train,
        'val': {'val_freq': recipe.freq, 'save_img': False, **recipe.val, **task.val_section()},
        'logger': {
            'print_freq': 100,
            'save_checkpoint_freq': min(recipe.freq, 5000),
            'keep_checkpoints': 20,
            'use_tb_logger': True,
        },
    }
    return name, option_file(header, opt)


def testing(run: Run) -> tuple[str, str]:
    """Name and text of a test file."""
    name, task = f'test_{run.name}', run.task
    weights, key = f'experiments/train_{run.name}/models/net_g_latest.pth', 'params_ema'
    whose = f'of options/train_{run.name}.yml'
    if run.weights:
        weights, key = f'experiments/pretrained_models/{run.weights}', run.network.key
        whose = 'as published'
    elif 'ema_decay' not in run.recipe.train:
        key = 'params'
    sets = ', '.join(task.test)
    header = f"""\
{run.network.label}, {task.title}: on {sets}.

  basicsr test -opt options/{name}.yml
  basicsr test -opt options/{name}.yml --force_yml path:pretrain_network_g=WEIGHTS.pth path:param_key_g=params

Data: {task.prepare}.
Weights: {whose}.
Hardware: one GPU, or a CPU with patience ({run.network.size}); tiles where memory is short.
{f'Expected: what stands under published; {task.protocol}.' if run.published else run.expected}"""
    val = {'save_img': True, 'suffix': None, **run.recipe.val, **task.val_section()}
    opt = {
        **top(name, run),
        'datasets': numbered('test', task.test),
        'network_g': run.network.options,
        'path': {'pretrain_network_g': weights, 'param_key_g': key, 'strict_load_g': True},
        'val': val,
        **({'published': run.published} if run.published else {}),
    }
    return name, option_file(header, opt)


def runs() -> list[Run]:
    """All of them."""
    hat, gray = networks.hat(), networks.hat(1)
    biasfree, withbias = networks.restormer('BiasFree'), networks.restormer('WithBias')
    listed = [
        Run(networks.HATUNET, SIDD, recipes.HATUNET_RECIPE),
        Run(networks.HATUNET, GOPRO, recipes.HATUNET_RECIPE),
        Run(networks.HATUNET, blind(), recipes.HATUNET_RECIPE),
        Run(hat, SIDD, recipes.HAT_RECIPE),
        Run(biasfree, SIDD, recipes.restormer_recipe(mixup=True), weights='real_denoising.pth'),
        Run(withbias, GOPRO, recipes.restormer_recipe(mixup=False), weights='motion_deblurring.pth'),
        Run(networks.NAFNET_SIDD, SIDD, recipes.nafnet_recipe(0.0, flips=False), weights='NAFNet-SIDD-width64.pth'),
        Run(networks.NAFNET_GOPRO, GOPRO, recipes.nafnet_recipe(0.001, flips=True), weights='NAFNet-GoPro-width64.pth'),
        swinir(),
    ]
    for network, is_gray in ((hat, False), (gray, True)):
        first = gaussian(is_gray, 15)
        listed.append(Run(network, first, recipes.swinir_recipe()))
        for sigma in (25, 50):
            start = f'train_{network.label}_{first.name}'
            listed.append(Run(network, gaussian(is_gray, sigma), recipes.swinir_recipe(finetune=True), start))
    listed.append(Run(gray, jpeg(40), recipes.swinir_recipe()))
    for quality in (10, 20, 30):
        start = f'train_{gray.label}_{jpeg(40).name}'
        listed.append(Run(gray, jpeg(quality), recipes.swinir_recipe(finetune=True), start))
    return [*listed, *light()]


def swinir() -> Run:
    """From scratch, where the published run started from sigma 15."""
    recipe = recipes.swinir_recipe()
    recipe = replace(recipe, source=f'{recipe.source}; the published run started from the weights of sigma 15')
    weights = '005_colorDN_DFWB_s128w8_SwinIR-M_noise25.pth'
    return Run(networks.SWINIR, gaussian(False, 25), recipe, weights=weights)


def light() -> list[Run]:
    """Small trainings that this plugin has run to their end; docs/trainings.md shows them."""
    small = networks.HATUNET_LIGHT
    return [
        Run(small, PHOTOS, recipes.light_recipe(5000, 1000), measured='McMaster 31.35/.8692; noisy 20.18'),
        Run(small, POLYU, recipes.light_recipe(2500, 500), measured='37.15/.9574; noisy 35.42/.9206'),
        Run(
            small,
            GOPRO_PAIR,
            recipes.light_recipe(1500, 250),
            measured='24.06/.7956 from one pair; blurred 24.05/.7963',
        ),
    ]


def files() -> dict[str, str]:
    """Every file: its run's name -> text."""
    return dict(make(run) for run in runs() for make in (training, testing))
