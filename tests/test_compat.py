"""`import hat_plugin` makes BasicSR import, whatever was imported before it; each case in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

USE_IT = """
import basicsr, torchvision
from basicsr.data.degradations import rgb_to_grayscale
from hat_plugin.registry import failure
import torch
assert failure() is None, failure()
gray = rgb_to_grayscale(torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1))
assert abs(gray.item() - 0.2989) < 1e-3, gray
print('works')
"""
TRY_TORCHVISION = """
try:
    import torchvision
except RuntimeError:
    pass
"""


def run_python(code: str, repository: Path, *first_on_path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds hat_plugin, and before it what stands in `first_on_path`."""
    path = os.pathsep.join(map(str, [*first_on_path, repository]))
    environment = os.environ | {'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True, timeout=120, cwd=repository
    )


@pytest.mark.parametrize(
    'before',
    ['import hat_plugin', f'{TRY_TORCHVISION}\nimport hat_plugin', f'{TRY_TORCHVISION * 2}\nimport hat_plugin'],
    ids=['without torchvision', 'after torchvision', 'after torchvision twice'],
)
def test_basicsr_imports_whatever_came_before(before: str, repository: Path) -> None:
    done = run_python(before + USE_IT, repository)
    assert done.stdout.strip() == 'works', done.stderr
    assert 'Warning: hat_plugin' not in done.stderr


def _fake_torchvision(folder: Path, init: str, *, with_functional_tensor: bool) -> Path:
    transforms = folder / 'torchvision' / 'transforms'
    transforms.mkdir(parents=True)
    (folder / 'torchvision' / '__init__.py').write_text(init)
    (transforms / '__init__.py').write_text('')
    (transforms / 'functional.py').write_text('def rgb_to_grayscale(image): return "new"\n')
    if with_functional_tensor:
        (transforms / 'functional_tensor.py').write_text('def rgb_to_grayscale(image): return "old"\n')
    return folder


SEE_WHAT_STANDS = """
import sys, warnings
warnings.simplefilter('ignore')
import hat_plugin  # fails to register with a torchvision as small as this one
from hat_plugin import compat
compat.apply()
import torchvision.transforms.functional_tensor as module
print(module.rgb_to_grayscale(None), module.__doc__ is None, compat._kept == [])
"""


def test_a_torchvision_that_works_is_left_alone(repository: Path, tmp_path: Path) -> None:
    folder = _fake_torchvision(tmp_path, '', with_functional_tensor=True)
    assert run_python(SEE_WHAT_STANDS, repository, folder).stdout.split() == ['old', 'True', 'True']


def test_the_stand_in_takes_the_place_of_the_removed_module(repository: Path, tmp_path: Path) -> None:
    folder = _fake_torchvision(tmp_path, '', with_functional_tensor=False)
    assert run_python(SEE_WHAT_STANDS, repository, folder).stdout.split() == ['new', 'False', 'True']


@pytest.mark.parametrize('error', ["RuntimeError('quite another fault')", "ImportError('no such library')"])
def test_an_unknown_failure_of_torchvision_is_kept_and_told(error: str, repository: Path, tmp_path: Path) -> None:
    folder = _fake_torchvision(tmp_path, f'raise {error}', with_functional_tensor=False)
    code = """
import hat_plugin
from hat_plugin.errors import HatPluginError
try:
    hat_plugin.require_registered()
except HatPluginError as told:
    print(told)
    print(repr(told.__cause__))
"""
    done = run_python(code, repository, folder)
    told, cause = done.stdout.splitlines()
    assert '`basicsr doctor`' in told
    assert cause == error
    assert done.stderr.count('RuntimeWarning: hat_plugin could not register') == 1
