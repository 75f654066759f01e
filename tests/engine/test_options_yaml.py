"""The loader of option files: numbers as people write them, and nothing that could do harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from hat_plugin.engine.options import read_yaml
from hat_plugin.errors import OptionsError


def read(tmp_path: Path, text: str) -> dict[str, object]:
    file = tmp_path / 'file.yml'
    file.write_text(text, encoding='utf-8')
    return read_yaml(file)


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('1e-4', 1e-4),
        ('1e5', 1e5),
        ('-2E+3', -2000.0),
        ('1.5e-3', 0.0015),
        ('.5', 0.5),
        ('1.', 1.0),
        ('!!float 1e-4', 1e-4),
        ('!!float 5', 5.0),
        ('12', 12),
        ('-1', -1),
        ('0x10', 16),
        ('010', 10),
        ('1_000', 1000),
        ('~', None),
        ('', None),
        ('true', True),
        ('False', False),
        ('"1e-4"', '1e-4'),
        ('2024-01-01', '2024-01-01'),
        ('1:30', '1:30'),
        ('e5', 'e5'),
        ('[1, 2e-1, a]', [1, 0.2, 'a']),
    ],
)
def test_scalars(tmp_path: Path, text: str, value: object) -> None:
    found = read(tmp_path, f'key: {text}')['key']
    assert found == value
    assert type(found) is type(value)


def test_aliases_and_merges_are_written_out(tmp_path: Path) -> None:
    opt = read(tmp_path, 'a: &a {x: 1, y: [2]}\nb: {<<: *a, x: 3}\nc: *a\nd: *a\n')
    assert opt == {'a': {'x': 1, 'y': [2]}, 'b': {'x': 3, 'y': [2]}, 'c': {'x': 1, 'y': [2]}, 'd': {'x': 1, 'y': [2]}}
    assert opt['c'] is not opt['d']


@pytest.mark.parametrize(
    'text',
    [
        'key: !!python/object/apply:os.system ["touch pwned"]',
        'key: !!python/object/new:subprocess.Popen [["touch", "pwned"]]',
        'key: !!python/name:os.system',
        'key: !!python/module:os',
        '!!python/object/apply:os.mkdir ["pwned"]',
    ],
)
def test_python_tags_are_refused_and_run_nothing(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionsError, match='is refused'):
        read(tmp_path, text)
    assert [entry.name for entry in tmp_path.iterdir()] == ['file.yml']


BOMB = 'a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n' + ''.join(
    f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 10)}]\n' for i in range(1, 30)
)
MERGE_BOMB = 'a0: &a0 {x: 1}\n' + ''.join(
    f'a{i}: &a{i} {{<<: [{", ".join([f"*a{i - 1}"] * 10)}]}}\n' for i in range(1, 30)
)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (BOMB, 'more than 100000 values'),
        (MERGE_BOMB, 'more than 100000 values'),
        ('a: &a [*a]', 'inside what it names'),
        ('[' * 5000, 'nested too deeply'),
        ('a: 1\na: 2', "line 2, column 1: 'a' is given twice"),
        ('a: {b: 1, b: 2}', "'b' is given twice"),
        ('a: [1', 'not YAML'),
        ('a: 1\n b: 2', 'not YAML'),
        ('- a', 'a list'),
        ('', 'empty'),
        ('just text', 'a str'),
        ('a: !!float x', 'cannot be read'),
        ('a: 1\n---\nb: 2', 'not YAML'),
        ('? [1, 2]\n: x', 'unhashable'),
        ('x: ' + 'a' * (1 << 20), 'larger than 1 MiB'),
    ],
    ids=lambda value: value[:20],
)
def test_refused_with_the_file_and_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OptionsError, match=r'file\.yml: 1 problem') as caught:
        read(tmp_path, text)
    assert message in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / 'train_HAT.yml').write_bytes(b'\xff\xfe\x00a')
    with pytest.raises(OptionsError, match='not UTF-8'):
        read_yaml(tmp_path / 'train_HAT.yml')
    with pytest.raises(OptionsError, match=r'no such file; did you mean .*train_HAT\.yml'):
        read_yaml(tmp_path / 'train_HATT.yml')
    with pytest.raises(OptionsError, match='this is a folder'):
        read_yaml(tmp_path)
