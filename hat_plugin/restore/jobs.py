"""Which picture goes where: inputs, names of outputs, and what must not be overwritten; settled before any work."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hat_plugin.data.images import IMAGE_SUFFIXES, list_images
from hat_plugin.errors import DataError, HatPluginError
from hat_plugin.restore.images import WRITTEN_SUFFIXES

Existing = Literal['refuse', 'overwrite', 'skip']
"""What to do where an output is there already."""

_OTHER_SUFFIXES = {
    *('.gif', '.jp2', '.jxl', '.avif', '.heic', '.heif', '.jfif', '.tga', '.exr', '.hdr', '.ico', '.psd', '.svg'),
    *(suffix for suffix in IMAGE_SUFFIXES if suffix not in WRITTEN_SUFFIXES),
}


@dataclass(frozen=True)
class Job:
    """A picture to be read and the file to be written."""

    source: Path
    target: Path


def plan_jobs(
    source: str | os.PathLike[str], out: str | os.PathLike[str], *, suffix: str = '', ext: str = 'same'
) -> list[Job]:
    """Pair each input with its output.

    Args:
        source: a picture, or a folder that is searched with its subfolders.
        out: a file where `source` is a picture and `out` ends in a picture's suffix; else a folder, in which the tree
            of `source` is repeated.
        suffix: put between a picture's name and its ending: ``_x4`` makes ``a_x4.png``.
        ext: 'same' for the input's format (PNG where that is not written), or one of png, jpg, webp, tif, bmp.

    Returns:
        In the order of the names. Where two inputs (``a.png``, ``a.jpg``) would meet in one output, those of another
        format keep their ending in the name (``a.jpg.png``).

    Raises:
        DataError: no input, an unknown `ext`, an `out` that ends as pictures do which are not written, outputs that
            meet nevertheless, or an output that would overwrite an input.
    """
    origin, target = Path(source), Path(out)
    if target.suffix.lower() in _OTHER_SUFFIXES and not target.exists():
        raise DataError(f'{target}: pictures are written as {", ".join(WRITTEN_SUFFIXES)}, not as {target.suffix}')
    ending = None if ext == 'same' else '.' + ext.lower().lstrip('.')
    if ending is not None and ending not in WRITTEN_SUFFIXES:
        raise DataError(f'ext {ext!r}: pictures are written as {", ".join(WRITTEN_SUFFIXES)}')
    if os.sep in suffix or '/' in suffix:
        raise DataError(f'suffix {suffix!r} goes into file names and cannot have a slash')
    if origin.is_dir():
        jobs = _plan_folder(origin, target, suffix, ending)
    elif origin.is_file():
        jobs = [_plan_file(origin, target, suffix, ending)]
    else:
        raise DataError(f'{origin}: there is no such picture or folder')
    inputs = {_identity(job.source) for job in jobs}
    for job in jobs:
        if _identity(job.target) in inputs:
            raise DataError(f'{job.target}: would overwrite an input; give another -o, or --suffix _restored')
    return jobs


def check_outputs(jobs: Sequence[Job], existing: Existing) -> None:
    """See that outputs can be written, before any work is done for them; nothing is made.

    Raises:
        DataError: some exist, and `existing` is 'refuse'.
        HatPluginError: a folder cannot be made or written to.
    """
    there = [job.target for job in jobs if job.target.exists()]
    if there and existing == 'refuse':
        more = f' and {len(there) - 1} more' if len(there) > 1 else ''
        raise DataError(f'{there[0]}{more}: exists; give --overwrite or --skip-existing')
    skipped = set(there if existing == 'skip' else [])
    for folder in sorted({job.target.parent for job in jobs if job.target not in skipped}):
        standing = next(place for place in (folder, *folder.parents) if place.exists())
        if not standing.is_dir() or not os.access(standing, os.W_OK | os.X_OK):
            fault = 'may not be written to' if standing.is_dir() else 'is a file, not a folder'
            raise HatPluginError(f'{folder}: cannot be written to: {standing} {fault}; give another -o')


def _plan_file(source: Path, out: Path, suffix: str, ending: str | None) -> Job:
    if out.suffix.lower() in WRITTEN_SUFFIXES and not out.is_dir():
        if ending is not None and ending != out.suffix.lower():
            raise DataError(f'{out}: ends in {out.suffix}, but --ext asks for {ending}; leave out one of the two')
        return Job(source, out.with_name(f'{out.stem}{suffix}{out.suffix}'))
    return Job(source, out / _output_name(Path(source.name), suffix, ending))


def _plan_folder(folder: Path, out: Path, suffix: str, ending: str | None) -> list[Job]:
    if out.is_file() or (out.suffix.lower() in WRITTEN_SUFFIXES and not out.exists()):
        raise DataError(f"{out}: is a file's name, but the input {folder} is a folder; name a folder")
    names = [Path(name) for name in list_images(folder)]
    if out.resolve() != folder.resolve():  # earlier results below the input folder are no inputs
        names = [name for name in names if out.resolve() not in (folder / name).resolve().parents]
    wanted = [_output_name(name, suffix, ending) for name in names]
    meeting = Counter(_folded(name) for name in wanted)
    for index, name in enumerate(names):
        if meeting[_folded(wanted[index])] > 1 and name.suffix.lower() != wanted[index].suffix.lower():
            wanted[index] = wanted[index].with_name(f'{name.stem}{suffix}{name.suffix}{wanted[index].suffix}')
    meeting = Counter(_folded(name) for name in wanted)
    for name, result in zip(names, wanted, strict=True):
        if meeting[_folded(result)] > 1:
            raise DataError(f'{folder / name}: another picture would be written to {out / result} as well; rename one')
    return [Job(folder / name, out / result) for name, result in zip(names, wanted, strict=True)]


def _output_name(name: Path, suffix: str, ending: str | None) -> Path:
    own = name.suffix if name.suffix.lower() in WRITTEN_SUFFIXES else '.png'
    return name.with_name(f'{name.stem}{suffix}{ending or own}')


def _folded(name: Path) -> str:
    """A name as a file system without upper and lower case sees it."""
    return name.as_posix().casefold()


def _identity(path: Path) -> str:
    return str(path.resolve())
