"""The command line of `basicsr prepare`, the thin scripts, and the names that option files count on."""

from __future__ import annotations

import runpy
import sys

import pytest

from hat_plugin.prepare import layout
from hat_plugin.prepare.command import SETS


@pytest.mark.parametrize('name', SETS)
def test_each_set_has_a_script_that_is_the_command(repository, monkeypatch, capsys, name):
    script = repository / 'datasets' / f'prepare_{name}.py'
    monkeypatch.setattr(sys, 'argv', [str(script), '--help'])
    with pytest.raises(SystemExit) as leaving:
        runpy.run_path(str(script), run_name='__main__')
    assert not leaving.value.code
    assert f'basicsr prepare {name}' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ((), 'set'),
        (('div2k',), 'source'),
        (('div2k', 'x', '--scale', '1'), "'1' is no whole number from 2 on"),
        (('folder', 'x', '--scale', '0'), "'0' is no whole number from 1 on"),
        (('folder', 'x', '--workers', '0'), "'0' is no whole number from 1 on"),
        (('folder', 'x', '--raw', '--no-lmdb'), 'not allowed with'),
        (('folder', 'x', '--scal', '2'), 'unrecognized arguments'),
    ],
)
def test_wrong_arguments(cli, arguments, said):
    outcome = cli('prepare', *arguments)
    assert outcome.code == 2
    assert said in outcome.err


def test_the_folders_are_named_as_in_hat_s_published_option_files():
    assert layout.training_hr('DF2K', 'disk') == 'datasets/DF2K/DF2K_HR_sub'
    assert layout.training_lr('DF2K', 4, 'disk') == 'datasets/DF2K/DF2K_bicx4_sub'
    assert layout.training_hr('DF2K') == 'datasets/DF2K/DF2K_HR_sub.lmdb'
    assert layout.training_lr('DF2K', 2, 'raw') == 'datasets/DF2K/DF2K_bicx2_sub_raw.lmdb'
    assert layout.training_meta_info('DF2K') == 'datasets/DF2K/meta_info_DF2Ksub_GT.txt'
    assert layout.benchmark_gt('Set5', 4) == 'datasets/Set5/GTmod4'
    assert layout.benchmark_lr('Urban100', 4) == 'datasets/urban100/LRbicx4'
    assert layout.IMAGENET_MAP == 'datasets/imagenet/train_map.txt'
