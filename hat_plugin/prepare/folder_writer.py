"""Writing a folder of PNGs with the manners of `LmdbWriter`: aside until it is whole, going on after a kill."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from hat_plugin.data.aside import (
    JOB,
    JOURNAL,
    journal_line,
    replace_folder,
    restore_folder,
    split_journal_line,
    writing_failure,
)
from hat_plugin.data.lmdb_meta import check_key, format_line, parse_line
from hat_plugin.data.lmdb_writer import EncodedImage
from hat_plugin.engine.files import write_text_atomic
from hat_plugin.errors import DataError


class FolderWriter:
    """Writes a new folder of PNGs as ``.NAME.part`` and renames it when it is whole.

    Args:
        path: the folder to be.
        job, sources: as for `LmdbWriter`: another job starts over, images of other sources are removed.
        overwrite: replace what is under `path`, once the new one is whole.

    Raises:
        DataError: something is under `path` and `overwrite` is not set; the disk does not take it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        job: str = '',
        sources: Collection[str] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self._overwrite = overwrite
        restore_folder(self.path)
        if self.path.exists() and not overwrite:
            raise DataError(f'{self.path} is there already; remove it, or allow to overwrite it')
        self._aside = self.path.with_name(f'.{self.path.name}.part')
        self._sizes: dict[str, int] = {}
        self._inherited: set[str] = set()
        try:
            self._begin(job, sources)
        except OSError as error:
            raise self._failure(error) from error

    @property
    def done(self) -> set[str]:
        """Keys that are written, by this writer or by the one before it."""
        return set(self._sizes)

    def put_all(self, images: Iterable[EncodedImage], source: str = '') -> None:
        """Write files that belong together, as `LmdbWriter.put_all` does.

        Raises:
            DataError: the disk does not take them, or a key is wrong or doubled.
        """
        lines = []
        try:
            for key, value, shape, _dtype in images:
                check_key(key, 'png', self.path)
                if key in self._sizes and key not in self._inherited:
                    raise DataError(f'{self.path}: two images have the key {key!r}; rename one of them')
                (self._aside / f'{key}.png').write_bytes(value)
                self._sizes[key] = len(value)
                self._inherited.discard(key)
                lines.append(journal_line(format_line(key, 'png', shape, str(len(value))), source))
            # The first comes last: where the journal has it, the others of its picture are there too.
            self._journal.write(''.join(f'{line}\n' for line in reversed(lines)))
            self._journal.flush()
        except OSError as error:
            raise self._failure(error) from error

    def seal(self) -> Path:
        """Check that all files are there with their sizes, and nothing else.

        Returns:
            The folder beside, which can be read.

        Raises:
            DataError: nothing was put, or a file is missing, too many or of another size.
        """
        self.close()
        files = {entry.name: entry.stat().st_size for entry in os.scandir(self._aside)}
        found = {name.removesuffix('.png'): size for name, size in files.items() if name.endswith('.png')}
        if found != self._sizes or not found:
            raise DataError(f'{self._aside}: {len(found)} files, {len(self._sizes)} written; remove it and try again')
        return self._aside

    def publish(self) -> None:
        """Rename what is sealed to its name. Raises DataError where something has come under it meanwhile."""
        try:
            replace_folder(self._aside, self.path, overwrite=self._overwrite)
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Stop without finishing; what is written stays beside for the next try."""
        self._journal.close()

    def _begin(self, job: str, sources: Collection[str] | None) -> None:
        job_file, journal = self._aside / JOB, self._aside / JOURNAL
        if self._aside.exists() and (not job_file.exists() or job_file.read_text(encoding='utf-8') != job):
            shutil.rmtree(self._aside)
        self._aside.mkdir(parents=True, exist_ok=True)
        write_text_atomic(job_file, job)
        text = journal.read_text(encoding='utf-8', errors='replace') if journal.exists() else ''
        kept = []
        for number, written in enumerate(text.split('\n'), 1):
            line, source = split_journal_line(written)
            try:
                key, _, _ = parse_line(line, journal, number)
                size = int(line.rpartition(' ')[2])
            except (DataError, ValueError):  # the end of the file, or the line that was being written at the kill
                continue
            file = self._aside / f'{key}.png'
            known = sources is None or source in sources
            if known and file.is_file() and file.stat().st_size == size:
                self._sizes[key] = size
                kept.append(written)
        self._inherited = set(self._sizes)
        # First the journal, then the files: killed in between, it names no picture of which only some are there.
        write_text_atomic(journal, ''.join(f'{line}\n' for line in kept))
        self._remove_strangers()
        self._journal = open(journal, 'a', encoding='utf-8')  # noqa: SIM115 (lives on)

    def _remove_strangers(self) -> None:
        for entry in os.scandir(self._aside):
            if entry.name not in (JOB, JOURNAL) and entry.name.removesuffix('.png') not in self._sizes:
                os.unlink(entry.path)

    def _failure(self, error: Exception) -> DataError:
        return writing_failure(self.path, self._aside, error)
