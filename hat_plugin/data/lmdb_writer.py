"""Writing an LMDB of images so that it is under its name only when it is whole, and goes on after a kill."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import cv2
import lmdb
import numpy as np

from hat_plugin.data.aside import (
    JOB,
    JOURNAL,
    journal_line,
    replace_folder,
    restore_folder,
    split_journal_line,
    writing_failure,
)
from hat_plugin.data.lmdb_meta import KINDS, META_INFO, Entry, check_key, check_whole, format_line, parse_line
from hat_plugin.engine.files import remove_leftovers, write_text_atomic
from hat_plugin.errors import DataError

_BATCH_BYTES = 64 * 2**20
_FIRST_MAP = 256 * 2**20


def encode_image(image: np.ndarray, kind: str, compress_level: int = 1) -> bytes:
    """The bytes that an LMDB keeps of an image.

    Args:
        image: (H, W) or (H, W, C), uint8 or uint16, BGR.
        kind: 'png' or 'raw' (C order, little-endian).
        compress_level: of PNG, 0 to 9.

    Raises:
        ValueError: the dtype is neither uint8 nor uint16, or the kind is unknown.
    """
    if image.dtype not in (np.uint8, np.uint16) or kind not in KINDS:
        raise ValueError(f'an LMDB keeps uint8 or uint16 images as {" or ".join(KINDS)}, not {image.dtype} as {kind!r}')
    if kind == 'raw':
        return image.astype(image.dtype.newbyteorder('<'), copy=False).tobytes()
    done, data = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, compress_level])
    if not done:
        raise ValueError(f'OpenCV cannot encode an image of shape {image.shape} as PNG')
    return data.tobytes()


class EncodedImage(NamedTuple):
    """An image on its way to a writer: key, what `encode_image` gave, (height, width, channels), dtype."""

    key: str
    value: bytes
    shape: tuple[int, int, int]
    dtype: str = 'uint8'


class LmdbWriter:
    """Writes a new LMDB beside its name, as ``.NAME.part``, and renames it when it is whole.

    A killed writer leaves the folder beside; the next one with the same `job` goes on from what was committed (`done`
    says which keys these are), one with another job starts over. Used as a context manager it finishes at the end of
    the block, and after an exception leaves the folder beside for the next try.

    Args:
        path: the `.lmdb` folder to be.
        kind: 'png' or 'raw'.
        compress_level: of PNG, 0 to 9; told to meta_info.txt and used by `put_image`.
        job: how it is written, in words that change when all of the content would (sizes, kernel).
        sources: of what a killed writer left, only what `put_all` was told to come from one of these is kept; None
            keeps all.
        overwrite: replace what is under `path`, once the new one is whole.

    Raises:
        DataError: something is under `path` and `overwrite` is not set; `path` does not end with `.lmdb`; the disk
            does not take it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        kind: str = 'png',
        *,
        compress_level: int = 1,
        job: str = '',
        sources: Collection[str] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.kind = kind
        self.compress_level = compress_level
        self._overwrite = overwrite
        if kind not in KINDS:
            raise ValueError(f'an LMDB of images is of kind {" or ".join(KINDS)}, not {kind!r}')
        if self.path.suffix != '.lmdb':
            raise DataError(f'{self.path}: the name of an LMDB folder must end with .lmdb (BasicSR reads no other)')
        restore_folder(self.path)
        if self.path.exists() and not overwrite:
            raise DataError(f'{self.path} is there already; remove it, or allow to overwrite it')
        self._aside = self.path.with_name(f'.{self.path.name}.part')
        self._pending: list[tuple[bytes, bytes, str]] = []
        self._pending_bytes = 0
        self._entries: dict[str, Entry] = {}
        try:
            self._begin(f'{kind} {compress_level if kind == "png" else ""}\n{job}\n', sources)
        except (OSError, lmdb.Error) as error:
            raise self._failure(error) from error

    def __enter__(self) -> LmdbWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.close()

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    @property
    def done(self) -> set[str]:
        """Keys that are written, by this writer or by the one before it."""
        return set(self._entries)

    def put_image(self, key: str, image: np.ndarray) -> None:
        """Encode and add an image: (H, W) or (H, W, C), uint8 or uint16, BGR. Raises as `put` and `encode_image`."""
        shape = (*image.shape, 1)[:3]
        self.put(key, encode_image(image, self.kind, self.compress_level), shape, str(image.dtype))

    def put(self, key: str, value: bytes, shape: tuple[int, int, int], dtype: str = 'uint8') -> None:
        """Add an image that `encode_image` has encoded (in another process, say).

        Args:
            key: see `hat_plugin.data.lmdb_io.key_of`.
            value: what `encode_image` gave.
            shape: (height, width, channels).
            dtype: 'uint8' or 'uint16'; noted for raw images.

        Raises:
            DataError: the key is there already, or cannot be one; the disk does not take it.
        """
        self.put_all([EncodedImage(key, value, shape, dtype)])

    def put_all(self, images: Iterable[EncodedImage], source: str = '') -> None:
        """Add images that belong together: after a kill either all of them are done, or none. Raises as `put`.

        Args:
            images: encoded.
            source: what they come from, for `sources` of the next writer; one line.
        """
        for key, value, shape, dtype in images:
            data = check_key(key, self.kind, self.path)
            if key in self._entries:
                raise DataError(f'{self.path}: two images have the key {key!r}; rename one of them')
            last = dtype if self.kind == 'raw' else str(self.compress_level)
            self._entries[key] = Entry(shape, dtype if self.kind == 'raw' else '')
            self._pending.append((data, value, journal_line(format_line(key, self.kind, shape, last), source)))
            self._pending_bytes += len(value)
        if self._pending_bytes >= _BATCH_BYTES:
            self.commit()

    def commit(self) -> None:
        """Bring what was put so far to the disk; after a kill the next writer goes on from here."""
        if not self._pending:
            return
        try:
            self._journal.write(''.join(f'{line}\n' for _, _, line in self._pending))
            self._journal.flush()
            os.fsync(self._journal.fileno())
            self._commit_growing()
        except (OSError, lmdb.Error) as error:
            raise self._failure(error) from error
        self._pending.clear()
        self._pending_bytes = 0

    def finish(self) -> None:
        """`seal`, then `publish`."""
        self.seal()
        self.publish()

    def seal(self) -> Path:
        """Commit, write meta_info.txt and check the whole, still beside its name.

        Returns:
            The folder beside, which can be read like any LMDB.

        Raises:
            DataError: nothing was put; the count or the size is not what it must be; the disk does not take it.
        """
        self.commit()
        stored = self._handle.stat()['entries']
        self.close()
        if not self._entries or stored != len(self._entries):
            raise DataError(f'{self._aside}: {stored} images stored, {len(self._entries)} put; remove it and try again')
        try:
            lines = [self._line(key) for key in sorted(self._entries)]
            write_text_atomic(self._aside / META_INFO, ''.join(f'{line}\n' for line in lines))
        except OSError as error:
            raise self._failure(error) from error
        check_whole(self._aside)
        return self._aside

    def publish(self) -> None:
        """Rename what is sealed to its name. Raises DataError where something has come under it meanwhile."""
        try:
            replace_folder(self._aside, self.path, overwrite=self._overwrite)
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Stop without finishing; what is committed stays beside for the next try."""
        self._handle.close()
        self._journal.close()
        self._pending.clear()

    def _begin(self, job: str, sources: Collection[str] | None) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        job_file = self._aside / JOB
        if self._aside.exists() and (not job_file.exists() or job_file.read_text(encoding='utf-8') != job):
            shutil.rmtree(self._aside)
        self._aside.mkdir(exist_ok=True)
        remove_leftovers(self._aside)
        try:
            self._open(sources)
        except (DataError, lmdb.Error):  # damaged by a power cut, say: start over
            shutil.rmtree(self._aside)
            self._aside.mkdir()
            self._open(sources)
        if not job_file.exists():
            write_text_atomic(job_file, job)

    def _open(self, sources: Collection[str] | None) -> None:
        data_file = self._aside / 'data.mdb'
        size = data_file.stat().st_size if data_file.exists() else 0
        if size:
            check_whole(self._aside)
        self._handle = lmdb.open(os.fspath(self._aside), map_size=max(_FIRST_MAP, 2 * size))
        journal = self._aside / JOURNAL
        lines = journal.read_text(encoding='utf-8', errors='replace').split('\n') if journal.exists() else []
        kept: dict[str, str] = {}
        # Images of other sources go before the journal is written anew: it names nothing that is stored no more.
        with self._handle.begin(write=True) as transaction:
            for number, text in enumerate(lines, 1):
                line, source = split_journal_line(text)
                try:
                    key, _, entry = parse_line(line, journal, number)
                except DataError:  # the line that was being written when the process was killed
                    continue
                if (sources is None or source in sources) and transaction.get(key.encode('utf-8')) is not None:
                    kept[key] = text
                    self._entries[key] = entry
            for data in list(transaction.cursor().iternext(values=False)):
                if data.decode('utf-8') not in kept:
                    transaction.delete(data)
        write_text_atomic(journal, ''.join(f'{line}\n' for line in kept.values()))
        self._journal = open(journal, 'a', encoding='utf-8')  # noqa: SIM115 (lives on)

    def _commit_growing(self) -> None:
        while True:
            try:
                with self._handle.begin(write=True) as transaction:
                    for key, value, _ in self._pending:
                        transaction.put(key, value)
                return
            except lmdb.MapFullError:
                self._handle.set_mapsize(2 * self._handle.info()['map_size'] + 2 * self._pending_bytes)

    def _line(self, key: str) -> str:
        entry = self._entries[key]
        assert entry.shape is not None
        return format_line(key, self.kind, entry.shape, entry.dtype or str(self.compress_level))

    def _failure(self, error: Exception) -> DataError:
        return writing_failure(self.path, self._aside, error)
