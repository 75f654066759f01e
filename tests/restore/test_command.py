"""``basicsr restore`` from the outside."""

from __future__ import annotations

import errno
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hat_plugin.restore import command, pipeline
from hat_plugin.restore.images import read_picture, write_image


@pytest.fixture
def folder(tmp_path: Path, photos) -> Path:
    """Photographs in many formats, in two folders."""
    source = tmp_path / 'in'
    (source / 'deep').mkdir(parents=True)
    photo = photos.small('coffee', 20, 28)
    write_image(source / 'a.png', photo)
    write_image(source / 'a.jpg', photo)
    write_image(source / 'gray.png', photo[..., :1])
    write_image(source / 'alpha.webp', np.dstack([photo, photo[..., 0]]))
    write_image(source / 'deep' / '16.tif', photo.astype(np.uint16) * 257 + 3)
    write_image(source / 'deep' / 'b.bmp', photo)
    return source


def test_a_folder_of_many_formats(folder: Path, weights: Path, tmp_path: Path, cli) -> None:
    outcome = cli('restore', folder, '-o', tmp_path / 'out', '--weights', weights, '--device', 'cpu')
    assert outcome.code == 0, outcome.err
    assert '6 written' in outcome.out and 'HAT x2' in outcome.out and 'conv_scale 0.01' in outcome.out
    for name in ('a.png', 'a.jpg', 'gray.png', 'alpha.webp', 'deep/16.tif', 'deep/b.bmp'):
        before, after = read_picture(folder / name), read_picture(tmp_path / 'out' / name)
        assert after.shape == (40, 56, before.shape[2]) and after.dtype == before.dtype, name
    assert len(np.unique(read_picture(tmp_path / 'out' / 'deep' / '16.tif'))) > 256, '16 bits in name alone'


def test_one_picture_equals_the_python_interface(folder: Path, weights: Path, network, tmp_path: Path, cli) -> None:
    outcome = cli('restore', folder / 'a.png', '-o', tmp_path / 'big.png', '-w', weights, '--device', 'cpu')
    assert outcome.code == 0, outcome.err
    expected = pipeline.restore_image(network, read_picture(folder / 'a.png'))
    np.testing.assert_array_equal(read_picture(tmp_path / 'big.png'), expected)


def test_a_bad_file_is_named_and_the_others_go_on(folder: Path, weights: Path, tmp_path: Path, cli) -> None:
    (folder / 'broken.png').write_bytes((folder / 'a.png').read_bytes()[:200])
    (folder / 'empty.jpg').touch()
    outcome = cli('restore', folder, '-o', tmp_path / 'out', '-w', weights)
    assert outcome.code == 1
    assert '6 written' in outcome.out and '2 failed' in outcome.out
    assert f'failed: {folder / "broken.png"}: ' in outcome.err and f'failed: {folder / "empty.jpg"}: ' in outcome.err
    assert not (tmp_path / 'out' / 'broken.png').exists()


def test_existing_outputs_are_refused_overwritten_or_skipped(folder: Path, weights: Path, tmp_path: Path, cli) -> None:
    out = tmp_path / 'out'
    out.mkdir()
    write_image(out / 'a.png', np.zeros((4, 4, 3), np.uint8))
    arguments = ('restore', folder / 'a.png', '-o', out, '-w', weights)
    outcome = cli(*arguments)
    assert outcome.code == 2 and 'a.png: exists; give --overwrite or --skip-existing' in outcome.err
    outcome = cli(*arguments, '--skip-existing')
    assert outcome.code == 0 and '1 skipped' in outcome.out and read_picture(out / 'a.png').shape == (4, 4, 3)
    outcome = cli(*arguments, '--overwrite')
    assert outcome.code == 0 and read_picture(out / 'a.png').shape == (40, 56, 3)
    assert cli(*arguments, '--overwrite', '--skip-existing').code == 2


def test_suffix_ext_and_options_reach_the_picture(folder: Path, weights: Path, tmp_path: Path, cli) -> None:
    plain = cli('restore', folder / 'a.png', '-o', tmp_path, '-w', weights, '--suffix', '_1', '--ext', 'tif')
    assert plain.code == 0 and (tmp_path / 'a_1.tif').exists()
    reference = read_picture(tmp_path / 'a_1.tif').astype(int)
    for number, option in enumerate(
        [('--self-ensemble',), ('--precision', 'bf16'), ('--tile', '16', '--overlap', '8')]
    ):
        name = tmp_path / f'b{number}.png'
        assert cli('restore', folder / 'a.png', '-o', name, '-w', weights, *option).code == 0
        difference = np.abs(read_picture(name).astype(int) - reference)
        assert 0 < difference.max() < (256 if option == ('--self-ensemble',) else 30), option
    whole = tmp_path / 'whole.png'
    assert cli('restore', folder / 'a.png', '-o', whole, '-w', weights, '--tile', 'none', '--scale', '2').code == 0
    np.testing.assert_array_equal(read_picture(whole), reference)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--scale', '3'), 'enlarges 2 times, not 3'),
        (('--tile', 'big'), 'not auto, none or a number'),
        (('--tile', '0'), 'not auto, none or a number'),
        (('--device', 'tpu'), 'tpu'),
        (('--overlap', '-3'), 'overlap'),
        (('--suffix', '/../x'), 'slash'),
    ],
)
def test_wrong_arguments_say_so(arguments, message: str, folder: Path, weights: Path, tmp_path: Path, cli) -> None:
    outcome = cli('restore', folder / 'a.png', '-o', tmp_path / 'x.png', '-w', weights, *arguments)
    assert outcome.code == 2 and message in outcome.err
    assert not (tmp_path / 'x.png').exists()


def test_wrong_inputs_say_so(folder: Path, weights: Path, tmp_path: Path, cli) -> None:
    outcome = cli('restore', folder / 'a.png', '-o', folder / 'a.png', '-w', weights, '--overwrite')
    assert outcome.code == 2 and 'would overwrite an input' in outcome.err
    outcome = cli('restore', folder / 'a.png', '-o', tmp_path / 'x', '-w', tmp_path / 'none.pth')
    assert outcome.code == 2 and 'none.pth: no such file' in outcome.err
    outcome = cli('restore', folder / 'a.png', '-o', tmp_path / 'x', '-w', folder)
    assert outcome.code == 2 and f'{folder}: is a folder; name a file in it' in outcome.err
    outcome = cli('restore', tmp_path / 'none', '-o', tmp_path / 'x', '-w', weights)
    assert outcome.code == 2 and 'there is no such picture or folder' in outcome.err


def test_outputs_are_looked_at_before_the_weights_are_loaded(folder: Path, tmp_path: Path, cli, monkeypatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError('the weights were loaded')

    monkeypatch.setattr(command, 'load_network', never)
    write_image(tmp_path / 'there.png', np.zeros((4, 4, 3), np.uint8))
    outcome = cli('restore', folder / 'a.png', '-o', tmp_path / 'there.png', '-w', 'x.pth')
    assert outcome.code == 2 and 'exists; give --overwrite' in outcome.err
    (tmp_path / 'file').touch()
    outcome = cli('restore', folder, '-o', tmp_path / 'file' / 'out', '-w', 'x.pth')
    assert outcome.code == 2 and f'{tmp_path / "file"} is a file, not a folder; give another -o' in outcome.err
    monkeypatch.setattr('os.access', lambda path, mode: path != tmp_path)
    outcome = cli('restore', folder, '-o', tmp_path / 'out', '-w', 'x.pth')
    assert outcome.code == 2 and f'{tmp_path} may not be written to' in outcome.err
    assert not (tmp_path / 'out').exists()


def test_a_full_disk_stops_the_run(folder: Path, weights: Path, tmp_path: Path, cli, monkeypatch) -> None:
    def full(path: Path, array: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(pipeline, 'write_image', full)
    outcome = cli('restore', folder, '-o', tmp_path / 'out', '-w', weights)
    assert outcome.code == 2 and 'the disk is full' in outcome.err and 'Traceback' not in outcome.err


def test_lack_of_memory_fails_one_picture_and_a_fault_stops_all(
    folder: Path, weights: Path, tmp_path: Path, cli, monkeypatch
) -> None:
    kind: type[Exception] = torch.OutOfMemoryError

    def fails(*_: object, **__: object) -> None:
        raise kind('injected')

    monkeypatch.setattr(pipeline, 'tiled_forward', fails)
    outcome = cli('restore', folder, '-o', tmp_path / 'out', '-w', weights)
    assert outcome.code == 1 and outcome.err.count('does not fit into memory') == 6
    kind = RuntimeError
    with pytest.raises(RuntimeError, match='injected'):
        cli('restore', folder, '-o', tmp_path / 'out', '-w', weights)


def test_a_16_bit_input_into_8_bits_is_warned_about(folder: Path, weights: Path, tmp_path: Path, cli, caplog) -> None:
    outcome = cli('restore', folder / 'deep' / '16.tif', '-o', tmp_path / 'x.jpg', '-w', weights)
    assert outcome.code == 0 and 'has 16 bits' in caplog.text
    assert cv2.imread(str(tmp_path / 'x.jpg'), cv2.IMREAD_UNCHANGED).dtype == np.uint8


def test_a_black_picture_of_a_broken_network_is_never_written(folder: Path, weights: Path, tmp_path: Path, cli) -> None:
    content = torch.load(weights)
    content['params']['conv_first.weight'].fill_(float('nan'))
    torch.save(content, tmp_path / 'nan.pth')
    outcome = cli('restore', folder / 'a.png', '-o', tmp_path / 'out', '-w', tmp_path / 'nan.pth')
    assert outcome.code == 1 and 'NaN' in outcome.err
    assert 'its weights are damaged' in outcome.err and '--precision' not in outcome.err
    outcome = cli(
        'restore', folder / 'a.png', '-o', tmp_path / 'out', '-w', tmp_path / 'nan.pth', '--precision', 'bf16'
    )
    assert 'give --precision fp32' in outcome.err
    assert not (tmp_path / 'out' / 'a.png').exists()
