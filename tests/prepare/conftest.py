"""Miniature trees in the shapes in which data sets are published, made of real photographs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from prepare.trees import save

from hat_plugin.data.bicubic import imresize


@pytest.fixture
def pictures(photos) -> dict[str, np.ndarray]:
    """Four pictures of different sizes, sides multiples of 12, BGR."""
    sizes = {'coffee': (96, 120), 'chelsea': (72, 60), 'rocket': (60, 132), 'astronaut': (108, 96)}
    return {
        f'{number:04d}': photos.small(name, *size)[..., ::-1] for number, (name, size) in enumerate(sizes.items(), 1)
    }


@pytest.fixture
def div2k(tmp_path, pictures) -> Path:
    """DIV2K_train_HR/0001.png and DIV2K_train_LR_bicubic/X4/0001x4.png (X2 too; not X3)."""
    root = tmp_path / 'archives'
    for stem, image in pictures.items():
        save(root / 'DIV2K_train_HR' / f'{stem}.png', image)
        for scale in (2, 4):
            low = imresize(image, 1 / scale) // 2  # darker than any bicubic: one sees which was used
            save(root / 'DIV2K_train_LR_bicubic' / f'X{scale}' / f'{stem}x{scale}.png', low)
    return root


@pytest.fixture
def flickr2k(div2k, pictures) -> Path:
    """Flickr2K/Flickr2K_HR/000001.png and Flickr2K/Flickr2K_LR_bicubic/X4/000001x4.png, beside DIV2K."""
    for stem, image in list(pictures.items())[:2]:
        flipped = image[:, ::-1]
        save(div2k / 'Flickr2K' / 'Flickr2K_HR' / f'00{stem}.png', flipped)
        for scale in (2, 4):
            low = imresize(flipped, 1 / scale)
            save(div2k / 'Flickr2K' / 'Flickr2K_LR_bicubic' / f'X{scale}' / f'00{stem}x{scale}.png', low)
    return div2k


@pytest.fixture
def prepare(cli, tmp_path) -> Callable[..., object]:
    """Run `basicsr prepare ...` into tmp_path/datasets; a failure fails the test unless `code` says otherwise."""

    def run(*arguments: object, code: int = 0):
        outcome = cli('prepare', *arguments, '-o', tmp_path / 'datasets')
        assert outcome.code == code, outcome.err
        return outcome

    return run
