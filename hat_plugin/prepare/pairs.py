"""Any two folders of pictures that belong together, as training and test data: Rain13K, HIDE, RealBlur, PolyU."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hat_plugin.errors import DataError
from hat_plugin.prepare.build import Report, build
from hat_plugin.prepare.folder import set_name
from hat_plugin.prepare.options import (
    add_image_arguments,
    add_sub_image_arguments,
    pair_plan,
    run_options,
    training_cut,
)
from hat_plugin.prepare.pairing import Side, find_pairs, hold_out, scenes_of
from hat_plugin.prepare.plan import Cut, Picture
from hat_plugin.prepare.sources import check_not_among


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `basicsr prepare pairs`."""
    add = parser.add_argument
    add('--name', required=True, help="the data set's name; the data goes to datasets/NAME/train and test")
    add('--lq', type=Path, required=True, metavar='DIR', help='folder of degraded pictures; subfolders are searched')
    add('--gt', type=Path, required=True, metavar='DIR', help='folder of ground truth; it may be the same one')
    for side, example in (('lq', '*_real.JPG'), ('gt', '*_mean.JPG')):
        add(
            f'--{side}-pattern',
            default='*',
            metavar='PATTERN',
            help=f"names in it, as in '{example}': pictures are a pair whose stars stand for the same (all names)",
        )
    add('--count', type=int, help='refuse any other number of pairs')
    group = parser.add_argument_group('for testing (whole pictures)')
    choice = group.add_mutually_exclusive_group()
    choice.add_argument('--hold-out', nargs='+', default=[], metavar='SCENE', help='keep these scenes for testing')
    choice.add_argument(
        '--hold-out-share', type=_share, default=0.0, metavar='SHARE', help='keep this share of the scenes, as 0.2'
    )
    choice.add_argument('--test', action='store_true', help='all of it is a test set')
    group.add_argument(
        '--scene',
        default='.+',
        metavar='REGEX',
        help="where a pair's name has its scene, as '(.+)_[0-9]+'; a scene is on one side as a whole (the whole name)",
    )
    add_image_arguments(parser)
    add_sub_image_arguments(parser, size=512, step='half their side', min_size=128)


def run(args: argparse.Namespace) -> list[Report]:
    """Prepare pairs: what is held out is cut out of the training data before anything is written."""
    name = set_name(args.name)
    lq, gt = Side(args.lq, args.lq_pattern), Side(args.gt, args.gt_pattern)
    for folder in (args.lq, args.gt):
        check_not_among(folder, args.output / name)
    pairs = find_pairs(lq, gt)
    if args.count not in (None, len(pairs)):
        raise DataError(f'{lq}: {len(pairs)} pairs, not {args.count}; unpack it again, or correct --count')
    parts, split = _split(pairs, args)
    source = {'lq': str(lq), 'gt': str(gt), 'split': split}
    cuts = {'train': training_cut(args), 'test': Cut(1, drop_alpha=args.drop_alpha)}
    plans = [pair_plan(name, part, pictures, source, cuts[part], args) for part, pictures in parts.items()]
    return [build(plan, run_options(args)) for plan in plans]


def _split(pairs: dict[str, Picture], args: argparse.Namespace) -> tuple[dict[str, list[Picture]], dict[str, Any]]:
    """The pictures of each part, and what the manifest says about it."""
    if args.test:
        return {'test': list(pairs.values())}, {'test': 'all'}
    if not args.hold_out and not args.hold_out_share:
        return {'train': list(pairs.values())}, {'train': 'all'}
    scenes = scenes_of(pairs, args.scene)
    held = hold_out(scenes.values(), args.hold_out, args.hold_out_share)
    parts: dict[str, list[Picture]] = {'train': [], 'test': []}
    for name, picture in pairs.items():
        parts['test' if scenes[name] in held else 'train'].append(picture)
    trained = sorted({scene for scene in scenes.values() if scene not in held})
    return parts, {'scene': args.scene, 'train': trained, 'test': held}


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no share between 0 and 1')
    return share
