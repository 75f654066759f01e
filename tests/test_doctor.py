"""`basicsr doctor`: a sound environment passes, and each thing that is wrong is named with its remedy."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hat_plugin import doctor, doctor_probes, registry
from hat_plugin.doctor_probes import Report


def _problems(report: Report) -> str:
    return '\n'.join(f'{problem.what} -> {problem.remedy} ({problem.fatal})' for problem in report.problems)


def test_here_training_can_run_and_all_is_told(cli: Callable[..., Any]) -> None:
    outcome = cli('doctor')
    assert outcome.code == 0, outcome.out
    for expected in ('torchvision', 'basicsr', 'arch HAT', 'memory', 'tiny HAT x2', 'Training can run.'):
        assert expected in outcome.out
    assert 'Problem' not in outcome.out


def test_json_is_whole_and_says_the_same(cli: Callable[..., Any]) -> None:
    outcome = cli('doctor', '--json')
    report = json.loads(outcome.out)
    assert report['can_train'] is True
    versions = {name: value for name, value, _ in report['sections']['Versions']}
    assert versions['basicsr'] == importlib.import_module('basicsr').__version__
    assert ['arch HAT', 'hat_plugin'] in [row[:2] for row in report['sections']['Registered']]
    assert not any(problem['fatal'] for problem in report['problems'])


def test_missing_packages_make_one_line_for_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor_probes._installed
    monkeypatch.setattr(doctor_probes, '_installed', lambda name: None if name in ('lmdb', 'timm') else installed(name))
    for name in ('lmdb', 'timm'):
        monkeypatch.setitem(sys.modules, name, None)
    report = Report()
    doctor_probes.versions(report)
    assert 'not installed: lmdb, timm -> pip install lmdb timm (True)' in _problems(report)
    assert not report.can_train


@pytest.mark.parametrize(
    ('module', 'error', 'remedy'),
    [
        ('cv2', ImportError('libGL.so.1: cannot open shared object file'), 'apt-get install libgl1'),
        ('basicsr', ModuleNotFoundError("No module named 'distutils'", name='distutils'), 'pip install setuptools'),
        ('basicsr', ModuleNotFoundError("No module named 'addict'", name='addict'), 'pip install addict'),
        ('torchvision', RuntimeError('operator torchvision::nms does not exist'), 'do not fit each other'),
        ('lmdb', OSError('unheard of'), 'pip install --force-reinstall --no-deps lmdb'),
    ],
)
def test_each_import_error_has_its_remedy(
    monkeypatch: pytest.MonkeyPatch, module: str, error: Exception, remedy: str
) -> None:
    def import_module(name: str) -> Any:
        if name == module:
            raise error
        return sys.modules.get(name, sys)

    monkeypatch.setattr(doctor_probes.importlib, 'import_module', import_module)
    report = Report()
    doctor_probes.versions(report)
    assert remedy in _problems(report)
    assert not report.can_train


@pytest.mark.parametrize(('module', 'remedy'), [('torch', 'pytorch.org'), ('basicsr', 'hat_plugin.install_basicsr')])
def test_torch_and_basicsr_have_their_own_way_to_be_installed(
    monkeypatch: pytest.MonkeyPatch, module: str, remedy: str
) -> None:
    installed = doctor_probes._installed
    monkeypatch.setattr(doctor_probes, '_installed', lambda name: None if name == module else installed(name))
    monkeypatch.setitem(sys.modules, module, None)
    report = Report()
    doctor_probes.versions(report)
    assert f'{module} is not installed -> ' in _problems(report)
    assert remedy in _problems(report)


def test_rivals_that_overwrite_each_other_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_probes, '_installed', lambda name: '1.4.2')
    report = Report()
    doctor_probes.versions(report)
    assert 'opencv-python and opencv-python-headless are both installed' in _problems(report)
    assert report.can_train


def test_an_old_basicsr_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_probes, '_installed', lambda name: '1.3.5' if name == 'basicsr' else '9')
    report = Report()
    doctor_probes.versions(report)
    assert 'basicsr 1.3.5 is older than 1.4.2' in _problems(report)


def test_a_basicsr_folder_in_the_working_directory_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'basicsr').mkdir()
    (tmp_path / 'basicsr' / '__init__.py').write_text('')
    monkeypatch.chdir(tmp_path)
    report = Report()
    doctor_probes.copies(report)
    assert '2 copies of basicsr' in _problems(report)
    assert str(tmp_path / 'basicsr') in _problems(report)


def test_a_name_held_by_another_and_a_missing_one_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [
        registry.Holder('ARCH_REGISTRY', 'HAT', 'hat_plugin:HAT', 'hat.archs:HAT', '/else/hat_arch.py', ours=False),
        registry.Holder('MODEL_REGISTRY', 'HATModel', 'hat_plugin:HATModel', None, None, ours=False),
    ]
    monkeypatch.setattr(registry, 'holders', lambda: held)
    report = Report()
    doctor_probes.registered(report)
    assert 'arch HAT is held by hat.archs:HAT (/else/hat_arch.py), not by hat_plugin' in _problems(report)
    assert [problem.fatal for problem in report.problems] == [False, True]


def test_a_full_disk_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = doctor_probes.shutil.disk_usage('.')
    monkeypatch.setattr(doctor_probes.shutil, 'disk_usage', lambda folder: usage._replace(free=10**6))
    report = Report()
    doctor_probes.machine(report)
    assert 'make room' in _problems(report)


def test_a_probe_that_fails_is_a_finding_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def proof(report: Report) -> None:
        raise ValueError('the network is broken')

    monkeypatch.setattr(doctor_probes, 'proof', proof)
    report = doctor_probes.examine()
    assert 'ValueError: the network is broken' in _problems(report)
    assert not report.can_train
    assert 'Training cannot run here yet.' in doctor.as_text(report)


def test_it_speaks_where_nothing_is_installed(repository: Path, tmp_path: Path) -> None:
    """An interpreter without site-packages: no torch, no numpy, and still a report and exit code 1."""
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(
        [sys.executable, '-S', '-m', 'hat_plugin.cli', 'doctor'],
        cwd=tmp_path,
        env=environment | {'PYTHONPATH': str(repository)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert 'torch is not installed' in done.stdout
    assert 'Training cannot run here yet.' in done.stdout
    assert 'Traceback' not in done.stderr
