"""What surrounds the images of an LMDB: meta_info.txt, keys, and whether data.mdb is whole."""

from __future__ import annotations

import hashlib
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hat_plugin.errors import DataError

META_INFO = 'meta_info.txt'
DATA_FILE = 'data.mdb'
KINDS = ('png', 'raw')
MAX_KEY_BYTES = 511
"""LMDB's own limit."""

_LINE = re.compile(
    r'(?P<key>.+)\.(?P<kind>png|raw)(?: \((?P<h>\d+), ?(?P<w>\d+)(?:, ?(?P<c>\d+))?\))?(?: (?P<last>\S+))?'
)
_RAW_DTYPES = ('uint8', 'uint16')
_PLAIN_KEY = re.compile(r'[A-Za-z0-9_\-]+(?:/[A-Za-z0-9_\-]+)*')

# An LMDB file opens with two meta pages. In each: a page header of 16 bytes, then magic, version, address, map size,
# two records of 48 bytes (the first one's first word is the page size), last page number, transaction number.
_META_MAGIC = 0xBEEFC0DE
_META_HEAD = struct.Struct('<16xIIQQI')
_META_TAIL = struct.Struct('<QQ')
_META_TAIL_OFFSET = 16 + 24 + 2 * 48


@dataclass(frozen=True)
class Entry:
    """One image of an LMDB.

    Attributes:
        shape: (height, width, channels), or None where a foreign meta_info.txt does not say.
        dtype: 'uint8' or 'uint16' for raw pixels; '' for PNG, which says it itself.
    """

    shape: tuple[int, int, int] | None
    dtype: str = ''


def key_of(name: str) -> str:
    """A key that BasicSR reads back rightly, out of a file name without its extension.

    BasicSR cuts a line of meta_info.txt at its first dot and encodes keys as ASCII. A name of ASCII letters, digits,
    ``_``, ``-`` and ``/`` is its own key; in any other the odd characters become ``_`` and a checksum of the name is
    added, so that two names do not meet in one key ('IMG 1' -> 'IMG_1-e214652d').
    """
    if _PLAIN_KEY.fullmatch(name) and len(name) <= 200:
        return name
    plain = re.sub(r'[^A-Za-z0-9_\-]', '_', name)[:200]
    return f'{plain}-{hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]}'


def check_key(key: str, kind: str, source: str | os.PathLike[str]) -> bytes:
    """The key as bytes.

    Raises:
        DataError: BasicSR would read another key out of meta_info.txt, or LMDB cannot hold it.
    """
    odd = not key.isprintable() or set(key) & {'.', ' '} or key[:1] == '/' or (kind == 'png' and not key.isascii())
    data = b'' if odd else key.encode('utf-8')
    if not 1 <= len(data) <= MAX_KEY_BYTES:
        raise DataError(
            f'{source}: {key!r} cannot be a key: 1 to {MAX_KEY_BYTES} bytes, no dot, no space, no leading slash'
            f'{", ASCII only" if kind == "png" else ""}; use hat_plugin.data.lmdb_io.key_of(name), which gives '
            f'{key_of(key or "image")!r}'
        )
    return data


def format_line(key: str, kind: str, shape: tuple[int, int, int], last: str) -> str:
    """A line of meta_info.txt: `0001_s001.png (480,480,3) 1`, `0001_s001.raw (480,480,3) uint8`."""
    return f'{key}.{kind} ({",".join(map(str, shape))}) {last}'


def parse_line(line: str, source: str | os.PathLike[str], number: int) -> tuple[str, str, Entry]:
    """Key, kind and entry of a line of meta_info.txt.

    Raises:
        DataError: the line is no such line; the message has its number.
    """
    match = _LINE.fullmatch(line)
    if match is None:
        raise DataError(f'{source}, line {number}: expected `name.png (height,width,channels) level`, found {line!r}')
    kind, last = match['kind'], match['last'] or ''
    shape = (int(match['h']), int(match['w']), int(match['c'] or 1)) if match['h'] else None
    if kind == 'raw' and (shape is None or last not in _RAW_DTYPES):
        raise DataError(
            f'{source}, line {number}: a raw image needs its shape and its type ({" or ".join(_RAW_DTYPES)}): {line!r}'
        )
    return match['key'], kind, Entry(shape, last if kind == 'raw' else '')


def read_meta_info(folder: str | os.PathLike[str]) -> tuple[str, dict[str, Entry]]:
    """Read an LMDB folder's meta_info.txt.

    Args:
        folder: the `.lmdb` folder.

    Returns:
        The kind ('png' or 'raw') and the entries by key, in the file's order.

    Raises:
        DataError: the file is missing, empty or not UTF-8, or a line is wrong, doubled or of another kind.
    """
    path = Path(folder) / META_INFO
    try:
        lines = path.read_text(encoding='utf-8').split('\n')
    except OSError as error:
        raise DataError(
            f'{path}: {error.strerror}; an LMDB of images is a folder with {DATA_FILE} and {META_INFO}'
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f'{path}: not UTF-8 text ({error}); prepare the LMDB again') from error
    entries: dict[str, Entry] = {}
    kinds: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        key, kind, entry = parse_line(line.strip(), path, number)
        if key in entries:
            raise DataError(f'{path}, line {number}: {key!r} is there twice; prepare the LMDB again')
        entries[key] = entry
        kinds.add(kind)
    if len(kinds) != 1:
        fault = 'PNG and raw images are mixed' if kinds else 'no image is listed'
        raise DataError(f'{path}: {fault}; prepare the LMDB again')
    return kinds.pop(), entries


def check_whole(folder: str | os.PathLike[str]) -> None:
    """Make sure that data.mdb is as long as its own meta page says.

    LMDB maps the file; reading a page beyond its end kills the process by SIGBUS, without a message.

    Raises:
        DataError: data.mdb is missing, is no LMDB, or was cut short (an interrupted copy or download, a full disk).
    """
    path = Path(folder) / DATA_FILE
    try:
        with open(path, 'rb') as handle:
            size = os.fstat(handle.fileno()).st_size
            needed = _bytes_needed(handle)
    except OSError as error:
        raise DataError(
            f'{path}: {error.strerror}; an LMDB of images is a folder with {DATA_FILE} and {META_INFO}'
        ) from error
    if needed is None:
        raise DataError(f'{path}: not an LMDB of this kind of machine (64-bit, little-endian); copy it again')
    if size < needed:
        raise DataError(
            f'{path}: {size} bytes of {needed}: it was cut short (an interrupted copy or a full disk); '
            f'copy it or prepare it again'
        )


def _bytes_needed(handle: BinaryIO) -> int | None:
    pages: list[tuple[int, int]] = []  # (transaction number, bytes up to the last page in use)
    offset = 0
    for _ in range(2):
        handle.seek(offset)
        page = handle.read(_META_TAIL_OFFSET + _META_TAIL.size)
        if len(page) < _META_TAIL_OFFSET + _META_TAIL.size:
            break
        magic, _version, _address, _map_size, page_size = _META_HEAD.unpack_from(page)
        if magic != _META_MAGIC or not 256 <= page_size <= 65536:
            break
        last_page, transaction = _META_TAIL.unpack_from(page, _META_TAIL_OFFSET)
        pages.append((transaction, (last_page + 1) * page_size))
        offset = page_size
    return max(pages)[1] if pages else None
