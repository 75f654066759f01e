"""``basicsr demo``: prepare photographs, train a small HAT on them, compare it with bicubic on others."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import time
from pathlib import Path

import torch

from hat_plugin.arguments import whole_number
from hat_plugin.demo import steps
from hat_plugin.demo.compare import PROTOCOL, Comparison, compare, table, write_results
from hat_plugin.demo.photos import HELD_OUT, TRAINING, copy_photos
from hat_plugin.engine.files import folder_lock, write_text_atomic
from hat_plugin.engine.options import read_yaml
from hat_plugin.errors import DataError
from hat_plugin.resources import option_file
from hat_plugin.restore.network import load_network

_SETTINGS = 'demo.json'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add('-o', '--output', type=Path, default=Path('demo_output'), help='folder for all it makes (demo_output)')
    add('--threads', type=whole_number(1), default=1, help='CPU threads (1: so small a network gains little from more)')
    add('--iterations', type=whole_number(1), help="training steps (default: the option file's, about 3 minutes)")


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 if HAT is above bicubic on every held-out photograph, 1 if not, more if it was stopped.

    A folder in which a demo was interrupted is gone on with; one in which it was finished is only compared again.

    Raises:
        HatPluginError: the folder holds something else, or a step failed.
    """
    options = option_file(steps.OPTION_FILE)
    iterations = args.iterations or int(read_yaml(options)['train']['total_iter'])
    _claim(args.output, options, iterations)
    torch.set_num_threads(args.threads)
    with folder_lock(args.output), steps.inside(args.output):
        begin = time.monotonic()
        _say('Photographs of scikit-image: ' + _sides())
        copy_photos(Path('photos'))
        steps.prepare_photos(_say)
        net = steps.write_start(options)
        size = sum(parameter.numel() for parameter in net.parameters())
        _say(f'A HAT of {size:,} parameters. Its weights are random, but set so that it begins as bicubic.')
        code = steps.train_network(options, iterations, _say)
        if code:
            _say('Stopped. The same command goes on from here.')
            return code
        network = load_network(steps.weights_file(iterations), opt=options, device='cpu')
        comparisons = compare(network, steps.HELD_OUT, Path('restored'))
        title = f'HAT x4, {size / 1e3:.0f} k parameters, {iterations:,} iterations, against bicubic'
        write_results(Path(), comparisons, title)
        _say('\n'.join([title, PROTOCOL, '', *table(comparisons), '', f'Done in {time.monotonic() - begin:.0f} s.']))
    code = verdict(comparisons)
    if code:
        _say('HAT is not above bicubic on every photograph: train for longer (--iterations, another --output).')
    _say(_next(args.output, options, iterations))
    return code


def verdict(comparisons: list[Comparison]) -> int:
    """0 if HAT is above bicubic on every photograph, else 1."""
    return int(not all(item.gain > 0 for item in comparisons))


def _claim(folder: Path, options: Path, iterations: int) -> None:
    """Make the output folder the demo's own.

    Raises:
        DataError: it holds something else, or a demo with other settings, whose run could not be gone on with.
    """
    settings = {
        'options': hashlib.sha256(json.dumps(read_yaml(options), sort_keys=True).encode()).hexdigest(),
        'iterations': iterations,
        'photos': [*TRAINING, *(photo.file for photo in HELD_OUT)],
    }
    mark = folder / _SETTINGS
    try:
        if mark.exists():
            if json.loads(mark.read_text(encoding='utf-8')) != settings:
                raise DataError(f'{folder}: a demo with other settings was made here; choose another --output')
            return
        if folder.is_dir() and any(folder.iterdir()):
            raise DataError(f'{folder}: is not empty and no demo; choose another --output')
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomic(mark, json.dumps(settings, indent=2) + '\n')
    except (OSError, ValueError) as error:
        raise DataError(f'{folder}: cannot be used ({error}); choose another --output') from error


def _sides() -> str:
    held_out = ', '.join(photo.name for photo in HELD_OUT)
    return f'training on {", ".join(Path(file).stem for file in TRAINING)}; held out: {held_out}'


def _next(folder: Path, options: Path, iterations: int) -> str:
    """What to run next, to be typed where the demo was started."""
    folder_of_options = options.parent
    if folder_of_options.is_relative_to(Path.cwd()):
        folder_of_options = folder_of_options.relative_to(Path.cwd())
    opt, recipe = (shlex.quote(str(folder_of_options / name)) for name in (steps.OPTION_FILE, 'train_HAT_SRx2.yml'))
    weights = shlex.quote(str(folder / steps.weights_file(iterations)))
    return f"""\
Look at {folder / 'comparison.png'}. What to run next:
  basicsr restore PHOTO.jpg -o PHOTO_x4.png --weights {weights} --opt {opt}
                                            a photograph of your own, with the weights just trained
  basicsr prepare df2k ARCHIVES             the published training set, from its unpacked archives
  basicsr prepare benchmark ARCHIVES/benchmark    the test sets, on which the next one validates
  basicsr check -opt {recipe}
  basicsr train -opt {recipe} --auto_resume"""


def _say(text: str) -> None:
    print(f'\n{text}', flush=True)
