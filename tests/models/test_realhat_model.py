"""Real-HAT models: the degradation equals BasicSR's, two iterations of the published options, the pool in the state."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from basicsr.models import realesrgan_model
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.utils import DiffJPEG, USMSharp
from basicsr.utils.img_process_util import filter2D

from hat_plugin.data.build import build_dataset
from hat_plugin.data.degradations import PairPool, SecondOrderDegradation
from hat_plugin.data.loader import build_train_loader
from hat_plugin.engine.stages import Stages
from hat_plugin.errors import HatPluginError, OptionsError
from hat_plugin.models.realhat_model import RealHATGANModel, RealHATMSEModel

# Top level of HAT's published train_Real_HAT_*.yml.
DEGRADATION: dict[str, Any] = {
    'resize_prob': [0.2, 0.7, 0.1],
    'resize_range': [0.15, 1.5],
    'gaussian_noise_prob': 0.5,
    'noise_range': [1, 30],
    'poisson_scale_range': [0.05, 3],
    'gray_noise_prob': 0.4,
    'jpeg_range': [30, 95],
    'second_blur_prob': 0.8,
    'resize_prob2': [0.3, 0.4, 0.3],
    'resize_range2': [0.3, 1.2],
    'gaussian_noise_prob2': 0.5,
    'noise_range2': [1, 25],
    'poisson_scale_range2': [0.05, 2.5],
    'gray_noise_prob2': 0.4,
    'jpeg_range2': [30, 95],
}
KINDS = ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso']
KERNELS: dict[str, Any] = {
    'blur_kernel_size': 21,
    'kernel_list': KINDS,
    'kernel_prob': [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    'sinc_prob': 0.1,
    'blur_sigma': [0.2, 3],
    'betag_range': [0.5, 4],
    'betap_range': [1, 2],
}
ADAM = {'type': 'Adam', 'lr': 1e-4, 'weight_decay': 0, 'betas': [0.9, 0.99]}
GAN = {'type': 'GANLoss', 'gan_type': 'vanilla', 'real_label_val': 1.0, 'fake_label_val': 0.0, 'loss_weight': 0.1}


@pytest.fixture
def options(tmp_path: Path, photos: Any) -> Callable[..., dict[str, Any]]:
    """The published option files, as the pipelines hand them to a model; a small network and small patches."""
    (tmp_path / 'gt').mkdir()
    for name in photos:
        cv2.imwrite(str(tmp_path / 'gt' / f'{name}.png'), photos.small(name, 130, 140)[..., ::-1])

    def make(kind: str, **changes: Any) -> dict[str, Any]:
        gan = kind == 'RealHATGANModel'
        train: dict[str, Any] = {
            'ema_decay': 0.999,
            'optim_g': ADAM,
            'optim_d': ADAM,
            'scheduler': {'type': 'MultiStepLR', 'milestones': [1000], 'gamma': 0.5},
            'total_iter': 1000,
            'warmup_iter': -1,
            'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
            'perceptual_opt': None,
            **({'gan_opt': GAN, 'net_d_iters': 1, 'net_d_init_iters': 0} if gan else {}),
        }
        dataset = {
            'name': 'real',
            'type': 'RealESRGANDataset',
            'phase': 'train',
            'scale': 4,
            'dataroot_gt': str(tmp_path / 'gt'),
            'io_backend': {'type': 'disk'},
            **KERNELS,
            **{f'{key}2': value for key, value in KERNELS.items()},
            'final_sinc_prob': 0.8,
            'gt_size': 64,
            'use_hflip': True,
            'use_rot': False,
            'batch_size_per_gpu': 2,
            'num_worker_per_gpu': 0,
        }
        switches = {'l1_gt_usm': True, 'percep_gt_usm': True, 'gan_gt_usm': False} if gan else {'gt_usm': True}
        train |= changes.pop('train', {})
        return {
            'name': kind,
            'model_type': kind,
            'scale': 4,
            'num_gpu': 0,
            'dist': False,
            'rank': 0,
            'world_size': 1,
            'is_train': True,
            **DEGRADATION,
            **switches,
            'gt_size': 64,
            'queue_size': 4,
            'datasets': {'train': dataset},
            'network_g': {
                'type': 'HAT', 'upscale': 4, 'in_chans': 3, 'img_size': 16, 'window_size': 8, 'compress_ratio': 3,
                'squeeze_factor': 6, 'conv_scale': 0.01, 'overlap_ratio': 0.5, 'img_range': 1.0, 'depths': [1],
                'embed_dim': 12, 'num_heads': [2], 'mlp_ratio': 2, 'upsampler': 'pixelshuffle',
                'resi_connection': '1conv',
            },
            'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4, 'skip_connection': True},
            'path': {'pretrain_network_g': None, 'models': str(tmp_path), 'training_states': str(tmp_path)},
            'train': train,
            'val': {},
            'logger': {},
            **changes,
        }  # fmt: skip

    return make


def first_batches(opt: dict[str, Any], count: int, side: int = 112) -> list[dict[str, Any]]:
    """Batches of the data set, whose 400x400 are cut to be quick."""
    block = opt['datasets']['train']
    loader = build_train_loader(
        build_dataset(block),
        block,
        seed=0,
        rank=0,
        world_size=1,
        stages=Stages.constant(block['batch_size_per_gpu']),
        num_workers=0,
    )
    iterator = iter(loader)
    batches = [next(iterator) for _ in range(count)]
    return [batch | {'gt': batch['gt'][..., :side, :side].contiguous()} for batch in batches]


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize('seed', range(4))
def test_degradation_equals_basicsr(
    options: Callable[..., dict[str, Any]], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opt = options('RealHATGANModel')
    batch = first_batches(opt, 1)[0]
    theirs = object.__new__(RealESRGANModel)
    theirs.__dict__ |= {'opt': opt, 'device': torch.device('cpu'), 'is_train': True, 'queue_size': 4}
    theirs.__dict__ |= {'jpeger': DiffJPEG(differentiable=False), 'usm_sharpener': USMSharp()}
    monkeypatch.setattr(torch.Tensor, 'cuda', lambda self: self)
    # BasicSR's filter cannot take what BasicSR's JPEG gives, on today's torch.
    monkeypatch.setattr(realesrgan_model, 'filter2D', lambda image, kernel: filter2D(image.contiguous(), kernel))
    seed_all(seed)
    theirs.feed_data(batch)
    ours = RealHATGANModel(opt)
    seed_all(seed)
    ours.feed_data(batch)
    assert torch.equal(ours.lq, theirs.lq)
    assert torch.equal(ours.gt, theirs.gt)
    assert ours.lq.shape == (2, 3, 16, 16)


@pytest.mark.parametrize('kind', ['RealHATMSEModel', 'RealHATGANModel'])
@pytest.mark.parametrize('amp', [None, 'bf16'])
def test_two_iterations_of_the_published_options(
    options: Callable[..., dict[str, Any]], kind: str, amp: str | None
) -> None:
    from basicsr.models import build_model

    opt = options(kind, train={'amp': amp})
    model = build_model(opt)
    before = {name: value.clone() for name, value in model.net_g.named_parameters()}
    for iteration, batch in enumerate(first_batches(opt, 3), 1):
        model.feed_data(batch)
        model.optimize_parameters(iteration)
        assert all(np.isfinite(value) for value in model.log_dict.values())
    assert any(not torch.equal(value, before[name]) for name, value in model.net_g.named_parameters())
    named = {'l_pix'} if kind == 'RealHATMSEModel' else {'l_g_pix', 'l_g_gan', 'l_d_real', 'l_d_fake', 'out_d_real'}
    assert named <= set(model.log_dict)
    assert ('net_d' in model.checkpoint_networks()) == (kind == 'RealHATGANModel')
    # a validation picture goes through undegraded
    lq = torch.rand(1, 3, 20, 20)
    model.feed_data({'lq': lq, 'lq_path': ['x']})
    assert torch.equal(model.lq, lq)
    model.test()
    assert model.output.shape == (1, 3, 80, 80)


def test_gan_step_in_micro_batches_moves_the_discriminator_alike(options: Callable[..., dict[str, Any]]) -> None:
    """Two micro-batches of one give the gradient of one batch of two, once spectral norm has been iterated."""
    losses = []
    for size in (2, 1):
        opt = options('RealHATGANModel', train={'total_batch_size': 2})
        opt['datasets']['train']['batch_size_per_gpu'] = 2
        batch = first_batches(opt, 1)[0]
        opt['datasets']['train']['batch_size_per_gpu'] = size
        seed_all(0)
        model = RealHATGANModel(opt)
        with torch.no_grad():
            for _ in range(100):
                model.net_d.train()(torch.rand(1, 3, 32, 32))
        seed_all(0)
        model.feed_data(batch)
        model.optimize_parameters(1)
        losses.append(model.log_dict)
    assert losses[0]['l_g_pix'] == pytest.approx(losses[1]['l_g_pix'], rel=1e-4)
    assert losses[0]['l_d_real'] == pytest.approx(losses[1]['l_d_real'], rel=0.01)
    assert losses[0]['grad_norm_d'] == pytest.approx(losses[1]['grad_norm_d'], rel=0.02)


def test_steps_that_are_read_later_are_the_same_steps(options: Callable[..., dict[str, Any]]) -> None:
    found = []
    for later in (False, True):
        seed_all(0)
        model = RealHATGANModel(options('RealHATGANModel'))
        model.reads_later = later
        for iteration, batch in enumerate(first_batches(model.opt, 2), 1):
            seed_all(iteration)
            model.feed_data(batch)
            model.optimize_parameters(iteration)
        found.append({**model.get_current_log(), 'weight': next(iter(model.net_d.parameters())).sum().item()})
    assert found[0] == found[1]
    assert {'l_g_pix', 'l_d_fake', 'grad_norm', 'grad_norm_d'} <= set(found[0])


def test_the_networks_take_turns(options: Callable[..., dict[str, Any]]) -> None:
    opt = options('RealHATGANModel', train={'net_d_iters': 2, 'net_d_init_iters': 2})
    model = RealHATGANModel(opt)
    moved = []
    for iteration, batch in enumerate(first_batches(opt, 4), 1):
        weight_g, weight_d = (next(iter(net.parameters())).detach().clone() for net in (model.net_g, model.net_d))
        model.feed_data(batch)
        model.optimize_parameters(iteration)
        assert not torch.equal(next(iter(model.net_d.parameters())), weight_d)
        moved.append(not torch.equal(next(iter(model.net_g.parameters())), weight_g))
    assert moved == [False, False, False, True]


def test_switches_choose_the_sharpened_ground_truth(options: Callable[..., dict[str, Any]]) -> None:
    plain, sharp = options('RealHATMSEModel', gt_usm=False), options('RealHATMSEModel', gt_usm=True)
    batch = first_batches(plain, 1)[0]
    gts = []
    for opt in (plain, sharp):
        model = RealHATMSEModel(opt)
        seed_all(5)
        model.feed_data(batch)
        gts.append(model.gt)
    assert not torch.equal(gts[0], gts[1])
    losses = []
    for switch in (False, True):
        seed_all(1)
        model = RealHATGANModel(options('RealHATGANModel', l1_gt_usm=switch))
        seed_all(5)
        model.feed_data(batch)
        model.optimize_parameters(1)
        losses.append(model.log_dict['l_g_pix'])
    assert losses[0] != losses[1]


def test_pairs_that_bring_their_own_lq(options: Callable[..., dict[str, Any]]) -> None:
    model = RealHATMSEModel(options('RealHATMSEModel', high_order_degradation=False))
    lq, gt = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 64, 64)
    model.feed_data({'lq': lq, 'gt': gt})
    assert torch.equal(model.lq, lq)
    model.optimize_parameters(1)


def test_pool_exchanges_and_is_part_of_the_state(options: Callable[..., dict[str, Any]]) -> None:
    opt = options('RealHATMSEModel')
    batches = first_batches(opt, 6)
    model, resumed = RealHATMSEModel(opt), RealHATMSEModel(opt)
    for batch in batches[:5]:
        model.feed_data(batch)
    resumed.load_extra_state(model.extra_state())
    fed = []
    for each in (model, resumed):
        seed_all(2)
        each.feed_data(batches[5])
        fed.append((each.lq, each.gt))
    assert torch.equal(fed[0][0], fed[1][0])
    assert torch.equal(fed[0][1], fed[1][1])


def test_pool_keeps_every_pair_together() -> None:
    pool = PairPool(6)
    seen = []
    for step in range(30):
        values = torch.arange(2.0) + 2 * step
        lq, gt = pool.exchange(values.view(2, 1, 1, 1), values.view(2, 1, 1, 1).expand(2, 1, 4, 4))
        assert torch.equal(lq.expand(2, 1, 4, 4), gt)
        seen += lq.flatten().tolist()
    assert len(set(seen[6:])) == len(seen[6:])  # once the pool is full, each pair comes out once
    smaller = PairPool(4)
    smaller.load_state_dict(pool.state_dict(), torch.device('cpu'))
    assert smaller.state_dict()['lq'].shape[0] == 4
    assert smaller.exchange(torch.ones(2, 1, 2, 2), torch.ones(2, 1, 8, 8))[0].shape[-1] == 2  # another gt_size
    with pytest.raises(HatPluginError, match='queue_size: 4'):
        smaller.exchange(torch.ones(5, 1, 2, 2), torch.ones(5, 1, 8, 8))


def test_errors(options: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opt = options('RealHATMSEModel')
    del opt['jpeg_range2'], opt['noise_range']
    with pytest.raises(OptionsError, match=r'(?s)noise_range.*jpeg_range2') as caught:
        SecondOrderDegradation.from_options(opt)
    assert len(caught.value.problems) == 2
    with pytest.raises(OptionsError, match='gan_gt_usm'):
        RealHATGANModel(options('RealHATGANModel', gan_gt_usm=None))
    with pytest.raises(HatPluginError, match='network_d'):
        RealHATGANModel(options('RealHATGANModel', network_d=None))
    model = RealHATMSEModel(options('RealHATMSEModel', gt_size=512))
    with pytest.raises(HatPluginError, match='gt_size: 512'):
        model.feed_data(first_batches(opt, 1)[0])


def test_missing_vgg_weights_are_told_with_the_place_to_put_them(
    options: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from urllib.error import URLError

    def no_network(*args: Any, **kwargs: Any) -> None:
        raise URLError('no network')

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', no_network)
    perceptual = {
        'type': 'PerceptualLoss', 'layer_weights': {'conv5_4': 1}, 'vgg_type': 'vgg19', 'use_input_norm': True,
        'perceptual_weight': 1.0, 'style_weight': 0, 'range_norm': False, 'criterion': 'l1',
    }  # fmt: skip
    with pytest.raises(HatPluginError, match=r'vgg19-dcbb9e9d\.pth under .*experiments/pretrained_models'):
        RealHATGANModel(options('RealHATGANModel', train={'perceptual_opt': perceptual}))
