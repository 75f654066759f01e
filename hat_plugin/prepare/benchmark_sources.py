"""Finding test sets in the shapes in which they are passed around."""

from __future__ import annotations

from pathlib import Path

from hat_plugin.data.images import check_folder
from hat_plugin.data.lmdb_io import key_of
from hat_plugin.errors import DataError
from hat_plugin.prepare.plan import Picture
from hat_plugin.prepare.sources import pictures_in, plain_pictures

SETS = {'Set5': 5, 'Set14': 14, 'BSD100': 100, 'Urban100': 100, 'Manga109': 109}
"""The usual five and their counts."""

_ALIASES = {'bsds100': 'BSD100', 'b100': 'BSD100', **{name.lower(): name for name in SETS}}
_MADE_BY_US = ('GTmod', 'LRbicx')


def find_sets(source: Path, wanted: list[str] | None, name: str | None) -> dict[str, Path]:
    """The test sets in a folder: name -> folder, in the usual order.

    Args:
        source: a folder of sets, or one set.
        wanted: names to take; None takes those of the usual five that are there.
        name: take the source as one set and call it so.

    Raises:
        DataError: a set is not there, or none is.
    """
    check_folder(source)
    if name:
        return {name: source}
    subfolders = {entry.name.lower(): entry for entry in sorted(source.iterdir()) if entry.is_dir()}
    if wanted:
        found = {}
        for want in wanted:
            usual = _ALIASES.get(want.lower(), want)
            spellings = [want.lower(), *(alias for alias, target in _ALIASES.items() if target == usual)]
            folder = next((subfolders[spelling] for spelling in spellings if spelling in subfolders), None)
            if folder is None:
                raise DataError(f'{source}: no set {want!r} among {", ".join(map(str, subfolders)) or "no folders"}')
            found[usual] = folder
        return found
    usual_here = {_ALIASES[name]: folder for name, folder in subfolders.items() if name in _ALIASES}
    if usual_here:
        return {name: usual_here[name] for name in SETS if name in usual_here}
    own = source.resolve().name
    return {_ALIASES.get(own.lower(), own): source}


def benchmark_pictures(
    name: str, folder: Path, scale: int, *, lr: str, count: int
) -> tuple[list[Picture], dict[str, str]]:
    """The pictures of a test set at one scale, in sorted order.

    Understood are `HR/baby.png` with `LR_bicubic/X4/babyx4.png` (EDSR's benchmark.tar),
    `image_SRF_4/img_001_SRF_4_HR.png` with `..._LR.png` (SelfExSR), and plain pictures, in the folder or one below it.

    Args:
        name: for messages.
        folder: the set's.
        scale: the ground truth may differ by it (SelfExSR).
        lr: 'bicubic', or 'published' / 'auto' to take the published low-resolution files.
        count: of the published set; 0 accepts any.

    Returns:
        The pictures, and where they were found.

    Raises:
        DataError: there are none, the count is another, or published files are wanted and missing.
    """
    selfex = folder / f'image_SRF_{scale}'
    if selfex.is_dir():
        truths = _ending(selfex, f'_SRF_{scale}_HR')
        lows = _ending(selfex, f'_SRF_{scale}_LR')
        found = selfex
    elif (folder / 'HR').is_dir():
        found = folder / 'HR'
        truths = pictures_in(found)
        low_folder = folder / 'LR_bicubic' / f'X{scale}'
        lows = _ending(low_folder, f'x{scale}') if low_folder.is_dir() else {}
    else:
        truths, found, lows = *_plain(folder), {}
    if not truths:
        raise DataError(f'{found}: no pictures of {name} in any of the usual places (datasets/README.md lists these)')
    if count and len(truths) != count:
        raise DataError(
            f'{found}: {len(truths)} pictures, {name} has {count}; unpack it again, or go on with --allow-partial'
        )
    missing = [stem for stem in truths if stem not in lows]
    if lr == 'published' and missing:
        raise DataError(f'{name}: no published x{scale} of {missing[0]} beside {found}; use --lr bicubic')
    use = lr != 'bicubic' and not missing
    return (
        [Picture(key_of(stem), path, {scale: lows[stem]} if use else {}) for stem, path in sorted(truths.items())],
        {'hr': str(found)},
    )


def _ending(folder: Path, ending: str) -> dict[str, Path]:
    return {stem.removesuffix(ending): path for stem, path in pictures_in(folder).items() if stem.endswith(ending)}


def _plain(folder: Path) -> tuple[dict[str, Path], Path]:
    for candidate in (folder, folder / 'original', folder / 'GTmod12'):
        if candidate.is_dir():
            found = pictures_in(candidate)
            if found:
                return found, candidate
    below = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith(_MADE_BY_US)]
    if len(below) == 1 and not below[0].name.startswith('.'):
        return plain_pictures(below[0])[0], below[0]
    return {}, folder
