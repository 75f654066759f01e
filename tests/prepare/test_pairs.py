"""pairs: which pictures belong together, what is held out, and that both are cut at the same places."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from prepare.trees import SMALL, assert_pairs_are_read, contents, own_process, pair_of, run_and_kill, save

from hat_plugin.data.lmdb_io import LmdbReader
from hat_plugin.errors import DataError
from hat_plugin.prepare.pairing import Side, find_pairs, hold_out, scenes_of

PATTERNS = ('--lq-pattern', '*_real.png', '--gt-pattern', '*_mean.png')
SCENES = ('--scene', '(.+)_[0-9]+$')


@pytest.fixture
def polyu(tmp_path, photos):
    """X_real.png and X_mean.png in one folder; three scenes of two pictures each, and a file that is none of them."""
    root = tmp_path / 'PolyU'
    for seed, name in enumerate(('coffee', 'rocket', 'chelsea')):
        for number in (1, 2):
            noisy, clean = pair_of(photos.small(name, 96, 120, 20 * number, 30)[..., ::-1], seed)
            save(root / f'Canon_{name}_{number}_real.png', noisy)
            save(root / f'Canon_{name}_{number}_mean.png', clean)
    save(root / 'overview.png', clean)
    return root


def test_pairs_of_one_folder_with_held_out_scenes(prepare, polyu, tmp_path):
    arguments = ('pairs', '--name', 'PolyU', '--lq', polyu, '--gt', polyu, *PATTERNS, *SCENES, *SMALL)
    prepare(*arguments, '--hold-out', 'Canon_rocket')
    folder = tmp_path / 'datasets' / 'PolyU'
    gt, lq = (LmdbReader(folder / 'train' / f'{name}_crops.lmdb') for name in ('target', 'input'))
    assert gt.keys() == lq.keys()
    assert {key.rsplit('_', 1)[0] for key in gt} == {
        f'Canon_{name}_{number}' for name in ('coffee', 'chelsea') for number in (1, 2)
    }
    for reader, kind in ((gt, 'mean'), (lq, 'real')):  # the sixth crop: row 2, column 2 of 3 x 4
        whole = cv2.imread(str(polyu / f'Canon_coffee_1_{kind}.png'))
        assert np.array_equal(reader.image('Canon_coffee_1_s006'), whole[24:72, 24:72])
    tested = LmdbReader(folder / 'test' / 'input.lmdb')
    assert tested.keys() == ['Canon_rocket_1', 'Canon_rocket_2']
    assert np.array_equal(tested.image('Canon_rocket_2'), cv2.imread(str(polyu / 'Canon_rocket_2_real.png')))
    for part in ('train', 'test'):
        manifest = json.loads((folder / part / 'manifest.json').read_text())
        assert manifest['source']['split'] == {
            'scene': '(.+)_[0-9]+$',
            'train': ['Canon_chelsea', 'Canon_coffee'],
            'test': ['Canon_rocket'],
        }
        assert manifest['source']['lq'] == f'{polyu} (*_real.png)'
    assert_pairs_are_read(folder / 'train', 'target_crops.lmdb', 'input_crops.lmdb', 4 * 12)
    assert_pairs_are_read(folder / 'test', 'target.lmdb', 'input.lmdb', 2)
    assert 'made' not in prepare(*arguments, '--hold-out', 'Canon_rocket').out
    assert '--overwrite' in prepare(*arguments, '--hold-out', 'Canon_coffee', code=2).err


def test_basicsr_reads_the_pairs(prepare, polyu, tmp_path):
    from basicsr.data.paired_image_dataset import PairedImageDataset

    prepare('pairs', '--name', 'PolyU', '--lq', polyu, '--gt', polyu, *PATTERNS, *SMALL)
    folder = tmp_path / 'datasets' / 'PolyU' / 'train'
    options = {'dataroot_gt': f'{folder}/target_crops.lmdb', 'dataroot_lq': f'{folder}/input_crops.lmdb'}
    pair = PairedImageDataset({**options, 'io_backend': {'type': 'lmdb'}, 'scale': 1, 'phase': 'val'})[5]
    read = np.rint(pair['lq'].numpy().transpose(1, 2, 0)[..., ::-1] * 255)
    assert np.array_equal(read, cv2.imread(str(polyu / 'Canon_chelsea_1_real.png'))[24:72, 24:72])


def test_two_folders_whole_raw_and_as_a_test_set(prepare, tmp_path, photos):
    for number, name in enumerate(photos):
        noisy, clean = pair_of(photos.small(name, 60, 70 + number)[..., ::-1], number)
        save(tmp_path / 'rain' / 'a b' / f'{number}.png', noisy)
        save(tmp_path / 'norain' / 'a b' / f'{number}.jpg', clean)
    arguments = ('pairs', '--lq', tmp_path / 'rain', '--gt', tmp_path / 'norain', '--count', 4, '--workers', 1)
    prepare(*arguments, '--name', 'Rain', '--sub-size', 0, '--min-size', 0, '--raw')
    assert_pairs_are_read(tmp_path / 'datasets' / 'Rain' / 'train', 'target_raw.lmdb', 'input_raw.lmdb', 4)
    prepare(*arguments, '--name', 'RainTest', '--test', '--no-lmdb')
    assert_pairs_are_read(tmp_path / 'datasets' / 'RainTest' / 'test', 'target', 'input', 4)
    files = sorted((tmp_path / 'datasets' / 'RainTest' / 'test' / 'input').iterdir())
    assert np.array_equal(cv2.imread(str(files[0])), cv2.imread(str(tmp_path / 'rain' / 'a b' / '0.png')))
    assert '4 pairs, not 5' in prepare(*arguments[:-4], '--count', 5, '--name', 'x', code=2).err


def test_a_share_is_taken_by_scene_and_always_the_same(prepare, polyu, tmp_path):
    arguments = ('pairs', '--lq', polyu, '--gt', polyu, *PATTERNS, *SCENES, *SMALL, '--hold-out-share', 0.34)
    for name in ('a', 'b'):
        prepare(*arguments, '--name', name)
    one, other = (LmdbReader(tmp_path / 'datasets' / name / 'test' / 'input.lmdb').keys() for name in ('a', 'b'))
    assert one == other
    assert len({key.rsplit('_', 1)[0] for key in one}) == 1
    assert len(one) == 2
    scenes = [f'scene{number}' for number in range(50)]
    held = hold_out(scenes, [], 0.2)
    assert len(held) == 10
    assert held == hold_out(reversed(scenes), [], 0.2)
    assert held != sorted(scenes)[:10]


def test_pairs_that_are_none_are_named(prepare, polyu, tmp_path, photos):
    arguments = ('pairs', '--name', 'x', '--lq', polyu, '--gt', polyu, *PATTERNS, *SMALL)
    (polyu / 'Canon_rocket_1_mean.png').rename(tmp_path / 'away.png')
    message = prepare(*arguments, code=2).err
    assert 'Canon_rocket_1_real.png: has no partner' in message
    assert '1 of 6' in message
    (polyu / 'Canon_rocket_1_real.png').rename(tmp_path / 'input.png')
    (tmp_path / 'away.png').rename(polyu / 'Canon_rocket_1_mean.png')
    assert 'Canon_rocket_1_mean.png: has no partner' in prepare(*arguments, code=2).err
    save(polyu / 'Canon_rocket_1_real.png', photos.small('rocket', 95, 120))
    message = prepare(*arguments, code=2).err
    assert 'Canon_rocket_1_real.png: 120x95, but its ground truth' in message
    assert 'nothing was begun' in message
    save(polyu / 'Canon_rocket_1_real.png', photos.small('rocket', 96, 120)[..., 0])
    assert 'has 1 channels' in prepare(*arguments, code=2).err
    outcome = prepare(*arguments, '--skip-bad')
    assert outcome.out.count('bad, left out') == 1
    assert len(LmdbReader(tmp_path / 'datasets' / 'x' / 'train' / 'input_crops.lmdb')) == 5 * 12


@pytest.mark.parametrize(
    ('more', 'said'),
    [
        (('--hold-out', 'Nikon'), "no scene 'Nikon' among the 3 scenes Canon_chelsea"),
        (('--hold-out', 'Canon_rocket', 'Canon_coffee', 'Canon_chelsea'), 'none be left for training'),
        (('--hold-out', 'x', '--scene', '(Nikon)'), 'finds no scene'),
        (('--hold-out', 'x', '--scene', '('), 'is no regular expression'),
        (('--hold-out-share', '1'), 'is no share between 0 and 1'),
        (('--hold-out-share', '0.2', '--test'), 'not allowed with'),
        (('--gt-pattern', '*_real.png'), 'its own ground truth'),
        (('--gt-pattern', '*/*_mean.png'), 'as many of them'),
        (('--gt-pattern', '*_clean.png'), 'none of 13 pictures fits'),
        (('--name', '../x'), 'cannot name a data set'),
    ],
)
def test_what_does_not_go_together(prepare, polyu, tmp_path, more, said):
    arguments = ('pairs', '--name', 'x', '--lq', polyu, '--gt', polyu, *PATTERNS, *SCENES, *SMALL)
    assert said in prepare(*arguments, *more, code=2).err
    assert not (tmp_path / 'datasets').exists()


def test_names_that_meet_are_refused(tmp_path, photos):
    image = photos.small('coffee')
    for side in ('lq', 'gt'):
        save(tmp_path / side / 'a_b.png', image)
        save(tmp_path / side / 'a' / 'b.png', image)
    with pytest.raises(DataError, match='would both be called a_b'):
        find_pairs(Side(tmp_path / 'lq'), Side(tmp_path / 'gt'))
    save(tmp_path / 'lq' / 'a_b.jpg', image)
    with pytest.raises(DataError, match='have the same name'):
        find_pairs(Side(tmp_path / 'lq'), Side(tmp_path / 'gt'))


def test_scenes_without_a_group_are_what_is_found():
    assert scenes_of(['a1/001', 'b22/001'], r'^\w+') == {'a1/001': 'a1', 'b22/001': 'b22'}


def test_the_prepared_data_never_lies_among_the_pictures(prepare, tmp_path, photos):
    for side in ('input', 'target'):
        save(tmp_path / 'datasets' / 'Rain' / 'test' / side / 'a.png', photos.small('coffee'))
    folders = [tmp_path / 'datasets' / 'Rain' / 'test' / side for side in ('input', 'target')]
    arguments = ('pairs', '--name', 'Rain', '--lq', folders[0], '--gt', folders[1], '--test', '--no-lmdb')
    assert 'holds the pictures to be prepared' in prepare(*arguments, '--overwrite', code=2).err
    assert (folders[0] / 'a.png').exists()


def test_jpegs_that_are_turned_by_exif_are_pairs(prepare, tmp_path, photos):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    image = photos.small('coffee', 60, 96)
    for side in ('lq', 'gt'):
        (tmp_path / side).mkdir()
    Image.fromarray(image).save(tmp_path / 'lq' / 'a.jpg', exif=exif, quality=95)
    Image.fromarray(np.rot90(image, -1)).save(tmp_path / 'gt' / 'a.jpg', quality=95)  # the same, turned already
    prepare('pairs', '--name', 'x', '--lq', tmp_path / 'lq', '--gt', tmp_path / 'gt', '--test', '--workers', 1)
    readers = [LmdbReader(tmp_path / 'datasets' / 'x' / 'test' / f'{name}.lmdb') for name in ('input', 'target')]
    lq, gt = (reader.image('a').astype(int) for reader in readers)
    assert lq.shape == gt.shape == (96, 60, 3)
    assert np.abs(lq - gt).mean() < 3


@pytest.mark.parametrize('storage', [(), ('--no-lmdb',)])
def test_kill_9_and_again_is_as_if_nothing_had_happened(tmp_path, photos, cli, storage):
    for number in range(60):
        noisy, clean = pair_of(photos.small('coffee', 96, 96, number * 3, number * 2)[..., ::-1], number)
        save(tmp_path / 'in' / 'noisy' / f'{number:04d}.png', noisy)
        save(tmp_path / 'in' / 'clean' / f'{number:04d}.png', clean)
    folders = ('--lq', tmp_path / 'in' / 'noisy', '--gt', tmp_path / 'in' / 'clean')
    arguments = ('prepare', 'pairs', '--name', 'many', *folders, '--hold-out', '0007', *SMALL, *storage, '-o')
    target = tmp_path / 'killed' / 'many' / 'train'
    journal = target / ('.target_crops.part' if storage else '.target_crops.lmdb.part') / 'journal.txt'
    run_and_kill(own_process(*arguments, tmp_path / 'killed'), journal, 3000)
    assert not list(target.glob('[it]*_crops*'))
    noisy, _ = pair_of(photos.small('rocket', 96, 96), 1)
    save(
        tmp_path / 'in' / 'noisy' / '0001.png', noisy
    )  # the input alone is another: its ground truth need not be redone
    for name in ('killed', 'undisturbed'):
        assert cli(*arguments, tmp_path / name).code == 0
    for part in ('train', 'test'):
        again, undisturbed = (contents(tmp_path / name / 'many' / part) for name in ('killed', 'undisturbed'))
        assert again == undisturbed
    assert not list(target.glob('.*.part'))
