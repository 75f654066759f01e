"""Options that once passed the check and then stopped a run, or did nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import training

from hat_plugin.engine.options import check_options, inert_options, prepare_options
from hat_plugin.errors import OptionsError


def options(**changes: Any) -> dict[str, Any]:
    """The tests' training options with changes, as `train__total_iter=5`."""
    result = copy.deepcopy(training.OPTIONS)
    for place, value in changes.items():
        target, *rest = result, *place.split('__')
        for key in rest[:-1]:
            target = target[key]
        target[rest[-1]] = value
    return result


def mse(**arguments: Any) -> list[dict[str, Any]]:
    return [{'type': 'MSELoss', **arguments}]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'train__losses': mse(name='pix')}, 'train: losses: 0: name: .*pix.* are taken'),
        ({'train__losses': mse(name='mse.0')}, 'name: .*letters, digits'),
        ({'train__losses': mse(name='keys')}, 'name: .*letters, digits'),
        ({'train__losses': mse(name='g_x')}, 'begins with g_'),
        ({'train__losses': [{'type': 'GANLoss', 'gan_type': 'vanilla'}]}, 'write it under train: gan_opt'),
        ({'train__losses': [{'type': 'PerceptualLoss', 'layer_weights': {}}]}, 'write it under train: perceptual_opt'),
        ({'train__pixel_opt': {'type': 'L1Loss', 'reduction': 'avg'}}, 'pixel_opt: refused: Unsupported reduction'),
        (
            {'train__pixel_opt': {'type': 'L1Loss', 'reduction': 'none'}},
            'pixel_opt: refused: it gives no single number',
        ),
        ({'train__pixel_opt': {'type': 'L1Loss', 'loss_weight': None}}, 'pixel_opt: refused'),
        (
            {'train__pixel_opt': {'type': 'L1Loss', 'reduction': 'sum'}, 'train__total_batch_size': 4},
            'total_batch_size: with reduction: sum',
        ),
        ({'train__cuda_graphs': True, 'train__compile': True}, 'cuda_graphs: not together with compile; write one'),
        ({'train__cuda_graphs': True, 'network_g__use_checkpoint': 2}, 'cuda_graphs: not together .* use_checkpoint'),
        ({'train__cuda_graphs': 'yes'}, 'cuda_graphs'),
        (
            {'train__scheduler': {'type': 'CosineAnnealingRestartLR', 'periods': [4, 4], 'restart_weights': [1, 1]}},
            'periods: ends after 8 of 12 iterations',
        ),
        (
            {'train__scheduler': {'type': 'OneCycleLR', 'max_lr': 0.1, 'total_steps': 5}},
            'total_steps: ends after 5 of 12',
        ),
        ({'train__optim_g': {'type': 'LBFGS', 'lr': 0.1}}, 'optim_g: refused: .*closure'),
        ({'train__optim_g': {'type': 'SparseAdam', 'lr': 0.1}}, 'optim_g: refused: .*dense'),
        (
            {'val__metrics': {'p': {'type': 'calculate_psnr', 'crop_border': '4'}}},
            "crop_border: '4': a number of pixels",
        ),
        ({'val__metrics': {'p': {'type': 'calculate_psnr', 'crop_border': -1}}}, 'crop_border: -1: a number of pixels'),
        ({'manual_seed': 2**32}, 'manual_seed'),
        ({'train__scheduler__milestones': [float('inf')]}, 'milestones: .*list of iterations'),
        ({'datasets': {'train_1': training.OPTIONS['datasets']['train']}}, 'datasets: train: missing .*rename train_1'),
        (
            {'datasets': dict.fromkeys(('train', 'train_2'), training.OPTIONS['datasets']['train'])},
            'datasets: train_2: a second training set',
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        check_options(options(**changes), 'x.yml', is_train=True, need_data=False)


def test_wandb_that_is_not_installed_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    changed = options(logger__wandb={'project': 'x'}, logger__use_tb_logger=True)
    with pytest.raises(OptionsError, match='logger: wandb: the package is not installed; `pip install wandb`'):
        check_options(changed, 'x.yml', is_train=True, need_data=False)


def test_an_empty_key_is_as_good_as_none(tmp_path: Path) -> None:
    changed = options(
        train__ema_decay=None, train__warmup_iter=None, train__max_nonfinite=None, path__strict_load_g=None,
        tile={'tile_size': 32, 'tile_pad': None},
    )  # fmt: skip
    check_options(changed, 'x.yml', is_train=True, need_data=False)
    prepared = prepare_options(changed, root_path=tmp_path, is_train=True)
    assert not {'ema_decay', 'warmup_iter', 'max_nonfinite'} & prepared['train'].keys()
    assert 'tile_pad' not in prepared['tile'] and 'strict_load_g' not in prepared['path']
    changed = options(logger__use_tb_logger=None)
    assert prepare_options(changed, root_path=tmp_path, is_train=True)['logger']['use_tb_logger'] is False
    assert {'resume_state', 'pretrain_network_g'} <= prepared['path'].keys() and 'suffix' in prepared['val']


def test_whole_numbers_may_be_written_as_others(tmp_path: Path) -> None:
    changed = options(datasets__train__gt_size=16.0, train__scheduler__milestones=[8e0, 1e1])
    check_options(changed, 'x.yml', is_train=True, need_data=False)
    prepared = prepare_options(changed, root_path=tmp_path, is_train=True)
    found = [prepared['datasets']['train']['gt_size'], *prepared['train']['scheduler']['milestones']]
    assert found == [16, 8, 10] and all(isinstance(number, int) for number in found)


def test_gpus_that_are_not_there_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('torch.cuda.device_count', lambda: 1)
    assert prepare_options(options(num_gpu=8), root_path=tmp_path, is_train=True)['num_gpu'] == 1
    monkeypatch.setattr('torch.cuda.device_count', lambda: 0)
    assert prepare_options(options(num_gpu=8), root_path=tmp_path, is_train=True)['num_gpu'] == 0


@pytest.mark.parametrize(
    ('changes', 'note'),
    [
        ({'val__suffix': 'x'}, 'val: suffix'),
        ({'path__pretrain_network_d': 'x.pth'}, 'path: pretrain_network_d'),
        ({'logger__wandb': {'project': 'x'}}, 'logger: wandb'),
    ],
)
def test_what_has_no_effect_is_said(changes: dict[str, Any], note: str) -> None:
    assert any(line.startswith(f'{note}: has no effect') for line in inert_options(options(**changes), is_train=True))
