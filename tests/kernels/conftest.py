"""The kernel, compiled once for all tests here, by two processes at a time: that tests the lock along the way."""

from __future__ import annotations

import ctypes
import multiprocessing
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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


@pytest.fixture(scope='session')
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build through a script that notes how often the compiler is called; or skip."""
    compiler = next(filter(None, map(shutil.which, ('g++', 'c++', 'clang++'))), None)
    if compiler is None:
        pytest.skip('no C++ compiler on this machine')
    folder = tmp_path_factory.mktemp('kernels')
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
    return Built(
        folder / 'cache' / 'kernels', [process.exitcode for process in running], calls.read_text().splitlines()
    )


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
    file = tmp_path_factory.mktemp('emulated') / 'kernels.so'
    try:
        build._compile(build._compiler(), file, '-DHAT_EMULATED_TILES')
    except build.BuildError as error:
        pytest.skip(f'no C++ compiler on this machine: {error}')
    loaded = library.open_library(file)
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
