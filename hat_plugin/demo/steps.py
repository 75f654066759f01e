"""The demonstration's steps; each is a command of this plugin that a user could type, but for the starting weights."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from hat_plugin import train
from hat_plugin.archs.hat_arch import HAT
from hat_plugin.archs.initialise import start_as_interpolation_
from hat_plugin.data.bicubic import imresize
from hat_plugin.engine.checkpoint import cpu_state_dict, save_torch_file
from hat_plugin.engine.logging import short_messages
from hat_plugin.engine.options import read_yaml
from hat_plugin.prepare import command as prepare

Say = Callable[[str], None]
OPTION_FILE = 'demo_HAT_SRx4.yml'
RUN = Path('experiments/demo_HAT_SRx4')
HELD_OUT = Path('datasets/HeldOut')


def weights_file(iterations: int) -> Path:
    """The trained weights, relative to the output folder.

    Not net_g_latest.pth: a run killed between its last checkpoint and that copy of it counts as complete.
    """
    return RUN / 'models' / f'net_g_{iterations}.pth'


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder, and come back."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def prepare_photos(say: Say) -> None:
    """Photographs of ``photos/`` to a training set (LMDB) and a test set below ``datasets/``; what is ready is left."""
    common = ['--scale', '4', '--workers', '1']
    _run('prepare', prepare, ['folder', 'photos/train', '--name', 'Photos', '--raw', '--sub-size', '0', *common], say)
    _run('prepare', prepare, ['benchmark', 'photos/held_out', '--name', HELD_OUT.name, *common], say)


def write_start(option_file: Path) -> HAT:
    """Write the weights from which the option file starts: the network that computes bicubic.

    Returns:
        The network.
    """
    options = read_yaml(option_file)
    torch.manual_seed(options['manual_seed'])
    net = HAT(**{key: value for key, value in options['network_g'].items() if key != 'type'})
    impulse = np.zeros((5, 5))
    impulse[2, 2] = 1.0
    start_as_interpolation_(net, torch.from_numpy(imresize(impulse, net.upscale)))
    path = Path(options['path']['pretrain_network_g'])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_torch_file(path, {'params': cpu_state_dict(net)})
    return net


def train_network(option_file: Path, iterations: int, say: Say) -> int:
    """Train, or go on with what an earlier run left.

    Returns:
        0, or 128 + the signal that stopped the training; what it had reached is saved.
    """
    words = ['-opt', str(option_file), '--auto_resume']
    if iterations != read_yaml(option_file)['train']['total_iter']:
        words += ['--force_yml', f'train:total_iter={iterations}', f'train:scheduler:periods:0={iterations}']
    with short_messages():
        return _run('train', train, words, say)


def _run(name: str, module: ModuleType, words: list[str], say: Say) -> int:
    """Run a subcommand in this process, and say what to type for it."""
    say(f'$ basicsr {name} {shlex.join(words)}')
    parser = argparse.ArgumentParser(prog=f'basicsr {name}', allow_abbrev=False)
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(words)))
