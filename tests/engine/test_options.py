"""Option files: what passes, what is refused, and how the refusal reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from option_examples import TRAIN, options, places, problems

from hat_plugin.engine.options import check_options, load_options, prepare_options
from hat_plugin.engine.schema.losses import patch_shape
from hat_plugin.errors import OptionsError


def test_a_right_file_passes_and_is_left_as_it_is() -> None:
    opt = options()
    assert problems(opt) == []
    assert opt == TRAIN


# A place, a wrong value, and what the one line about it must hold.
MISTAKES: list[tuple[str, Any, list[str]]] = [
    ('train__ema_decya', 0.9, ['train: ema_decya', "did you mean 'ema_decay'"]),
    ('datasets__train__use_hfip', True, ['datasets: train: use_hfip', "did you mean 'use_hflip'"]),
    ('path__pretrain_net_g', 'X.pth', ['path: pretrain_net_g', "did you mean 'pretrain_network_g'"]),
    ('path__pretrain_network', 'X.pth', ['path: pretrain_network:', "did you mean 'pretrain_network_g'"]),
    ('nmae', 'x', ['nmae: unknown option', "did you mean 'name'"]),
    ('queue_size', 180, ['queue_size: unknown option']),
    ('logger__wandb__projcet', 'x', ['logger: wandb: projcet', "'project'"]),
    ('val__metrics__psnr__crop_boder', 4, ['val: metrics: psnr: crop_boder', "'crop_border'"]),
    ('network_g__num_blok', 3, ['network_g: num_blok', 'argument of MSRResNet', "'num_block'"]),
    ('network_g__num_feat', '8', ["network_g: num_feat: '8'", 'a number is wanted']),
    ('network_g__type', 'MSRResnet', ["'MSRResnet' is no known network", "did you mean 'MSRResNet'", 'EDSR']),
    ('network_g__type', ..., ['network_g: type: missing']),
    ('network_g', 'HAT', ["network_g: 'HAT' stands where a section"]),
    ('model_type', 'HATModell', ["model_type: 'HATModell' is no known model", "did you mean 'HATModel'"]),
    ('train__pixel_opt__type', 'L1', ['train: pixel_opt: type', "'L1' is no known loss", 'L1Loss']),
    ('train__pixel_opt__wieght', 1, ['train: pixel_opt: wieght: unknown argument of L1Loss']),
    ('train__losses', [{'type': 'L1Loss', 'name': 'a'}, {'type': 'MSELoss', 'foo': 1}], ['train: losses: 1: foo']),
    ('train__pixel_opt', ..., ['train: pixel_opt: missing', 'L1Loss']),
    ('train__optim_g__lr', '1e-4', ["train: optim_g: lr: '1e-4'", 'remove the quotes']),
    ('train__optim_g__lr', -1, ['train: optim_g: lr: -1', 'at least 0']),
    ('train__optim_g__lr', float('nan'), ['train: optim_g: lr: nan', 'a number']),
    ('train__optim_g__lr', ..., ['train: optim_g: lr: missing']),
    ('train__optim_g__beta', [0.9, 0.9], ['train: optim_g: beta: unknown argument of Adam', "'betas'"]),
    ('train__optim_g__type', 'Adamm', ["'Adamm' is no known optimiser", "did you mean 'Adam'"]),
    ('train__scheduler__type', 'MultistepLR', ["'MultistepLR' is no known schedule", "did you mean 'MultiStepLR'"]),
    ('train__scheduler__milestones', ..., ['train: scheduler: milestones: missing']),
    ('train__scheduler__milestones', '50', ["milestones: '50'", 'a list of iterations']),
    ('train__scheduler', {'type': 'CosineAnnealingRestartLR', 'periods': [9, 9]}, ['train: scheduler: refused']),
    ('train__optim_g__betas', [0.9, 1.5], ['train: optim_g: refused', '1.5']),
    ('model_type', ['HATModel'], ["model_type: ['HATModel']", 'text is wanted']),
    ('train__total_iter', ..., ['train: total_iter: missing', 'number of iterations']),
    ('train__total_iter', '100', ["train: total_iter: '100'", 'whole number', 'remove the quotes']),
    ('train__total_iter', 1.5, ['train: total_iter: 1.5', 'whole number']),
    ('train__total_iter', True, ['train: total_iter: True', 'whole number']),
    ('train__ema_decay', 1.0, ['train: ema_decay: 1.0', 'less than 1']),
    ('train__amp', 'fp8', ["train: amp: 'fp8'", "'bf16' or 'fp16'"]),
    ('train__grad_clip', 0, ['train: grad_clip: 0', 'greater than 0']),
    ('train__max_nonfinite', -1, ['train: max_nonfinite: -1']),
    ('train', ..., ['train: missing', 'basicsr test']),
    ('logger', ..., ['logger: missing']),
    ('logger__print_freq', ..., ['logger: print_freq: missing']),
    ('val__val_freq', ..., ['val: val_freq: missing']),
    ('val__metrics__psnr__crop_border', ..., ['val: metrics: psnr: crop_border: missing', 'calculate_psnr needs it']),
    ('val__metrics__psnr__better', 'more', ["better: 'more'", "'higher' or 'lower'"]),
    ('val__metrics__psnr__type', 'psnr', ["'psnr' is no known metric", 'calculate_psnr']),
    ('val__save_img', 'no', ["val: save_img: 'no'", 'true or false']),
    ('datasets__train', ..., ['datasets: train: missing']),
    ('datasets__vall', {}, ['datasets: vall: unknown phase', "'val'"]),
    ('datasets__test_1', {}, ['datasets: test_1', 'basicsr test']),
    ('datasets__train__type', 'PairedDataset', ["'PairedDataset' is no known data set", 'PairedImageDataset']),
    ('datasets__train__dataroot_lq', ..., ['datasets: train: dataroot_lq: missing', 'PairedImageDataset needs it']),
    ('datasets__train__gt_size', ..., ['datasets: train: gt_size: missing']),
    ('datasets__train__gt_size', 63, ['gt_size: 63 is no multiple of scale 2', '64 or 62']),
    ('datasets__train__batch_size_per_gpu', ..., ['datasets: train: batch_size_per_gpu: missing']),
    ('datasets__train__io_backend', {'type': 'lmbd'}, ['io_backend: type', "'lmbd'", "'lmdb'"]),
    ('datasets__train__phase', 'val', ['datasets: train: phase: has no effect', 'remove it']),
    ('datasets__val_1__scale', 2, ["datasets: val_1: scale: has no effect: the top level's", 'remove it']),
    ('datasets__train__prefetch_mode', 'gpu', ["prefetch_mode: 'gpu'", "'cpu' or 'cuda'"]),
    ('datasets__train__batch_size_per_gpu', None, ['datasets: train: batch_size_per_gpu: missing']),
    ('logger__wandb', 'x', ["logger: wandb: 'x' stands where a section"]),
    ('datasets__train__name', 'a/b', ["datasets: train: name: 'a/b'", 'plain folder name']),
    ('scale', 4, ['network_g: upscale: 2 differs from the top-level scale: 4']),
    ('scale', 0, ['scale: 0', 'greater than or equal to 1']),
    ('num_gpu', 'all', ["num_gpu: 'all'", "'auto'"]),
    ('num_gpu', -1, ['num_gpu: -1', "'auto'"]),
    ('manual_seed', -5, ['manual_seed: -5']),
    ('dist_params', {'backend': 'mpi'}, ['dist_params: backend', "'nccl' or 'gloo'"]),
    ('tile', {'tile_pad': 32}, ['tile: tile_size: missing']),
    ('datasets', ['a'], ['datasets: ', 'a section']),
]


@pytest.mark.parametrize(('place', 'value', 'texts'), MISTAKES, ids=[f'{m[0]}={m[1]}'[:60] for m in MISTAKES])
def test_a_mistake_is_named_with_its_remedy(place: str, value: Any, texts: list[str]) -> None:
    found = problems(options(**{place: value}))
    matching = [line for line in found if all(text in line for text in texts)]
    assert matching, found
    assert len(found) == 1 or place in ('scale', 'datasets'), found


@pytest.mark.parametrize('name', ['../x', 'a/b', '/tmp/x', '..', '.', '', ' x', 'a\\b', 'a\nb', 'x' * 300, 7, None])
def test_a_name_is_one_plain_folder(name: Any) -> None:
    assert [line for line in problems(options(name=name)) if line.startswith('name: ')]


def test_all_mistakes_are_listed_at_once_with_the_file() -> None:
    opt = options(train__ema_decya=1, name='../x', path__pretrain_net_g='X.pth', val__val_freq=...)
    with pytest.raises(OptionsError) as caught:
        check_options(opt, 'my.yml', is_train=True, need_data=False)
    assert len(caught.value.problems) == 4
    assert str(caught.value).startswith('my.yml: 4 problems\n  - ')


def test_what_the_disk_lacks_is_listed_at_once(tmp_path: Path) -> None:
    weights, state = str(tmp_path / 'w.pth'), str(tmp_path / 's.state')
    opt = options(path__pretrain_network_g=weights, path__resume_state=state)
    opt['datasets']['train']['meta_info_file'] = str(tmp_path / 'meta.txt')
    found = problems(opt, need_data=True)
    assert len(found) == 7  # two folders of two data sets, a list, weights and a state
    assert any('datasets: train: dataroot_gt: gt: no such folder; prepare it' in line for line in found)
    assert any(f'path: pretrain_network_g: {weights}: no such file' in line for line in found)
    assert problems(opt) == []


@pytest.mark.parametrize('code', ['hat', 'hct'])
def test_a_list_that_lies_beside_its_data_is_named(tmp_path: Path, code: str) -> None:
    opt = options()
    opt['datasets']['train']['dataroot_gt'] = str(tmp_path / 'DF2K' / 'DF2K_HR_sub.lmdb')
    opt['datasets']['train']['meta_info_file'] = f'{code}/data/meta_info/meta_info_DF2Ksub_GT.txt'
    place = f'datasets: train: meta_info_file: {code}/data/meta_info/meta_info_DF2Ksub_GT.txt: no such file'
    assert any(f'{place}; prepare it' in line for line in problems(opt, need_data=True))
    beside = tmp_path / 'DF2K' / 'meta_info_DF2Ksub_GT.txt'
    beside.parent.mkdir()
    beside.touch()
    assert f'{place}; there is {beside}; write that' in problems(opt, need_data=True)


def test_total_batch_is_shared_among_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('WORLD_SIZE', '3')
    assert any('cannot be shared by 3 processes' in line for line in problems(options(train__total_batch_size=8)))
    assert problems(options(train__total_batch_size=9)) == []


ACCEPTED: list[dict[str, Any]] = [
    {'train__optim_g': {'type': 'AdamW', 'lr': 1, 'weight_decay': 0.1}},
    {'train__optim_g': {'type': 'lamb', 'lr': 0.001}},  # timm's
    {'train__scheduler': {'type': 'CosineAnnealingRestartLR', 'periods': [100], 'eta_min': 1e-7}},
    {'train__scheduler': {'type': 'CosineAnnealingLR', 'T_max': 100}},
    {'train__pixel_opt': ..., 'train__losses': [{'type': 'CharbonnierLoss', 'name': 'c', 'eps': 1e-9}]},
    {'train__amp': 'bf16', 'train__grad_clip': 1.0, 'train__total_batch_size': 8, 'train__compile': False},
    {'train__channels_last': True, 'train__max_nonfinite': 0, 'val__at_start': True, 'logger__keep_checkpoints': 3},
    {'num_gpu': 'auto', 'train__total_iter': 1e5, 'val': ..., 'datasets__val_1': ...},
    {'path__ignore_resume_networks': 'network_g', 'find_unused_parameters': True, 'dist_params': {'port': 29500}},
    {'datasets__train__prefetch_mode': 'cpu', 'datasets__train__num_prefetch_queue': 3},
]


@pytest.mark.parametrize('changes', ACCEPTED, ids=lambda changes: next(iter(changes)))
def test_what_is_accepted(changes: dict[str, Any]) -> None:
    assert problems(options(**changes)) == []


def test_a_gan_needs_its_parts() -> None:
    found = problems(options(model_type='ESRGANModel'))
    assert [line.split(' missing')[0] for line in found] == ['network_d:', 'train: gan_opt:', 'train: optim_d:']


def test_models_of_others_keep_their_own_keys_but_slips_are_found() -> None:
    opt = options(model_type='VideoRecurrentModel', my_switch=True, train__mixing_augs={'mixup': True})
    assert problems(opt) == []
    opt['train']['ema_decya'] = 0.9
    assert problems(opt) == ["train: ema_decya: unknown option; did you mean 'ema_decay'?"]


def test_test_options_need_no_training_parts() -> None:
    opt = options(train=..., logger=..., datasets__train=..., val=...)
    assert problems(opt, is_train=False) == []
    assert problems(options(train=..., logger=..., datasets={}), is_train=False) == [
        'datasets: test_1: missing (what to test on); add it'
    ]


def test_prepared_training_options_are_what_basicsr_looks_up(tmp_path: Path) -> None:
    opt = options(scale=2.0, num_gpu='auto', datasets__train__dataroot_gt='~/gt')
    prepared = prepare_options(opt, root_path=tmp_path, is_train=True)
    run = tmp_path / 'experiments' / 'run'
    assert prepared['path']['models'] == str(run / 'models')
    assert prepared['path']['training_states'] == str(run / 'training_states')
    assert prepared['path']['log'] == prepared['path']['experiments_root'] == str(run)
    assert prepared['datasets']['val_1']['phase'] == 'val'
    assert prepared['datasets']['train']['scale'] == 2
    assert prepared['datasets']['train']['dataroot_gt'] == str(Path.home() / 'gt')
    assert isinstance(prepared['val']['val_freq'], int)
    assert isinstance(prepared['num_gpu'], int)
    assert 'is_train' not in opt
    assert opt['path'] == TRAIN['path']
    assert not list(tmp_path.iterdir())


def test_prepared_test_options(tmp_path: Path) -> None:
    opt = options(train=..., logger=..., datasets__train=..., val=..., path=...)
    prepared = prepare_options(opt, root_path=tmp_path, is_train=False)
    assert prepared['path']['visualization'] == str(tmp_path / 'results' / 'run' / 'visualization')
    assert prepared['val'] == {'save_img': True, 'suffix': None}


def test_debug_renames_and_hurries(tmp_path: Path) -> None:
    prepared = prepare_options(options(), root_path=tmp_path, is_train=True, debug=True)
    assert prepared['name'] == 'debug_run'
    assert prepared['val']['val_freq'] == prepared['logger']['save_checkpoint_freq'] == 8
    assert Path(prepared['path']['models']).parent.name == 'debug_run'


def test_load_does_all_of_it(tmp_path: Path) -> None:
    file = tmp_path / 'run.yml'
    file.write_text(yaml.safe_dump(TRAIN), encoding='utf-8')
    opt = load_options(file, root_path=tmp_path, is_train=True, force_yml=['train:total_iter=7'], need_data=False)
    assert (opt['train']['total_iter'], opt['datasets']['train']['phase']) == (7, 'train')
    with pytest.raises(OptionsError, match=r'run\.yml: 1 problem'):
        load_options(file, root_path=tmp_path, is_train=True, force_yml=['train:total_itr=7'], need_data=False)


@pytest.mark.parametrize('value', [None, [1], {'type': [1]}, {1: 2}, float('nan'), 'x'], ids=repr)
def test_whatever_stands_there_it_is_told_in_lines(value: Any) -> None:
    for place in places(TRAIN):
        for is_train in (True, False):
            found = problems(options(**{place: value}), is_train=is_train, need_data=True)
            assert all('\n' not in line for line in found)


def test_pictures_and_network_must_have_the_same_channels() -> None:
    with pytest.raises(OptionsError, match='train: gives pictures of 3 channels, network_g: num_in_ch is 1') as caught:
        check_options(options(network_g__num_in_ch=1), 'run.yml', is_train=True, need_data=False)
    assert 'val_1: gives pictures of 3 channels' in str(caught.value)
    with pytest.raises(OptionsError, match='train: gives pictures of 1 channel, network_g: num_in_ch is 3'):
        check_options(options(datasets__train__color='y'), 'run.yml', is_train=True, need_data=False)
    gray = {'datasets__train__color': 'y', 'datasets__val_1__color': 'y', 'network_g__num_in_ch': 1}
    check_options(options(**gray), 'run.yml', is_train=True, need_data=False)


@pytest.mark.parametrize(('network', 'name'), [('Restormer', 'inp_channels'), ('NAFNet', 'img_channel')])
def test_channels_are_known_by_the_names_of_the_rivals(network: str, name: str) -> None:
    opt = options(scale=1)
    opt['network_g'] = {'type': network, name: 1} | ({'out_channels': 1} if network == 'Restormer' else {})
    found = '\n'.join(problems(opt))
    assert f'datasets: train: gives pictures of 3 channels, network_g: {name} is 1; write {name}: 3' in found
    assert patch_shape(opt)[0] == 1
    opt['network_g'] = {'type': network, name: 3}
    assert 'channels' not in '\n'.join(problems(opt))
    assert patch_shape(opt)[0] == 3


def test_two_validation_sets_want_two_names() -> None:
    opt = options(datasets__val_2=TRAIN['datasets']['val_1'], datasets__train__name='Set5')
    assert problems(opt) == ["datasets: val_2: name: 'Set5' is taken by val_1; give it another"]
    opt['datasets']['val_2'] = {**TRAIN['datasets']['val_1'], 'name': 'Set14'}
    assert problems(opt) == []
    tests = {'test_1': TRAIN['datasets']['val_1'], 'test_2': TRAIN['datasets']['val_1']}
    assert len(problems(options(train=..., logger=..., datasets=tests), is_train=False)) == 1


def test_a_data_set_may_have_a_scale_where_the_top_level_has_none() -> None:
    assert problems(options(scale=..., datasets__val_1__scale=2)) == []


def test_whole_numbers_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    opt = options(train__total_iter=5e3, manual_seed=7.0, logger__print_freq=1e2, tile={'tile_size': 6.4e1})
    prepared = prepare_options(opt, root_path=tmp_path, is_train=True)
    numbers = (prepared['train']['total_iter'], prepared['manual_seed'], prepared['logger']['print_freq'])
    assert [*map(repr, numbers), repr(prepared['tile']['tile_size'])] == ['5000', '7', '100', '64']
