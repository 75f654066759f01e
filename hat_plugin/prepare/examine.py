"""Decoding each picture of a large set once, to list those that can be used; goes on after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from hat_plugin.data.images import read_image
from hat_plugin.data.lmdb_io import LmdbWriter, key_of
from hat_plugin.data.lmdb_writer import EncodedImage
from hat_plugin.engine.progress import progress
from hat_plugin.engine.workers import Mapper
from hat_plugin.errors import DataError

_CHUNK = 128


@dataclass(frozen=True)
class Examined:
    """What is known of a picture: its shape as it is stored, or why it cannot be used."""

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = ''
    error: str = ''


class Journal:
    """Results that are in already, chunk by chunk, in a file beside the list to be.

    Args:
        path: of the file.
        job: a journal of another job is thrown away.

    Raises:
        DataError: the disk does not take it (also from `add`).
    """

    def __init__(self, path: Path, job: str) -> None:
        self.path = path
        self.chunks: dict[int, list[Examined]] = {}
        lines = path.read_text(encoding='utf-8', errors='replace').split('\n') if path.exists() else []
        kept = [job]
        for line in lines[1:] if lines[:1] == [job] else []:
            try:
                number, found = json.loads(line)
                self.chunks[number] = [Examined(**{**item, 'shape': tuple(item['shape'])}) for item in found]
            except (ValueError, TypeError, KeyError):  # the end, or the line that was being written at the kill
                continue
            kept.append(line)
        try:
            path.write_text(''.join(f'{line}\n' for line in kept), encoding='utf-8')
            self._handle = open(path, 'a', encoding='utf-8')  # noqa: SIM115 (closed by __exit__)
        except OSError as error:
            raise DataError(f'{path}: writing failed ({error}); make room, then run the same again') from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._handle.close()

    def add(self, number: int, found: list[Examined]) -> None:
        """Note a chunk's results."""
        self.chunks[number] = found
        try:
            self._handle.write(json.dumps([number, [asdict(item) for item in found]]) + '\n')
            self._handle.flush()
        except OSError as error:
            raise DataError(f'{self.path}: writing failed ({error}); make room, then run the same again') from error


def examine(
    source: Path, names: list[str], mapper: Mapper, journal: Journal, writer: LmdbWriter | None
) -> Iterator[Examined]:
    """Decode each picture and, with a writer, pack its file unchanged.

    Args:
        source: the folder.
        names: pictures in it, relative.
        mapper: see `hat_plugin.engine.workers.worker_pool`.
        journal: what is done already, and where to note the rest.
        writer: of an LMDB, or None.

    Yields:
        What was found of each picture, in the order of `names`.
    """
    chunks = [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
    missing = [number for number in range(len(chunks)) if not _is_done(journal.chunks.get(number), writer)]
    new = mapper(_examine_chunk, [(source, chunks[number], writer is not None) for number in missing])
    waiting = set(missing)
    with progress(total=len(names), description='ImageNet', unit='picture') as bar:
        for number, chunk in enumerate(chunks):
            if number in waiting:
                found, values = next(new)
                if writer is not None:
                    _pack(writer, found, values)
                journal.add(number, found)
            yield from journal.chunks[number]
            bar.update(len(chunk))


def image_key(name: str) -> str:
    """A picture's key in the LMDB: n01440764/n01440764_18."""
    return key_of(os.path.splitext(name)[0])


def _is_done(found: list[Examined] | None, writer: LmdbWriter | None) -> bool:
    if found is None:
        return False
    return writer is None or all(item.error or image_key(item.name) in writer for item in found)


def _pack(writer: LmdbWriter, found: list[Examined], values: list[bytes]) -> None:
    for item, value in zip(found, values, strict=True):
        key = image_key(item.name)
        if not item.error and key not in writer:
            height, width, channels = item.shape
            writer.put_all([EncodedImage(key, value, (height, width, channels), item.dtype)])


def _examine_chunk(task: tuple[Path, list[str], bool]) -> tuple[list[Examined], list[bytes]]:
    source, names, pack = task
    found, values = [], []
    for name in names:
        value = b''
        try:
            if any(character.isspace() for character in name):
                raise DataError(f'{source / name}: a list of images cannot hold a name with spaces; rename it')
            value = (source / name).read_bytes()
            image = read_image(value, channels=None, name=str(source / name))
            found.append(Examined(name, image.shape, str(image.dtype)))
        except (DataError, OSError) as error:
            found.append(Examined(name, error=str(error)))
        values.append(value if pack else b'')
    return found, values
