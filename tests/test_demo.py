"""The demonstration from end to end, on parts of its photographs and for a few iterations."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parent.parent))  # benchmarks/ is of the checkout

from benchmarks import precisions
from hat_plugin import train
from hat_plugin.compare import panels
from hat_plugin.data.bicubic import imresize
from hat_plugin.data.images import read_image
from hat_plugin.demo import command, compare, steps
from hat_plugin.demo import photos as demo_photos
from hat_plugin.engine.options import load_options
from hat_plugin.resources import option_file

Cli = Callable[..., Any]
ITERATIONS = 3
WEIGHTS = steps.weights_file(ITERATIONS)


@pytest.fixture
def small_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Middles of the photographs (264x272) in the place of scikit-image's folder."""
    source, small = demo_photos.photo_folder(), tmp_path / 'small'
    small.mkdir()
    for file in (*demo_photos.TRAINING, *(photo.file for photo in demo_photos.HELD_OUT)):
        with Image.open(source / file) as image:
            left, top = (image.width - 272) // 2, (image.height - 264) // 2
            image.convert('RGB').crop((left, top, left + 272, top + 264)).save(small / file)
    monkeypatch.setattr(demo_photos, 'photo_folder', lambda: small)
    monkeypatch.chdir(tmp_path)


def demo(cli: Cli, *more: str) -> Any:
    return cli('demo', '--threads', '1', '--iterations', str(ITERATIONS), *more)


def test_from_photographs_to_a_picture(
    cli: Cli, small_photos: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = demo(cli)
    folder = tmp_path / 'demo_output'
    gains = []
    for photo in demo_photos.HELD_OUT:
        truth = read_image(folder / 'datasets/HeldOut/GTmod4' / f'{photo.name}.png')
        low = read_image(folder / 'datasets/HeldOut/LRbicx4' / f'{photo.name}.png')
        bicubic = compare.score(imresize(low, 4), truth)
        hat = compare.score(read_image(folder / 'restored' / f'{photo.name}.png'), truth)
        row = next(line for line in outcome.out.splitlines() if line.startswith(f'| {photo.name} '))
        assert f'{bicubic.psnr:.2f} / {bicubic.ssim:.4f}' in row
        assert f'{hat.psnr:.2f} / {hat.ssim:.4f}' in row
        assert abs(hat.psnr - bicubic.psnr) < 0.5  # it starts as bicubic, and three iterations do not change much
        gains.append(hat.psnr - bicubic.psnr)
    assert outcome.code == int(min(gains) <= 0), outcome.err
    assert str(Path('demo_output') / WEIGHTS) in outcome.out  # what to run next
    assert (folder / WEIGHTS).is_file()
    assert (folder / 'datasets/Photos/Photos_HR_raw.lmdb/data.mdb').is_file()
    with Image.open(folder / 'comparison.png') as sheet:
        sheet.load()
        assert sheet.width > 5 * panels.CROP[1] * panels.ZOOM
    rows = (folder / 'comparison.md').read_text().splitlines()
    names = [row.split('|')[1].strip() for row in rows if row.startswith('| ')]
    assert names[2:] == ['astronaut', 'chelsea', 'coffee', 'mean']

    sets = folder / 'datasets' / 'HeldOut'
    precisions.main([str(folder / WEIGHTS), str(sets / 'GTmod4'), str(sets / 'LRbicx4')])
    table = capsys.readouterr().out.splitlines()
    differences = [abs(float(found)) for found in re.findall(r'\(([+-].+?)\)', '\n'.join(table))]
    assert len(differences) == 2 * 4 and max(differences) < 0.01  # dB, by bf16

    weights = (folder / WEIGHTS).read_bytes()
    again = demo(cli)  # is only compared again
    assert again.code == outcome.code
    assert (folder / WEIGHTS).read_bytes() == weights
    assert 'was there' in again.out and ': made' not in again.out


def test_an_interrupted_demo_goes_on(
    cli: Cli, small_photos: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train, 'run', interrupt)
        assert demo(cli).code == 130
    assert Path.cwd() == tmp_path
    with monkeypatch.context() as patched:
        patched.setattr(train, 'run', lambda _: 143)  # what a training stopped by SIGTERM says
        stopped = demo(cli)
        assert stopped.code == 143 and 'Stopped' in stopped.out
    ended = demo(cli)
    assert ended.code in (0, 1), ended.err
    assert 'was there' in ended.out and (tmp_path / 'demo_output/comparison.png').is_file()


def test_folders_of_others_are_refused(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / 'mine'
    mine.mkdir()
    (mine / 'letter.txt').write_text('dear')
    outcome = demo(cli, '-o', 'mine')
    assert outcome.code == 2 and 'is not empty and no demo' in outcome.err
    assert [path.name for path in mine.iterdir()] == ['letter.txt']
    (mine / 'letter.txt').unlink()
    (mine / 'demo.json').write_text(json.dumps({'iterations': 7}))
    outcome = demo(cli, '-o', 'mine')
    assert outcome.code == 2 and 'other settings' in outcome.err


@pytest.mark.parametrize('words', [['--iterations', '0'], ['--threads', 'two']])
def test_wrong_numbers_are_refused(cli: Cli, words: list[str]) -> None:
    outcome = cli('demo', *words)
    assert outcome.code == 2 and 'no whole number' in outcome.err


def test_no_photograph_is_on_both_sides() -> None:
    held_out = {photo.file for photo in demo_photos.HELD_OUT}
    assert not held_out & set(demo_photos.TRAINING)
    assert {Path(file).stem.split('_')[0] for file in demo_photos.TRAINING} & {'motorcycle'}  # both views on one side
    assert not any('motorcycle' in file for file in held_out)
    thumbnails = {}
    for file in (*demo_photos.TRAINING, *held_out):
        with Image.open(demo_photos.photo_folder() / file) as image:
            thumbnails[file] = np.asarray(image.convert('L').resize((16, 16)), np.float64).ravel()
    for file in held_out:
        nearest = max(np.corrcoef(thumbnails[file], thumbnails[other])[0, 1] for other in demo_photos.TRAINING)
        assert nearest < 0.7, f'{file} looks like a training photograph'


def test_the_training_starts_as_bicubic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Any) -> None:
    monkeypatch.chdir(tmp_path)
    option = option_file(steps.OPTION_FILE)
    net = steps.write_start(option)
    options = load_options(option, root_path=tmp_path, is_train=True, need_data=False)
    written = torch.load(options['path']['pretrain_network_g'], weights_only=True)[options['path']['param_key_g']]
    assert all(torch.equal(value, written[name]) for name, value in net.state_dict().items())
    low = photos.small('astronaut', 24, 32)
    with torch.no_grad():
        output = net.eval()(torch.from_numpy(low).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0).numpy() * 255
    expected = imresize(low.astype(np.float64), 4)
    assert np.abs(output - expected)[8:-8, 8:-8].max() < 0.01


def test_the_verdict_is_about_each_photograph() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    good = compare.Comparison(
        demo_photos.HELD_OUT[0], image, image, image, image, compare.Score(27.0, 0.8), compare.Score(27.5, 0.81)
    )
    bad = replace(good, by_hat=compare.Score(27.0, 0.9))
    assert command.verdict([good, good]) == 0
    assert command.verdict([good, bad]) == 1
    assert compare.table([good, bad])[-1].split('|')[2:5] == [' 27.00 / 0.8000 ', ' 27.25 / 0.8550 ', '      +0.25 ']


def test_parts_lie_inside_and_fall_together() -> None:
    photo = np.arange(256 * 272 * 3, dtype=np.uint32).reshape(256, 272, 3).astype(np.uint8)
    top, left = panels.corner(photo, 250, 171, 4)
    assert (top, left) == (160, 152)
    part, low = panels.crop(photo, top, left), panels.crop(photo[::4, ::4], top, left, 4)
    assert part.shape == low.shape == (panels.CROP[0] * panels.ZOOM, panels.CROP[1] * panels.ZOOM, 3)
    step = 4 * panels.ZOOM
    np.testing.assert_array_equal(part[::step, ::step], low[::step, ::step])
    assert panels.corner(photo, 0, 0, 4) == (0, 0)
