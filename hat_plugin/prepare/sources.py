"""Finding pictures in archives as they are published, unpacked in whatever folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from hat_plugin.data.images import IMAGE_SUFFIXES, list_images
from hat_plugin.data.lmdb_io import key_of
from hat_plugin.data.sources import read_meta_info_file
from hat_plugin.errors import DataError
from hat_plugin.prepare.plan import Picture


def find_folder(roots: Iterable[Path], names: Iterable[str]) -> Path | None:
    """The first folder of one of these names (`DIV2K/DIV2K_train_HR`) under, or equal to, one of the roots.

    Archives that unpack into a folder of their own name (`DIV2K_train_HR/DIV2K_train_HR`) are seen through.
    """
    for root in roots:
        for name in names:
            inner = PurePosixPath(name).name
            candidates = [root / name, *([root] if root.name == inner else [])]
            for candidate in candidates:
                if candidate.is_dir():
                    return candidate / inner if (candidate / inner).is_dir() else candidate
    return None


def pictures_in(folder: Path) -> dict[str, Path]:
    """Pictures that lie directly in a folder: stem -> path, sorted.

    Raises:
        DataError: two have the same stem (0001.png and 0001.jpg).
    """
    found: dict[str, Path] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith('.') or not entry.name.lower().endswith(IMAGE_SUFFIXES) or not entry.is_file():
            continue
        path = Path(entry.path)
        if path.stem in found:
            raise DataError(f'{path} and {found[path.stem].name} have the same name; remove one of them')
        found[path.stem] = path
    return found


def published_set(
    name: str, roots: list[Path], hr_names: list[str], lr_names: list[str], scales: list[int], *, lr: str, count: int
) -> tuple[list[Picture], dict[str, object]]:
    """Pictures of a set that is published as an HR folder and LR folders `X2`, `X3`, `X4` with files `0001x2.png`.

    Args:
        name: for messages.
        roots: where to look.
        hr_names, lr_names: names under which the folders occur.
        scales: low-resolution images wanted.
        lr: 'auto' uses the published ones where they are complete, 'published' insists on them, 'bicubic' leaves them.
        count: of the published set; 0 accepts any.

    Returns:
        The pictures in sorted order, and where they were found (for the manifest).

    Raises:
        DataError: a folder is missing, or the count is not the published one.
    """
    hr_folder = find_folder(roots, hr_names)
    if hr_folder is None:
        places = ', '.join(str(root) for root in roots)
        raise DataError(
            f'{name}: no folder {" or ".join(hr_names)} in {places}; unpack the archive there (datasets/README.md says '
            f'where it comes from)'
        )
    truths = pictures_in(hr_folder)
    if count and len(truths) != count:
        raise DataError(
            f'{hr_folder}: {len(truths)} pictures, published are {count}; unpack it again, or go on with what is there '
            f'with --allow-partial'
        )
    lows: dict[str, dict[int, Path]] = {stem: {} for stem in truths}
    source: dict[str, object] = {'hr': str(hr_folder)}
    for scale in scales if lr != 'bicubic' else []:
        folder = find_folder(roots, [f'{lr_name}/X{scale}' for lr_name in lr_names])
        _add_low_resolution(truths, lows, folder, scale, insist=lr == 'published', name=name)
        if folder is not None and all(scale in low for low in lows.values()):
            source[f'lr_x{scale}'] = str(folder)
    return [Picture(key_of(stem), path, lows[stem]) for stem, path in truths.items()], source


def _add_low_resolution(
    truths: dict[str, Path],
    lows: dict[str, dict[int, Path]],
    folder: Path | None,
    scale: int,
    *,
    insist: bool,
    name: str,
) -> None:
    """Note the published files of one scale: all of them or, so that a set is not mixed, none."""
    found = pictures_in(folder) if folder is not None else {}
    matched = {stem: found.get(f'{stem}x{scale}') or found.get(stem) for stem in truths}
    missing = [stem for stem, path in matched.items() if path is None]
    if insist and missing:
        raise DataError(
            f'{name}: no published x{scale} of {missing[0]} ({len(missing)} of {len(truths)} missing) in '
            f'{folder or "the folders given"}; unpack that archive too, or make them with --lr bicubic'
        )
    if folder is not None and 0 < len(missing) < len(truths):
        raise DataError(
            f'{folder}: {len(missing)} of {len(truths)} low-resolution files are missing, the first for {missing[0]}; '
            f'unpack the archive again, or make all of them with --lr bicubic'
        )
    if not missing:
        for stem, path in matched.items():
            assert path is not None
            lows[stem][scale] = path


def plain_pictures(folder: Path, names: list[str] | None = None) -> tuple[dict[str, Path], dict[str, str]]:
    """All pictures in a folder and its subfolders, in sorted order.

    Args:
        folder: where they are.
        names: only these, relative to the folder.

    Returns:
        Stem -> path of the pictures, and the names that had to change: relative path -> stem.

    Raises:
        DataError: there are none, or two would get the same name.
    """
    found: dict[str, Path] = {}
    renamed: dict[str, str] = {}
    for name in list_images(folder) if names is None else sorted(names):
        stem = key_of(str(PurePosixPath(name).with_suffix('')).replace('/', '_'))
        if stem in found:
            other = found[stem].relative_to(folder)
            raise DataError(f'{folder}: {other} and {name} would both be called {stem}; rename one of them')
        found[stem] = folder / name
        if PurePosixPath(name).stem != stem:
            renamed[name] = stem
    return found, renamed


def read_list(path: Path, folder: Path) -> list[str]:
    """Names of pictures out of a meta_info file (`name.png (h,w,c)` or the name alone, one a line).

    Raises:
        DataError: the file cannot be read or is empty; a name leads out of `folder` or is not there; a name is doubled.
    """
    names, root = list(read_meta_info_file(path)), folder.resolve()
    for name in names:
        if not (folder / name).resolve().is_relative_to(root):
            raise DataError(f'{path}: {name!r} is a link that leads out of {folder}; name files inside it')
        if not (folder / name).is_file():
            raise DataError(f'{path}: {folder / name} is not there; correct the list or the folder')
    return names


def check_not_among(folder: Path, target: Path) -> None:
    """Raises DataError where a data set would be prepared inside the folder in which pictures are looked for."""
    if target.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f'{folder}: the prepared data would lie among the pictures ({target.resolve()}) and be taken for some of '
            f'them the next time; move the pictures into a subfolder, or choose another -o or --name'
        )


def check_count(found: int, published: int, what: str, *, allow_partial: bool) -> None:
    """Raises DataError where not as many pictures or pairs were found as were published, unless that is allowed."""
    if found != published and not allow_partial:
        raise DataError(
            f'{what}: {found} found, published are {published}; unpack it again, or go on with what is there with '
            f'--allow-partial'
        )
