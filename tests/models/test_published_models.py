"""ImageCleanModel and ImageRestorationModel: clipping, mix-up, padding and crops as Restormer and NAFNet have them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import training
from basicsr.models import build_model
from torch import nn

from hat_plugin.cli import main
from hat_plugin.engine.options import prepare_options
from hat_plugin.models.grids import crop_starts, restore_in_grids
from hat_plugin.models.image_clean_model import ImageCleanModel
from hat_plugin.models.mixup import MixUp

SAME_SIZE = {**training.NETWORK, 'upscale': 1, 'upsampler': '', 'drop_path_rate': 0.0}
SGD = {'type': 'SGD', 'lr': 1.0}


def model(tmp_path: Path, kind: str, val: dict[str, Any] | None = None, **train: Any) -> ImageCleanModel:
    opt = copy.deepcopy(training.OPTIONS)
    opt.update(model_type=kind, scale=1, network_g=copy.deepcopy(SAME_SIZE))
    opt['train'].update(train)
    opt['val'].update(val or {})
    torch.manual_seed(0)
    return build_model(prepare_options(opt, root_path=tmp_path, is_train=True))


@pytest.fixture
def batch(photos) -> dict[str, torch.Tensor]:
    crops = [torch.from_numpy(photos.small(name, 16, 16)).permute(2, 0, 1).float() / 255 for name in photos]
    gt = torch.stack(crops)
    return {'gt': gt, 'lq': (gt + 0.1 * torch.randn(gt.shape, generator=torch.Generator().manual_seed(1))).contiguous()}


def moved(model: ImageCleanModel, batch: dict[str, torch.Tensor]) -> float:
    """Length of a step of SGD with rate 1, which is the norm of the gradients that it got."""
    before = nn.utils.parameters_to_vector(model.net_g.parameters()).detach().clone()
    model.feed_data(batch)
    model.optimize_parameters(1)
    return float((nn.utils.parameters_to_vector(model.net_g.parameters()).detach() - before).norm())


# -- clipping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('kind', 'train', 'norm'),
    [
        ('ImageCleanModel', {'use_grad_clip': True}, 0.01),
        ('ImageRestorationModel', {}, 0.01),
        ('ImageRestorationModel', {'use_grad_clip': True, 'grad_clip': 0.02}, 0.02),
        ('ImageCleanModel', {'use_grad_clip': True, 'total_batch_size': 4}, 0.01),
    ],
)
def test_gradients_are_clipped_to_the_published_norm(tmp_path, batch, kind, train, norm):
    clipped = model(tmp_path, kind, optim_g=SGD, warmup_iter=-1, **train)
    assert moved(clipped, batch) == pytest.approx(norm, rel=1e-3)
    assert clipped.get_current_log()['grad_norm'] > norm  # the log has the norm before


@pytest.mark.parametrize(
    ('kind', 'train'), [('ImageCleanModel', {}), ('ImageRestorationModel', {'use_grad_clip': False})]
)
def test_and_not_where_the_file_does_not_say_so(tmp_path, batch, kind, train):
    free = model(tmp_path, kind, optim_g=SGD, warmup_iter=-1, **train)
    assert moved(free, batch) == pytest.approx(free.get_current_log()['grad_norm'], rel=1e-3)
    assert free.get_current_log()['grad_norm'] > 0.02


# -- mix-up ----------------------------------------------------------------------------------------------------------


def shares(mixup: MixUp, draws: int) -> list[float]:
    """Shares of a white picture that is mixed with a black one; 1 where it is left alone, or paired with itself."""
    pair = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    return [float(mixup(pair, pair)[1][1].item()) for _ in range(draws)]


def test_mixup_draws_from_its_beta_distribution():
    torch.manual_seed(1)
    found = torch.tensor(shares(MixUp(1.2), 8000))
    mixed = found[found != 1]
    assert len(mixed) / len(found) == pytest.approx(0.5, abs=0.03)  # half of the permutations of two swap them
    assert float(mixed.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(mixed.var()) == pytest.approx(1 / (4 * (2 * 1.2 + 1)), abs=0.005)  # of Beta(1.2, 1.2)


def test_identity_leaves_half_of_the_batches_alone():
    torch.manual_seed(2)
    lq, gt = torch.rand(8, 1, 2, 2), torch.rand(8, 1, 2, 2)
    mixup = MixUp(1.2, use_identity=True)
    alone = sum(mixup(lq, gt)[0] is lq for _ in range(4000))
    assert alone / 4000 == pytest.approx(0.5, abs=0.03)


def test_input_and_truth_are_mixed_alike_and_with_another_of_the_batch():
    torch.manual_seed(3)
    gt = torch.rand(5, 3, 4, 4, dtype=torch.float64)
    mixed_lq, mixed_gt = MixUp(1.2)(gt * 2 + 1, gt)
    assert torch.allclose(mixed_lq, mixed_gt * 2 + 1)
    assert mixed_gt.mean() == pytest.approx(gt.mean())  # a permutation, in one proportion
    assert not torch.equal(mixed_gt, gt)


def test_mixup_keeps_the_memory_format():
    lq = torch.rand(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    for _ in range(4):
        assert MixUp(1.2)(lq, lq)[0].is_contiguous(memory_format=torch.channels_last)


def test_the_model_mixes_in_training_each_micro_batch_for_itself_and_not_in_validation(tmp_path, batch):
    mixing = {'mixing_augs': {'mixup': True, 'mixup_beta': 1.2, 'use_identity': False}}
    mixed = model(tmp_path, 'ImageCleanModel', total_batch_size=4, **mixing)
    mixed.feed_data(batch)
    first, second = mixed.micro_batches()
    assert not torch.equal(first[0], batch['lq'][:2])
    total = torch.cat([first[1], second[1]])
    assert torch.allclose(total[:2].sum(0), batch['gt'][:2].sum(0), atol=1e-6)  # no picture leaves its micro-batch
    mixed.test()
    assert torch.equal(mixed.lq, batch['lq'])
    plain = model(tmp_path, 'ImageCleanModel', mixing_augs={'mixup': False, 'mixup_beta': 1.2, 'use_identity': True})
    plain.feed_data(batch)
    assert torch.equal(plain.micro_batches()[0][0], batch['lq'])


# -- crops and padding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('length', 'crop', 'scale', 'starts'),
    [
        (10, 10, 1, [0]),
        (11, 10, 1, [0, 1]),
        (20, 10, 1, [0, 10]),
        (25, 10, 1, [0, 8, 15]),
        (100, 40, 1, [0, 30, 60]),
        (24, 16, 4, [0, 8]),
        (36, 16, 4, [0, 8, 16, 20]),  # steps are of input pixels, so that a crop more than three is needed
    ],
)
def test_crops_by_hand(length, crop, scale, starts):
    assert crop_starts(length, crop, scale) == starts


class Place(nn.Module):
    """Answers each crop with a plane of its own number, counted from 1; so the mean tells which crops met."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.number = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape))
        numbers = torch.arange(self.number + 1, self.number + len(x) + 1).view(-1, 1, 1, 1)
        self.number += len(x)
        return torch.zeros_like(x) + numbers


def test_where_crops_meet_each_counts_the_same():
    net = Place()
    val = {'crop_size_h': 4, 'crop_size_w': 6, 'max_minibatch': 3, 'grids': True}
    output, tiled = restore_in_grids(net, torch.zeros(1, 1, 6, 8), {'scale': 1, 'val': val})
    assert tiled
    assert net.shapes == [(3, 1, 4, 6), (1, 1, 4, 6)]
    # columns 0-5 and 2-7, rows 0-3 and 2-5: crops 1 2 / 3 4
    row = [1.0] * 2 + [1.5] * 4 + [2.0] * 2
    middle = [2.0] * 2 + [2.5] * 4 + [3.0] * 2
    last = [3.0] * 2 + [3.5] * 4 + [4.0] * 2
    assert output[0, 0].tolist() == [row, row, middle, middle, last, last]


def test_shares_of_the_picture_and_crops_larger_than_it():
    for val, shape in (
        ({'crop_size_h_ratio': 0.5, 'crop_size_w_ratio': 1}, (3, 1, 3, 8)),
        ({'crop_size_h': 64, 'crop_size_w': 64}, (1, 1, 7, 8)),
    ):
        net = Place()
        output, _ = restore_in_grids(net, torch.zeros(1, 1, 7, 8), {'scale': 1, 'val': val})
        assert net.shapes == [shape]
        assert output.shape == (1, 1, 7, 8)


def test_enlarged_crops_are_put_where_they_belong():
    picture = torch.rand(1, 3, 18, 14)
    val = {'crop_size_h': 16, 'crop_size_w': 12}
    net = nn.Upsample(scale_factor=2, mode='nearest')
    output, _ = restore_in_grids(net, picture, {'scale': 2, 'val': val})
    assert torch.allclose(output, net(picture), atol=1e-6)


def test_the_model_restores_in_crops_where_grids_say_so(tmp_path, batch):
    whole = model(tmp_path, 'ImageRestorationModel')
    cut = model(tmp_path, 'ImageRestorationModel', {'grids': True, 'crop_size_h': 8, 'crop_size_w': 8})
    for each in (whole, cut):
        each.feed_data({'lq': batch['lq'][:1]})
        each.test()
    assert (whole.tiled, cut.tiled) == (False, True)
    assert cut.output.shape == whole.output.shape
    assert not torch.equal(cut.output, whole.output)


def test_window_size_pads_pictures(tmp_path, batch):
    shapes: list[tuple[int, ...]] = []
    padded = model(tmp_path, 'ImageCleanModel', {'window_size': 12})
    net = padded.evaluation_network()
    net.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[-2:])))
    padded.feed_data({'lq': batch['lq'][:1, :, :13, :]})
    padded.test()
    assert shapes[-1] == (24, 24)
    assert padded.output.shape[-2:] == (13, 16)


# -- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, photos, monkeypatch) -> Path:
    """Pieces of photographs as truth, the same with noise as LQ."""
    random = np.random.default_rng(0)
    for number, name in enumerate(sorted(photos)):
        for part in range(3):
            prefix = 'val_' if number == 0 and part < 2 else ''
            gt = photos.small(name, 40, 48, 40 * part, 60 * part)[..., ::-1]
            lq = np.clip(gt + random.normal(0, 20, gt.shape), 0, 255).astype(np.uint8)
            for folder, picture in (('gt', gt), ('lq', lq)):
                (tmp_path / 'data' / f'{prefix}{folder}').mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(tmp_path / 'data' / f'{prefix}{folder}' / f'{name}{part}.png'), picture)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pairs(prefix: str = '') -> dict[str, Any]:
    return {'dataroot_gt': f'data/{prefix}gt', 'dataroot_lq': f'data/{prefix}lq', 'io_backend': {'type': 'disk'}}


RESTORMER: dict[str, Any] = {
    'model_type': 'ImageCleanModel',
    'scale': 1,
    'network_g': {**SAME_SIZE, 'drop_path_rate': 0.1},
    'datasets': {
        'train': {
            'name': 'TrainSet', 'type': 'Dataset_PairedImage', **pairs(), 'geometric_augs': True,
            'filename_tmpl': '{}', 'use_shuffle': True, 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 4,
            'mini_batch_sizes': [4, 2], 'iters': [3, 3], 'gt_size': 16, 'gt_sizes': [8, 16],
            'dataset_enlarge_ratio': 1, 'prefetch_mode': None,
        },
        'val': {'name': 'ValSet', 'type': 'Dataset_PairedImage', **pairs('val_')},
    },
    'train': {
        'total_iter': 6, 'warmup_iter': -1, 'use_grad_clip': True,
        'scheduler': {'type': 'CosineAnnealingRestartCyclicLR', 'periods': [2, 4], 'restart_weights': [1, 1],
                      'eta_mins': [0.0003, 0.000001]},
        'mixing_augs': {'mixup': True, 'mixup_beta': 1.2, 'use_identity': True},
        'optim_g': {'type': 'AdamW', 'lr': 3e-4, 'weight_decay': 1e-4, 'betas': [0.9, 0.999]},
        'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1, 'reduction': 'mean'},
    },
    'val': {
        'window_size': 8, 'val_freq': 6, 'save_img': False, 'rgb2bgr': True, 'max_minibatch': 8,
        'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 0, 'test_y_channel': False}},
    },
    'logger': {'print_freq': 1, 'save_checkpoint_freq': 2, 'use_tb_logger': False},
}  # fmt: skip
NAFNET: dict[str, Any] = {
    **RESTORMER,
    'model_type': 'ImageRestorationModel',
    'network_g': {
        'type': 'NAFNetLocal', 'width': 4, 'enc_blk_nums': [1, 1], 'middle_blk_num': 1, 'dec_blk_nums': [1, 1],
        'train_size': [1, 3, 16, 16],
    },
    'datasets': {
        'train': {
            'name': 'SIDD', 'type': 'PairedImageDataset', **pairs(), 'filename_tmpl': '{}', 'gt_size': 16,
            'use_flip': True, 'use_rot': True, 'use_shuffle': True, 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2,
            'dataset_enlarge_ratio': 1, 'prefetch_mode': None,
        },
        'val': {'name': 'SIDD_val', 'type': 'PairedImageDataset', **pairs('val_')},
    },
    'train': {
        'optim_g': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.0, 'betas': [0.9, 0.9]},
        'scheduler': {'type': 'TrueCosineAnnealingLR', 'T_max': 6, 'eta_min': 1e-7},
        'total_iter': 6, 'warmup_iter': -1, 'mixup': False,
        'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1, 'reduction': 'mean'},
    },
    'val': {
        'val_freq': 6, 'save_img': False, 'grids': True, 'crop_size_h': 32, 'crop_size_w': 32, 'max_minibatch': 4,
        'trans_num': 1, 'metrics': RESTORMER['val']['metrics'],
    },
}  # fmt: skip


OWN_NETWORK: dict[str, Any] = {
    **RESTORMER,
    'network_g': {
        'type': 'Restormer', 'dim': 4, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 1, 2, 4],
        'LayerNorm_type': 'BiasFree',
    },
}  # fmt: skip


@pytest.mark.parametrize('options', [RESTORMER, OWN_NETWORK, NAFNET], ids=['HAT', 'Restormer', 'NAFNet'])
def test_a_miniature_run_of_each_file_trains_validates_and_resumes_exactly(here, options):
    """Mix-up, dropped paths and stages are drawn alike by a resumed run."""

    def train(name: str, iterations: int, *arguments: str) -> Path:
        changed = {**options, 'train': {**options['train'], 'total_iter': iterations}}
        file = training.write_options(here / f'{name}.yml', name=name, **changed)
        assert main(['train', '-opt', str(file), *arguments]) == 0
        return here / 'experiments' / name

    expected = training.networks(train('whole', 6))
    train('parts', 2)
    run = train('parts', 6, '--auto_resume')
    assert training.same(training.networks(run), expected)
    log = next(iter(sorted(run.glob('train_*.log'), reverse=True))).read_text()
    assert '# psnr:' in log
    if options is NAFNET:
        assert '2 of 2 in tiles' in log


def test_mixing_changes_what_is_learned(here):
    found = []
    for mixup in (True, False):
        train = {**RESTORMER['train'], 'mixing_augs': {'mixup': mixup, 'use_identity': False}, 'total_iter': 2}
        file = training.write_options(here / 'm.yml', name=f'mix_{mixup}', **{**RESTORMER, 'train': train})
        assert main(['train', '-opt', str(file)]) == 0
        found.append(training.networks(here / 'experiments' / f'mix_{mixup}'))
    assert not training.same(*found)
