"""From restored blocks of SIDD's benchmark to the file that is handed in."""

from __future__ import annotations

import argparse
import base64
import csv
import os
from pathlib import Path

import numpy as np
from scipy.io import savemat

from hat_plugin.data.images import check_folder, read_image
from hat_plugin.engine.files import atomic_file
from hat_plugin.errors import DataError
from hat_plugin.prepare.matlab import BLOCK, GRID, block_index, block_name
from hat_plugin.prepare.sources import pictures_in


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `basicsr prepare sidd-submission`."""
    add = parser.add_argument
    add('source', type=Path, help='folder of the restored blocks, 0001_01.png to 0040_32.png (or 0001_01_x.png)')
    add(
        '-o',
        '--output',
        type=Path,
        default=Path('SubmitSrgb.mat'),
        help='the file: .mat for the benchmark and its MATLAB code, .csv for its Kaggle page (SubmitSrgb.mat)',
    )
    group = parser.add_argument_group('told along in a .mat')
    group.add_argument('--seconds', type=float, default=0.0, help='running time a megapixel (0)')
    for field, text in (
        ('method', 'name of the method'),
        ('authors', 'names'),
        ('paper', 'title'),
        ('venue', 'of the paper'),
        ('machine', 'on which the time was measured'),
    ):
        group.add_argument(f'--{field}', default='', help=text)


def run(args: argparse.Namespace) -> Path:
    """Write the submission and return its path."""
    writers = {'.mat': _write_mat, '.csv': _write_csv}
    if args.output.suffix.lower() not in writers:
        raise DataError(f'{args.output}: a submission is a .mat or a .csv file')
    blocks = read_restored(args.source)
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(args.output) as aside:
            writers[args.output.suffix.lower()](aside, blocks, args)
    except OSError as error:
        raise DataError(f'{args.output}: writing failed ({error}); make room, or choose another place') from error
    return Path(args.output)


def read_restored(folder: Path) -> np.ndarray:
    """All restored blocks, (40, 32, 256, 256, 3), RGB, uint8.

    Raises:
        DataError: a block is missing, there twice or of another size, or another picture is among them.
    """
    check_folder(folder)
    blocks = np.empty(GRID + BLOCK, np.uint8)
    found: dict[tuple[int, ...], Path] = {}
    for stem, path in pictures_in(folder).items():
        index = block_index(stem)
        if index is None or not all(0 <= number < count for number, count in zip(index, GRID, strict=True)):
            raise DataError(f'{path}: is no block of the benchmark (0001_01 to 0040_32); move it away')
        if index in found:
            raise DataError(f'{path} and {found[index].name} are the same block; remove one of them')
        image = read_image(path)
        if image.shape != BLOCK or image.dtype != np.uint8:
            raise DataError(f'{path}: is {image.dtype} of shape {image.shape}, the benchmark has uint8 of {BLOCK}')
        blocks[index], found[index] = image, path
    missing = [index for index in np.ndindex(*GRID) if index not in found]
    if missing:
        raise DataError(
            f'{folder}: {len(missing)} of {GRID[0] * GRID[1]} blocks are missing, {block_name(missing[0])} first'
        )
    return blocks


def _write_mat(path: Path, blocks: np.ndarray, args: argparse.Namespace) -> None:
    """The variables that the benchmark's own code saves: a cell array of blocks, the time, and who it was."""
    cells = np.empty(GRID, object)
    for index in np.ndindex(*GRID):
        cells[index] = blocks[index]
    told = {
        'MethodName': args.method,
        'Authors': args.authors,
        'PaperTitle': args.paper,
        'Venue': args.venue,
        'MachineSpecs': args.machine,
    }
    content = {'DenoisedBlocksSrgb': cells, 'TimeMPSrgb': args.seconds, 'OptionalData': told}
    savemat(os.fspath(path), content, appendmat=False, do_compression=True)


def _write_csv(path: Path, blocks: np.ndarray, args: argparse.Namespace) -> None:
    """A line a block: its number from 0, and its bytes (row by row, RGB) in base64."""
    with open(path, 'w', newline='', encoding='ascii') as handle:
        writer = csv.writer(handle)
        writer.writerow(['ID', 'BLOCK'])
        for number, index in enumerate(np.ndindex(*GRID)):
            writer.writerow([number, base64.b64encode(blocks[index].tobytes()).decode('ascii')])
