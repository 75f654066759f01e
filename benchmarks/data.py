"""How fast training samples are read: PairedCropDataset against BasicSR's PairedImageDataset, on the same pictures.

First in one process and thread, then by loaders of two workers; ratios travel between machines, milliseconds do not.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks import loaders
from benchmarks.report import Section, plain
from benchmarks.settings import Settings, say
from hat_plugin.compare.text import seconds
from hat_plugin.compare.timing import Plan, Sample, alternate, ratios, spread
from hat_plugin.data import png_rows
from hat_plugin.data.bicubic import imresize
from hat_plugin.data.build import build_dataset
from hat_plugin.data.images import list_images, read_image
from hat_plugin.data.lmdb_io import LmdbWriter
from hat_plugin.errors import DataError

SCALE, PATCH = 4, 256
COLUMNS = ('', 'times as fast', 'wall time a sample', 'CPU time a sample', 'samples a second')


def run(settings: Settings) -> Iterator[Section]:
    """Prepare the pictures in a temporary folder and time each way of reading them.

    Raises:
        DataError: the folder given has no picture that is large enough.
    """
    count, size = settings.ground_truths
    patch = min(PATCH, size // SCALE * SCALE)
    say(f'data: {settings.samples} samples, patch {patch}')
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            written = prepare(root, tiles(settings.images, size), count)
            if not written:
                raise DataError(f'{settings.images}: no picture of at least {size}x{size}; give a folder that has some')
            note = f'{written} pictures of {size}x{size}, patches of {patch}, x{SCALE}, flips and rotations. '
            note += 'PNG by isal and pyspng.' if png_rows.AVAILABLE else 'PNG by OpenCV: isal or pyspng is missing.'
            ways = dict(variants(root, patch))
            readers = {name: reader(options, settings.samples) for name, options in ways.items()}
            samples = alternate(readers, torch.device('cpu'), rounds(settings.plan))
            readers.clear()  # BasicSR's own hold their LMDBs open
            yield section('Data: training samples of one process', note, samples, settings, settings.samples)
            say(f'data: loaders of {loaders.WORKERS} workers')
            samples = loaders.measure({name: ways[name] for name in ways if 'LMDB' in name}, settings)
            note += f' Batches of {loaders.BATCH}; CPU time is of all processes, samples a second are by the wall.'
            yield section(
                f'Data: training samples of a loader with {loaders.WORKERS} workers', note, samples, settings, None
            )
    finally:
        cv2.setNumThreads(threads)


def section(title: str, note: str, samples: dict[str, list[Sample]], settings: Settings, count: int | None) -> Section:
    """A table of ways to read, each beside the first one.

    Args:
        title: heading.
        note: the paragraph above the table.
        samples: name -> a time for each round.
        settings: says which clock the ratios are of.
        count: training samples that one process read in that time; None: the times are of one, read by several.
    """
    made = Section(title, COLUMNS, notes=[note])
    base = next(iter(samples.values()))
    for name, taken in samples.items():
        ratio = ratios(base, taken, settings.clock)
        times = {clock: spread([one.seconds(clock) / (count or 1) for one in taken]) for clock in ('wall', 'cpu')}
        rate = f'{1 / times[settings.clock if count else "wall"].median:,.0f}'
        made.rows.append((name, f'{ratio:.1f}', seconds(times['wall']), seconds(times['cpu']), rate))
        record = {'part': 'data', 'reader': name, 'workers': 0 if count else loaders.WORKERS, 'ratio': plain(ratio)}
        made.records.append({**record, 'seconds': {clock: plain(value) for clock, value in times.items()}})
    return made


def rounds(plan: Plan) -> Plan:
    """As asked, but a round is long enough as it is."""
    return Plan(plan.rounds, plan.most, plan.budget, sample=0.0)


def reader(options: dict[str, Any], count: int) -> Callable[[], None]:
    """A call that reads `count` samples, the same ones each time."""
    dataset = build_dataset(options)

    def read() -> None:
        random.seed(0)
        for index in range(count):
            dataset[index % len(dataset)]

    return read


def tiles(folder: Path | None, size: int) -> Iterator[np.ndarray]:
    """Squares cut from real photographs, uint8, BGR."""
    if folder is not None:
        pictures = (read_image(folder / name) for name in list_images(folder))
    else:
        from skimage import data

        names = ('astronaut', 'coffee', 'chelsea', 'rocket', 'retina', 'immunohistochemistry')
        pictures = (getattr(data, name)()[..., :3] for name in names)
    for picture in pictures:
        grown = cv2.resize(picture, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC) if folder is None else picture
        for top in range(0, grown.shape[0] - size + 1, size // 2):
            for left in range(0, grown.shape[1] - size + 1, size // 2):
                yield np.ascontiguousarray(grown[top : top + size, left : left + size, ::-1])


def prepare(root: Path, pictures: Iterator[np.ndarray], count: int) -> int:
    """Write at most `count` pairs as PNG, as BasicSR's LMDB of PNG, and as raw LMDB; return how many there were."""
    from basicsr.utils.lmdb_util import LmdbMaker

    makers = {key: LmdbMaker(str(root / f'{key}_png.lmdb'), map_size=2**32) for key in ('gt', 'lq')}
    writers = {key: LmdbWriter(root / f'{key}_raw.lmdb', 'raw') for key in ('gt', 'lq')}
    for key in ('gt', 'lq'):
        (root / key).mkdir()
    written = 0
    for index, gt in zip(range(count), pictures, strict=False):
        for key, image in (('gt', gt), ('lq', imresize(gt, 1 / SCALE))):
            name = f'{index:04d}'
            cv2.imwrite(str(root / key / f'{name}.png'), image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
            makers[key].put((root / key / f'{name}.png').read_bytes(), name, image.shape)
            writers[key].put_image(name, image)
        written += 1
    for key, maker in makers.items():
        maker.close()
        shutil.copytree(root / f'{key}_png.lmdb', root / f'{key}_ours.lmdb')  # one process opens an LMDB once
    if written:
        for writer in writers.values():
            writer.finish()
    return written


def variants(root: Path, patch: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """A title and a data set's block for each way of reading."""
    common = {'name': 'x', 'phase': 'train', 'scale': SCALE, 'gt_size': patch, 'use_hflip': True, 'use_rot': True}
    for kind in ('PairedImageDataset', 'PairedCropDataset'):
        for suffix, backend, title in (
            ('', 'disk', 'PNG'),
            ('_png.lmdb' if kind == 'PairedImageDataset' else '_ours.lmdb', 'lmdb', 'LMDB of PNG'),
            ('_raw.lmdb', 'lmdb', 'raw LMDB'),
        ):
            if suffix != '_raw.lmdb' or kind == 'PairedCropDataset':
                places = {f'dataroot_{key}': str(root / f'{key}{suffix}') for key in ('gt', 'lq')}
                yield f'{kind}, {title}', {**common, **places, 'type': kind, 'io_backend': {'type': backend}}
