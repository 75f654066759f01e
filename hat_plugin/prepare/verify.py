"""Reading everything that was written once more: readable, of the right shape, in pairs."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hat_plugin.data.lmdb_io import LmdbReader
from hat_plugin.engine.progress import progress
from hat_plugin.errors import DataError
from hat_plugin.prepare.pixels import stamp
from hat_plugin.prepare.plan import Output

_CHUNK = 32


@dataclass(frozen=True)
class Checked:
    """What is known of an output after it was read.

    Attributes:
        shapes: key -> (height, width, channels).
        bytes: of all values.
        content: SHA-256 over all keys and values, in the keys' order; whatever the file around them looks like.
        layout: SHA-256 over all keys and the ground truth's sizes; equal for all outputs of a data set.
        dtypes: the types that occur.
    """

    shapes: dict[str, tuple[int, int, int]]
    bytes: int
    content: str
    layout: str
    dtypes: list[str]


def check_output(
    folder: Path, output: Output, mapper: Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
) -> Checked:
    """Read and decode each image of a sealed output.

    Args:
        folder: where it lies now.
        output: what it is.
        mapper: see `hat_plugin.engine.workers.worker_pool`.

    Raises:
        DataError: an image cannot be read or has another shape than meta_info.txt says.
    """
    keys = sorted(path.stem for path in folder.glob('*.png')) if output.storage == 'disk' else LmdbReader(folder).keys()
    tasks = [(folder, output.storage, keys[start : start + _CHUNK]) for start in range(0, len(keys), _CHUNK)]
    shapes: dict[str, tuple[int, int, int]] = {}
    content, layout = hashlib.sha256(), hashlib.sha256()
    size, dtypes = 0, set()
    with progress(total=len(keys), description=f'verifying {output.name}') as bar:
        for results in mapper(_check_chunk, tasks):
            for key, digest, length, shape, dtype in results:
                shapes[key] = shape
                content.update(f'{key} {digest}\n'.encode())
                layout.update(f'{key} {shape[0] * output.scale} {shape[1] * output.scale}\n'.encode())
                size += length
                dtypes.add(dtype)
            bar.update(len(results))
    return Checked(shapes, size, content.hexdigest(), layout.hexdigest(), sorted(dtypes))


@functools.lru_cache(maxsize=1)
def _reader(folder: Path, version: tuple[str, int, int]) -> LmdbReader:
    """Made once a process and LMDB: a list of a hundred thousand keys takes longer to read than a chunk of images."""
    return LmdbReader(folder)


def _check_chunk(task: tuple[Path, str, list[str]]) -> list[tuple[str, str, int, tuple[int, ...], str]]:
    folder, storage, keys = task
    reader = None if storage == 'disk' else _reader(folder, stamp(folder / 'data.mdb'))
    results = []
    for key in keys:
        if reader is None:
            value = (folder / f'{key}.png').read_bytes()
            image = cv2.imdecode(np.frombuffer(value, np.uint8), cv2.IMREAD_UNCHANGED) if value else None
            if image is None:
                raise DataError(f'{folder}: {key}.png is no readable PNG; remove the folder and run the same again')
            image = image if image.ndim == 3 else image[:, :, None]
        else:
            value, image = reader.read(key), reader.image(key)
            if image.shape != reader.shape(key):
                raise DataError(f'{folder}: {key!r} is {image.shape} and not {reader.shape(key)} as meta_info.txt says')
        results.append((key, hashlib.sha256(value).hexdigest(), len(value), image.shape, str(image.dtype)))
    if reader is not None:
        reader.close()  # this may be the main process, in which BasicSR would not get to open the file
    return results
