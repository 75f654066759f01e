"""A folder that is written beside its name until it is whole: its journal, and the renames at the end."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hat_plugin.engine.files import sync_directory
from hat_plugin.errors import DataError

JOURNAL = 'journal.txt'
JOB = 'job.txt'


def journal_line(line: str, source: str) -> str:
    """A line of a writer's journal: that of meta_info.txt, and what the image comes from."""
    return f'{line}\t{source}' if source else line


def split_journal_line(text: str) -> tuple[str, str]:
    """What `journal_line` put together. No key holds a tab."""
    line, _, source = text.partition('\t')
    return line, source


def writing_failure(path: Path, aside: Path, error: Exception) -> DataError:
    """What is said when the disk does not take `path`, which is written as `aside`."""
    return DataError(
        f'{path}: writing failed ({error}); make room on the disk, then run the same again: it goes on from '
        f'{aside.name}'
    )


def replace_folder(aside: Path, path: Path, *, overwrite: bool) -> None:
    """Flush the folder `aside`, rename it to `path` and remove its journal.

    With `overwrite` what was under `path` is moved aside first and removed afterwards.

    Raises:
        OSError: `path` exists and `overwrite` is not set, or the file system refuses.
    """
    old = path.with_name(f'.{path.name}.old')
    sync_directory(aside)
    if overwrite and path.exists():
        os.rename(path, old)
    os.rename(aside, path)
    sync_directory(path.parent)
    for name in ('lock.mdb', JOURNAL, JOB):
        (path / name).unlink(missing_ok=True)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(path: Path) -> None:
    """Put back what `replace_folder` had moved aside when it was killed between its two renames."""
    old = path.with_name(f'.{path.name}.old')
    if old.exists() and not path.exists():
        os.rename(old, path)
    elif old.exists():
        shutil.rmtree(old)
