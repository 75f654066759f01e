"""The ablation: its variants differ from the baseline in one option each; a quick run, and what is there stays."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent))  # benchmarks/ is of the checkout

from benchmarks import ablation
from hat_plugin.errors import HatPluginError


@pytest.mark.parametrize('name', ablation.VARIANTS)
def test_variants_build_and_differ_in_one_option(name: str) -> None:
    change = ablation.VARIANTS[name]
    assert len(change) == (name != 'baseline')
    network, base = ablation.network(name), ablation.network('baseline')
    assert all(value != ablation.NETWORK.get(key, ...) for key, value in change.items())
    same = {key: value.shape for key, value in network.state_dict().items()} == {
        key: value.shape for key, value in base.state_dict().items()
    }
    assert same == (name in ('baseline', 'no shift', 'arrangement: sequential'))


def test_a_quick_run_and_what_is_there_is_not_repeated(
    tmp_path: Path, photos: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ('coffee', 'rocket'):
        for folder, side in (('train', 96), ('test', 40)):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / f'{name}.png'), photos.small(name, side, side)[..., ::-1])
    command = ['--train', 'train', '--test', 'test', '--iterations', '2', '--rounds', '1', '--variants', 'baseline']
    with pytest.raises(HatPluginError, match='first must be baseline'):
        ablation.main([*command[:-1], 'no shift'])
    ablation.main([*command, 'fusion: gate'])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
    assert [row.split('|')[1].strip() for row in rows[2:]] == ['baseline', 'fusion: gate']
    reports = {file: file.stat().st_mtime_ns for file in tmp_path.glob('results/*/metrics.json')}
    assert len(reports) == 2
    ablation.main([*command, 'fusion: gate'])
    assert {file: file.stat().st_mtime_ns for file in reports} == reports
    with pytest.raises(HatPluginError, match='an earlier ablation had other options'):  # and results of other data
        ablation.main(['--train', 'train', '--test', 'train', *command[4:]])
