"""``python -m benchmarks``: measure, and print the tables as markdown."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import data, growth, inference, memory, plot, training
from benchmarks.comparison import LEGEND
from benchmarks.networks import CODES, NETWORKS, PRECISIONS
from benchmarks.report import ResultFile, Section
from benchmarks.settings import Settings
from benchmarks.summary import summarise
from hat_plugin.compare import machine
from hat_plugin.compare.machine import Machine
from hat_plugin.compare.timing import Plan
from hat_plugin.engine.files import write_text_atomic
from hat_plugin.errors import HatPluginError

PARTS: dict[str, Callable[[Settings], Iterator[Section]]] = {
    'inference': inference.run,
    'training': training.run,
    'memory': memory.run,
    'growth': growth.run,
    'data': data.run,
}
RESULTS = Path(__file__).parent / 'results'


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for; 0 done, 2 bad input."""
    args = parser().parse_args(arguments)
    try:
        run(args)
    except HatPluginError as error:
        print(f'benchmarks: {error}', file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog='python -m benchmarks', description=__doc__, allow_abbrev=False)
    add = made.add_argument
    add('--part', nargs='+', choices=list(PARTS), default=list(PARTS), help='what to measure (default: all)')
    add('--quick', action='store_true', help='tiny networks and pictures: shows in seconds that all of it runs')
    add('--networks', nargs='+', choices=NETWORKS, help='default: HAT-S HAT; growth is of the first')
    add('--sizes', nargs='+', type=positive, metavar='SIDE', help='of the LR picture (default: 64 128 256)')
    add('--growth-sizes', nargs='+', type=positive, metavar='SIDE', help='default: 64 128 192 256 384 512')
    add('--batch', type=positive, help='of the training step that is timed (default: 1, on CUDA 4)')
    add(
        '--drop-path',
        type=rate,
        default=0.0,
        metavar='RATE',
        help='in that step; published trainings have 0.1 (default: 0)',
    )
    add('--precisions', nargs='+', choices=list(PRECISIONS), help='default: all, fp32 on a CPU that has no bf16')
    add('--codes', nargs='+', choices=CODES, help='whose contenders: default all; the first row is the base')
    add('--compile', action='store_true', help='time torch.compile as well (minutes of compiling on a CPU)')
    add('--threads', type=positive, help="default: torch's choice, commonly one for each core")
    add('--device', help='default: cuda where there is one, else cpu')
    add('--clock', choices=('auto', 'wall', 'cpu'), default='auto', help='auto: wall, but cpu on a loaded machine')
    add('--rounds', type=positive, help='at least so many turns of each contender (default: 5)')
    add('--seconds', type=float, help='rounds go on for so long in each table (default: 60)')
    add('--images', type=Path, metavar='FOLDER', help='pictures for the data part (default: scikit-image)')
    add('--json', type=Path, metavar='FILE', help='write all numbers there')
    add('--save', action='store_true', help='write <date>_<machine>.md, and the plot, into the folder of results')
    add('--results', type=Path, default=RESULTS, metavar='FOLDER', help='default: %(default)s')
    return made


def rate(text: str) -> float:
    """An argument that is a probability."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'{text}: give a number from 0 to below 1')
    return value


def positive(text: str) -> int:
    """An argument that counts."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{value} is less than 1')
    return value


def run(args: argparse.Namespace) -> None:
    """Measure part by part; each table is printed, and saved, as soon as it is there."""
    check(args)
    device = choose_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    found = machine.examine(device)
    settings = settings_of(args, device, found)
    out = Output(ResultFile(args.results, f'{found.date}_{found.slug}') if args.save else None)
    if out.file is not None:
        settings = replace(settings, plot=out.file.beside('growth.png'))
    out.put(heading(found, settings, quick=args.quick))
    for part in args.part:
        for section in PARTS[part](settings):
            out.put(section.markdown())
            out.records += section.records
        if args.json:
            numbers = {'machine': asdict(found), 'clock': settings.clock, 'records': out.records}
            write_text_atomic(args.json, json.dumps(numbers, indent=1) + '\n')
    summary = summarise(out.records, settings.clock)
    if summary is not None:
        out.put(summary.markdown(), first=True)


def check(args: argparse.Namespace) -> None:
    """What would otherwise fail after an hour.

    Raises:
        HatPluginError: a folder that is not there, or nothing to draw with.
    """
    if args.save and 'growth' in args.part:
        plot.require()
    if args.json and not args.json.parent.is_dir():
        raise HatPluginError(f'--json {args.json}: no folder {args.json.parent}; make it first')
    if args.images and not args.images.is_dir():
        raise HatPluginError(f'--images {args.images}: no such folder; leave it out for the pictures of scikit-image')


def choose_device(name: str | None) -> torch.device:
    """The device asked for, else CUDA where there is one.

    Raises:
        HatPluginError: no such device here.
    """
    try:
        device = torch.device(name or ('cuda' if torch.cuda.is_available() else 'cpu'))
    except RuntimeError as error:
        raise HatPluginError(f'--device {name}: {error}') from error
    if device.type not in ('cpu', 'cuda') or (device.type == 'cuda' and not torch.cuda.is_available()):
        raise HatPluginError(f'--device {name}: not here; take cpu' + (' or cuda' * torch.cuda.is_available()))
    return device


def settings_of(args: argparse.Namespace, device: torch.device, found: Machine) -> Settings:
    """Defaults of the device, or of --quick, with what the command line says instead."""
    clock = args.clock
    if clock == 'auto':  # a device's own clock does not see the machine's load
        clock = 'cpu' if found.loaded and device.type == 'cpu' else 'wall'
    settings = Settings(device, torch.get_num_threads(), clock, images=args.images, compiled=args.compile)
    if args.quick:
        settings = replace(
            settings,
            networks=('tiny',),
            sizes=(16,),
            growth_sizes=(16, 32),
            training_side=16,
            plan=Plan(rounds=2, most=2, budget=0.0, sample=0.0),
            ground_truths=(4, 128),
            samples=8,
            few=True,
        )
    batch = args.batch or (4 if device.type == 'cuda' else 1)
    precisions = settings.precisions if found.multiplies_bf16 or args.quick else ('fp32',)
    changes: dict[str, Any] = {
        'precisions': tuple(args.precisions or precisions),
        'codes': tuple(args.codes or settings.codes),
        'networks': tuple(args.networks or settings.networks),
        'sizes': tuple(args.sizes or settings.sizes),
        'growth_sizes': tuple(args.growth_sizes or settings.growth_sizes),
        'batches': (batch, max(2, batch)),
        'drop_path': args.drop_path,
    }
    plan = settings.plan
    rounds = args.rounds or plan.rounds
    budget = plan.budget if args.seconds is None else args.seconds
    return replace(settings, **changes, plan=replace(plan, rounds=rounds, most=max(rounds, plan.most), budget=budget))


def heading(found: Machine, settings: Settings, *, quick: bool) -> str:
    """Machine, clock and how to read the tables."""
    blocks = ['# Benchmark', '\n'.join(found.lines())]
    if quick:
        blocks.append('Quick: tiny networks, to show that it runs. These numbers mean nothing.')
    if found.loaded:
        blocks.append(
            f'The machine is loaded: {found.load:.1f} processes on average, {found.threads} threads here. Ratios are '
            f'of {settings.clock} time, and those of the other clock stand beside them.'
        )
    if settings.clock == 'cpu' and found.threads > 1:
        blocks.append('CPU time of several threads counts waiting for each other as work: --threads 1 is fairer.')
    if set(settings.precisions) != set(PRECISIONS):
        blocks.append(f'In {", ".join(settings.precisions)} alone.')
    blocks.append(
        "published: spandrel's HAT, with the same random weights. SwinIR: BasicSR's, a network of its own. bf16 "
        'autocast: fp32 weights; bf16: weights converted once; mixed: but for the residual stream, which keeps fp32.'
    )
    blocks.append(LEGEND)
    blocks.append(
        'Difference: at inference the largest of the output (an image in [0, 1]), in training the norm of the '
        "difference of all gradients by the norm of the first row's."
    )
    return '\n\n'.join(blocks)


class Output:
    """Standard output, and a file where results are saved."""

    def __init__(self, file: ResultFile | None) -> None:
        self.file = file
        self.records: list[dict[str, Any]] = []

    def put(self, block: str, *, first: bool = False) -> None:
        """A block of markdown; `first`: in the file, right after the heading."""
        print(f'{block}\n', flush=True)
        if self.file is not None:
            self.file.add(block, at=1 if first else None)


if __name__ == '__main__':
    sys.exit(main())
