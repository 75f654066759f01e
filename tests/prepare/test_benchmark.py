"""Test sets in the shapes in which they are passed around, and the bicubic figures."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest
from prepare.trees import save

from hat_plugin.data.bicubic import imresize
from hat_plugin.prepare import layout

FIGURES = {('Set5', 2): '33.68 | 0.9305', ('Set5', 4): '28.43 | 0.8113', ('Set14', 4): '26.09 | 0.7050'}


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.fixture
def crops(photos):
    return {name: photos.small(name, 61, 50)[..., ::-1] for name in ('coffee', 'rocket')}


def test_the_figures_of_set5_and_set14(shared_data, prepare):
    outcome = prepare('benchmark', shared_data / 'test', '--sets', 'Set5', '--scale', 2, 4, '--workers', 1)
    outcome_14 = prepare('benchmark', shared_data / 'test' / 'Set14', '--scale', 4, '--workers', 2)
    for (name, scale), figures in FIGURES.items():
        text = outcome.out if name == 'Set5' else outcome_14.out
        assert re.search(rf'\| {name} \| \d+ \| x{scale} \| {re.escape(figures)} \|', text), text
    assert 'border = scale' in outcome.out


def test_plain_pictures(prepare, tmp_path, crops):
    for name, image in crops.items():
        save(tmp_path / 'in' / 'set5' / f'{name}.png', image)
    outcome = prepare('benchmark', tmp_path / 'in', '--allow-partial', '--scale', 2, 3, '--workers', 1)
    folder = tmp_path / 'datasets' / 'Set5'
    for name, image in crops.items():
        assert np.array_equal(read(folder / 'GTmod2' / f'{name}.png'), image[:60])
        assert np.array_equal(read(folder / 'LRbicx2' / f'{name}.png'), imresize(image[:60], 1 / 2))
        assert np.array_equal(read(folder / 'GTmod3' / f'{name}.png'), image[:60, :48])
    assert sorted(path.name for path in (folder / 'GTmod2').iterdir()) == ['coffee.png', 'rocket.png']
    assert outcome.out.count('| Set5 | 2 |') == 2
    scores = json.loads((folder / 'manifest.json').read_text())['bicubic']
    assert set(scores) == {'2', '3'}
    again = prepare('benchmark', tmp_path / 'in', '--allow-partial', '--scale', 2, 3, '--workers', 1)
    assert 'made' not in again.out
    assert again.out.splitlines()[-2:] == outcome.out.splitlines()[-2:]


def test_the_shape_of_edsr_s_archive(prepare, tmp_path, crops):
    root = tmp_path / 'benchmark' / 'Set5'
    for name, image in crops.items():
        save(root / 'HR' / f'{name}.png', image[:60, :48])
        save(root / 'LR_bicubic' / 'X4' / f'{name}x4.png', imresize(image[:60, :48], 1 / 4) // 2)
    arguments = ('benchmark', tmp_path / 'benchmark', '--allow-partial', '--scale', 4, '--workers', 1)
    prepare(*arguments)
    low = tmp_path / 'datasets' / 'Set5' / 'LRbicx4' / 'coffee.png'
    assert np.array_equal(read(low), imresize(crops['coffee'][:60, :48], 1 / 4))
    prepare(*arguments, '--lr', 'published', '--overwrite')
    assert np.array_equal(read(low), imresize(crops['coffee'][:60, :48], 1 / 4) // 2)
    (root / 'LR_bicubic' / 'X4' / 'coffeex4.png').unlink()
    assert 'no published x4 of coffee' in prepare(*arguments, '--lr', 'published', code=2).err


def test_the_shape_of_selfexsr_s_archives(prepare, tmp_path, crops):
    for scale in (2, 4):
        for number, image in enumerate(crops.values(), 1):
            stem = tmp_path / 'SR' / 'Urban100' / f'image_SRF_{scale}' / f'img_{number:03d}_SRF_{scale}'
            cropped = image[: 61 - 61 % scale, : 50 - 50 % scale]
            save(stem.with_name(f'{stem.name}_HR.png'), cropped)
            save(stem.with_name(f'{stem.name}_LR.png'), imresize(cropped, 1 / scale))
            save(stem.with_name(f'{stem.name}_bicubic.png'), cropped)
    prepare('benchmark', tmp_path / 'SR', '--allow-partial', '--scale', 2, 4, '--workers', 1)
    folder = tmp_path / 'datasets' / 'urban100'  # spelt as in HAT's published option files
    assert sorted(path.name for path in (folder / 'GTmod4').iterdir()) == ['img_001.png', 'img_002.png']
    assert read(folder / 'GTmod4' / 'img_001.png').shape == (60, 48, 3)
    assert read(folder / 'LRbicx2' / 'img_001.png').shape == (30, 25, 3)


@pytest.mark.parametrize('given', ['BSD100', 'BSDS100', 'B100'])
def test_names_of_bsd100(prepare, tmp_path, crops, given):
    save(tmp_path / 'in' / given / '101085.png', crops['coffee'])
    prepare('benchmark', tmp_path / 'in', '--sets', 'bsd100', '--allow-partial', '--scale', 4, '--workers', 1)
    assert (tmp_path / 'datasets' / 'BSDS100' / 'LRbicx4' / '101085.png').exists()
    assert layout.benchmark_lr('BSD100', 4) == 'datasets/BSDS100/LRbicx4'


def test_a_test_set_of_one_s_own_with_a_gray_picture(prepare, tmp_path, crops):
    save(tmp_path / 'in' / 'a b.png', crops['coffee'][..., 0])
    outcome = prepare('benchmark', tmp_path / 'in', '--name', 'mine', '--scale', 4, '--workers', 1)
    (image,) = (tmp_path / 'datasets' / 'mine' / 'GTmod4').iterdir()
    assert read(image).ndim == 2
    assert '| mine | 1 | x4 |' in outcome.out


def test_what_is_wrong_is_named(prepare, tmp_path, crops):
    assert 'no such folder' in prepare('benchmark', tmp_path / 'nowhere', code=2).err
    (tmp_path / 'in' / 'Set14').mkdir(parents=True)
    assert 'no pictures of Set14' in prepare('benchmark', tmp_path / 'in', '--workers', 1, code=2).err
    save(tmp_path / 'in' / 'Set14' / 'a.png', crops['coffee'])
    assert '1 pictures, Set14 has 14' in prepare('benchmark', tmp_path / 'in', '--workers', 1, code=2).err
    assert "no set 'Set5'" in prepare('benchmark', tmp_path / 'in', '--sets', 'Set5', code=2).err
    assert '--sets for one of several' in prepare('benchmark', tmp_path, '--sets', 'a', '--name', 'b', code=2).err
    save(tmp_path / 'in' / 'Set14' / 'a.png', crops['coffee'][:3, :3])
    message = prepare('benchmark', tmp_path / 'in', '--allow-partial', '--scale', 4, '--workers', 1, code=2).err
    assert 'too small' in message
