"""Compiling the kernel: by several at once, without a compiler, with one that fails, and who may write where."""

from __future__ import annotations

import platform
import shutil

import pytest

from hat_plugin.kernels import build as build_module
from hat_plugin.kernels import check, library
from hat_plugin.kernels.build import BuildError, build, main
from hat_plugin.kernels.window_attention import available


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """An empty folder for what is built."""
    folder = tmp_path / 'cache' / 'kernels'
    monkeypatch.setenv('HAT_KERNEL_CACHE', str(folder))
    library.load.cache_clear()
    yield folder
    library.load.cache_clear()


def test_two_processes_build_at_once_and_one_compiles(built):
    assert built.exit_codes == [0, 0]
    assert len(built.compiler_calls) == len(library.SOURCES) + 1  # each compiled once, and linked
    assert sorted(path.suffix for path in built.folder.iterdir()) == ['', '.so']  # the lock and the library
    assert built.folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize('level', ['x86-64', 'x86-64-v3', 'x86-64-v4'])
def test_processors_with_shorter_vectors(built, tmp_path, level):
    """The kernels as they are compiled for others than this one: SSE2, AVX2, AVX-512 without bf16."""
    flags = library._processor().split()
    wanted = {'x86-64': 'sse2', 'x86-64-v3': 'avx2', 'x86-64-v4': 'avx512vl'}[level]
    if platform.machine() != 'x86_64' or wanted not in flags:
        pytest.skip(f'this processor does not run {level}')
    file = tmp_path / 'kernels.so'
    build_module._compile(build_module._compiler(), file, f'-march={level}')
    assert list(check.faults(file)) == []


def test_what_others_may_have_written_is_not_loaded(built, cache):
    shutil.copytree(built.folder, cache)
    assert available()
    for path in (cache, library.library_path()):
        mode = path.stat().st_mode
        path.chmod(mode | 0o002)
        library.load.cache_clear()
        assert not available()
        path.chmod(mode)
    cache.chmod(0o777)
    with pytest.raises(BuildError, match='others may write'):
        build()


def test_nothing_is_compiled_unasked(cache, caplog):
    with caplog.at_level('INFO', logger='hat_plugin.kernels'):
        assert not available() and not available()
    assert not cache.exists()
    assert caplog.text.count('python -m hat_plugin.kernels.build') == 1


def test_no_compiler_is_said_and_nothing_breaks(cache, monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('CXX', raising=False)
    with pytest.raises(BuildError, match='install g\\+\\+'):
        build()
    assert main([]) == 2
    monkeypatch.setenv('CXX', 'nosuch++ -m64')
    with pytest.raises(BuildError, match="CXX names 'nosuch\\+\\+ -m64'"):
        build()
    assert not available()


def test_a_compiler_that_fails_leaves_nothing_behind(cache, monkeypatch, tmp_path):
    wrapper = tmp_path / 'broken'
    wrapper.write_text('#!/bin/sh\necho no such option >&2\nexit 3\n')
    wrapper.chmod(0o700)
    monkeypatch.setenv('CXX', str(wrapper))
    with pytest.raises(BuildError, match='code 3.*\n.*no such option'):
        build()
    assert [path.name for path in cache.iterdir()] == ['lock']


def test_a_library_that_fails_its_check_is_never_installed(cache, monkeypatch, tmp_path):
    wrapper = tmp_path / 'empty'
    wrapper.write_text('#!/bin/sh\nfor last; do :; done\n: > "$last"\n')  # makes an empty file of what -o names
    wrapper.chmod(0o700)
    monkeypatch.setenv('CXX', str(wrapper))
    with pytest.raises(BuildError, match='the check of the compiled kernel failed'):
        build()
    assert [path.name for path in cache.iterdir()] == ['lock']


def test_a_machine_that_is_too_busy_gets_no_lesser_library(cache, monkeypatch, tmp_path, caplog):
    """Without AMX it would be built for good: its name tells nothing of it."""
    compiler = tmp_path / 'slow'
    compiler.write_text('#!/bin/sh\nexec sleep 60\n')
    compiler.chmod(0o755)
    monkeypatch.setenv('CXX', str(compiler))
    monkeypatch.setattr(build_module, 'PATIENCE', 0.1)
    monkeypatch.setattr(build_module, 'has_amx', lambda: True)
    with pytest.raises(BuildError, match='the compiler did not finish'):
        build()
    assert 'once more' not in caplog.text
    assert not library.library_path().exists()


def test_a_folder_may_be_named_from_where_one_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HAT_KERNEL_CACHE', '.')
    assert library.library_path().parent == tmp_path


def test_a_damaged_library_is_said_once_and_done_without(cache, caplog):
    cache.mkdir(parents=True)
    library.library_path().write_bytes(b'\x7fELF damaged')
    library.library_path().chmod(0o700)
    assert not available() and not available()
    assert caplog.text.count('cannot be loaded') == 1
