"""``basicsr compare -opt X.yml``: networks trained and measured alike; tables, a figure and a page to look at."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hat_plugin.arguments import whole_number
from hat_plugin.compare import gallery, machine, maps, report, tables
from hat_plugin.compare.cost import costs
from hat_plugin.compare.gallery import Wanted
from hat_plugin.compare.measuring import check_weights, find_picture, measure_inputs, measure_networks
from hat_plugin.compare.protocol import Comparison
from hat_plugin.compare.reading import read_comparison
from hat_plugin.compare.tables import Result
from hat_plugin.compare.training import check_earlier_runs, train_missing
from hat_plugin.engine import distributed
from hat_plugin.engine.distributed import World
from hat_plugin.engine.files import folder_lock
from hat_plugin.engine.logging import RunLogger, short_messages
from hat_plugin.errors import DataError, HatPluginError
from hat_plugin.models.inference import check_precision, precision_of
from hat_plugin.models.states import device_of
from hat_plugin.train import join


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    add = parser.add_argument
    add(
        '-opt', '--opt', required=True, nargs='+', metavar='YAML',
        help='a comparison file, or the test files of several networks on the same test sets',
    )  # fmt: skip
    add('--train', action='store_true', help='train networks that have no weights yet, and go on with what was begun')
    add('-o', '--output', type=Path, help='folder for all it makes (results/NAME)')
    add('--precision', choices=('fp32', 'bf16', 'fp16'), help='of every network; bf16: faster where there are '
        'instructions for it; fp16: on a GPU')  # fmt: skip
    add('--rounds', type=whole_number(0), default=5, help='timings of each network, in turns; 0: none (%(default)s)')
    add('--show', nargs='+', default=[], metavar='PICTURE[:TOP,LEFT]', help='parts of pictures for the figure '
        '(those in which the networks differ most)')  # fmt: skip
    add('--attribution', nargs='+', default=[], metavar='PICTURE[:TOP,LEFT]', help='draw local attribution maps of a '
        'window of the output')  # fmt: skip
    add('--launcher', choices=('none', 'pytorch', 'slurm'), default='none', help='how ranks are started')
    add('--local_rank', '--local-rank', type=int, default=0, help='set by old launchers')
    add('--force_yml', nargs='+', default=[], metavar='KEY=VALUE', help='change options of each file: val:metrics=...')


def run(args: argparse.Namespace) -> int:
    """Compare as the arguments say; 0, or 128 + the signal that stopped a training.

    Raises:
        HatPluginError: options, data or weights are bad, or networks are not to be compared on the same terms.
    """
    windows = [gallery.read_wanted(text, '--attribution') for text in args.attribution]
    wanted = [gallery.read_wanted(text, '--show') for text in args.show]
    changes = [*args.force_yml, *([f'val:precision={args.precision}'] if args.precision else [])]
    comparison = read_comparison(args.opt, changes, trains=args.train)
    first = comparison.prepared(comparison.contenders[0])
    if not first['val'].get('metrics'):
        raise HatPluginError(f'{comparison.source}: val: metrics: missing (what to compare by); add it, psnr say')
    check_precision(precision_of(first), device_of(first))
    check_earlier_runs(comparison)
    try:
        world = join(args, first)
        return _run(args, comparison, world, wanted, windows)
    finally:
        distributed.finish()


def _run(
    args: argparse.Namespace, comparison: Comparison, world: World, wanted: list[Wanted], windows: list[Wanted]
) -> int:
    folder = args.output or Path('results') / comparison.name
    with _held(folder, world):
        logger = RunLogger(world.is_main)
        try:
            logger.open_file(folder / f'compare_{time.strftime("%Y%m%d_%H%M%S")}.log')
            code = train_missing(comparison, folder, world) if args.train else 0
            if code:
                return code
            with short_messages():
                result = _compared(args, comparison, folder, world, wanted, windows)
        finally:
            logger.close()
    if result is not None:
        print(f'\n{tables.markdown(result)}\nLook at {folder / report.PAGE}')
    return 0


@contextmanager
def _held(folder: Path, world: World) -> Iterator[None]:
    """Keep a second comparison out of the folder, for all ranks together."""
    with ExitStack() as stack:
        failure = ''
        if world.is_main:
            try:
                stack.enter_context(folder_lock(folder))
            except DataError as error:
                failure = str(error)
        failure = distributed.from_main(failure)
        if failure:
            raise DataError(failure)
        yield


def _compared(
    args: argparse.Namespace,
    comparison: Comparison,
    folder: Path,
    world: World,
    wanted: list[Wanted],
    windows: list[Wanted],
) -> Result | None:
    """Measure, and write; None on ranks other than 0."""
    found, failure = None, ''
    if world.is_main:
        try:
            check_weights(comparison)
            found = measure_inputs(comparison, folder)
            for each in wanted:
                find_picture(found, each.name, '--show')
            mapped = maps.find(comparison, found, windows)
        except HatPluginError as error:
            failure = str(error)
    failure = distributed.from_main(failure)
    if failure:
        raise HatPluginError(failure)
    findings = measure_networks(comparison, folder, world, distributed.from_main(found))
    if not world.is_main:
        return None
    first = comparison.prepared(comparison.contenders[0])
    ran_on = machine.examine(device_of(first)).lines()
    measured = costs(comparison, args.rounds)
    result = Result(comparison, findings, measured, ran_on, first['val'])
    shown = gallery.parts(result, folder, wanted)
    report.write(result, folder, shown, maps.map_all(comparison, folder, mapped))
    return result
