"""GoPro: 2103 training and 1111 test pairs of blurred and sharp frames, as published (GOPRO_Large)."""

from __future__ import annotations

import argparse
from pathlib import Path

from hat_plugin.data.images import check_folder
from hat_plugin.errors import DataError
from hat_plugin.prepare.build import Report, build
from hat_plugin.prepare.options import (
    add_image_arguments,
    add_sub_image_arguments,
    pair_plan,
    run_options,
    training_cut,
)
from hat_plugin.prepare.pairing import Side, find_pairs
from hat_plugin.prepare.plan import Cut, Plan
from hat_plugin.prepare.sources import check_count, find_folder

COUNTS = {'train': 2103, 'test': 1111}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `basicsr prepare gopro`."""
    add = parser.add_argument
    add('source', type=Path, help='GOPRO_Large, with train/GOPR0372_07_00/blur/000047.png and so on')
    add('--parts', nargs='+', choices=COUNTS, default=list(COUNTS), help='what to prepare (train test)')
    add('--gamma', action='store_true', help='frames of blur_gamma, averaged after the gamma curve, instead of blur')
    add('--allow-partial', action='store_true', help='go on with other than 2103 + 1111 pairs')
    add_image_arguments(parser)
    add_sub_image_arguments(parser, size=512, step='half their side', min_size=256)


def run(args: argparse.Namespace) -> list[Report]:
    """Prepare GoPro: crops for training, whole frames for testing."""
    check_folder(args.source)
    root = find_folder([args.source], ['GOPRO_Large']) or args.source
    plans = [_plan(root / part, part, args) for part in dict.fromkeys(args.parts)]
    return [build(plan, run_options(args)) for plan in plans]


def _plan(folder: Path, part: str, args: argparse.Namespace) -> Plan:
    lq, gt = _sides(folder, gamma=args.gamma)
    pairs = find_pairs(lq, gt)
    check_count(len(pairs), COUNTS[part], f'{folder}: pairs of GoPro {part}', allow_partial=args.allow_partial)
    cut = training_cut(args) if part == 'train' else Cut(1, drop_alpha=args.drop_alpha)
    return pair_plan('GoPro', part, list(pairs.values()), {'lq': str(lq), 'gt': str(gt)}, cut, args)


def _sides(folder: Path, *, gamma: bool) -> tuple[Side, Side]:
    """Input and ground truth of one part, as published or as MPRNet and NAFNet hand it on: `input` and `target`."""
    if not (folder / 'input').is_dir():
        return Side(folder, f'*/{"blur_gamma" if gamma else "blur"}/*'), Side(folder, '*/sharp/*')
    if gamma:
        raise DataError(f'{folder / "input"}: --gamma needs the published tree, SEQUENCE/blur_gamma/000047.png')
    return Side(folder / 'input'), Side(folder / 'target')
