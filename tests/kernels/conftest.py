"""The kernels, compiled once for all tests here, by two processes at a time: that tests the lock along the way."""

from __future__ import annotations

import ctypes
import fcntl
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hat_plugin.kernels import build, library
from hat_plugin.kernels.build import main
from hat_plugin.kernels.products import products_by

AMX = 2


@dataclass(frozen=True)
class Built:
    """What two processes that built at once left behind.

    Attributes:
        folder: the cache, of this test session alone.
        exit_codes: of both processes.
        compiler_calls: the arguments of each call of the compiler.
    """

    folder: Path
    exit_codes: list[int | None]
    compiler_calls: list[str]


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
    """A folder of the test run, and what `make` said of it, called by one of the processes that share the tests."""
    root = factory.getbasetemp().parent if 'PYTEST_XDIST_WORKER' in os.environ else factory.getbasetemp()
    folder, said = root / name, root / f'{name}.json'
    with open(root / f'{name}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            folder.mkdir(exist_ok=True)
            said.write_text(json.dumps(make(folder)))
    return folder, json.loads(said.read_text())


@pytest.fixture(scope='session')
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The kernels as a user builds them."""
    folder, (exit_codes, calls) = once(tmp_path_factory, 'kernels', _build)
    return Built(folder / 'cache' / 'kernels', exit_codes, calls)


def _build(folder: Path) -> tuple[list[int | None], list[str]]:
    """Build through a script that notes how often the compiler is called; or skip."""
    compiler = next(filter(None, map(shutil.which, ('g++', 'c++', 'clang++'))), None)
    if compiler is None:
        pytest.skip('no C++ compiler on this machine')
    calls, wrapper = folder / 'calls', folder / 'counting compiler'
    wrapper.write_text(f'#!/bin/sh\necho "$*" >> "{calls}"\nexec {compiler} "$@"\n')
    wrapper.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('HAT_KERNEL_CACHE', str(folder / 'cache' / 'kernels'))
        patch.setenv('CXX', f"'{wrapper}'")
        running = [multiprocessing.get_context('spawn').Process(target=main, args=([],)) for _ in range(2)]
        for process in running:
            process.start()
        for process in running:
            process.join(timeout=300)
    return [process.exitcode for process in running], calls.read_text().splitlines()


@pytest.fixture(scope='module')
def kernel(built: Built):
    """The compiled library, in use for the tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('HAT_KERNEL_CACHE', str(built.folder))
        library.load.cache_clear()
        loaded = library.load()
        assert loaded is not None, 'the library that has been built cannot be loaded'
        yield loaded
        library.load.cache_clear()


@pytest.fixture
def by_cpp(kernel: object) -> Iterator[None]:
    """The library is there, and its products are taken on any processor."""
    with products_by('cpp'):
        yield


@pytest.fixture(scope='session')
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels with AMX in C++, that way chosen."""

    def make(folder: Path) -> None:
        try:
            build._compile(build._compiler(), folder / 'kernels.so', '-DHAT_EMULATED_TILES')
        except build.BuildError as error:
            pytest.skip(f'no C++ compiler on this machine: {error}')

    loaded = library.open_library(once(tmp_path_factory, 'emulated', make)[0] / 'kernels.so')
    if loaded.hat_bf16_way(AMX) != AMX:
        pytest.skip('vectors of this processor are too short')
    return loaded


@pytest.fixture(params=['emulated', 'kernel'])
def amx(request: pytest.FixtureRequest) -> ctypes.CDLL:
    """A library that multiplies so."""
    library = request.getfixturevalue(request.param)
    if library.hat_bf16_way(-1) != 2:
        pytest.skip('this processor has no AMX')
    return library
