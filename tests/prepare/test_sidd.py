"""sidd: the published tree and MATLAB files, and back to the file that is handed in."""

from __future__ import annotations

import base64
import csv
import json

import cv2
import numpy as np
import pytest
from prepare.trees import SMALL, assert_pairs_are_read, contents, own_process, pair_of, run_and_kill, save
from scipy.io import loadmat, savemat

from hat_plugin.data.lmdb_io import LmdbReader
from hat_plugin.prepare import matlab, sidd_submission

SCENES = ('0001_001_S6_00100_00060_3200_L', '0002_001_S6_00100_00020_3200_N')


@pytest.fixture
def archives(tmp_path, photos):
    """Two scenes of two pairs each, and 2 x 3 blocks of 64 pixels in .mat files as scipy and MATLAB write them."""
    root = tmp_path / 'archives'
    for scene, name in zip(SCENES, ('coffee', 'rocket'), strict=True):
        for number in ('010', '011'):
            noisy, clean = pair_of(photos.small(name, 96, 120, int(number))[..., ::-1])
            folder = root / 'SIDD_Medium_Srgb' / 'Data' / scene
            save(folder / f'{scene[:4]}_NOISY_SRGB_{number}.PNG', noisy)
            save(folder / f'{scene[:4]}_GT_SRGB_{number}.PNG', clean)
    clean = np.stack([[photos.small('coffee', 64, 64, 8 * i, 8 * j) for j in range(3)] for i in range(2)])
    for kind, blocks in (('ValidationGt', clean), ('ValidationNoisy', pair_of(clean)[0]), ('BenchmarkNoisy', clean)):
        savemat(root / f'{kind}BlocksSrgb.mat', {f'{kind}BlocksSrgb': blocks}, do_compression=True)
    return root


def test_training_pairs(prepare, archives, tmp_path):
    prepare('sidd', archives, '--parts', 'train', '--allow-partial', *SMALL)
    folder = tmp_path / 'datasets' / 'SIDD' / 'train'
    gt, lq = (LmdbReader(folder / f'{kind}_crops.lmdb') for kind in ('gt', 'input'))
    assert gt.keys() == lq.keys()
    assert {key[:-5] for key in gt} == {
        f'{scene}_SRGB_{number}' for scene in ('0001', '0002') for number in ('010', '011')
    }
    data = archives / 'SIDD_Medium_Srgb' / 'Data' / SCENES[1]
    for reader, kind in ((gt, 'GT'), (lq, 'NOISY')):
        whole = cv2.imread(str(data / f'0002_{kind}_SRGB_011.PNG'))
        assert np.array_equal(reader.image('0002_SRGB_011_s006'), whole[24:72, 24:72])
    assert_pairs_are_read(folder, 'gt_crops.lmdb', 'input_crops.lmdb', 4 * 12)


def test_crops_are_512_every_384_unless_told_otherwise(prepare, tmp_path, photos):
    big = np.tile(photos['coffee'], (3, 2, 1))[:1000, :900, ::-1]
    for kind in ('NOISY', 'GT'):
        save(tmp_path / 'Data' / SCENES[0] / f'0001_{kind}_SRGB_010.PNG', big)
    prepare('sidd', tmp_path / 'Data', '--parts', 'train', '--allow-partial', '--workers', 1)
    reader = LmdbReader(tmp_path / 'datasets' / 'SIDD' / 'train' / 'input_crops.lmdb')
    assert len(reader) == 3 * 3  # from 0, 384 and 488; from 0, 384 and 388
    assert np.array_equal(reader.image('0001_SRGB_010_s005'), big[384:896, 384:896])
    assert np.array_equal(reader.image('0001_SRGB_010_s009'), big[488:, 388:])


@pytest.mark.parametrize(('storage', 'ending'), [((), '.lmdb'), (('--raw',), '_raw.lmdb'), (('--no-lmdb',), '')])
@pytest.mark.parametrize('workers', [1, 2])
def test_validation_blocks(prepare, archives, tmp_path, storage, ending, workers):
    prepare('sidd', archives, '--parts', 'val', '--allow-partial', '--workers', workers, *storage)
    folder = tmp_path / 'datasets' / 'SIDD' / 'val'
    assert_pairs_are_read(folder, f'gt_crops{ending}', f'input_crops{ending}', 6)
    for kind, name in (('ValidationGt', 'gt'), ('ValidationNoisy', 'input')):
        blocks = loadmat(archives / f'{kind}BlocksSrgb.mat')[f'{kind}BlocksSrgb']
        path = folder / f'{name}_crops{ending}'
        read = LmdbReader(path).image('0002_03') if ending else cv2.imread(str(path / '0002_03.png'))
        assert np.array_equal(read[..., ::-1], blocks[1, 2])
    manifest = json.loads((folder / 'manifest.json').read_text())
    assert manifest['source']['gt'] == str(archives / 'ValidationGtBlocksSrgb.mat')
    again = prepare('sidd', archives, '--parts', 'val', '--allow-partial', '--workers', workers, *storage)
    assert 'made' not in again.out


def test_another_validation_file_is_noticed(prepare, archives, tmp_path):
    arguments = ('sidd', archives, '--parts', 'val', '--allow-partial', '--workers', 1)
    prepare(*arguments)
    path = archives / 'ValidationNoisyBlocksSrgb.mat'
    name = path.stem
    savemat(path, {name: loadmat(path)[name][:, :, ::-1]}, do_compression=True)
    assert 'made from other pictures' in prepare(*arguments, code=2).err


def test_counts_are_asserted_and_what_is_wrong_is_named(prepare, archives, tmp_path):
    assert '4 found, published are 320' in prepare('sidd', archives, '--parts', 'train', *SMALL, code=2).err
    assert (
        '(2, 3, 64, 64, 3), published are (40, 32, 256, 256, 3)'
        in prepare('sidd', archives, '--parts', 'val', code=2).err
    )
    arguments = ('sidd', archives, '--allow-partial', *SMALL)
    path = archives / 'ValidationNoisyBlocksSrgb.mat'
    blocks = loadmat(path)[path.stem]
    for content, said in (
        (b'MATLAB 7.3 MAT-file, Platform: GLNXA64' + bytes(600), "save('ValidationNoisyBlocksSrgb.mat'"),
        (b'no MATLAB file at all' * 50, 'is damaged, or no MATLAB file'),
        (path.read_bytes()[:20000], 'is damaged, or no MATLAB file'),
        ({'x': blocks}, 'has no variable ValidationNoisyBlocksSrgb'),
        ({path.stem: blocks[0]}, 'is no uint8 array'),
        ({path.stem: blocks.astype(np.float32)}, 'is no uint8 array'),
        ({path.stem: blocks[:1]}, 'has 3 blocks'),
        ({path.stem: blocks[:, :, 1:]}, 'the two are no pair'),
    ):
        path.write_bytes(content) if isinstance(content, bytes) else savemat(path, content)
        assert said in prepare(*arguments, '--parts', 'val', code=2).err, said
    path.unlink()
    message = prepare(*arguments, code=2).err
    assert 'no ValidationNoisyBlocksSrgb.mat' in message
    assert '--parts' in message
    assert not (tmp_path / 'datasets' / 'SIDD' / 'train').exists()  # all parts are looked for first
    assert (
        'no folder Data' in prepare('sidd', tmp_path / 'archives' / 'SIDD_Medium_Srgb' / 'Data' / SCENES[0], code=2).err
    )


def test_from_the_benchmark_to_the_submission(prepare, archives, tmp_path, monkeypatch, cli):
    prepare('sidd', archives, '--parts', 'benchmark', '--allow-partial', '--workers', 1)
    noisy = tmp_path / 'datasets' / 'SIDD' / 'benchmark' / 'input'
    assert len(list(noisy.iterdir())) == 6
    restored = tmp_path / 'restored'
    for path in noisy.iterdir():
        save(restored / f'{path.stem}_HAT.png', cv2.imread(str(path)) // 2)
    for module in (matlab, sidd_submission):
        monkeypatch.setattr(module, 'GRID', (2, 3))
        monkeypatch.setattr(module, 'BLOCK', (64, 64, 3))
    target = tmp_path / 'out' / 'SubmitSrgb.mat'
    told = ('--method', 'HAT', '--authors', 'A and B', '--seconds', '0.5')
    outcome = cli('prepare', 'sidd-submission', restored, '-o', target, *told)
    assert outcome.code == 0, outcome.err
    content = loadmat(target)
    blocks = loadmat(archives / 'BenchmarkNoisyBlocksSrgb.mat')['BenchmarkNoisyBlocksSrgb']
    cells = content['DenoisedBlocksSrgb']
    assert cells.dtype == object
    assert cells.shape == (2, 3)
    assert cells[1, 2].dtype == np.uint8
    assert np.array_equal(cells[1, 2], blocks[1, 2] // 2)
    assert content['TimeMPSrgb'].item() == 0.5
    assert content['OptionalData']['MethodName'].item().item() == 'HAT'
    table = tmp_path / 'SubmitSrgb.csv'
    assert cli('prepare', 'sidd-submission', restored, '-o', table).code == 0
    rows = list(csv.reader(table.open()))
    assert rows[0] == ['ID', 'BLOCK']
    assert [row[0] for row in rows[1:]] == ['0', '1', '2', '3', '4', '5']
    decoded = np.frombuffer(base64.b64decode(rows[6][1]), np.uint8).reshape(64, 64, 3)
    assert np.array_equal(decoded, blocks[1, 2] // 2)
    before = target.read_bytes()
    (restored / '0002_02_HAT.png').rename(tmp_path / 'away.png')
    assert '1 of 6 blocks are missing, 0002_02 first' in cli('prepare', 'sidd-submission', restored, '-o', target).err
    assert target.read_bytes() == before


def test_what_is_no_submission_is_named(cli, tmp_path, photos):
    def said(output=tmp_path / 'x.mat'):
        outcome = cli('prepare', 'sidd-submission', tmp_path / 'in', '-o', output)
        assert outcome.code == 2
        return outcome.err

    assert 'no such folder' in said()
    save(tmp_path / 'in' / '0001_01.png', photos.small('coffee'))
    assert 'the benchmark has uint8 of (256, 256, 3)' in said()
    assert 'is a .mat or a .csv file' in said('x.txt')
    save(tmp_path / 'in' / '0001_01.png', photos.small('coffee', 256, 256))
    assert '1279 of 1280 blocks are missing, 0001_02 first' in said()
    save(tmp_path / 'in' / '0001_01_x.png', photos.small('coffee', 256, 256))
    assert 'are the same block' in said()
    (tmp_path / 'in' / '0001_01_x.png').rename(tmp_path / 'in' / '0000_01.png')
    assert 'is no block of the benchmark' in said()


def test_kill_9_in_the_blocks_and_again(tmp_path, photos, cli):
    (tmp_path / 'in').mkdir()
    clean = np.stack([[photos.small('coffee', 64, 64, 5 * i, 5 * j) for j in range(10)] for i in range(12)])
    for kind, blocks in (('Gt', clean), ('Noisy', pair_of(clean)[0])):
        savemat(tmp_path / 'in' / f'Validation{kind}BlocksSrgb.mat', {f'Validation{kind}BlocksSrgb': blocks})
    arguments = ('prepare', 'sidd', tmp_path / 'in', '--parts', 'val', '--allow-partial', '--workers', '1', '-o')
    journal = tmp_path / 'killed' / 'SIDD' / 'val' / '.gt_crops.lmdb.part' / 'journal.txt'
    run_and_kill(own_process(*arguments, tmp_path / 'killed'), journal, 500)
    for name in ('killed', 'undisturbed'):
        assert cli(*arguments, tmp_path / name).code == 0
    again, undisturbed = (contents(tmp_path / name / 'SIDD' / 'val') for name in ('killed', 'undisturbed'))
    assert again == undisturbed
