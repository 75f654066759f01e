"""Command-line arguments that the data sets share, and what becomes of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hat_plugin.arguments import whole_number
from hat_plugin.engine.machine import cores
from hat_plugin.errors import DataError
from hat_plugin.prepare import layout
from hat_plugin.prepare.build import Report, RunOptions, build
from hat_plugin.prepare.plan import (
    LR_CHOICES,
    PUBLISHED_PAIRS,
    Cut,
    Output,
    Picture,
    Plan,
    common_modulus,
    lr_kernel,
)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """How the work is done: the same for every data set."""
    group = parser.add_argument_group('how it is done')
    group.add_argument('-o', '--output', type=Path, default=Path(layout.ROOT), help='where data sets lie (datasets)')
    group.add_argument(
        '--workers', type=whole_number(1), default=cores(), help='processes (as many as there are cores)'
    )
    group.add_argument('--overwrite', action='store_true', help='replace prepared data that is there')
    group.add_argument('--skip-bad', action='store_true', help='leave out pictures that cannot be used')
    group.add_argument('--no-room-check', action='store_true', help='do not estimate the disk space first')


def add_picture_arguments(parser: argparse.ArgumentParser, *, lr: str = 'auto', alone: bool = False) -> None:
    """What becomes of pictures; `alone`: the ground truth may be wanted without low-resolution images, at scale 1."""
    group = parser.add_argument_group('what is made')
    group.add_argument(
        '--scale',
        type=whole_number(1 if alone else 2),
        nargs='+',
        default=list(layout.SCALES),
        help='low-resolution images to make (2 3 4)' + '; 1: none, for noise and JPEG' * alone,
    )
    group.add_argument(
        '--lr',
        choices=LR_CHOICES,
        default=lr,
        help=f'low-resolution images: the published files, our MATLAB bicubic, or the published where complete ({lr})',
    )
    add_image_arguments(parser)


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """How images are read and written, whatever is made of them."""
    group = parser.add_argument_group('reading and writing')
    group.add_argument('--drop-alpha', action='store_true', help='ignore transparency instead of refusing it')
    group.add_argument('--compress-level', type=int, choices=range(10), default=1, help='of PNG, 0 to 9 (1)')


def add_training_arguments(parser: argparse.ArgumentParser, *, lr: str = 'auto', alone: bool = False) -> None:
    """What becomes of a training set's pictures; `alone` as in `add_picture_arguments`."""
    add_picture_arguments(parser, lr=lr, alone=alone)
    add_sub_image_arguments(parser, size=layout.SUB_IMAGE_SIZE, step='half their side', min_size=256)


def add_sub_image_arguments(parser: argparse.ArgumentParser, *, size: int, step: str, min_size: int) -> None:
    """Sub-images of this size unless told otherwise; `step` describes what `sub_step` then gives."""
    group = parser.add_argument_group('sub-images and storage')
    group.add_argument(
        '--sub-size', type=whole_number(0), default=size, help=f'side of a sub-image; 0: whole pictures ({size})'
    )
    group.add_argument('--sub-step', type=whole_number(1), help=f'distance of two sub-images ({step})')
    group.add_argument(
        '--min-size',
        type=whole_number(0),
        default=min_size,
        help=f'pictures with a smaller side are left out of training data ({min_size})',
    )
    storage = group.add_mutually_exclusive_group()
    storage.add_argument('--no-lmdb', action='store_true', help='folders of PNGs instead of LMDBs')
    storage.add_argument('--raw', action='store_true', help='LMDBs of raw pixels: faster, 1.7 times the space')


def run_options(args: argparse.Namespace) -> RunOptions:
    """The arguments of `add_run_arguments`."""
    given = tuple(
        f'{name}={value}' for name, value in sorted(vars(args).items()) if name not in ('command', 'workers', 'run_set')
    )
    return RunOptions(args.workers, args.overwrite, args.skip_bad, not args.no_room_check, given)


def build_training_set(name: str, pictures: list[Picture], source: dict[str, Any], args: argparse.Namespace) -> Report:
    """Prepare a training set as the arguments of `add_training_arguments` say.

    Raises:
        DataError: as `build`; also where sub-images of this size or step do not fit the scales.
    """
    return build(training_plan(name, pictures, source, args), run_options(args))


def training_plan(name: str, pictures: list[Picture], source: dict[str, Any], args: argparse.Namespace) -> Plan:
    """The plan behind `build_training_set`."""
    scales = sorted(set(args.scale) - {1})
    cut = training_cut(args, common_modulus(scales)) if scales else training_cut(args)
    size, step = cut.size, cut.step
    for scale in scales if size else []:
        if size % scale or step % scale:
            raise DataError(
                f'--sub-size {size} and --sub-step {step} must be multiples of the scale {scale}, so that '
                f'low-resolution sub-images cover the same places'
            )
    storage, level = storage_of(args), args.compress_level
    outputs = [Output(layout.hr_name(name, storage, sub_images=bool(size)), 1, storage, level)]
    for scale in scales:
        outputs.append(Output(layout.lr_name(name, scale, storage, sub_images=bool(size)), scale, storage, level, 'lq'))
    return Plan(
        name,
        args.output / name,
        tuple(sorted(pictures, key=lambda picture: picture.stem)),
        cut,
        tuple(outputs),
        {scale: lr_kernel(any(scale in picture.lr for picture in pictures)) for scale in scales},
        source,
        layout.meta_info_name(name, sub_images=bool(size)),
    )


def pair_plan(
    name: str, part: str, pictures: list[Picture], source: dict[str, Any], cut: Cut, args: argparse.Namespace
) -> Plan:
    """The plan of pairs of one size, which go to NAME/PART; `cut` cuts input and ground truth at the same places."""
    storage, level = storage_of(args), args.compress_level
    gt, lq = layout.pair_names(name, part, storage, sub_images=bool(cut.size) or part != 'train')
    return Plan(
        f'{name} {part}',
        args.output / name / part,
        tuple(sorted(pictures, key=lambda picture: picture.stem)),
        cut,
        (Output(gt, 1, storage, level), Output(lq, 1, storage, level, 'lq')),
        {1: PUBLISHED_PAIRS},
        source,
    )


def training_cut(args: argparse.Namespace, modulus: int = 1, step_share: float = 1 / 2) -> Cut:
    """How the arguments of `add_sub_image_arguments` have pictures cut.

    Args:
        args: the arguments.
        modulus: see `Cut`.
        step_share: the distance of two sub-images in their sides, where the arguments do not say it.
    """
    step = args.sub_step or int(args.sub_size * step_share)
    size = args.sub_size
    return Cut(modulus, size, step if size else 0, smallest=args.min_size, drop_alpha=args.drop_alpha)


def storage_of(args: argparse.Namespace) -> str:
    """'lmdb', 'disk' or 'raw', as the arguments of `add_sub_image_arguments` have it."""
    return 'disk' if args.no_lmdb else 'raw' if args.raw else 'lmdb'


def report_lines(report: Report) -> list[str]:
    """What to tell the user about a finished run."""
    lines = []
    for name in [*report.found, *report.made]:
        entry = report.manifest['outputs'][name]
        state = 'made' if name in report.made else 'was there'
        kernel = f', {entry["kernel"].split(" (")[0]}' if entry['kernel'] else ''
        lines.append(f'{report.folder / name}: {state}, {entry["count"]} images, {entry["bytes"] / 1e6:.1f} MB{kernel}')
    lines += [f'left out: {line}' for line in report.left_out]
    lines += [f'bad, left out: {line}' for line in report.bad]
    return [*lines, f'{report.folder / layout.MANIFEST}: counts, sizes, checksums']
