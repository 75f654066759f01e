"""What stays behind when the work is cut off: nothing in the way, and nothing to be done twice."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from prepare.trees import SMALL, contents, own_process, run_and_kill, save

from hat_plugin.data import lmdb_writer
from hat_plugin.data.lmdb_io import LmdbReader
from hat_plugin.data.lmdb_writer import EncodedImage, LmdbWriter, encode_image
from hat_plugin.engine.files import folder_lock
from hat_plugin.engine.workers import worker_pool
from hat_plugin.errors import DataError
from hat_plugin.prepare import build, folder_writer
from hat_plugin.prepare import manifest as manifests
from hat_plugin.prepare.folder_writer import FolderWriter


@pytest.fixture
def many(tmp_path, photos):
    """Sixty pictures: work for a while."""
    for number in range(60):
        image = photos.small('coffee', 96, 96, number * 3, number * 2)
        save(tmp_path / 'many' / f'{number:04d}.png', image)
    return tmp_path / 'many'


def command(many, target, *more):
    return own_process('prepare', 'folder', many, '--name', 'many', '--scale', '4', *SMALL, '-o', target, *more)


def finish(cli, many, target, *more):
    arguments = ('folder', many, '--name', 'many', '--scale', 4, *SMALL, '-o', target, *more)
    outcome = cli('prepare', *arguments)
    assert outcome.code == 0, outcome.err
    return contents(target / 'many')


@pytest.mark.parametrize('more', [('--workers', '2'), ('--workers', '1', '--no-lmdb')])
def test_kill_9_and_again_is_as_if_nothing_had_happened(tmp_path, many, photos, cli, more):
    target = tmp_path / 'killed' / 'many'
    journal = target / ('.many_HR_sub.part' if '--no-lmdb' in more else '.many_HR_sub.lmdb.part') / 'journal.txt'
    run_and_kill(command(many, tmp_path / 'killed', *more), journal, 3000)
    assert not list(target.glob('many_*'))
    save(many / '0000.png', photos.small('rocket', 96, 96))  # done already, as two and three are
    save(many / '0001.png', photos.small('rocket', 60, 60))  # fewer sub-images than before
    (many / '0002.png').unlink()
    save(many / '0003a.png', photos.small('rocket', 96, 96))
    storage = more[2:]
    again = finish(cli, many, tmp_path / 'killed', *storage)
    assert again == finish(cli, many, tmp_path / 'undisturbed', *storage)
    assert not list(target.glob('.*.part'))


def begin(kind, path, sources):
    if kind == 'lmdb':
        return LmdbWriter(path / 'x.lmdb', job='x', sources=sources)
    return FolderWriter(path / 'x', job='x', sources=sources)


@pytest.mark.parametrize('kind', ['lmdb', 'disk'])
@pytest.mark.parametrize('killed', ['', 'before the journal', 'after the journal'])
def test_only_pictures_that_changed_are_done_again(tmp_path, photos, monkeypatch, kind, killed):
    def images(key, name, count):
        value = encode_image(photos.small(name), 'png')
        return [EncodedImage(f'{key}_s{number:03d}', value, (48, 64, 3)) for number in range(1, count + 1)]

    writer = begin(kind, tmp_path, None)
    for key in ('kept', 'changed', 'gone'):
        writer.put_all(images(key, 'coffee', 3), key)
    writer.commit() if kind == 'lmdb' else None
    writer.close()
    sources = {'kept', 'changed anew'}
    if killed:
        module = lmdb_writer if kind == 'lmdb' else folder_writer
        write = module.write_text_atomic

        def kill(path, text):
            if path.name == 'journal.txt':
                if killed == 'after the journal':
                    write(path, text)
                raise KeyboardInterrupt
            write(path, text)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, 'write_text_atomic', kill)
            begin(kind, tmp_path, sources)
        gc.collect()  # lets go of the LMDB, as the end of a process does
    writer = begin(kind, tmp_path, sources)
    assert writer.done == {'kept_s001', 'kept_s002', 'kept_s003'}
    writer.put_all(images('changed', 'rocket', 2), 'changed anew')
    assert writer.seal()
    writer.publish()
    if kind == 'lmdb':
        reader = LmdbReader(tmp_path / 'x.lmdb')
        assert len(reader) == 5
        assert np.array_equal(reader.image('changed_s001'), photos.small('rocket'))
    else:
        assert len(list((tmp_path / 'x').iterdir())) == 5


@pytest.mark.parametrize('storage', [(), ('--no-lmdb',)])
def test_bad_pictures_are_replaced_and_the_others_not_done_again(many, cli, tmp_path, monkeypatch, storage):
    sound = (many / '0007.png').read_bytes()
    (many / '0007.png').write_bytes(sound[: len(sound) // 2])
    arguments = ('folder', many, '--name', 'many', '--scale', 4, *SMALL, '-o', tmp_path / 'out', *storage)
    assert 'the others are done and kept' in cli('prepare', *arguments).err
    (many / '0007.png').write_bytes(sound)
    done = []
    cut = build.cut_picture
    monkeypatch.setattr(build, 'cut_picture', lambda task: (done.append(task[0].stem), cut(task))[1])
    again = finish(cli, many, tmp_path / 'out', *storage)
    assert done == ['0007']
    assert again == finish(cli, many, tmp_path / 'undisturbed', *storage)


@pytest.mark.skipif(os.name != 'posix', reason='a file size limit is POSIX')
def test_a_full_disk_stops_with_an_error_and_the_next_run_goes_on(tmp_path, many, cli):
    limited = command(many, tmp_path / 'full', '--workers', '1')
    limited[2] = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (400000, 400000))\n' + limited[2]
    process = subprocess.run(limited, capture_output=True, text=True)
    assert process.returncode == 2, process.stderr
    assert 'make room on the disk' in process.stderr
    assert not list((tmp_path / 'full' / 'many').glob('many_*'))
    assert (tmp_path / 'full' / 'many' / '.many_HR_sub.lmdb.part').exists()
    assert finish(cli, many, tmp_path / 'full') == finish(cli, many, tmp_path / 'undisturbed')


@pytest.mark.parametrize('renames', [0, 1, 2])
def test_a_kill_between_two_renames_is_finished_by_the_next_run(div2k, prepare, tmp_path, monkeypatch, renames):
    arguments = ('div2k', div2k, '--allow-partial', '--scale', 4, *SMALL)
    prepare(*arguments)
    folder = tmp_path / 'datasets' / 'DIV2K'
    expected = contents(folder)
    (folder / 'DIV2K_HR_sub.lmdb' / 'meta_info.txt').unlink()  # a damaged one, to be replaced
    replace = manifests.replace_folder
    calls = []

    def killed(aside, path, *, overwrite):
        if len(calls) == renames:
            raise KeyboardInterrupt
        calls.append(path)
        replace(aside, path, overwrite=overwrite)

    monkeypatch.setattr(manifests, 'replace_folder', killed)
    (folder / 'manifest.json').unlink()
    assert prepare(*arguments, '--overwrite', code=130 if renames < 2 else 0)
    monkeypatch.undo()
    again = prepare(*arguments)
    assert contents(folder) == expected
    assert 'made' not in again.out
    assert sorted(path.name for path in folder.iterdir() if path.name != '.basicsr.lock') == sorted(expected)


def test_two_at_once_do_not_disturb_each_other(div2k, prepare, tmp_path):
    with folder_lock(tmp_path / 'datasets' / 'DIV2K'):
        message = prepare('div2k', div2k, '--allow-partial', *SMALL, code=2).err
    assert 'another `basicsr` is at work here' in message
    prepare('div2k', div2k, '--allow-partial', *SMALL)


def kill_itself(task: int) -> int:
    if task == 5:
        os.kill(os.getpid(), 9)
    return task


def test_a_worker_that_dies_is_an_error_and_no_hang():
    with pytest.raises(DataError, match='fewer --workers'), worker_pool(2) as mapper:
        list(mapper(kill_itself, range(20)))


def test_results_come_in_order():
    with worker_pool(2) as mapper:
        assert list(mapper(abs, range(-30, 0))) == list(range(30, 0, -1))


OWN_SCRIPT = """
import os
import time

from hat_plugin.engine.workers import worker_pool


def identify(task):
    time.sleep(0.3)
    return os.getpid()


if __name__ == '__main__':
    with worker_pool(2) as mapper:
        for pid in mapper(identify, range(2)):
            print(pid, flush=True)
        time.sleep(60)
"""


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='looks at /proc')
def test_workers_end_with_their_killed_parent(tmp_path):
    path = tmp_path / 'script.py'
    path.write_text(OWN_SCRIPT)
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True, env=environment)
    children = {int(process.stdout.readline()) for _ in range(2)}
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(child) for child in children)


def _alive(pid: int) -> bool:
    try:
        with open(f'/proc/{pid}/stat') as handle:
            return handle.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


def test_a_manifest_that_is_none_is_named(div2k, prepare, tmp_path):
    path = tmp_path / 'datasets' / 'DIV2K' / 'manifest.json'
    path.parent.mkdir(parents=True)
    for text in ('{', '[]', '{"outputs": 3}'):
        path.write_text(text)
        assert str(path) in prepare('div2k', div2k, '--allow-partial', *SMALL, code=2).err
