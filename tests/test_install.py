"""BasicSR's installer on a small archive of the same shape, the wheel outside the checkout, and the Makefile."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

import hat_plugin
from hat_plugin import install_basicsr, resources
from hat_plugin.errors import HatPluginError
from hat_plugin.install_basicsr import ARCHIVE, InstallError

# The passages of BasicSR's setup.py that matter here, in its own manner: a version read in a way that fails from
# Python 3.13 on, and torch demanded for the build.
SETUP = """
from setuptools import find_packages, setup

version_file = 'basicsr/version.py'


def get_version():
    raise KeyError('__version__')


def make_cuda_ext(name, module, sources, sources_cuda=None):
    pass


setup(
    name='basicsr',
    version=get_version(),
    packages=find_packages(),
    setup_requires=['cython', 'numpy', 'torch'],
    install_requires=open('requirements.txt').read().split('\\n'))
"""
FILES = {
    'setup.py': SETUP,
    'requirements.txt': 'addict\ntb-nightly\ntorch>=1.7\n',
    'VERSION': '1.4.2\n',
    'basicsr/__init__.py': '',
}


def make_archive(files: dict[str, str], extra: tarfile.TarInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f'basicsr-1.4.2/{name}')
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
        if extra is not None:
            tar.addfile(extra, io.BytesIO(b'x' * extra.size))
    return buffer.getvalue()


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small archive in BasicSR's shape, whose sum is the expected one."""
    content = make_archive(FILES)
    monkeypatch.setattr(install_basicsr, 'SHA256', hashlib.sha256(content).hexdigest())
    return content


def test_the_wheel_is_built_from_the_corrected_archive(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pip = install_basicsr._pip  # here without the network that an isolated build takes setuptools from
    monkeypatch.setattr(install_basicsr, '_pip', lambda *words, **how: pip(*words, '--no-build-isolation', **how))
    (tmp_path / ARCHIVE).write_bytes(archive)
    wheels = tmp_path / 'wheels'
    assert install_basicsr.main(['--sdist', str(tmp_path / ARCHIVE), '--wheel-dir', str(wheels)]) == 0
    wheel = wheels / 'basicsr-1.4.2-py3-none-any.whl'
    assert capfd.readouterr().out.splitlines()[-1] == str(wheel)
    with zipfile.ZipFile(wheel) as content:
        metadata = content.read('basicsr-1.4.2.dist-info/METADATA').decode()
    requires = [line.removeprefix('Requires-Dist: ') for line in metadata.splitlines() if 'Requires-Dist' in line]
    assert requires == ['addict', 'tensorboard', 'setuptools; python_version >= "3.12"', 'torch>=1.7']


def test_an_archive_with_another_sum_is_refused(
    archive: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'other.tar.gz').write_bytes(archive + b'\0')
    assert install_basicsr.main(['--sdist', str(tmp_path / 'other.tar.gz'), '--wheel-dir', str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert 'other.tar.gz' in message
    assert install_basicsr.SHA256 in message
    assert not list(tmp_path.glob('*.whl'))


@pytest.mark.parametrize('name', ['../outside', '/outside', 'basicsr-1.4.2/a/../../../outside'])
def test_members_that_would_land_outside_are_refused(name: str, tmp_path: Path) -> None:
    member = tarfile.TarInfo(name)
    member.size = 1
    with pytest.raises(InstallError, match='refused to unpack'):
        install_basicsr.unpack(make_archive(FILES, member), tmp_path)


def test_links_are_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo('basicsr-1.4.2/link')
    member.type, member.linkname = tarfile.SYMTYPE, '/etc'
    with pytest.raises(InstallError, match='refused to unpack'):
        install_basicsr.unpack(make_archive(FILES, member), tmp_path)


def test_an_unknown_setup_is_refused_not_half_corrected(tmp_path: Path) -> None:
    source = install_basicsr.unpack(make_archive(FILES | {'setup.py': 'setup()'}), tmp_path)
    with pytest.raises(InstallError, match=r'setup\.py'):
        install_basicsr.correct(source)
    assert (source / 'setup.py').read_text() == 'setup()'


def _index(folder: Path, archive: bytes) -> Path:
    """A package index of files, with the archive beside other things."""
    (folder / 'files').mkdir(parents=True)
    (folder / 'files' / ARCHIVE).write_bytes(archive)
    (folder / 'simple' / 'basicsr').mkdir(parents=True)
    links = f'<a href="x.whl">x</a><a class="y" href="../../files/{ARCHIVE}#sha256=00">{ARCHIVE}</a>'
    (folder / 'simple' / 'basicsr' / 'index.html').write_text(f'<html><body>{links}</body></html>')
    return folder / 'simple'


def test_pip_s_own_index_settings_are_honoured(archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith('PIP_')]:
        monkeypatch.delenv(name)
    (tmp_path / 'pip.conf').write_text(
        f'[global]\nindex-url = {tmp_path.as_uri()}/nowhere\n[install]\nextra-index-url = {tmp_path.as_uri()}/install\n'
    )
    monkeypatch.setenv('PIP_CONFIG_FILE', str(tmp_path / 'pip.conf'))
    monkeypatch.setenv('PIP_QUIET', '1')  # as the Makefile has it; pip would list nothing
    settings = install_basicsr.pip_settings()
    assert settings['index-url'].endswith('/nowhere')
    assert settings['extra-index-url'].endswith('/install')
    monkeypatch.setenv('PIP_INDEX_URL', _index(tmp_path / 'index', archive).as_uri())
    assert install_basicsr.pip_settings()['index-url'].endswith('/index/simple')
    assert install_basicsr.fetch(install_basicsr.pip_settings()) == archive


def test_a_folder_of_links_serves_too(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / ARCHIVE).write_bytes(archive)
    assert install_basicsr.fetch({'find-links': f'{tmp_path}/absent {tmp_path}', 'no-index': 'true'}) == archive


def test_where_it_was_looked_for_is_told_without_passwords(tmp_path: Path) -> None:
    settings = {
        'index-url': 'https://name:secret@127.0.0.1:9/simple',
        'extra-index-url': tmp_path.as_uri(),
        'find-links': str(tmp_path),
    }
    with pytest.raises(InstallError) as raised:
        install_basicsr.fetch(settings)
    message = str(raised.value)
    assert '127.0.0.1:9' in message
    assert str(tmp_path) in message
    assert 'secret' not in message
    assert '--sdist' in message


def test_an_installed_basicsr_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install_basicsr, 'installed_version', lambda: '1.4.2')
    monkeypatch.setattr(install_basicsr, 'fetch', lambda settings: pytest.fail('it was fetched'))
    assert install_basicsr.main([]) == 0
    assert 'installed already' in capsys.readouterr().out


@pytest.mark.slow
def test_the_published_archive_becomes_a_wheel(repository: Path, tmp_path: Path) -> None:
    """Needs an index that has BasicSR; runs the file as a user would."""
    command = [sys.executable, str(repository / 'hat_plugin' / 'install_basicsr.py'), '--wheel-dir', str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    if 'was not found' in done.stderr:
        pytest.skip(f'no index has BasicSR: {done.stderr}')
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / 'basicsr-1.4.2-py3-none-any.whl') as content:
        names = content.namelist()
    assert {'basicsr/models/sr_model.py', 'basicsr/metrics/niqe_pris_params.npz'} <= set(names)


def _run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f'{command}: {done.stdout}{done.stderr}'
    return done.stdout


@pytest.fixture(scope='module')
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from a copy, so that no build/ appears in the checkout."""
    copy = tmp_path_factory.mktemp('copy')
    leave = shutil.ignore_patterns('__pycache__', '*.egg-info')
    for name in ('hat_plugin', 'options'):
        shutil.copytree(repository / name, copy / name, ignore=leave)
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE'):
        if (repository / name).is_file():
            shutil.copy(repository / name, copy)
    made = tmp_path_factory.mktemp('wheel')
    pip = (sys.executable, '-m', 'pip', '--disable-pip-version-check')
    _run(*pip, 'wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', made, copy, cwd=made)
    return next(made.glob('hat_plugin-*.whl'))


def test_the_wheel_carries_the_package_and_the_option_files(wheel: Path, repository: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        metadata = content.read(f'hat_plugin-{hat_plugin.__version__}.dist-info/METADATA').decode()
    ours = {str(file.relative_to(repository)) for file in (repository / 'hat_plugin').rglob('*.py')}
    options = {f'hat_plugin/options/{file.name}' for file in (repository / 'options').glob('*.yml')}
    read = {
        f'hat_plugin/{name}' for name in ('compare/templates/report.html', 'kernels/products.cpp', 'kernels/tiles.hpp')
    }
    assert ours | options | read <= names
    assert not {name for name in names if not name.startswith(('hat_plugin/', 'hat_plugin-'))}
    assert 'License-Expression: Apache-2.0' in metadata or 'License: Apache-2.0' in metadata
    assert 'Requires-Python: >=3.10' in metadata


def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Installed into an empty environment that sees this one's other packages (torch is not downloaded again)."""
    home = tmp_path / 'venv'
    _run(sys.executable, '-m', 'venv', '--without-pip', home, cwd=tmp_path)
    python = home / 'bin' / 'python'
    site = Path(_run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=tmp_path).strip())
    here = {sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}
    # Plain path lines: .pth files in those folders, an editable install of this checkout among them, stay unread.
    (site / 'packages_of_the_tests.pth').write_text('\n'.join(sorted(here)) + '\n')
    for file in Path(sysconfig.get_path('purelib')).glob('distutils-precedence.pth'):
        shutil.copy(file, site)
    _run(python, '-m', 'pip', 'install', '--no-deps', '--no-index', '--ignore-installed', wheel, cwd=tmp_path)

    report: dict[str, Any] = json.loads(_run(home / 'bin' / 'basicsr', 'doctor', '--json', cwd=tmp_path))
    assert report['can_train']
    (place,) = [detail for name, _, detail in report['sections']['Versions'] if name == 'hat_plugin']
    assert Path(place) == site / 'hat_plugin'
    look = "import hat_plugin.resources as r; print(*sorted(p.name for p in r.options_folder().glob('*.yml')))"
    assert _run(python, '-c', look, cwd=tmp_path).split() == sorted(
        file.name for file in resources.options_folder().glob('*.yml')
    )


def test_option_files_are_found_by_name(repository: Path) -> None:
    some = sorted((repository / 'options').glob('*.yml'))[0]
    assert resources.option_file(some.name) == some
    assert resources.option_file(some.stem) == some
    with pytest.raises(HatPluginError, match=f'did you mean.*{some.stem}'):
        resources.option_file(some.stem + 'x')
    with pytest.raises(HatPluginError, match='no option file'):
        resources.option_file('../setup')


def test_make_refuses_an_old_python_and_says_so(repository: Path, tmp_path: Path) -> None:
    old = tmp_path / 'python-old'
    code = 'import sys; sys.version_info = (3, 9, 1); exec(sys.argv[1])'
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$2"\n')
    old.chmod(0o755)
    done = subprocess.run(
        ['make', 'venv', f'VENV={tmp_path}/venv', f'PYTHON={old}'], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert 'Python 3.10 or newer is needed, this is 3.9' in done.stderr
    assert not (tmp_path / 'venv').exists()
