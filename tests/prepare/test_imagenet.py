"""imagenet: the list of pictures that can be used, and the LMDB of the published files."""

from __future__ import annotations

import json
import os

import cv2
import numpy as np
import pytest

from hat_plugin.data.images import read_image
from hat_plugin.data.lmdb_io import LmdbReader, LmdbWriter
from hat_plugin.errors import DataError
from hat_plugin.prepare import examine


@pytest.fixture
def train(tmp_path, photos):
    root = tmp_path / 'train'
    for number, name in enumerate(photos):
        folder = root / f'n0144076{number % 2}'
        folder.mkdir(parents=True, exist_ok=True)
        image = photos.small(name, 40 + number, 50)
        content = cv2.imencode('.jpg', image if number else image[..., 0])[1].tobytes()
        (folder / f'{folder.name}_{number}.JPEG').write_bytes(content)
    (root / 'n01440760' / 'n01440760_9.JPEG').write_bytes(b'\xff\xd8\xff no picture')
    return root


def test_the_list(prepare, train, tmp_path):
    outcome = prepare('imagenet', train, '--allow-partial', '--workers', 1)
    lines = (tmp_path / 'datasets' / 'imagenet' / 'train_map.txt').read_text().splitlines()
    assert lines == [
        'n01440760/n01440760_0.JPEG (40,50,1)',
        'n01440760/n01440760_2.JPEG (42,50,3)',
        'n01440761/n01440761_1.JPEG (41,50,3)',
        'n01440761/n01440761_3.JPEG (43,50,3)',
    ]
    assert 'n01440760_9.JPEG' in outcome.out
    assert len(json.loads((tmp_path / 'datasets' / 'imagenet' / 'manifest.json').read_text())['bad']) == 1
    assert 'was there' in prepare('imagenet', train, '--allow-partial', '--workers', 1).out
    assert sorted(os.listdir(tmp_path / 'datasets' / 'imagenet')) == ['.basicsr.lock', 'manifest.json', 'train_map.txt']


def test_the_lmdb_holds_the_published_files(prepare, train, tmp_path):
    from basicsr.data.data_util import paths_from_lmdb

    prepare('imagenet', train, '--allow-partial', '--lmdb', '--workers', 2)
    path = tmp_path / 'datasets' / 'imagenet' / 'train.lmdb'
    reader = LmdbReader(path)
    assert len(reader) == 4
    for key in reader:
        assert reader.read(key) == (train / f'{key}.JPEG').read_bytes()
        assert reader.image(key).shape == reader.shape(key)
    assert paths_from_lmdb(str(path)) == reader.keys()


def test_a_file_filled_up_with_zeros_is_named(prepare, train, tmp_path):
    path = train / 'n01440760' / 'n01440760_2.JPEG'
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    assert 'n01440760_2.JPEG: is cut short' in prepare('imagenet', train, '--allow-partial', '--workers', 1).out


@pytest.mark.parametrize('pack', [False, True])
def test_it_goes_on_after_a_kill(train, tmp_path, monkeypatch, pack):
    monkeypatch.setattr(examine, '_CHUNK', 2)
    names = sorted(path.relative_to(train).as_posix() for path in train.rglob('*.JPEG'))
    seen = []

    def run(stop):
        writer = LmdbWriter(tmp_path / 'a.lmdb', job='x') if pack else None

        def mapper(function, tasks):
            for task in tasks:
                if len(seen) == stop:
                    raise KeyboardInterrupt
                seen.append(task[1])
                yield function(task)

        with examine.Journal(tmp_path / 'journal', 'x') as journal:
            try:
                return list(examine.examine(train, names, mapper, journal, writer))
            finally:
                if writer is not None:
                    writer.commit()
                    writer.close()

    with pytest.raises(KeyboardInterrupt):
        run(2)
    with open(tmp_path / 'journal', 'a') as handle:
        handle.write('[2, [{"name": "n0')
    found = run(99)
    assert [item.name for item in found] == names
    assert sum(bool(item.error) for item in found) == 1
    assert [name for chunk in seen for name in chunk] == names  # each once


def test_what_is_wrong_is_named(prepare, train, tmp_path):
    assert '5 pictures, published are 1281167' in prepare('imagenet', train, code=2).err
    (tmp_path / 'datasets' / 'imagenet' / 'train.lmdb').mkdir(parents=True)
    message = prepare('imagenet', train, '--allow-partial', '--lmdb', '--workers', 1, code=2).err
    assert 'is there already' in message
    for path in train.rglob('*.JPEG'):
        path.write_bytes(b'')
    assert 'none of the 5 pictures' in prepare('imagenet', train, '--allow-partial', '--workers', 1, code=2).err


def test_names_with_spaces_cannot_be_listed(prepare, train, tmp_path):
    path = train / 'n01440761' / 'n01440761_1.JPEG'
    path.rename(path.with_name('a b.JPEG'))
    outcome = prepare('imagenet', train, '--allow-partial', '--workers', 1)
    assert 'cannot hold a name with spaces' in outcome.out
    assert np.array_equal(
        ['a b' in line for line in (tmp_path / 'datasets/imagenet/train_map.txt').read_text().splitlines()], [False] * 3
    )


@pytest.mark.parametrize('pack', [(), ('--lmdb',)])
def test_repaired_pictures_and_damaged_lmdbs_are_noticed(prepare, train, tmp_path, pack):
    arguments = ('imagenet', train, '--allow-partial', '--workers', 1, *pack)
    prepare(*arguments)
    folder = tmp_path / 'datasets' / 'imagenet'
    listed = (folder / 'train_map.txt').read_text()
    again = prepare(*arguments)
    assert 'was there' in again.out and 'bad, left out' in again.out
    if pack:
        os.truncate(folder / 'train.lmdb' / 'data.mdb', 5000)
        assert 'or damaged' in prepare(*arguments, code=2).err
        prepare(*arguments, '--overwrite')
        assert len(LmdbReader(folder / 'train.lmdb')) == 4
    assert 'made' in prepare(*arguments, '--overwrite').out
    sound = (train / 'n01440760' / 'n01440760_2.JPEG').read_bytes()
    (train / 'n01440760' / 'n01440760_9.JPEG').write_bytes(sound)
    (folder / '.train_map.txt.0123abcd.tmp').write_text('left by a kill')
    assert 'bad' not in prepare(*arguments, '--overwrite').out
    assert len((folder / 'train_map.txt').read_text()) > len(listed)
    assert not list(folder.glob('.*.tmp'))


@pytest.mark.parametrize('pack', [(), ('--lmdb',)])
def test_an_old_verdict_is_not_believed(prepare, train, tmp_path, monkeypatch, pack):
    arguments = ('imagenet', train, '--allow-partial', '--workers', 1, *pack)

    def killed(*_):
        raise KeyboardInterrupt

    def troubled(content, *, name, **options):
        if name.endswith('_2.JPEG'):
            raise DataError(f'{name}: the network drive was away')
        return read_image(content, name=name, **options)

    monkeypatch.setattr('hat_plugin.prepare.imagenet.publish', killed)
    monkeypatch.setattr('hat_plugin.prepare.examine.read_image', troubled)
    prepare(*arguments, code=130)
    monkeypatch.undo()
    prepare(*arguments, '--overwrite')
    assert len((tmp_path / 'datasets' / 'imagenet' / 'train_map.txt').read_text().splitlines()) == 4
