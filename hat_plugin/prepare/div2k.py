"""DIV2K: 800 training pictures (the 100 of validation are not training data and are left alone)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hat_plugin.prepare.build import Report
from hat_plugin.prepare.options import add_training_arguments, build_training_set
from hat_plugin.prepare.plan import Picture
from hat_plugin.prepare.sources import published_set

COUNT = 800
HR_NAMES = ['DIV2K_train_HR', 'DIV2K/DIV2K_train_HR']
LR_NAMES = ['DIV2K_train_LR_bicubic', 'DIV2K/DIV2K_train_LR_bicubic']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `basicsr prepare div2k`."""
    parser.add_argument('source', type=Path, nargs='+', help='folder with DIV2K_train_HR (and DIV2K_train_LR_bicubic)')
    parser.add_argument('--allow-partial', action='store_true', help=f'go on with other than {COUNT} pictures')
    add_training_arguments(parser)


def run(args: argparse.Namespace) -> list[Report]:
    """Prepare DIV2K."""
    pictures, source = find(args)
    return [build_training_set('DIV2K', pictures, source, args)]


def find(args: argparse.Namespace) -> tuple[list[Picture], dict[str, Any]]:
    """The pictures and where they are."""
    count = 0 if args.allow_partial else COUNT
    return published_set('DIV2K', args.source, HR_NAMES, LR_NAMES, sorted(set(args.scale)), lr=args.lr, count=count)
