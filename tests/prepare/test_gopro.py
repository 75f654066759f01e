"""gopro, from the published tree and from the one that MPRNet and NAFNet hand on."""

from __future__ import annotations

import numpy as np
import pytest
from prepare.trees import SMALL, assert_pairs_are_read, pair_of, save

from hat_plugin.data.lmdb_io import LmdbReader
from hat_plugin.prepare import layout

SEQUENCES = {'train': ('GOPR0372_07_00', 'GOPR0374_11_00'), 'test': ('GOPR0384_11_00',)}


@pytest.fixture
def frames(photos):
    """(part, sequence, frame) -> blurred, blurred with gamma, sharp."""
    found = {}
    for part, sequences in SEQUENCES.items():
        for number, sequence in enumerate(sequences):
            for frame in ('000047', '000048'):
                blurred, sharp = pair_of(
                    photos.small(('coffee', 'rocket')[number], 96, 120, 4 * int(frame[-1]))[..., ::-1]
                )
                found[part, sequence, frame] = blurred, blurred // 2, sharp
    return found


@pytest.fixture
def gopro(tmp_path, frames):
    root = tmp_path / 'archives' / 'GOPRO_Large'
    for (part, sequence, frame), pictures in frames.items():
        for kind, image in zip(('blur', 'blur_gamma', 'sharp'), pictures, strict=True):
            save(root / part / sequence / kind / f'{frame}.png', image)
    return root.parent


def test_the_published_tree(prepare, gopro, frames, tmp_path):
    prepare('gopro', gopro, '--allow-partial', *SMALL)
    folder = tmp_path / 'datasets' / 'GoPro'
    sharp, blur = (LmdbReader(folder / 'train' / f'{kind}_crops.lmdb') for kind in ('sharp', 'blur'))
    assert sharp.keys() == blur.keys()
    assert len(sharp) == 4 * 12
    blurred, _, truth = frames['train', 'GOPR0374_11_00', '000048']
    assert np.array_equal(sharp.image('GOPR0374_11_00_000048_s006'), truth[24:72, 24:72])
    assert np.array_equal(blur.image('GOPR0374_11_00_000048_s006'), blurred[24:72, 24:72])
    test = LmdbReader(folder / 'test' / 'input.lmdb')
    assert test.keys() == ['GOPR0384_11_00_000047', 'GOPR0384_11_00_000048']
    assert np.array_equal(test.image('GOPR0384_11_00_000047'), frames['test', 'GOPR0384_11_00', '000047'][0])
    assert_pairs_are_read(folder / 'train', 'sharp_crops.lmdb', 'blur_crops.lmdb', 48)
    assert_pairs_are_read(folder / 'test', 'target.lmdb', 'input.lmdb', 2)
    assert 'made' not in prepare('gopro', gopro, '--allow-partial', *SMALL).out


def test_gamma_and_one_part_alone(prepare, gopro, frames, tmp_path):
    prepare('gopro', gopro / 'GOPRO_Large', '--allow-partial', '--gamma', '--parts', 'test', '--raw', *SMALL)
    folder = tmp_path / 'datasets' / 'GoPro'
    image = LmdbReader(folder / 'test' / 'input_raw.lmdb').image('GOPR0384_11_00_000048')
    assert np.array_equal(image, frames['test', 'GOPR0384_11_00', '000048'][1])
    assert not (folder / 'train').exists()


def test_input_and_target_in_the_place_where_the_result_goes(prepare, frames, tmp_path):
    """NAFNet has its pictures in datasets/GoPro/train/input."""
    root = tmp_path / 'datasets' / 'GoPro'
    for (part, sequence, frame), (blurred, _, sharp) in frames.items():
        save(root / part / 'input' / f'{sequence}-{frame}.png', blurred)
        save(root / part / 'target' / f'{sequence}-{frame}.png', sharp)
    prepare('gopro', root, '--allow-partial', *SMALL)
    assert_pairs_are_read(root / 'train', 'sharp_crops.lmdb', 'blur_crops.lmdb', 48)
    assert_pairs_are_read(root / 'test', 'target.lmdb', 'input.lmdb', 2)
    message = prepare('gopro', root, '--allow-partial', '--no-lmdb', '--overwrite', *SMALL, code=2).err
    assert 'holds the pictures to be prepared' in message
    assert len(list((root / 'test' / 'input').iterdir())) == 2
    assert '--gamma needs the published tree' in prepare('gopro', root, '--gamma', *SMALL, code=2).err


def test_what_is_missing_is_named(prepare, gopro, tmp_path):
    assert '4 found, published are 2103' in prepare('gopro', gopro, *SMALL, code=2).err
    assert not (tmp_path / 'datasets').exists()
    (gopro / 'GOPRO_Large' / 'train' / SEQUENCES['train'][0] / 'sharp' / '000047.png').unlink()
    message = prepare('gopro', gopro, '--allow-partial', *SMALL, code=2).err
    assert 'GOPR0372_07_00/blur/000047.png: has no partner' in message
    assert 'no such folder' in prepare('gopro', tmp_path / 'nowhere', code=2).err
    assert 'no such folder' in prepare('gopro', tmp_path, '--allow-partial', code=2).err


def test_names_are_those_of_nafnet_s_published_option_files():
    assert layout.pair_gt('GoPro', 'train') == 'datasets/GoPro/train/sharp_crops.lmdb'
    assert layout.pair_lq('GoPro', 'train') == 'datasets/GoPro/train/blur_crops.lmdb'
    assert layout.pair_gt('GoPro', 'test') == 'datasets/GoPro/test/target.lmdb'
    assert layout.pair_lq('GoPro', 'test') == 'datasets/GoPro/test/input.lmdb'
    assert layout.pair_gt('SIDD', 'train') == 'datasets/SIDD/train/gt_crops.lmdb'
    assert layout.pair_lq('SIDD', 'train') == 'datasets/SIDD/train/input_crops.lmdb'
    assert layout.pair_gt('SIDD', 'val') == 'datasets/SIDD/val/gt_crops.lmdb'
    assert layout.pair_lq('SIDD', 'val') == 'datasets/SIDD/val/input_crops.lmdb'
    assert layout.pair_names('SIDD', 'train', 'raw', sub_images=False) == ('gt_raw.lmdb', 'input_raw.lmdb')
