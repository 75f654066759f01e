"""One model, fed by hand: every option under ``train`` has an effect that is seen here."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training
from basicsr.models import build_model

from hat_plugin.data.names import picture_name
from hat_plugin.engine.cuda_graphs import CudaGraphs, _beside_other_threads
from hat_plugin.engine.options import prepare_options
from hat_plugin.errors import CheckpointError, HatPluginError, TrainingError
from hat_plugin.models.hat_model import HATModel


def options(tmp_path: Path, **train: Any) -> dict[str, Any]:
    opt = copy.deepcopy(training.OPTIONS)
    opt['train'].update(train)
    opt['network_g']['drop_path_rate'] = 0.0
    opt = prepare_options(opt, root_path=tmp_path, is_train=True)
    for key in ('models', 'training_states'):
        Path(opt['path'][key]).mkdir(parents=True, exist_ok=True)
    return opt


def model(tmp_path: Path, **train: Any) -> HATModel:
    torch.manual_seed(0)
    return build_model(options(tmp_path, **train))


@pytest.fixture
def batch(photos) -> dict[str, torch.Tensor]:
    crops = [torch.from_numpy(photos.small(name, 16, 16)).permute(2, 0, 1).float() / 255 for name in photos]
    gt = torch.stack(crops)
    return {'gt': gt, 'lq': torch.nn.functional.avg_pool2d(gt, 2)}


def step(model: HATModel, batch: dict[str, torch.Tensor], iteration: int = 1) -> dict[str, torch.Tensor]:
    """One optimiser step; the weights after it."""
    model.update_learning_rate(iteration)
    model.feed_data(batch)
    model.optimize_parameters(iteration)
    return {name: value.clone() for name, value in model.get_bare_model(model.net_g).state_dict().items()}


def test_the_loss_falls(tmp_path, batch):
    trained = model(tmp_path)
    losses = []
    for iteration in range(1, 31):
        step(trained, batch, iteration)
        losses.append(trained.get_current_log()['l_pix'])
    assert losses[-1] < 0.5 * losses[0]
    assert trained.get_current_log()['grad_norm'] > 0


def test_micro_batches_make_the_step_of_the_whole_batch(tmp_path, batch):
    whole = step(model(tmp_path, optim_g={'type': 'SGD', 'lr': 0.1}), batch)
    split_model = model(tmp_path, optim_g={'type': 'SGD', 'lr': 0.1}, total_batch_size=4)
    calls = []
    split_model.net_g.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[0]))
    split = step(split_model, batch)
    assert calls == [2, 2]
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_ema_follows_and_copies_buffers(tmp_path, batch):
    trained = model(tmp_path, ema_decay=0.9)
    before = {name: value.clone() for name, value in trained.net_g_ema.named_parameters()}
    after = step(trained, batch)
    for name, value in trained.net_g_ema.named_parameters():
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * after[name])
    assert trained.evaluation_network() is trained.net_g_ema


def test_a_step_waits_for_the_device_once(tmp_path, batch, monkeypatch):
    trained = model(tmp_path, grad_clip=1.0, optim_g={'type': 'SGD', 'lr': 0.1})
    waits = []
    for name in ('item', 'tolist', '__float__', '__bool__', '__int__', 'numpy', 'cpu'):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, original=original, name=name):
            waits.append(name)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    trained.feed_data(batch)
    trained.optimize_parameters(1)
    assert waits == ['tolist']
    assert trained.get_current_log().keys() == {'l_pix', 'grad_norm'}


def test_gradients_are_clipped_to_the_norm(tmp_path, batch):
    moved = {}
    for clip in (None, 1e-3):
        trained = model(tmp_path, grad_clip=clip, optim_g={'type': 'SGD', 'lr': 1.0})
        before = {name: value.clone() for name, value in trained.net_g.named_parameters()}
        after = step(trained, batch)
        moved[clip] = sum(((after[name] - value) ** 2).sum() for name, value in before.items()).sqrt().item()
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert moved[None] > 0.1


@pytest.mark.parametrize('amp', ['bf16', 'fp16'])
def test_amp_computes_in_low_precision_and_keeps_float32_weights(tmp_path, batch, amp):
    trained = model(tmp_path, amp=amp)
    seen = []
    trained.net_g.conv_first.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    after = step(trained, batch)
    assert seen == [torch.bfloat16 if amp == 'bf16' else torch.float16]
    assert after['conv_first.weight'].dtype == torch.float32
    assert trained.scaler.is_enabled() == (amp == 'fp16')
    exact = step(model(tmp_path), batch)
    assert (after['conv_first.weight'] - exact['conv_first.weight']).abs().max() < 5e-3


def test_a_list_of_losses_beside_the_slots(tmp_path, batch):
    trained = model(
        tmp_path, losses=[{'type': 'MSELoss', 'loss_weight': 10.0}, {'type': 'CharbonnierLoss', 'name': 'c'}]
    )
    step(trained, batch)
    log = trained.get_current_log()
    assert {'l_pix', 'l_MSELoss', 'l_c'} <= set(log)
    output = trained.output
    assert log['l_MSELoss'] == pytest.approx(10 * (output - batch['gt']).pow(2).mean().item(), rel=1e-5)
    with pytest.raises(HatPluginError, match="called 'MSELoss'"):
        model(tmp_path, losses=[{'type': 'MSELoss'}, {'type': 'MSELoss'}])
    with pytest.raises(HatPluginError, match='no loss'):
        model(tmp_path, pixel_opt=None)


def test_channels_last_and_compile_are_real(tmp_path, batch, monkeypatch):
    trained = model(tmp_path, channels_last=True)
    assert trained.net_g.conv_first.weight.is_contiguous(memory_format=torch.channels_last)
    plain = step(model(tmp_path), batch)
    for name, value in step(trained, batch).items():
        torch.testing.assert_close(value, plain[name], rtol=1e-3, atol=1e-4)
    compiled = []

    def counting(net, **options):
        def forward(x):
            compiled.append(tuple(x.shape))
            return net(x)

        return forward

    monkeypatch.setattr(torch, 'compile', counting)
    trained = model(tmp_path, compile=True)
    step(trained, batch)
    assert compiled == [tuple(batch['lq'].shape)]
    trained.test()
    assert len(compiled) == 1  # validation is not compiled


@pytest.mark.slow
def test_a_compiled_network_trains_as_the_eager_one(tmp_path, batch):
    """Patches of several sizes in turn, as progressive training has them."""
    eager, compiled = model(tmp_path), model(tmp_path, compile=True)
    larger = {key: torch.cat([value, value], dim=-1) for key, value in batch.items() if torch.is_tensor(value)}
    for iteration, data in enumerate((batch, larger, batch), 1):
        plain = step(eager, data, iteration)
        for name, value in step(compiled, data, iteration).items():
            torch.testing.assert_close(value, plain[name], rtol=1e-3, atol=1e-3)


def test_steps_that_are_not_finite_are_skipped_named_and_bounded(tmp_path, batch):
    trained = model(tmp_path, max_nonfinite=2)
    good = step(trained, batch)
    broken = {**batch, 'gt': batch['gt'] * float('nan')}
    for iteration in (2, 3):
        weights = step(trained, broken, iteration)
        assert all(torch.equal(weights[name], value) for name, value in good.items())
    step(trained, batch, 4)  # a finite one: the count begins anew
    for iteration in (5, 6):
        step(trained, broken, iteration)
    with pytest.raises(TrainingError, match='iteration 7: not finite: l_pix = nan'):
        step(trained, broken, 7)


@pytest.mark.parametrize('kind', ['Adam', 'AdamW', 'SGD', 'Rprop', 'lamb'])
def test_a_step_that_is_read_later_is_the_same_step(tmp_path, batch, kind):
    """As on CUDA, where the host goes on; Rprop and timm's have no fused form and wait all the same."""
    broken = {**batch, 'gt': batch['gt'] * float('nan')}
    turns = [batch, batch, broken, batch, batch]
    optim = {'type': kind, 'lr': 1e-2}
    at_once, later = (model(tmp_path, ema_decay=0.5, optim_g=dict(optim)) for _ in range(2))
    later.reads_later = True
    for iteration, data in enumerate(turns, 1):
        for trained in (at_once, later):
            trained.feed_data(data)
            trained.optimize_parameters(iteration)
        assert bool(later.log_dict) == (kind in ('Rprop', 'lamb'))  # else still on its way
        if iteration == 4:  # nobody asks for the others': they are averaged all the same, and not in this log
            np.testing.assert_equal(later.get_current_log(), at_once.get_current_log())
    later.evaluation_network()
    for name in ('net_g', 'net_g_ema'):
        ours, expected = (getattr(trained, name).state_dict() for trained in (later, at_once))
        assert all(torch.equal(value, expected[key]) for key, value in ours.items())


@pytest.mark.parametrize('kind', ['Adam', 'AdamW', 'SGD', 'Adagrad', 'Rprop', 'lamb'])
def test_a_skipped_step_leaves_nothing_behind(tmp_path, batch, kind):
    """No moment, step count or average of it: the next step is the one that would have come without it."""
    optim = {'type': kind, 'lr': 1e-2} | ({'momentum': 0.9} if kind == 'SGD' else {})
    skipped, never_met = (model(tmp_path, ema_decay=0.5, optim_g=dict(optim)) for _ in range(2))
    broken = {**batch, 'gt': batch['gt'] * float('nan')}
    for data in (batch, broken, batch):
        step(skipped, data)
        if data is batch:
            step(never_met, data)
    for name in ('net_g', 'net_g_ema', 'optimizer_g'):
        ours, expected = (getattr(trained, name).state_dict() for trained in (skipped, never_met))
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_a_step_too_many_that_is_read_later_ends_the_run_with_the_next(tmp_path, batch):
    trained = model(tmp_path, max_nonfinite=0)
    trained.reads_later = True
    good = step(trained, batch)
    broken = {**batch, 'gt': batch['gt'] * float('nan')}
    step(trained, broken, 2)
    with pytest.raises(TrainingError, match='iteration 2: not finite: l_pix = nan'):
        step(trained, batch, 3)
    assert all(torch.equal(good[name], value) for name, value in trained.net_g.state_dict().items())
    step(trained, broken, 4)
    with pytest.raises(TrainingError, match='iteration 4: not finite: l_pix = nan'):
        trained.save(0, 4)
    trained.save(0, 4)  # as the training loop does before it ends


@pytest.mark.gpu
def test_a_step_does_not_wait_for_the_gpu(tmp_path, batch):
    opt = options(tmp_path, ema_decay=0.5, grad_clip=1.0)
    opt['num_gpu'] = 1
    trained = build_model(opt)
    batch = {key: value.pin_memory() for key, value in batch.items()}
    step(trained, batch)  # makes the optimiser's state
    torch.cuda.set_sync_debug_mode('error')
    try:
        for iteration in (2, 3):
            trained.feed_data(batch)
            trained.optimize_parameters(iteration)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert trained.get_current_log()['l_pix'] > 0


@pytest.mark.gpu
@pytest.mark.parametrize('train', [{}, {'amp': 'bf16', 'ema_decay': 0.5}, {'total_batch_size': 4}], ids=str)
def test_cuda_graphs_train_as_the_eager_network(tmp_path, batch, train):
    """Patches of two sizes in turn, validation between them; micro-batches, whose gradients are added up."""
    larger = {key: torch.cat([value, value], dim=-1) for key, value in batch.items()}
    weights = []
    for graphs in (False, True):
        torch.manual_seed(0)
        opt = options(tmp_path, cuda_graphs=graphs, **train)
        opt['num_gpu'] = 1
        trained = build_model(opt)
        for iteration, data in enumerate((batch, larger, batch, larger, batch), 1):
            found = step(trained, data, iteration)
            if iteration == 3:
                trained.test()
        weights.append(found)
        losses = trained.get_current_log()
    assert len(trained.graphs._recorded) == 2
    assert trained.graphs._forward not in trained.graphs._recorded.values()  # what stands there if recording failed
    assert losses['l_pix'] > 0
    for name, value in weights[1].items():
        torch.testing.assert_close(value, weights[0][name], rtol=2e-2, atol=2e-3)


@pytest.mark.gpu
def test_cuda_graphs_draw_new_random_numbers_and_leave_the_state(tmp_path, batch):
    opt = options(tmp_path, cuda_graphs=True)
    opt['network_g']['drop_path_rate'] = 0.5
    opt['num_gpu'] = 1
    trained = build_model(opt)
    trained.feed_data(batch)
    before = torch.cuda.get_rng_state()
    trained.graphs._record(trained.lq, None)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    first, second = trained.net_g(trained.lq), trained.net_g(trained.lq)
    assert not torch.equal(first, second)
    torch.cuda.set_rng_state(before)
    assert torch.equal(trained.net_g(trained.lq), first)  # as a resumed training needs it


def test_a_copy_of_a_network_with_cuda_graphs_runs_by_itself(tmp_path, batch):
    net = model(tmp_path).net_g.train()
    plain = copy.deepcopy(net)
    CudaGraphs(net)
    copied = copy.deepcopy(net)
    assert copied.forward.__self__ is copied
    with torch.no_grad():
        copied.conv_after_body.bias.add_(1.0)
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(net.eval()(x), plain.eval()(x))
    assert not torch.allclose(copied.eval()(x), net(x))


def test_recording_lets_other_threads_allocate():
    with _beside_other_threads():
        assert torch.cuda.graph.keywords == {'capture_error_mode': 'thread_local'}
    assert isinstance(torch.cuda.graph, type)


def test_cuda_graphs_where_there_is_no_gpu_are_said_to_be_left_out(tmp_path, batch, caplog):
    opt = options(tmp_path, cuda_graphs=True)
    opt['num_gpu'] = 0
    trained = build_model(opt)
    assert 'cuda_graphs: there is no CUDA device' in caplog.text
    step(trained, batch)


def test_fp16_gradients_that_no_scale_makes_finite_end_the_run(tmp_path, batch):
    trained = model(tmp_path, amp='fp16', max_nonfinite=2)
    trained.net_g.conv_first.weight.register_hook(lambda gradient: gradient * float('nan'))
    with pytest.raises(TrainingError, match='grad_norm = nan'):
        for iteration in range(1, 40):
            step(trained, batch, iteration)
    assert iteration > 16  # the scaler tried its scales first


def test_a_test_output_that_is_not_finite_is_no_picture(tmp_path, batch):
    trained = model(tmp_path)
    trained.feed_data({'lq': batch['lq'] * float('nan')})
    with pytest.raises(TrainingError, match='not finite'):
        trained.test()


@pytest.mark.parametrize('ema', [0, 0.9])
def test_networks_are_in_train_mode_after_a_validation(tmp_path, batch, ema):
    trained = model(tmp_path, ema_decay=ema)
    trained.feed_data(batch)
    trained.test()
    assert trained.net_g.training
    assert trained.output.shape == batch['gt'].shape
    assert not trained.output.requires_grad


def test_the_published_tile_block_is_used_and_said(tmp_path, photos):
    lq = torch.from_numpy(photos.small('coffee', 40, 56)).permute(2, 0, 1)[None].float() / 255
    opt = options(tmp_path)
    whole_model = build_model(opt)
    whole_model.feed_data({'lq': lq})
    whole_model.test()
    whole, tiled_before = whole_model.output, whole_model.tiled
    whole_model.opt['tile'] = {'tile_size': 16, 'tile_pad': 8}
    shapes = []
    whole_model.net_g_ema.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[-2:])))
    whole_model.test()
    assert (tiled_before, whole_model.tiled) == (False, True)
    assert len(shapes) > 1
    assert set(shapes) == {(32, 32)}
    assert whole_model.output.shape == whole.shape
    assert (whole_model.output - whole).abs().max() < 0.05 * (whole.max() - whole.min())


def test_weights_load_from_basicsrs_files_and_bare_ones(tmp_path, batch):
    trained = model(tmp_path)
    weights = step(trained, batch)
    trained.save(0, 1)
    torch.save({f'module.{name}': value for name, value in weights.items()}, tmp_path / 'bare.pth')
    opt = options(tmp_path)
    for path, key in ((tmp_path / 'bare.pth', 'params'), (Path(opt['path']['models']) / 'net_g_1.pth', 'params_ema')):
        opt['path'].update(pretrain_network_g=str(path), param_key_g=key)
        loaded = build_model(opt)
        expected = trained.net_g_ema.state_dict() if key == 'params_ema' else weights
        assert all(torch.equal(value, expected[name]) for name, value in loaded.net_g.state_dict().items())
        assert all(torch.equal(value, expected[name]) for name, value in loaded.net_g_ema.state_dict().items())


def test_weights_of_another_scale_are_refused_with_their_shapes_unless_not_strict(tmp_path, batch):
    trained = model(tmp_path)
    trained.save(0, -1)
    opt = options(tmp_path)
    opt['scale'] = opt['network_g']['upscale'] = 4
    opt['path']['pretrain_network_g'] = str(Path(opt['path']['models']) / 'net_g_latest.pth')
    with pytest.raises(CheckpointError, match=r'upsample.*in the file.*in the network'):
        build_model(opt)
    opt['path']['strict_load_g'] = False
    loaded = build_model(opt)
    assert torch.equal(loaded.net_g.conv_first.weight, trained.net_g.conv_first.weight)


def test_a_state_of_another_network_is_refused(tmp_path, batch):
    trained = model(tmp_path)
    step(trained, batch)
    trained.save(0, 1)
    state = torch.load(Path(trained.opt['path']['training_states']) / '1.state', weights_only=True)
    other = options(tmp_path)
    other['network_g']['embed_dim'] = 12
    with pytest.raises(CheckpointError, match='does not fit HAT'):
        build_model(other).resume_training(state)
    with pytest.raises(CheckpointError, match='0 optimisers'):
        model(tmp_path).resume_training({**state, 'optimizers': []})


def test_a_network_that_refuses_its_options_says_so(tmp_path):
    opt = options(tmp_path)
    opt['network_g']['embed_dim'] = 9
    with pytest.raises(HatPluginError, match='network_g: HAT: .*9'):
        build_model(opt)


@pytest.mark.parametrize(
    ('path', 'name'),
    [
        ('data/lq/x.png', 'x'),
        ('data/lq/a/x.png', 'a/x'),
        ('data/lq/b/x.png', 'b/x'),
        ('baby', 'baby'),
        ('/z/y.png', 'y'),
    ],
)
def test_results_of_pictures_with_one_name_in_two_folders_do_not_meet(path, name):
    assert picture_name(path, {'dataroot_gt': 'data/gt', 'dataroot_lq': 'data/lq'}) == name


@pytest.mark.parametrize(
    ('key', 'name'), [('000/00000001', '000/00000001'), ('a.b', 'a.b'), ('../x', 'x'), ('/y', 'y')]
)
def test_results_of_an_lmdb_have_the_names_of_its_keys(key, name):
    for backend in ({'type': 'lmdb'}, {'db_paths': ['data/lq.lmdb']}):  # as BasicSR's data sets leave it
        assert picture_name(key, {'dataroot_lq': 'data/lq.lmdb', 'io_backend': backend}) == name
