"""Every picture that an option file names, read once: damaged files, pairs that do not fit, pictures below the patch.

Several processes read; what they hand back is a size or the reason why there is none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from hat_plugin.data.build import check_readable
from hat_plugin.data.sources import FolderSource, LmdbSource, Source, read_meta_info_file, select_names, whole
from hat_plugin.engine.progress import progress
from hat_plugin.engine.schema.values import NO_FOLDER
from hat_plugin.engine.workers import worker_pool
from hat_plugin.errors import DataError

Size = tuple[int, int]
CHUNK = 16
FEW = 2 * CHUNK  # pictures that are read sooner than other processes start
# Data sets whose `dataroot_lq` holds the same pictures as `dataroot_gt`, smaller by the scale.
PAIRED = {'PairedImageDataset', 'RealESRGANPairedDataset', 'PairedCropDataset'}


@dataclass(frozen=True)
class Checks:
    """What is asked of a data set.

    Attributes:
        scale: the ground truth is so many times the low-resolution picture.
        patch: side of the training patch of the ground truth; 0 where there is none.
        exact: the sizes must agree to the pixel (training); otherwise the ground truth may be up to scale - 1 larger.
    """

    scale: int = 1
    patch: int = 0
    exact: bool = False


@dataclass
class DataReport:
    """What was found.

    Attributes:
        images: pictures read.
        pairs: pairs compared.
        problems: one line each, beginning with the picture's path.
    """

    images: int = 0
    pairs: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Unit:
    """Pictures that belong together: the ground truth alone, the input alone, or both, by place in `roots`."""

    names: tuple[str | None, str | None]


def check_dataset(section: Mapping[str, Any], checks: Checks, *, workers: int = 0, quiet: bool = False) -> DataReport:
    """Read all pictures of a ``datasets:`` section.

    Args:
        section: its options.
        checks: what is asked of the pictures.
        workers: processes; 0 reads in this one.
        quiet: no progress bar.

    Raises:
        DataError: a process died while reading (a damaged disk or memory; the run tells which data set).
    """
    report = DataReport()
    roots = _roots(section)
    if not roots:
        return report
    try:
        check_readable(section)
        sources = tuple(_open(section, root) for root in roots)
        units = list(_units(section, sources, report))
    except DataError as error:
        report.problems.append(str(error))
        return report
    results = progress(
        _read_all(sources, units, checks, workers),
        total=len(units),
        description=str(section.get('name', '')),
        disable=quiet,
    )
    for images, pairs, problems in results:
        report.images += images
        report.pairs += pairs
        report.problems += problems
    return report


def _roots(section: Mapping[str, Any]) -> list[str]:
    """Folders to read; one that stands under two keys is read once, but for pairs: they are compared all the same."""
    roots: list[str] = []
    for key in ('dataroot_gt', 'dataroot_lq'):
        value = section.get(key)
        roots += [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]
    roots = [os.path.expanduser(root) for root in roots]
    if section.get('type') in PAIRED:
        return roots
    return list(dict.fromkeys(root for root in roots if root != NO_FOLDER))


def _open(section: Mapping[str, Any], root: str) -> Source:
    backend = (section.get('io_backend') or {}).get('type', 'disk')
    kind = LmdbSource if backend == 'lmdb' else FolderSource
    return kind(root, channels=None, alpha='drop')


def _listed(section: Mapping[str, Any], source: Source) -> list[str]:
    """Names of the pictures that the data set will read from its first folder."""
    meta = section.get('meta_info_file') or section.get('meta_info')
    if not isinstance(meta, str) or (isinstance(source, LmdbSource) and section.get('type') == 'PairedImageDataset'):
        return source.names()
    return select_names(source, list(read_meta_info_file(meta)), meta)


def _units(section: Mapping[str, Any], sources: tuple[Source, ...], report: DataReport) -> Iterator[_Unit]:
    paired = section.get('type') in PAIRED and len(sources) == 2
    if not paired:
        for place, source in enumerate(sources):
            names = _listed(section, source) if place == 0 else source.names()
            yield from (_Unit((name, None) if place == 0 else (None, name)) for name in names)
        return
    gt_source, lq_source = sources
    template = section.get('filename_tmpl') or '{}'
    lq_names = {_stem(name): name for name in lq_source.names()}
    wanted: set[str] = set()
    for name in _listed(section, gt_source):
        path = PurePosixPath(_stem(name))
        stem = path.with_name(template.format(path.name)).as_posix()
        wanted.add(stem)
        if stem in lq_names:
            yield _Unit((name, lq_names[stem]))
        else:
            report.problems.append(f'{gt_source.place(name)}: has no partner {stem!r} in {section["dataroot_lq"]}')
            yield _Unit((name, None))
    if not (section.get('meta_info_file') or section.get('meta_info')):
        extra = [lq_names[stem] for stem in lq_names.keys() - wanted]
        report.problems += [f'{lq_source.place(n)}: has no partner in {section["dataroot_gt"]}' for n in sorted(extra)]


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return path.with_suffix('').as_posix() if path.suffix else name


Found = tuple[int, int, list[str]]
_given: tuple[tuple[Source, ...], Checks] | None = None  # of a worker process


def _receive(sources: tuple[Source, ...], checks: Checks) -> None:
    """Take, once a process, what all its tasks share: a large LMDB's list of keys is not sent with each."""
    global _given
    _given = sources, checks


def _read_chunk(units: list[_Unit]) -> list[Found]:
    assert _given is not None
    return [_read_unit(_given[0], unit, _given[1]) for unit in units]


def _read_all(sources: tuple[Source, ...], units: list[_Unit], checks: Checks, workers: int) -> Iterator[Found]:
    if workers <= 1 or len(units) <= FEW:
        yield from (_read_unit(sources, unit, checks) for unit in units)
        return
    chunks = [units[start : start + CHUNK] for start in range(0, len(units), CHUNK)]
    with worker_pool(min(workers, len(chunks)), setup=_receive, given=(sources, checks)) as mapper:
        for found in mapper(_read_chunk, chunks):
            yield from found


def _read_unit(sources: tuple[Source, ...], unit: _Unit, checks: Checks) -> Found:
    """Read the pictures of a unit and compare them."""
    problems: list[str] = []
    sizes: list[Size | None] = [None, None]
    for place, name in enumerate(unit.names):
        if name is None:
            continue
        source = sources[min(place, len(sources) - 1)]
        try:
            sizes[place] = whole(source.open(name)).shape[:2]
            shape = source.reader.stated_shape(name) if isinstance(source, LmdbSource) else None
            stated = shape[:2] if shape is not None else None
            if stated is not None and stated != sizes[place]:
                problems.append(f'{source.place(name)}: is {_text(sizes[place])}, meta_info.txt says {_text(stated)}')
        except DataError as error:
            problems.append(str(error))
    gt, lq = sizes
    both = gt is not None and lq is not None
    if gt is not None and unit.names[0] is not None and min(gt) < checks.patch:
        where = sources[0].place(unit.names[0])
        problems.append(f'{where}: is {_text(gt)}, smaller than gt_size {checks.patch}; leave it out, or lower gt_size')
    if gt is not None and lq is not None and unit.names[1] is not None:
        problems += _pair_problems(sources[1].place(unit.names[1]), gt, lq, checks)
    return sum(name is not None for name in unit.names), int(both), problems


def _pair_problems(place: str, gt: Size, lq: Size, checks: Checks) -> list[str]:
    surplus = [large - small * checks.scale for large, small in zip(gt, lq, strict=True)]
    slack = 0 if checks.exact else checks.scale - 1
    if all(0 <= rest <= slack for rest in surplus):
        return []
    wanted = (lq[0] * checks.scale, lq[1] * checks.scale)
    return [
        f'{place}: is {_text(lq)}; its ground truth is {_text(gt)}, {_text(wanted)} is wanted (scale {checks.scale})'
    ]


def _text(size: Size | None) -> str:
    return 'unreadable' if size is None else f'{size[1]}x{size[0]}'
