"""Upper rows of PNGs: OpenCV's pixels for every kind of file, with the packages that read them fast and without."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hat_plugin.data import png_rows
from hat_plugin.data.build import build_dataset
from hat_plugin.data.images import read_image
from hat_plugin.data.sources import DecodedPicture, FolderSource, PngPicture, decoded
from hat_plugin.errors import DataError

SIGNATURE = b'\x89PNG\r\n\x1a\n'
GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGBA: 4}
fast = pytest.mark.skipif(not png_rows.AVAILABLE, reason='isal and pyspng are not installed (extra: fast)')


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(
    height: int,
    width: int,
    colour: int = RGB,
    *,
    depth: int = 8,
    interlace: int = 0,
    filters: int = 5,
    compressed: Callable[[bytes], bytes] = zlib.compress,
    pieces: int = 1,
    extra: bytes = b'',
) -> bytes:
    """A PNG of random bytes; each row takes the next of `filters` filters. Random rows are rows whatever the filter."""
    row = -(-width * depth * CHANNELS[colour] // 8)
    rows = np.random.default_rng(height * width + colour + depth).integers(0, 60, (height, 1 + row), np.uint8)
    rows[:, 0] = np.arange(height) % filters
    stream = compressed(adam7(height, width, rows) if interlace else rows.tobytes())
    head = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, interlace)
    ends = np.linspace(0, len(stream), pieces + 1).astype(int)
    body = b''.join(chunk(b'IDAT', stream[start:end]) for start, end in pairwise(ends))
    return SIGNATURE + chunk(b'IHDR', head) + extra + body + chunk(b'IEND', b'')


def adam7(height: int, width: int, rows: np.ndarray) -> bytes:
    """Whole RGB rows in the order of an interlaced file, without filters."""
    pixels = rows[:, 1:].reshape(height, width, 3)
    passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    parts = (pixels[top::down, left::right] for top, down, left, right in passes)
    return b''.join(b'\0' + line.tobytes() for part in parts if part.size for line in part)


PLAIN = {
    'rgb': png(23, 31),
    'gray': png(23, 31, GRAY),
    'one pixel': png(1, 1),
    'one column': png(40, 1, GRAY),
    'one row': png(1, 300),
    'larger than a stored block': png(90, 800),
    'stored': png(23, 31, compressed=lambda rows: zlib.compress(rows, 0)),
    'best': png(23, 31, compressed=lambda rows: zlib.compress(rows, 9)),
    'many chunks': png(23, 31, pieces=50),
    'words before': png(23, 31, extra=chunk(b'tEXt', b'Comment\0hello') + chunk(b'gAMA', struct.pack('>I', 100000))),
    'colour space': png(23, 31, extra=chunk(b'sRGB', b'\0') + chunk(b'sBIT', b'\5\6\5') + chunk(b'bKGD', bytes(6))),
    **{f'filter {number}': png(9, 31, filters=number + 1) for number in range(5)},
}
OTHER = {
    '16 bits': png(23, 31, depth=16),
    '16-bit gray': png(23, 31, GRAY, depth=16),
    '1 bit': png(23, 31, GRAY, depth=1),
    '4 bits': png(23, 31, GRAY, depth=4),
    'rgba': png(23, 31, RGBA),
    'gray and alpha': png(23, 31, GRAY_ALPHA),
    'palette': png(23, 31, PALETTE, filters=1, extra=chunk(b'PLTE', bytes(range(180)))),
    'transparent colour': png(23, 31, extra=chunk(b'tRNS', bytes(6))),
    'suggested palette': png(23, 31, extra=chunk(b'PLTE', bytes(range(180)))),
    'interlaced': png(23, 31, interlace=1),
}


@pytest.mark.parametrize('channels', [3, 1])
@pytest.mark.parametrize('kind', [*PLAIN, *OTHER])
def test_any_crop_has_the_pixels_of_opencv(kind: str, channels: Any) -> None:
    content = {**PLAIN, **OTHER}[kind]
    picture = decoded(content, channels, 'drop', kind)
    whole = read_image(content, channels=channels, alpha='drop')
    height, width = picture.size
    assert (height, width) == whole.shape[:2]
    for bottom in sorted({1, height // 3 or 1, height}):
        top, left = bottom // 2, width // 3
        crop = picture.crop(top, left, bottom - top, width - left)
        assert crop.dtype == whole.dtype
        assert np.array_equal(crop, whole[top:bottom, left:])


@fast
def test_plain_ones_are_read_fast_and_no_others() -> None:
    for kind, content in PLAIN.items():
        header = png_rows.plain_header(content)
        assert header is not None, kind
        for count in (1, header.height):
            assert png_rows.upper_rows(content, header, count) is not None, kind
        assert png_rows.upper_rows(content, header, header.height + 1) is None
    for kind, content in OTHER.items():
        header = png_rows.plain_header(content)
        assert header is None or png_rows.upper_rows(content, header, 1) is None, kind


@fast
def test_rows_below_are_not_decoded() -> None:
    """A stream that ends after ten rows, in a file that is otherwise sound."""
    content = png(23, 31, compressed=lambda rows: zlib.compress(rows[: 10 * 94]))
    picture = decoded(content, 3, 'error', 'half.png')
    assert picture.crop(4, 0, 6, 31).shape == (6, 31, 3)
    with pytest.raises(DataError, match=r'half\.png'):
        picture.crop(4, 0, 7, 31)


def test_transparent_pixels_are_refused() -> None:
    with pytest.raises(DataError, match='clear.*transparent'):
        decoded(OTHER['rgba'], 3, 'error', 'clear')


def outcome(read: Callable[[], np.ndarray]) -> bytes | str:
    try:
        return read().tobytes()
    except DataError as error:
        return str(error)


@pytest.mark.parametrize('available', [True, False])
def test_any_byte_flipped_or_cut_off_ends_as_with_opencv(monkeypatch: pytest.MonkeyPatch, available: bool) -> None:
    monkeypatch.setattr(png_rows, 'AVAILABLE', available and png_rows.AVAILABLE)
    content = png(12, 9, pieces=2, extra=chunk(b'tEXt', b'Comment\0hello'))
    damaged = [content[:keep] for keep in range(0, len(content), 7)]
    for position in range(0, len(content), 1 if available else 11):
        flipped = bytearray(content)
        flipped[position] ^= 0x55
        damaged.append(bytes(flipped))
    errors = 0
    for one in damaged:
        expected = outcome(lambda one=one: read_image(one, name='x.png')[2:5, 1:])
        assert outcome(lambda one=one: decoded(one, 3, 'error', 'x.png').crop(2, 1, 3, 8)) == expected
        errors += isinstance(expected, str) and expected.startswith('x.png: ')
    assert errors > 0.8 * len(damaged)


@pytest.mark.parametrize(
    'content',
    [
        png(12, 9, compressed=lambda rows: rows),
        png(12, 9, compressed=lambda rows: zlib.compress(rows)[:40]),
        png(12, 9, compressed=lambda rows: zlib.compress(b'\7' + rows[1:])),
        png(12, 9)[:-12],
        png(12, 9, extra=chunk(b'IHDR', struct.pack('>IIBBBBB', 9, 12, 8, RGB, 0, 0, 0))),
        SIGNATURE + chunk(b'IHDR', struct.pack('>IIBBBBB', 2**31 - 1, 2**31 - 1, 8, RGB, 0, 0, 0)) + png(12, 9)[33:],
        png(12, 9, pieces=3, compressed=lambda rows: b''),
    ],
    ids=['no deflate', 'too short', 'no such filter', 'no end', 'two headers', 'gigantic', 'nothing'],
)
def test_wrong_content_under_right_checksums_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / 'wrong.png').write_bytes(content)
    with pytest.raises(DataError, match=r'wrong\.png'):
        FolderSource(tmp_path, channels=3, alpha='error').open('wrong.png').crop(0, 0, 12, 9)


@pytest.mark.parametrize('backend', ['disk', 'lmdb'])
def test_samples_are_the_same_without_the_packages(
    pairs: Any, lmdb_pairs: dict[str, Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pairs if backend == 'disk' else lmdb_pairs['png']
    dataset = build_dataset(source.options(io_backend={'type': backend}))
    was_available, samples = png_rows.AVAILABLE, []
    for available in (was_available, False):
        monkeypatch.setattr(png_rows, 'AVAILABLE', available)
        assert type(dataset.gt.open(dataset.pairs[0][1])) is (PngPicture if available else DecodedPicture)
        random.seed(0)
        samples += [dataset[index] for index in range(len(dataset))]
    for one, other in zip(samples[: len(dataset)], samples[len(dataset) :], strict=True):
        assert torch.equal(one['gt'], other['gt'])
        assert torch.equal(one['lq'], other['lq'])
