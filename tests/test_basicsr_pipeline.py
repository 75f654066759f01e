"""BasicSR's own pipelines, in a script that only adds ``import hat_plugin``."""

from __future__ import annotations

from pathlib import Path

import pytest
import training

SCRIPT = """
import sys
import hat_plugin
from basicsr.{kind} import {kind}_pipeline
{kind}_pipeline('.')
"""


@pytest.fixture
def here(tmp_path, photos) -> Path:
    training.write_photos(tmp_path, {name: photos[name] for name in photos})
    return tmp_path


def test_basicsrs_train_and_test_pipelines_run_our_network_and_model(here):
    training.write_options(here / 'train.yml', train__total_iter=6, train__amp='bf16', logger__use_tb_logger=False)
    (here / 'train.py').write_text(SCRIPT.format(kind='train'))
    code, output = training.finish(training.start(['train.py', '-opt', 'train.yml'], here))
    assert code == 0, output
    assert 'Network [HAT] is created' in output
    assert 'Model [HATModel] is created' in output
    assert 'Validation held_out' in output
    run = here / 'experiments' / 'tiny'
    assert (run / 'models' / 'net_g_latest.pth').is_file()
    assert (run / 'training_states' / '4.state').is_file()

    options = {
        'datasets': {'test_1': training.OPTIONS['datasets']['val']},
        'path': {'pretrain_network_g': str(run / 'models/net_g_latest.pth'), 'param_key_g': 'params_ema'},
        'val': {'save_img': True, 'suffix': None, 'metrics': training.OPTIONS['val']['metrics']},
    }
    training.write_options(here / 'test.yml', name='measured', **options)
    (here / 'test.py').write_text(SCRIPT.format(kind='test'))
    code, output = training.finish(training.start(['test.py', '-opt', 'test.yml'], here))
    assert code == 0, output
    assert '# psnr:' in output
    assert len(list((here / 'results/measured/visualization/held_out').glob('*.png'))) == 2
