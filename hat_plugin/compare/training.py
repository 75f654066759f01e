"""Training what a comparison has no weights of: alike, one network after the other, each by ``basicsr train``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import yaml
from basicsr.utils import get_root_logger

from hat_plugin import train
from hat_plugin.compare.protocol import Comparison, Contender, unequal
from hat_plugin.engine import distributed
from hat_plugin.engine.distributed import World
from hat_plugin.engine.files import write_text_atomic
from hat_plugin.engine.options import Options, read_yaml
from hat_plugin.errors import HatPluginError


def file_name(contender: Contender) -> str:
    """Of the option file that a contender is trained by."""
    return f'train_{contender.label}.yml'


def check_earlier_runs(comparison: Comparison) -> None:
    """Refuse runs in experiments/ that bear the names of this comparison's and had other options.

    Raises:
        HatPluginError: there is one; what differs is named.
    """
    for contender in comparison.runs:
        if contender.train is None:
            continue
        run = Path('experiments') / str(contender.train['name'])
        kept = run / file_name(contender)
        if not run.is_dir() or not any(run.glob('models/*.pth')):
            continue
        if not kept.is_file():
            raise HatPluginError(
                f'{run}: holds no {kept.name}, so that nobody knows how it was trained; remove it, or change name: in '
                f'{comparison.source}'
            )
        lines = unequal(_plain(read_yaml(kept)), _plain(contender.train), str(kept), comparison.source)
        if lines:
            told = '\n'.join(f'  - {line.split(";")[0]}' for line in lines)
            raise HatPluginError(
                f'{run}: was trained with other options than the comparison has now:\n{told}\nChange name: in '
                f'{comparison.source} to train anew, or remove the folder'
            )


def _plain(opt: Options) -> Options:
    """What a training's outcome depends on, as YAML would read it back."""
    left_out = ('logger', 'val', 'num_gpu', 'dist_params')
    kept: Options = yaml.safe_load(yaml.safe_dump({key: value for key, value in opt.items() if key not in left_out}))
    return kept


def train_missing(comparison: Comparison, folder: Path, world: World) -> int:
    """Train each network that is not trained to its end yet; what was begun is gone on with.

    Args:
        comparison: read and checked, and `check_earlier_runs` found nothing.
        folder: for the option files.
        world: of this process; several ranks train together, and each calls this.

    Returns:
        0, or 128 + the signal that stopped a training; it is saved, and the next call goes on.

    Raises:
        HatPluginError: a training failed; it has said why.
    """
    missing = [each.label for each in comparison.runs if each.train is not None and not each.weights.is_file()]
    missing = distributed.from_main(missing)
    options = folder / 'options'
    options.mkdir(parents=True, exist_ok=True)
    for number, contender in enumerate((each for each in comparison.runs if each.label in missing), 1):
        file = options / file_name(contender)
        write_text_atomic(file, yaml.safe_dump(contender.train, sort_keys=False, allow_unicode=True))
        words = ['-opt', str(file), '--auto_resume']
        if world.is_main:
            get_root_logger().info(f'[{number}/{len(missing)}] basicsr train {shlex.join(words)}')
        parser = argparse.ArgumentParser(prog='basicsr train', allow_abbrev=False)
        train.add_arguments(parser)
        code = train.run_in(world, parser.parse_args(words))
        if code:
            return code
    return 0
