"""Compile the kernels for this machine: ``python -m hat_plugin.kernels.build`` (a minute, once a machine).

It needs g++ or clang++ (or what CXX names) and downloads nothing. Without it attention runs through torch's kernels.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from hat_plugin.engine.files import atomic_file
from hat_plugin.errors import HatPluginError
from hat_plugin.kernels.library import FLAGS, HEADERS, SOURCES, WITHOUT_TILES, has_amx, library_path, load, private

logger = logging.getLogger(__name__)

PATIENCE = 300  # seconds after which a compiler, or the check of what it made, is given up


class BuildError(HatPluginError):
    """The kernels could not be built here; the message says what stood in the way. Everything runs without them."""


class Unfinished(BuildError):
    """The machine had no time for it: no reason to build anything less."""


def build(*, force: bool = False) -> Path:
    """Compile the kernels unless they lie there already, and check them in a process of their own.

    Several processes may call it at once: one compiles, the others wait for it. A library that fails its check, even
    by an illegal instruction, is never seen by anyone else.

    Args:
        force: compile even so.

    Returns:
        The library's file.

    Raises:
        BuildError: no source, no compiler, a folder that others may write to, or a library that fails its check.
    """
    missing = [str(path) for path in (*SOURCES, *HEADERS) if not path.is_file()]
    if missing:
        raise BuildError(f'{", ".join(missing)}: missing; install hat_plugin with its package data')
    path = library_path()
    with _lock(path.parent):
        if force or not path.is_file():
            compiler = _compiler()
            with atomic_file(path) as aside:
                try:
                    _compile(compiler, aside)
                    _check(aside)
                except BuildError as error:
                    if not has_amx() or isinstance(error, Unfinished):
                        raise
                    logger.warning('once more, without AMX: %s', error)
                    _compile(compiler, aside, WITHOUT_TILES)
                    _check(aside)
    load.cache_clear()
    return path


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Make the folder, this user's alone, and let one process at a time into it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not private(folder):
            raise BuildError(f'others may write to {folder}: `chmod go-w` it, or name another in HAT_KERNEL_CACHE')
        with open(folder / 'lock', 'w') as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise BuildError(f'cannot write to {folder} ({error}): name another folder in HAT_KERNEL_CACHE') from error


def _compiler() -> list[str]:
    """The command of a C++ compiler."""
    named = os.environ.get('CXX')
    for command in [named] if named else ['g++', 'c++', 'clang++']:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    wanted = f'CXX names {named!r}, which is no command here' if named else 'neither g++, c++ nor clang++ is here'
    raise BuildError(f'{wanted}: install g++, or go without; attention then runs through torch')


def _check(library: Path) -> None:
    _run([sys.executable, '-m', 'hat_plugin.kernels.check', str(library)], 'the check of the compiled kernel')


def _compile(compiler: list[str], target: Path, *more: str) -> None:
    """Compile with `FLAGS` and more, all at once, then link without OpenMP, as `library.open_library` explains."""
    compiled = {source: target.with_suffix(f'.{number}.o') for number, source in enumerate(SOURCES)}
    calls = [[*compiler, *FLAGS, *more, '-c', str(source), '-o', str(made)] for source, made in compiled.items()]
    try:
        with ThreadPoolExecutor(len(calls)) as pool:
            list(pool.map(lambda call: _run(call, 'the compiler'), calls))
        _run([*compiler, '-shared', *map(str, compiled.values()), '-o', str(target)], 'the linker')
        target.chmod(0o700)
    finally:
        for made in compiled.values():
            made.unlink(missing_ok=True)


def _run(command: list[str], what: str) -> None:
    """Run a command to its end, or raise a BuildError with the end of what it said."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get('PYTHONPATH', '')]).rstrip(os.pathsep)
    try:
        environment = {**os.environ, 'PYTHONPATH': path}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unfinished(f'{what} did not finish: {error}') from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise BuildError(f'{what} failed with code {done.returncode}: {shlex.join(command)}\n{said}')


def main(argv: list[str] | None = None) -> int:
    """The command: 0 built, 2 not."""
    parser = argparse.ArgumentParser(prog='python -m hat_plugin.kernels.build', description='Compile the CPU kernels.')
    parser.add_argument('--force', action='store_true', help='compile even if they have been compiled before')
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    try:
        logger.info('built and checked: %s', build(force=args.force))
    except BuildError as error:
        logger.error('not built: %s', error)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
