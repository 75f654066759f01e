"""SIDD-Medium (sRGB): 320 training pairs, the 1280 validation blocks, and the benchmark's blocks to be restored."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from hat_plugin.data.images import check_folder
from hat_plugin.data.lmdb_io import key_of
from hat_plugin.errors import DataError
from hat_plugin.prepare.build import Report, build
from hat_plugin.prepare.matlab import read_blocks
from hat_plugin.prepare.options import (
    add_image_arguments,
    add_sub_image_arguments,
    pair_plan,
    run_options,
    training_cut,
)
from hat_plugin.prepare.pairing import Side, find_pairs
from hat_plugin.prepare.plan import Cut, Output, Picture, Plan
from hat_plugin.prepare.sources import check_count, find_folder

COUNT = 320
DATA_NAMES = ['Data', 'SIDD_Medium_Srgb/Data', 'SIDD/Data']
VALIDATION = ('ValidationNoisyBlocksSrgb.mat', 'ValidationGtBlocksSrgb.mat')
BENCHMARK = 'BenchmarkNoisyBlocksSrgb.mat'
_STEP = 384 / 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `basicsr prepare sidd`."""
    add = parser.add_argument
    add('source', type=Path, nargs='+', help='one or more folders in which Data/ and the .mat files lie')
    add(
        '--parts',
        nargs='+',
        choices=_PLANS,
        default=['train', 'val'],
        help=f'what to prepare (train val); benchmark makes PNGs of {BENCHMARK}, to be restored and handed in with '
        f'`basicsr prepare sidd-submission`',
    )
    add('--allow-partial', action='store_true', help=f'go on with other than {COUNT} pairs or 40 x 32 blocks')
    add_image_arguments(parser)
    add_sub_image_arguments(parser, size=512, step='three quarters of their side: 384', min_size=256)


def run(args: argparse.Namespace) -> list[Report]:
    """Prepare SIDD."""
    for folder in args.source:
        check_folder(folder)
    plans = [_PLANS[part](args) for part in dict.fromkeys(args.parts)]
    return [build(plan, run_options(args)) for plan in plans]


def _train(args: argparse.Namespace) -> Plan:
    folder = find_folder(args.source, DATA_NAMES)
    if folder is None:
        raise DataError(
            f'SIDD: no folder Data in {_places(args)}; unpack SIDD_Medium_Srgb there, or leave it out with --parts val'
        )
    lq, gt = Side(folder, '*/*_NOISY_SRGB_*'), Side(folder, '*/*_GT_SRGB_*')
    pairs = find_pairs(lq, gt)
    check_count(len(pairs), COUNT, f'{folder}: pairs of SIDD', allow_partial=args.allow_partial)
    # 0001_001_S6_00100_00060_3200_L/0001/010 is called 0001_SRGB_010, as in NAFNet's LMDBs; the folder's name begins
    # with the same number, and no two do.
    pictures = [replace(picture, stem=key_of('_SRGB_'.join(name.split('/')[-2:]))) for name, picture in pairs.items()]
    return pair_plan(
        'SIDD', 'train', pictures, {'lq': str(lq), 'gt': str(gt)}, training_cut(args, step_share=_STEP), args
    )


def _val(args: argparse.Namespace) -> Plan:
    files = [_find_file(name, 'val', args) for name in VALIDATION]
    noisy, clean = (read_blocks(file, allow_partial=args.allow_partial) for file in files)
    if noisy.keys() != clean.keys():
        raise DataError(f'{files[0]} has {len(noisy)} blocks, {files[1]} has {len(clean)}; download both again')
    pictures = [Picture(name, block, {1: noisy[name]}) for name, block in clean.items()]
    return pair_plan('SIDD', 'val', pictures, {'lq': str(files[0]), 'gt': str(files[1])}, Cut(1), args)


def _benchmark(args: argparse.Namespace) -> Plan:
    """The benchmark keeps its ground truth to itself: there is one output, and it is never in pairs."""
    file = _find_file(BENCHMARK, 'benchmark', args)
    blocks = read_blocks(file, allow_partial=args.allow_partial)
    pictures = tuple(Picture(name, block) for name, block in blocks.items())
    outputs = (Output('input', 1, 'disk', args.compress_level),)
    return Plan('SIDD benchmark', args.output / 'SIDD' / 'benchmark', pictures, Cut(1), outputs, {}, {'lq': str(file)})


_PLANS = {'train': _train, 'val': _val, 'benchmark': _benchmark}


def _find_file(name: str, part: str, args: argparse.Namespace) -> Path:
    """A file in one of the folders, or one folder below."""
    for folder in args.source:
        for found in (folder / name, *sorted(folder.glob(f'*/{name}'))):
            if found.is_file():
                return Path(found)
    raise DataError(
        f'SIDD: no {name} in {_places(args)} or a folder there; download it, or leave {part} out of --parts'
    )


def _places(args: argparse.Namespace) -> str:
    return ', '.join(str(folder) for folder in args.source)
