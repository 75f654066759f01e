"""Which picture goes where: inputs, names of outputs, and what must not be overwritten; settled before any work."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hat_plugin.data.images import list_images
from hat_plugin.errors import DataError
from hat_plugin.restore.images import WRITTEN_SUFFIXES


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
        DataError: no input, an unknown `ext` or ending of `out`, outputs that meet nevertheless, or an output that
            would overwrite an input.
    """
    origin, target = Path(source), Path(out)
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


def _plan_file(source: Path, out: Path, suffix: str, ending: str | None) -> Job:
    if out.suffix.lower() in WRITTEN_SUFFIXES and not out.is_dir():
        if ending is not None and ending != out.suffix.lower():
            raise DataError(f'{out}: ends in {out.suffix}, but --ext asks for {ending}; leave out one of the two')
        return Job(source, out.with_name(f'{out.stem}{suffix}{out.suffix}'))
    return Job(source, out / _output_name(Path(source.name), suffix, ending))


def _plan_folder(folder: Path, out: Path, suffix: str, ending: str | None) -> list[Job]:
    if out.is_file():
        raise DataError(f'{out}: is a file, but the input {folder} is a folder; name a folder')
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
