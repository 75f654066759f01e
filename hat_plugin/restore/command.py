"""``basicsr restore INPUT -o OUT --weights W.pth``: a picture or a folder of pictures through a trained network."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Literal

from hat_plugin.arguments import whole_number
from hat_plugin.engine.tiles import DEFAULT_OVERLAP
from hat_plugin.restore.images import WRITTEN_SUFFIXES
from hat_plugin.restore.jobs import Existing, check_outputs, plan_jobs
from hat_plugin.restore.network import load_network
from hat_plugin.restore.pipeline import Settings, Summary, restore_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the arguments of ``basicsr restore``."""
    add = parser.add_argument
    add('input', help='a picture, or a folder that is searched with its subfolders')
    add('-o', '--output', required=True, help='a picture (for one input) or a folder')
    add('-w', '--weights', required=True, help='trained weights, .pth or .safetensors')
    add('--opt', help='build the network of this option file (default: as the shapes of the weights show it)')
    add('--scale', type=whole_number(1), help='the enlargement expected of the network')
    add(
        '--tile',
        type=_tile,
        default='auto',
        help='side of a tile in input pixels; auto (default): as memory allows; none: whole',
    )
    add(
        '--overlap',
        type=whole_number(0),
        default=DEFAULT_OVERLAP,
        help='input pixels shared by neighbouring tiles (default: %(default)s)',
    )
    add(
        '--precision',
        choices=('fp32', 'bf16', 'fp16'),
        default='fp32',
        help='bf16 is faster where the processor computes in it, fp16 on a GPU; 8 bits rarely show it '
        '(default: %(default)s)',
    )
    add('--device', default='auto', help='auto (default), cpu, cuda or cuda:N')
    add('--self-ensemble', action='store_true', help='mean over the eight flips and turns: better, eight times slower')
    add('--suffix', default='', help='added to the names: _x4 makes a_x4.png of a.png')
    add(
        '--ext',
        default='same',
        choices=('same', *(suffix[1:] for suffix in WRITTEN_SUFFIXES)),
        help="format written (default: the input's)",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument('--overwrite', action='store_true', help='write outputs anew that exist')
    existing.add_argument('--skip-existing', action='store_true', help='leave outputs that exist, and go on after them')


def run(args: argparse.Namespace) -> int:
    """Restore; 0 if all went well, 1 if a picture failed.

    Raises:
        HatPluginError: nothing could be done: weights, options, input or output are wrong, or the disk is full.
    """
    logging.basicConfig(format='%(message)s', stream=sys.stderr)
    logging.getLogger('hat_plugin').setLevel(logging.INFO)
    jobs = plan_jobs(args.input, args.output, suffix=args.suffix, ext=args.ext)
    existing: Existing = 'refuse'
    if args.overwrite or args.skip_existing:
        existing = 'overwrite' if args.overwrite else 'skip'
    check_outputs(jobs, existing)
    network = load_network(args.weights, opt=args.opt, scale=args.scale, device=args.device, precision=args.precision)
    print(network.describe())
    settings = Settings(args.tile, args.overlap, args.self_ensemble)
    summary = restore_files(network, jobs, settings, existing=existing)
    _report(summary)
    return 1 if summary.failures else 0


def _report(summary: Summary) -> None:
    for source, reason in summary.failures:
        print(f'failed: {source}: {reason}', file=sys.stderr)
    where = f', the last to {summary.written[-1]}' if summary.written else ''
    print(f'{len(summary.written)} written{where}; {len(summary.skipped)} skipped; {len(summary.failures)} failed')


def _tile(text: str) -> int | Literal['auto'] | None:
    if text in ('auto', 'none'):
        return 'auto' if text == 'auto' else None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not auto, none or a number of pixels')
    return int(text)
