"""The upper rows of a PNG, without decoding those below.

A PNG is read from its top, but a training patch ends before the picture does, and what lies below it need not be
decoded. OpenCV cannot stop early. Here the rows are inflated by ISA-L (package isal) as far as they are wanted, and
pyspng, given them as a PNG that is not compressed, undoes their filters. Both packages are optional (``pip install
'.[fast]'``); without them, and for any PNG that is not plain or not sound, OpenCV does it all.

Measured on RGB tiles of 480x480 of photographs, milliseconds of CPU time, all rows and 370 of them (the mean over
patches of 256), on an AMD EPYC: OpenCV 5.7 and 5.4 (inflate 3.1, filters 1.8, rest 0.8; a height that is cut in the
header does not stop its inflating), pyspng alone 4.2 and 3.2, imagecodecs 4.8, Pillow 6.7; to inflate, zlib 2.7 and
2.1, zlib-ng 1.75, libdeflate 1.5 (it cannot stop), ISA-L 1.7 and 1.4; pyspng on what is inflated, 0.8 and 0.6.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

try:
    import pyspng
    from isal import isal_zlib
except ImportError:
    AVAILABLE = False
else:
    AVAILABLE = True
    _DAMAGED = (isal_zlib.error, RuntimeError, ValueError)

_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_CHANNELS = {0: 1, 2: 3}  # by PNG's colour type: gray, RGB
# Chunks that change what the pixels are: transparency, an animation. Others that may be ignored begin in lower case.
_CHANGING = (b'tRNS', b'acTL')
_MAX_STORED = 65535  # bytes of a deflate block that is not compressed
_MAX_PIXELS = 2**30  # OpenCV's limit


@dataclass(frozen=True)
class PngHeader:
    """What the header of a plain PNG says: 8 bits, gray (1 channel) or RGB (3 channels), not interlaced."""

    height: int
    width: int
    channels: int


def plain_header(content: bytes) -> PngHeader | None:
    """The header of a PNG that `upper_rows` may read.

    Args:
        content: an encoded picture of any format.

    Returns:
        None where it is another kind of picture, its header is damaged, or the packages are not installed.
    """
    if not AVAILABLE or content[:8] != _SIGNATURE or content[8:16] != b'\0\0\0\x0dIHDR' or len(content) < 33:
        return None
    width, height, depth, colour, compression, filtering, interlace, crc = struct.unpack('>IIBBBBBI', content[16:33])
    plain = depth == 8 and colour in _CHANNELS and not (compression or filtering or interlace)
    if not plain or isal_zlib.crc32(content[12:29]) != crc or not 0 < height * width <= _MAX_PIXELS:
        return None
    return PngHeader(height, width, _CHANNELS[colour])


def upper_rows(content: bytes, header: PngHeader, count: int) -> np.ndarray | None:
    """Decode the first `count` rows.

    The whole file is checked by its checksums; only pixels below, in a file that was written wrongly, go unseen.

    Args:
        content: the PNG.
        header: what `plain_header` found in it.
        count: rows, at least one.

    Returns:
        (count, W, C), uint8, RGB or gray, the pixels that OpenCV reads; None where there are not so many rows, the PNG
        has transparency or is an animation, or is damaged: read it by `hat_plugin.data.images`, which says why.
    """
    compressed = _compressed(content) if count <= header.height else None
    if compressed is None:
        return None
    size = count * (1 + header.width * header.channels)
    try:
        filtered = isal_zlib.decompressobj().decompress(compressed, size)
        if len(filtered) != size:
            return None
        rows = pyspng.load(_stored_png(filtered, count, header))
    except _DAMAGED:  # type: ignore[misc]  # isal annotates it as an instance
        return None
    return rows.reshape(count, header.width, header.channels)


def _compressed(content: bytes) -> bytes | None:
    """The compressed rows, from all their chunks; None where a chunk is damaged or changes what pixels are."""
    view, position = memoryview(content), len(_SIGNATURE)
    parts: list[memoryview] = []
    after = False  # the rows' chunks must follow one another
    while position + 12 <= len(view):
        kind = content[position + 4 : position + 8]
        end = position + 8 + int.from_bytes(view[position : position + 4], 'big')
        if isal_zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], 'big'):
            return None
        if kind == b'IDAT' and not after:
            parts.append(view[position + 8 : end])
        elif kind == b'IEND':
            return b''.join(parts)
        elif kind in _CHANGING or (kind[0] < ord('a') and position > len(_SIGNATURE)):
            return None
        else:
            after = bool(parts)
        position = end + 4
    return None


def _stored_png(filtered: bytes, count: int, header: PngHeader) -> bytes:
    """A PNG of these rows, each after its filter's number, whose deflate stream is of stored blocks."""
    view = memoryview(filtered)
    body: list[bytes | memoryview] = [b'\x78\x01']
    for start in range(0, len(view), _MAX_STORED):
        block = view[start : start + _MAX_STORED]
        last = start + _MAX_STORED >= len(view)
        body += [struct.pack('<BHH', last, len(block), len(block) ^ 0xFFFF), block]
    body.append(isal_zlib.adler32(filtered).to_bytes(4, 'big'))
    colour = next(kind for kind, channels in _CHANNELS.items() if channels == header.channels)
    head = struct.pack('>IIBBBBB', header.width, count, 8, colour, 0, 0, 0)
    return b''.join([_SIGNATURE, *_chunk(b'IHDR', [head]), *_chunk(b'IDAT', body), *_chunk(b'IEND', [])])


def _chunk(kind: bytes, parts: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """A chunk's length, kind, data and checksum."""
    crc = isal_zlib.crc32(kind)
    for part in parts:
        crc = isal_zlib.crc32(part, crc)
    return [sum(map(len, parts)).to_bytes(4, 'big'), kind, *parts, crc.to_bytes(4, 'big')]
