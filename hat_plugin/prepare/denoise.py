"""Clean pictures of DIV2K, Flickr2K, BSD and WED as one set, to which training adds noise or JPEG's faults."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from hat_plugin.data.lmdb_io import key_of
from hat_plugin.errors import DataError
from hat_plugin.prepare import div2k, flickr2k, layout
from hat_plugin.prepare.build import Report, build
from hat_plugin.prepare.folder import set_name
from hat_plugin.prepare.options import (
    add_image_arguments,
    add_sub_image_arguments,
    run_options,
    storage_of,
    training_cut,
)
from hat_plugin.prepare.plan import Output, Picture, Plan
from hat_plugin.prepare.sources import check_count, find_folder, pictures_in

SETS: dict[str, tuple[int, list[str]]] = {
    'DIV2K': (div2k.COUNT, div2k.HR_NAMES),
    'Flickr2K': (flickr2k.COUNT, flickr2k.HR_NAMES),
    'BSD400': (400, ['BSD400', 'BSR/BSDS500/data/images', 'BSDS500/data/images', 'BSDS500', 'BSD500']),
    'WED': (4744, ['WED', 'exploration_database_and_code/pristine_images', 'pristine_images']),
}
"""Count and usual folders. Of BSD's 500 pictures 100 (val) are left out: the test set CBSD68 was taken from them."""

_STEP = (512 - 96) / 512  # Restormer's crops overlap by 96 pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `basicsr prepare denoise`."""
    add = parser.add_argument
    add('source', type=Path, nargs='+', help='one or more folders in which those of the sets lie')
    counts = ', '.join(f'{name} {count}' for name, (count, _) in SETS.items())
    add('--sets', nargs='+', choices=SETS, default=list(SETS), help=f'which of them (all: {counts})')
    add('--name', default=layout.DENOISING_SET, help=f"the data set's name ({layout.DENOISING_SET})")
    add('--allow-partial', action='store_true', help='go on with other than the published counts')
    add_image_arguments(parser)
    step = "so that they overlap by 3/16: 416, as Restormer's; SwinIR reads whole pictures, --sub-size 0"
    add_sub_image_arguments(parser, size=512, step=step, min_size=128)


def run(args: argparse.Namespace) -> list[Report]:
    """Prepare the clean pictures; each is called by its set and its own name (WED_00001)."""
    name = set_name(args.name)
    pictures: list[Picture] = []
    source: dict[str, Any] = {}
    for part in (part for part in SETS if part in args.sets):
        found, folder = _find(part, args)
        pictures += [replace(picture, stem=f'{part}_{picture.stem}') for picture in found]
        source[part] = {'hr': str(folder), 'count': len(found)}
    cut, storage = training_cut(args, step_share=_STEP), storage_of(args)
    output = Output(layout.hr_name(name, storage, sub_images=bool(cut.size)), 1, storage, args.compress_level)
    list_name = layout.meta_info_name(name, sub_images=bool(cut.size))
    pictures.sort(key=lambda picture: picture.stem)
    plan = Plan(name, args.output / name, tuple(pictures), cut, (output,), {}, source, list_name)
    return [build(plan, run_options(args))]


def _find(part: str, args: argparse.Namespace) -> tuple[list[Picture], Path]:
    count, names = SETS[part]
    folder = find_folder(args.source, names)
    if folder is None:
        places = ', '.join(str(root) for root in args.source)
        raise DataError(
            f'{part}: no folder {" or ".join(names)} in {places}; unpack it there, or name others in --sets'
        )
    # BSDS500 as published has train, test and val.
    folders = [folder / sub for sub in ('train', 'test')] if (folder / 'train').is_dir() else [folder]
    found = [Picture(key_of(stem), path) for sub in folders for stem, path in pictures_in(sub).items()]
    check_count(len(found), count, f'{folder}: pictures of {part}', allow_partial=args.allow_partial)
    return found, folder
