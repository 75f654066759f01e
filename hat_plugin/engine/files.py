"""Writing files so that a kill, a crash or a full disk never leaves half of one in the way."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hat_plugin.errors import DataError

_LOCK = '.basicsr.lock'


def sync_directory(folder: str | os.PathLike[str]) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut (POSIX; elsewhere a no-op)."""
    if os.name != 'posix':
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a name beside `path` to write to; when the block ends well, flush it and rename it to `path`.

    If the block raises, the file beside is removed and `path` is as it was. Readers see the old file or the whole new
    one, never a part. The name beside starts with a dot and ends with ``.tmp``: leftovers of killed processes are
    told apart by that.

    Args:
        path: where the file belongs; its folder must exist.

    Yields:
        The name to write to, on the same file system.
    """
    target = Path(path)
    aside = target.with_name(f'.{target.name}.{uuid.uuid4().hex[:8]}.tmp')
    try:
        yield aside
        with open(aside, 'rb') as handle:
            os.fsync(handle.fileno())
        os.replace(aside, target)
        sync_directory(target.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file through `atomic_file`."""
    with atomic_file(path) as aside:
        aside.write_text(text, encoding='utf-8')


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete what killed writers left of `atomic_file` in a folder; nobody may be writing there now."""
    for aside in Path(folder).glob('.*.tmp'):
        aside.unlink(missing_ok=True)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep a second command out of a folder while one is at work there. A killed process holds no lock.

    Raises:
        DataError: another process is at work; or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / _LOCK, 'w')  # noqa: SIM115 (closed below)
    except OSError as error:
        raise DataError(f'{folder}: cannot be written to ({error}); choose another place with -o') from error
    with handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # not POSIX
            pass
        except OSError as error:
            raise DataError(f'{folder}: another `basicsr` is at work here; wait for it') from error
        yield  # the file stays: removing it would let two others in, one with the old and one with a new file
