"""LMDBs of images: written whole or not at all, read by crops, in any process, never by SIGBUS."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap

import cv2
import lmdb
import numpy as np
import pytest

from hat_plugin.data.lmdb_io import LmdbReader, LmdbWriter, key_of
from hat_plugin.errors import DataError


@pytest.fixture
def pictures(photos) -> dict[str, np.ndarray]:
    names = ('coffee', 'chelsea', 'rocket')
    return {f'{index:04d}_s001': photos.small(name, 40 + index, 50) for index, name in enumerate(names)}


def write(path, pictures, kind='png', **options):
    with LmdbWriter(path, kind, **options) as writer:
        for key, image in pictures.items():
            writer.put_image(key, image)
    return path


@pytest.mark.parametrize('kind', ['png', 'raw'])
def test_what_is_written_is_read(tmp_path, pictures, kind):
    pictures['gray'] = pictures['0000_s001'][..., :1]
    pictures['deep'] = pictures['0001_s001'].astype(np.uint16) * 200
    reader = LmdbReader(write(tmp_path / 'a.lmdb', pictures, kind))
    assert reader.kind == kind
    assert reader.keys() == sorted(pictures)
    assert len(reader) == 5
    assert 'gray' in reader
    assert 'grey' not in reader
    for key, image in pictures.items():
        assert reader.shape(key) == image.shape
        assert reader.image(key).dtype == image.dtype
        assert np.array_equal(reader.image(key), image)
        crop = reader.crop(key, 3, 5, 20, 31)
        assert np.array_equal(crop, image[3:23, 5:36])
        assert crop.flags.owndata
        assert crop.flags.writeable
    assert sorted(os.listdir(tmp_path / 'a.lmdb')) == ['data.mdb', 'meta_info.txt']
    assert os.listdir(tmp_path) == ['a.lmdb']


def test_meta_info_is_basicsr_s(tmp_path, pictures):
    path = write(tmp_path / 'a.lmdb', pictures, compress_level=3)
    assert (path / 'meta_info.txt').read_text().splitlines()[0] == '0000_s001.png (40,50,3) 3'
    raw = write(tmp_path / 'b.lmdb', pictures, 'raw')
    assert (raw / 'meta_info.txt').read_text().splitlines()[0] == '0000_s001.raw (40,50,3) uint8'


def test_basicsr_reads_it(tmp_path, pictures):
    from basicsr.data.paired_image_dataset import PairedImageDataset

    gt = write(tmp_path / 'gt.lmdb', pictures)
    lq = write(tmp_path / 'lq.lmdb', {key: image[::2, ::2] for key, image in pictures.items()})
    dataset = PairedImageDataset(
        {'dataroot_gt': str(gt), 'dataroot_lq': str(lq), 'io_backend': {'type': 'lmdb'}, 'scale': 2, 'phase': 'val'}
    )
    assert len(dataset) == 3
    image = np.rint(dataset[1]['gt'].numpy().transpose(1, 2, 0)[..., ::-1] * 255)
    assert np.array_equal(image, pictures['0001_s001'][:, :, :][: image.shape[0], : image.shape[1]])


def test_an_lmdb_of_basicsr_is_read(tmp_path, pictures):
    from basicsr.utils.lmdb_util import LmdbMaker

    maker = LmdbMaker(str(tmp_path / 'a.lmdb'), map_size=2**26)
    for key, image in {**pictures, 'v1.5 of it': pictures['0000_s001']}.items():
        maker.put(cv2.imencode('.png', image)[1], key, image.shape)
    maker.close()
    reader = LmdbReader(tmp_path / 'a.lmdb')
    assert reader.keys() == [*pictures, 'v1.5 of it']  # BasicSR's own reader would look for 'v1'
    assert np.array_equal(reader.image('v1.5 of it'), pictures['0000_s001'])


def test_the_map_grows(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr('hat_plugin.data.lmdb_writer._FIRST_MAP', 65536)
    monkeypatch.setattr('hat_plugin.data.lmdb_writer._BATCH_BYTES', 10000)
    many = {f'{number:03d}': np.roll(pictures['0000_s001'], number) for number in range(60)}
    reader = LmdbReader(write(tmp_path / 'a.lmdb', many, 'raw'))
    assert all(np.array_equal(reader.image(key), image) for key, image in many.items())


@pytest.mark.parametrize('name', ['IMG 1', 'a.b', 'Übung', '照片', 'a\nb', '../x', '/etc/x', '..', 'a' * 300])
def test_odd_names_become_keys(tmp_path, pictures, name):
    key = key_of(name)
    assert key == key_of(name)
    assert key.isascii()
    assert not set(key) & set('. /\n')
    with LmdbWriter(tmp_path / 'a.lmdb') as writer:
        writer.put_image(key, pictures['0000_s001'])
        with pytest.raises(DataError, match='cannot be a key'):
            writer.put_image(name if len(name) < 300 else 'a' * 512, pictures['0000_s001'])
    from basicsr.data.data_util import paths_from_lmdb

    assert paths_from_lmdb(str(tmp_path / 'a.lmdb')) == [key]
    assert LmdbReader(tmp_path / 'a.lmdb').keys() == [key]


def test_keys_of_different_names_differ():
    names = ['IMG 1', 'IMG_1', 'IMG.1', 'IMG  1', 'img-1', '照片1', '相片1', '000/00000001']
    assert len({key_of(name) for name in names}) == len(names)
    assert key_of('0001_s001') == '0001_s001'
    assert key_of('000/00000001') == '000/00000001'


def test_a_key_twice_is_refused(tmp_path, pictures):
    with LmdbWriter(tmp_path / 'a.lmdb') as writer:
        writer.put_image('a', pictures['0000_s001'])
        with pytest.raises(DataError, match="two images have the key 'a'"):
            writer.put_image('a', pictures['0001_s001'])


def test_what_is_there_is_not_overwritten_unasked(tmp_path, pictures):
    path = write(tmp_path / 'a.lmdb', pictures)
    with pytest.raises(DataError, match='is there already'):
        LmdbWriter(path)
    write(path, {'other': pictures['0000_s001']}, overwrite=True)
    assert LmdbReader(path).keys() == ['other']
    assert os.listdir(tmp_path) == ['a.lmdb']


def test_the_old_one_comes_back_after_a_kill_between_two_renames(tmp_path, pictures):
    path = write(tmp_path / 'a.lmdb', pictures)
    path.rename(tmp_path / '.a.lmdb.old')
    with pytest.raises(DataError, match='is there already'):
        LmdbWriter(path)
    assert len(LmdbReader(path)) == 3


def test_the_name_must_end_with_lmdb(tmp_path):
    with pytest.raises(DataError, match=r'must end with \.lmdb'):
        LmdbWriter(tmp_path / 'a')


def test_an_error_leaves_nothing_under_the_name_and_the_next_goes_on(tmp_path, pictures):
    path = tmp_path / 'a.lmdb'
    with pytest.raises(RuntimeError), LmdbWriter(path, job='x') as writer:
        writer.put_image('0000_s001', pictures['0000_s001'])
        writer.commit()
        writer.put_image('0001_s001', pictures['0001_s001'])
        raise RuntimeError
    assert not path.exists()
    with LmdbWriter(path, job='x') as writer:
        assert writer.done == {'0000_s001'}
        for key in set(pictures) - writer.done:
            writer.put_image(key, pictures[key])
    reader = LmdbReader(path)
    assert all(np.array_equal(reader.image(key), image) for key, image in pictures.items())


def test_another_job_starts_over(tmp_path, pictures):
    writer = LmdbWriter(tmp_path / 'a.lmdb', job='x')
    writer.put_image('old', pictures['0000_s001'])
    writer.commit()
    writer.close()
    with LmdbWriter(tmp_path / 'a.lmdb', job='y') as writer:
        assert not writer.done
        writer.put_image('new', pictures['0000_s001'])
    assert LmdbReader(tmp_path / 'a.lmdb').keys() == ['new']


@pytest.mark.parametrize('damage', ['cut', 'zero', 'journal'])
def test_a_damaged_rest_of_a_killed_writer_is_no_obstacle(tmp_path, pictures, damage):
    path, aside = tmp_path / 'a.lmdb', tmp_path / '.a.lmdb.part'
    writer = LmdbWriter(path, job='x')
    writer.put_image('0000_s001', pictures['0000_s001'])
    writer.commit()
    writer.close()
    if damage == 'journal':
        with open(aside / 'journal.txt', 'a') as handle:
            handle.write('0001_s001.png (4')
    else:
        os.truncate(aside / 'data.mdb', 5000 if damage == 'cut' else 0)
    with LmdbWriter(path, job='x') as writer:
        assert writer.done == ({'0000_s001'} if damage == 'journal' else set())
        for key in set(pictures) - writer.done:
            writer.put_image(key, pictures[key])
    reader = LmdbReader(path)
    assert all(np.array_equal(reader.image(key), image) for key, image in pictures.items())


WRITE_FOR_EVER = """
import sys
import numpy as np
from hat_plugin.data.lmdb_io import LmdbWriter
image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
with LmdbWriter(sys.argv[1], 'raw', job='x') as writer:
    for number in range(len(writer.done), 10 ** 6):
        writer.put_image(f'{number:07d}', np.roll(image, number))
        writer.commit()
        print(number, flush=True)
"""


def test_kill_9_leaves_what_was_committed(tmp_path):
    path = tmp_path / 'a.lmdb'
    process = subprocess.Popen([sys.executable, '-c', WRITE_FOR_EVER, path], stdout=subprocess.PIPE, text=True)
    for _ in range(20):
        process.stdout.readline()
    process.kill()
    process.wait()
    assert not path.exists()
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    with LmdbWriter(path, 'raw', job='x') as writer:
        done = len(writer.done)
        assert done >= 20
        writer.put_image(f'{done:07d}', np.roll(image, done))
    reader = LmdbReader(path)
    assert len(reader) == done + 1
    assert all(np.array_equal(reader.image(key), np.roll(image, int(key))) for key in reader)


@pytest.mark.skipif(os.name != 'posix', reason='a file size limit is POSIX')
def test_a_full_disk_is_an_error_and_leaves_nothing_under_the_name(tmp_path):
    limited = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2 ** 20, 2 ** 20))' + WRITE_FOR_EVER
    process = subprocess.run([sys.executable, '-c', limited, tmp_path / 'a.lmdb'], capture_output=True, text=True)
    assert process.returncode == 1
    assert 'DataError' in process.stderr
    assert 'make room on the disk' in process.stderr
    assert not (tmp_path / 'a.lmdb').exists()
    with LmdbWriter(tmp_path / 'a.lmdb', 'raw', job='x') as writer:
        assert 20 < len(writer.done) < 40
    assert len(LmdbReader(tmp_path / 'a.lmdb')) > 20


@pytest.mark.parametrize('size', [0, 100, 4096, 9000, -1])
def test_a_file_cut_short_is_an_error_and_no_sigbus(tmp_path, pictures, size):
    path = write(tmp_path / 'a.lmdb', pictures)
    whole = (path / 'data.mdb').stat().st_size
    os.truncate(path / 'data.mdb', size if size >= 0 else whole - 1)
    with pytest.raises(DataError, match=r'cut short|not an LMDB'):
        LmdbReader(path)


def test_a_file_cut_short_after_the_check_of_another_process(tmp_path, pictures):
    path = write(tmp_path / 'a.lmdb', pictures)
    reader = LmdbReader(path)
    os.truncate(path / 'data.mdb', 9000)
    with pytest.raises(DataError, match='cut short'):
        reader.read('0000_s001')


def test_what_is_wrong_is_named(tmp_path, pictures):
    with pytest.raises(DataError, match=r'nowhere\.lmdb'):
        LmdbReader(tmp_path / 'nowhere.lmdb')
    path = write(tmp_path / 'a.lmdb', pictures)
    reader = LmdbReader(path)
    with pytest.raises(DataError, match=r"no image 'x'.*0000_s001"):
        reader.read('x')
    with pytest.raises(DataError, match='not inside'):
        reader.crop('0000_s001', 30, 0, 20, 20)
    with pytest.raises(DataError, match='not inside'):
        reader.crop('0000_s001', -1, 0, 20, 20)
    for line, said in {
        'nonsense': 'line 4',
        '0000_s001.png (40,50,3) 1': 'twice',
        'a.raw (40,50,3) uint8': 'mixed',
        'a.raw 1': 'needs its shape',
    }.items():
        text = (path / 'meta_info.txt').read_text()
        (path / 'meta_info.txt').write_text(f'{text}{line}\n')
        with pytest.raises(DataError, match=said):
            LmdbReader(path)
        (path / 'meta_info.txt').write_text(text)
    (path / 'meta_info.txt').write_text('')
    with pytest.raises(DataError, match='no image is listed'):
        LmdbReader(path)


def test_values_that_do_not_fit_are_named(tmp_path, pictures):
    path = write(tmp_path / 'a.lmdb', pictures)
    environment = lmdb.open(str(path), map_size=2**26)
    with environment.begin(write=True) as transaction:
        transaction.put(b'0000_s001', b'no png')
        transaction.delete(b'0001_s001')
    environment.close()
    reader = LmdbReader(path)
    with pytest.raises(DataError, match="'0000_s001' is no readable PNG"):
        reader.image('0000_s001')
    with pytest.raises(DataError, match=r'not in data\.mdb'):
        reader.read('0001_s001')
    raw = write(tmp_path / 'b.lmdb', pictures, 'raw')
    text = (raw / 'meta_info.txt').read_text()
    (raw / 'meta_info.txt').write_text(text.replace('(40,50,3)', '(40,60,3)'))
    with pytest.raises(DataError, match="'0000_s001' has 6000 bytes"):
        LmdbReader(raw).crop('0000_s001', 0, 0, 4, 4)


def test_several_readers_in_one_process(tmp_path, pictures):
    path = write(tmp_path / 'a.lmdb', pictures)
    first, second = LmdbReader(path), LmdbReader(tmp_path / '.' / 'a.lmdb')
    assert first.read('0000_s001') == second.read('0000_s001')
    first.close()
    assert second.image('0001_s001').shape == (41, 50, 3)
    assert first.image('0001_s001').shape == (41, 50, 3)


def test_a_reader_sees_the_lmdb_that_replaced_the_one_before(tmp_path, pictures):
    path = write(tmp_path / 'a.lmdb', pictures)
    old = LmdbReader(path)
    old.read('0000_s001')
    write(path, {'new': pictures['0000_s001']}, overwrite=True)
    assert LmdbReader(path).image('new').shape == (40, 50, 3)


def total(reader: LmdbReader) -> int:
    return sum(int(reader.image(key).sum()) for key in reader)


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_workers_read_at_the_same_time(tmp_path, pictures, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f'this system has no {method}')
    reader = LmdbReader(write(tmp_path / 'a.lmdb', pictures, 'raw'))
    expected = total(reader)  # opened in the parent, then taken into the workers
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(total, [reader] * 4) == [expected] * 4
    assert total(reader) == expected


def test_a_reader_taken_through_a_fork_without_pickling(tmp_path, pictures):
    script = textwrap.dedent("""
        import os, sys
        from hat_plugin.data.lmdb_io import LmdbReader
        reader = LmdbReader(sys.argv[1])
        reader.read('0000_s001')
        child = os.fork()
        if not child:
            again = LmdbReader(sys.argv[1])
            os._exit(0 if again.read('0001_s001') == reader.read('0001_s001') else 7)
        assert os.waitpid(child, 0)[1] == 0
        reader.read('0002_s001')
    """)
    subprocess.run([sys.executable, '-c', script, write(tmp_path / 'a.lmdb', pictures)], check=True)


def test_a_pickled_reader_opens_its_own(tmp_path, pictures):
    reader = LmdbReader(write(tmp_path / 'a.lmdb', pictures))
    reader.read('0000_s001')
    assert pickle.loads(pickle.dumps(reader)).read('0000_s001') == reader.read('0000_s001')
