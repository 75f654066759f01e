"""``basicsr compare -opt X.yml``: networks trained and measured alike; tables, a figure and a page to look at."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from hat_plugin.arguments import whole_number
from hat_plugin.compare import gallery, machine, maps, report, tables
from hat_plugin.compare.cost import costs
from hat_plugin.compare.gallery import Wanted
from hat_plugin.compare.measuring import find_picture, measure_inputs, measure_networks
from hat_plugin.compare.protocol import Comparison, read_comparison
from hat_plugin.compare.tables import Result
from hat_plugin.compare.training import check_earlier_runs, train_missing
from hat_plugin.engine.logging import RunLogger, short_messages
from hat_plugin.errors import HatPluginError
from hat_plugin.models.inference import check_precision, precision_of
from hat_plugin.models.states import device_of
from hat_plugin.prepare.manifest import folder_lock


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
    add('--rounds', type=whole_number(0), default=5, help='of the times, in turns; 0: measure none (%(default)s)')
    add('--show', nargs='+', default=[], metavar='PICTURE[:TOP,LEFT]', help='parts of pictures for the figure '
        '(those in which the networks differ most)')  # fmt: skip
    add('--attribution', nargs='+', default=[], metavar='PICTURE[:TOP,LEFT]', help='draw local attribution maps of a '
        'window of the output')  # fmt: skip
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
    folder = args.output or Path('results') / comparison.name
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        if args.train:
            code = train_missing(comparison, folder, lambda text: print(text, flush=True))
            if code:
                return code
        logger = RunLogger(is_main=True)
        try:
            logger.open_file(folder / f'compare_{time.strftime("%Y%m%d_%H%M%S")}.log')
            with short_messages():
                page = _compared(args, comparison, folder, wanted, windows)
        finally:
            logger.close()
    print(f'\nLook at {page}')
    return 0


def _compared(
    args: argparse.Namespace, comparison: Comparison, folder: Path, wanted: list[Wanted], windows: list[Wanted]
) -> Path:
    """Measure, write and print; the page."""
    first = comparison.prepared(comparison.contenders[0])
    findings = measure_inputs(comparison, folder)
    for each in wanted:
        find_picture(findings, each.name, '--show')
    mapped = maps.find(comparison, findings, windows)
    measure_networks(comparison, folder, findings)
    ran_on = machine.examine(device_of(first)).lines()
    measured = costs(comparison, args.rounds)
    result = Result(comparison, findings, measured, ran_on, first['val']['metrics'], first['val'])
    shown = gallery.parts(result, folder, wanted)
    page = report.write(result, folder, shown, maps.map_all(comparison, folder, mapped))
    print('\n' + tables.markdown(result))
    return page
