"""Where pictures are: a folder, a folder with a list of names, or an LMDB. One interface, errors with the path."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

import cv2
import numpy as np

from hat_plugin.data.images import IMAGE_SUFFIXES, Alpha, convert_channels, list_images, read_bytes, read_image
from hat_plugin.data.lmdb_io import LmdbReader
from hat_plugin.data.lmdb_meta import key_of
from hat_plugin.data.options import PictureOptions
from hat_plugin.data.png_rows import PngHeader, plain_header, upper_rows
from hat_plugin.errors import DataError

Channels = Literal[1, 3] | None
Size = tuple[int, int]

_SUFFIXES = '|'.join(suffix[1:] for suffix in IMAGE_SUFFIXES)
_NAMED_WITH_SIZE = re.compile(r'(?P<name>.+?)\s+\(\s*(?P<h>\d+)\s*,\s*(?P<w>\d+)\s*(?:,\s*\d+\s*)?\)(?:\s.*)?')
_NAMED = re.compile(rf'(?P<name>.+?\.(?:{_SUFFIXES}))(?:\s.*)?', re.IGNORECASE)


class Picture(Protocol):
    """A picture that is read as far as it is asked for."""

    @property
    def size(self) -> Size:
        """(height, width)."""

    def crop(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """A rectangle, (height, width, C), RGB or gray, uint8 or uint16; it may be a view, not to be written to."""


@dataclass(frozen=True)
class DecodedPicture:
    """A whole picture in memory, (H, W, C)."""

    array: np.ndarray

    @property
    def size(self) -> Size:
        return self.array.shape[0], self.array.shape[1]

    def crop(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        return self.array[top : top + height, left : left + width]


@dataclass(frozen=True)
class RawPicture:
    """A picture of a raw LMDB: only what is asked for is read from the disk."""

    reader: LmdbReader
    key: str
    channels: Channels
    alpha: Alpha

    @property
    def size(self) -> Size:
        return self.reader.shape(self.key)[:2]

    def crop(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        pixels = self.reader.crop(self.key, top, left, height, width)
        return convert_channels(pixels, self.channels, self.alpha, f'{self.reader.path}: {self.key}')


@dataclass(frozen=True)
class PngPicture:
    """A plain PNG in memory, decoded no further down than is asked for."""

    content: bytes
    header: PngHeader
    channels: Channels
    alpha: Alpha
    name: str

    @property
    def size(self) -> Size:
        return self.header.height, self.header.width

    def crop(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Its rectangle.

        Raises:
            DataError: the picture is damaged.
        """
        rows = upper_rows(self.content, self.header, top + height)
        if rows is None:
            whole_picture = read_image(self.content, channels=self.channels, alpha=self.alpha, name=self.name)
            return whole_picture[top : top + height, left : left + width]
        pixels = rows[top:, left : left + width]
        if self.channels == 3 and self.header.channels == 1:
            return np.repeat(pixels, 3, axis=2)
        if self.channels == 1 and self.header.channels == 3:
            return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
        return pixels


def decoded(content: bytes, channels: Channels, alpha: Alpha, name: str) -> Picture:
    """A picture of encoded bytes, called `name` in errors.

    Raises:
        DataError: it is damaged; a plain PNG's rows are looked at only when they are asked for.
    """
    header = plain_header(content)
    if header is not None:
        return PngPicture(content, header, channels, alpha, name)
    return DecodedPicture(read_image(content, channels=channels, alpha=alpha, name=name))


def whole(picture: Picture) -> np.ndarray:
    """All of a picture, (H, W, C); it may be a view, not to be written to."""
    return picture.crop(0, 0, *picture.size)


class FolderSource:
    """Pictures as files under a folder; a name is a path relative to it, with ``/``."""

    def __init__(self, root: str | os.PathLike[str], *, channels: Channels, alpha: Alpha) -> None:
        self.root = Path(root)
        self.channels = channels
        self.alpha = alpha

    def names(self) -> list[str]:
        """All pictures' names, sorted."""
        return list_images(self.root)

    def known_sizes(self) -> dict[str, Size]:
        """Sizes that are known without opening a picture: none."""
        return {}

    def path(self, name: str) -> str:
        """What stands in ``lq_path`` and ``gt_path``."""
        return os.fspath(self.root / name)

    def place(self, name: str) -> str:
        """How a picture is called in errors."""
        return self.path(name)

    def open(self, name: str) -> Picture:
        """Read a file; of a plain PNG nothing is decoded yet.

        Raises:
            DataError: it is missing or damaged.
        """
        path = self.path(name)
        return decoded(read_bytes(path), self.channels, self.alpha, path)


class LmdbSource:
    """Pictures in an LMDB, PNG or raw; a name is a key."""

    def __init__(self, root: str | os.PathLike[str], *, channels: Channels, alpha: Alpha) -> None:
        self.reader = LmdbReader(root)
        self.channels = channels
        self.alpha = alpha

    def names(self) -> list[str]:
        """All keys, sorted."""
        return sorted(self.reader.keys())

    def known_sizes(self) -> dict[str, Size]:
        """Sizes as meta_info.txt states them."""
        return {key: shape[:2] for key, shape in self.reader.stated_shapes().items()}

    def path(self, name: str) -> str:
        """What stands in ``lq_path`` and ``gt_path``: the key, as BasicSR has it."""
        return name

    def place(self, name: str) -> str:
        """How a picture is called in errors."""
        return f'{self.reader.path}: {name}'

    def open(self, name: str) -> Picture:
        """Read a picture; of raw pixels nothing yet, of a plain PNG nothing is decoded yet.

        Raises:
            DataError: the key is missing, or its value damaged.
        """
        if self.reader.kind == 'raw':
            return RawPicture(self.reader, name, self.channels, self.alpha)
        return decoded(self.reader.read(name), self.channels, self.alpha, self.place(name))


Source = FolderSource | LmdbSource


def open_source(root: str, options: PictureOptions) -> Source:
    """The source at `root`.

    Raises:
        DataError: there is nothing there, or something of the other kind.
    """
    path, backend = Path(root).expanduser(), options.io_backend.type
    if not path.is_dir():
        raise DataError(f'{path}: no such folder. Prepare the data (basicsr prepare) or correct the path')
    if (path / 'data.mdb').exists() != (backend == 'lmdb'):
        other = 'disk' if backend == 'lmdb' else 'lmdb'
        found = 'no LMDB (it has no data.mdb)' if backend == 'lmdb' else 'an LMDB'
        raise DataError(f'{path}: is {found}, but io_backend says type: {backend}. Write io_backend: {{type: {other}}}')
    kind = LmdbSource if backend == 'lmdb' else FolderSource
    return kind(path, channels=options.channels, alpha=options.alpha)


def read_meta_info_file(path: str | os.PathLike[str]) -> dict[str, Size | None]:
    """Read a list of picture names: ``name (height,width,channels) ...`` or ``name.png anything``, one a line.

    Names may hold spaces; empty lines are passed over.

    Returns:
        Name -> (height, width) where the line states it, in the file's order.

    Raises:
        DataError: the file cannot be read, lists nothing, lists a name twice, or one that leads out of the folder.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'meta_info_file {path}: cannot be read: {error}') from error
    entries: dict[str, Size | None] = {}
    for number, text in enumerate(lines, 1):
        line = text.strip()
        if not line:
            continue
        match = _NAMED_WITH_SIZE.fullmatch(line)
        named = match or _NAMED.fullmatch(line)
        name = named['name'] if named else line.split()[0]
        _check_inside(name, f'meta_info_file {path}, line {number}')
        if name in entries:
            raise DataError(f'meta_info_file {path}, line {number}: {name!r} is listed twice; remove one')
        entries[name] = (int(match['h']), int(match['w'])) if match else None
    if not entries:
        raise DataError(f'meta_info_file {path}: lists no picture')
    return entries


def select_names(source: Source, names: Iterable[str], meta_info_file: str) -> list[str]:
    """The listed names as `source` has them: for an LMDB, its keys.

    Raises:
        DataError: a key is not in the LMDB.
    """
    if isinstance(source, FolderSource):
        return list(names)
    keys = [key_of(PurePosixPath(name).with_suffix('').as_posix()) for name in names]
    for name, key in zip(names, keys, strict=True):
        if key not in source.reader:
            raise DataError(
                f'{source.reader.path}: no picture {key!r}, which {meta_info_file} lists as {name!r}; list what the '
                'LMDB holds, or leave meta_info_file out to read all of it'
            )
    return keys


def listed_names(source: Source, meta_info_file: str | None, *, look_for: int | None = None) -> list[str]:
    """Names that a data set of single pictures reads: those of its list, or all that there are.

    Args:
        source: where the pictures are.
        meta_info_file: the list, if there is one.
        look_for: of so many of the first listed it is seen that they are there; None: of all (a million take minutes).

    Raises:
        DataError: a listed picture is missing, or the list is wrong.
    """
    if not meta_info_file:
        return source.names()
    names = select_names(source, read_meta_info_file(meta_info_file), meta_info_file)
    if isinstance(source, FolderSource):
        missing = next((name for name in names[:look_for] if not (source.root / name).is_file()), None)
        if missing is not None:
            raise DataError(
                f'{source.path(missing)}: no such file, though {meta_info_file} lists it; correct the folder, or make '
                'the list anew'
            )
    return names


def _check_inside(name: str, place: str) -> None:
    """A name must stay inside the data set's folder."""
    path = PurePosixPath(name.replace('\\', '/'))
    if path.is_absolute() or '..' in path.parts or re.match(r'[A-Za-z]:', name):
        raise DataError(f'{place}: {name!r} leads out of the data set; names are relative to its folder, without ..')
