"""Names of outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hat_plugin.errors import DataError
from hat_plugin.restore import plan_jobs


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def outputs(root: Path, out: Path, **options: str) -> list[str]:
    return [job.target.relative_to(out).as_posix() for job in plan_jobs(root, out, **options)]


def test_a_folder_keeps_its_tree(tmp_path: Path) -> None:
    source = touch(tmp_path / 'in', 'b.png', 'a.jpg', 'deep/er/c.tif', 'notes.txt', '.hidden.png', 'd.ppm')
    assert outputs(source, tmp_path / 'out') == ['a.jpg', 'b.png', 'd.png', 'deep/er/c.tif']
    assert outputs(source, tmp_path / 'out', suffix='_x4', ext='png') == [
        'a_x4.png',
        'b_x4.png',
        'd_x4.png',
        'deep/er/c_x4.png',
    ]


def test_a_single_picture_goes_into_a_file_or_a_folder(tmp_path: Path) -> None:
    source = touch(tmp_path, 'a.jpg') / 'a.jpg'
    assert plan_jobs(source, tmp_path / 'big.png')[0].target == tmp_path / 'big.png'
    assert plan_jobs(source, tmp_path / 'out')[0].target == tmp_path / 'out' / 'a.jpg'
    assert plan_jobs(source, tmp_path / 'out', ext='webp', suffix='_2')[0].target == tmp_path / 'out' / 'a_2.webp'
    with pytest.raises(DataError, match='leave out one of the two'):
        plan_jobs(source, tmp_path / 'big.png', ext='jpg')


def test_names_that_meet_are_told_apart(tmp_path: Path) -> None:
    source = touch(tmp_path / 'in', 'a.png', 'a.jpg', 'A.webp', 'b.jpg', 'sub/a.jpg')
    assert outputs(source, tmp_path / 'out', ext='png') == ['A.webp.png', 'a.jpg.png', 'a.png', 'b.png', 'sub/a.png']
    touch(source, 'a.jpg.png')
    with pytest.raises(DataError, match='another picture would be written'):
        plan_jobs(source, tmp_path / 'out', ext='png')


def test_inputs_are_never_overwritten(tmp_path: Path) -> None:
    source = touch(tmp_path / 'in', 'a.png')
    with pytest.raises(DataError, match=r'a.png: would overwrite an input; .*--suffix'):
        plan_jobs(source, source)
    with pytest.raises(DataError, match='would overwrite an input'):
        plan_jobs(source / 'a.png', source / 'a.png')
    (tmp_path / 'link').symlink_to(source)
    with pytest.raises(DataError, match='would overwrite an input'):
        plan_jobs(source, tmp_path / 'link')
    assert outputs(source, source, suffix='_x4') == ['a_x4.png']


def test_results_below_the_input_folder_are_no_inputs(tmp_path: Path) -> None:
    source = touch(tmp_path / 'in', 'a.png', 'out/a.png', 'outer/b.png')
    assert outputs(source, source / 'out') == ['a.png', 'outer/b.png']


@pytest.mark.parametrize('name', ['a.gif', 'a.PPM', 'a.avif'])
def test_a_picture_s_name_does_not_become_a_folder(tmp_path: Path, name: str) -> None:
    source = touch(tmp_path / 'in', 'a.png')
    for origin in (source, source / 'a.png'):
        with pytest.raises(DataError, match=rf'{name}: pictures are written as .png, .*, not as'):
            plan_jobs(origin, tmp_path / name)
    with pytest.raises(DataError, match="a.png: is a file's name, but the input"):
        plan_jobs(source, tmp_path / 'a.png')
    (tmp_path / name).mkdir()
    assert outputs(source, tmp_path / name) == ['a.png']
    assert plan_jobs(source / 'a.png', tmp_path / 'v1.5')[0].target == tmp_path / 'v1.5' / 'a.png'


def test_what_is_not_there_or_not_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'nothing\.png: there is no such picture'):
        plan_jobs(tmp_path / 'nothing.png', tmp_path / 'out')
    source = touch(tmp_path / 'in', 'a.png')
    with pytest.raises(DataError, match="ext 'gif'"):
        plan_jobs(source, tmp_path / 'out', ext='gif')
    with pytest.raises(DataError, match='slash'):
        plan_jobs(source, tmp_path / 'out', suffix='../x')
    with pytest.raises(DataError, match='is a file'):
        plan_jobs(source, touch(tmp_path, 'file.png') / 'file.png')
