"""Fixtures for all tests: real photographs, the optional image data, and the command line called in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

# Many small tensors: one thread is faster, and two test runs on one machine do not fight. Child processes inherit it.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MKL_NUM_THREADS', '1')

import torch

if not torch.cuda.is_available():  # read when triton is first imported, which importing hat_plugin may do
    os.environ.setdefault('TRITON_INTERPRET', '1')

import hat_plugin  # noqa: F401 - `import basicsr` works in every test

REPOSITORY = Path(__file__).resolve().parent.parent
PHOTOS = ('astronaut', 'coffee', 'chelsea', 'rocket')


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if 'gpu' in item.keywords:
            item.add_marker(pytest.mark.skip(reason='needs a CUDA device'))


@pytest.fixture(autouse=True)
def exact_convolutions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU torch rounds convolutions' operands to TF32, which makes a difference of 1e-3 out of one of 1e-7."""
    if 'gpu' in request.keywords:
        monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
        monkeypatch.setattr(torch.backends.cuda.matmul, 'allow_tf32', False)


@dataclass(frozen=True)
class Photos:
    """Real photographs that ship inside scikit-image, uint8, RGB, (H, W, 3)."""

    images: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.images[name].copy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.images)

    def small(self, name: str, height: int = 48, width: int = 64, top: int = 100, left: int = 120) -> np.ndarray:
        """A crop of a photograph, uint8, (height, width, 3); the default corner shows texture in each of them."""
        crop = self.images[name][top : top + height, left : left + width]
        assert crop.shape == (height, width, 3), f'{name} is {self.images[name].shape}, too small for this crop'
        return np.ascontiguousarray(crop)


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code and all that it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture(scope='session')
def repository() -> Path:
    """The root of the checkout that the tests stand in."""
    return REPOSITORY


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """The folder of image data described in the project's notes, or a skip: the tests run without it.

    It is looked for in the environment variable HAT_PLUGIN_DATA, then in ``../shared/data`` beside the checkout.
    """
    named = os.environ.get('HAT_PLUGIN_DATA')
    folder = Path(named) if named else REPOSITORY.parent / 'shared' / 'data'
    if not (folder / 'test').is_dir():
        pytest.skip(f'no image data: {folder} has no test/ folder (set HAT_PLUGIN_DATA)')
    return folder


@pytest.fixture(scope='session')
def photos() -> Photos:
    """Photographs by name, ``photos['coffee']``, and crops of them, ``photos.small('coffee', 48, 64)``."""
    from skimage import data

    return Photos({name: np.ascontiguousarray(getattr(data, name)()[..., :3]) for name in PHOTOS})


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run ``basicsr`` in this process: ``cli('doctor', '--json').out``. argparse's exits become exit codes."""
    from hat_plugin.cli import main

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run
