"""Learning rates against BasicSR's rule and closed forms."""

from __future__ import annotations

import pytest
import torch
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR

from hat_plugin.engine.optimizers import LearningRate, build_optimizer, load_optimizer_state
from hat_plugin.errors import HatPluginError


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(3))


def rates(options: dict, iterations: int, warmup: int = -1, lr: float = 0.1) -> list[float]:
    optimizer = torch.optim.Adam([parameter()], lr=lr)
    schedule = LearningRate(optimizer, options)
    found = []
    for iteration in range(1, iterations + 1):
        schedule.set(iteration, warmup)
        found.append(optimizer.param_groups[0]['lr'])
    return found


@pytest.mark.parametrize(
    ('options', 'reference'),
    [
        ({'type': 'MultiStepLR', 'milestones': [3, 7], 'gamma': 0.5}, MultiStepRestartLR),
        (
            {'type': 'CosineAnnealingRestartLR', 'periods': [6, 6], 'restart_weights': [1, 0.5], 'eta_min': 1e-3},
            CosineAnnealingRestartLR,
        ),
    ],
)
def test_without_warmup_it_is_basicsrs_schedule(options, reference):
    optimizer = torch.optim.Adam([parameter()], lr=0.1)
    scheduler = reference(optimizer, **{key: value for key, value in options.items() if key != 'type'})
    expected = []
    for iteration in range(1, 13):
        if iteration > 1:
            optimizer.step()
            scheduler.step()
        expected.append(optimizer.param_groups[0]['lr'])
    assert rates(options, 12) == pytest.approx(expected, rel=1e-12)


def test_warmup_ends_at_the_nominal_rate_and_keeps_milestones_inside_it():
    found = rates({'type': 'MultiStepLR', 'milestones': [2], 'gamma': 0.5}, 6, warmup=4)
    # iteration 3 is the first after the milestone; BasicSR would stay at 3/4 of nominal and lose the milestone
    assert found == pytest.approx([0.1 / 4, 0.1 * 2 / 4, 0.05 * 3 / 4, 0.05, 0.05, 0.05])


def test_a_jump_equals_a_walk_and_one_can_go_back():
    options = {'type': 'MultiStepLR', 'milestones': [3, 7], 'gamma': 0.5}
    walked = rates(options, 10)
    optimizer = torch.optim.Adam([parameter()], lr=0.1)
    schedule = LearningRate(optimizer, options)
    for iteration in (10, 4, 1, 8):
        schedule.set(iteration)
        assert optimizer.param_groups[0]['lr'] == pytest.approx(walked[iteration - 1])


def test_torch_schedulers_by_name():
    found = rates({'type': 'ExponentialLR', 'gamma': 0.9}, 4)
    assert found == pytest.approx([0.1, 0.09, 0.081, 0.0729])


def test_optimisers_of_torch_and_timm_by_name():
    assert isinstance(build_optimizer([parameter()], {'type': 'AdamW', 'lr': 1e-3}), torch.optim.AdamW)
    lamb = build_optimizer([parameter()], {'type': 'lamb', 'lr': 1e-3, 'weight_decay': 0.0})
    assert type(lamb).__name__.lower() == 'lamb'
    with pytest.raises(HatPluginError, match="'Adamm'"):
        build_optimizer([parameter()], {'type': 'Adamm', 'lr': 1e-3})
    with pytest.raises(HatPluginError, match='betaz'):
        build_optimizer([parameter()], {'type': 'Adam', 'lr': 1e-3, 'betaz': [0.9, 0.99]})


def test_a_restored_optimiser_keeps_the_option_files_rate():
    weight = parameter()
    old = torch.optim.Adam([weight], lr=1e-3)
    weight.grad = torch.ones(3)
    old.step()
    new = torch.optim.Adam([weight], lr=5e-4, betas=(0.8, 0.9))
    load_optimizer_state(new, old.state_dict())
    assert new.param_groups[0]['lr'] == 5e-4
    assert new.param_groups[0]['betas'] == (0.8, 0.9)
    assert torch.equal(new.state[weight]['exp_avg'], old.state[weight]['exp_avg'])


@pytest.mark.parametrize('name', ['Adam', 'AdamW', 'SGD', 'Adagrad', 'RMSprop', 'LBFGS'])
def test_torchs_optimisers_are_fused_where_they_can_be(name):
    def steps(**more):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(50))
        optimizer = build_optimizer([weight], {'type': name, 'lr': 1e-2, **more})
        for _ in range(3):
            weight.grad = weight.detach().cos()
            optimizer.step((lambda: weight.detach().sum()) if name == 'LBFGS' else None)
        return optimizer, weight

    optimizer, weight = steps()
    has_fused = name not in ('RMSprop', 'LBFGS')
    assert optimizer.defaults.get('fused') is (True if has_fused else None)
    if has_fused:
        plain, expected = steps(fused=False)
        assert plain.defaults['fused'] is False
        torch.testing.assert_close(weight, expected)
        assert steps(foreach=True)[0].defaults['fused'] is None


def test_weights_that_cannot_be_fused_are_not():
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    assert build_optimizer([weight], {'type': 'Adam', 'lr': 1e-3}).defaults['fused'] is None


@pytest.mark.parametrize('fused', [False, True])
def test_a_state_goes_on_whether_it_was_fused_or_not(fused):
    def trained(first, then):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(50))
        optimizer = build_optimizer([weight], {'type': 'Adam', 'lr': 1e-2, 'fused': first})
        for number in range(4):
            if number == 2:
                later = build_optimizer([weight], {'type': 'Adam', 'lr': 1e-2, 'fused': then})
                load_optimizer_state(later, optimizer.state_dict())
                optimizer = later
            weight.grad = weight.detach().cos()
            optimizer.step()
        assert optimizer.param_groups[0]['fused'] is then
        return weight

    torch.testing.assert_close(trained(fused, not fused), trained(fused, fused))


def test_a_state_that_does_not_fit_leaves_the_option_files_rates():
    weight, other = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(4))
    saved = build_optimizer([other], {'type': 'Adam', 'lr': 1.0, 'betas': [0.5, 0.5]})
    other.grad = torch.ones(4)
    saved.step()
    optimizer = build_optimizer([weight], {'type': 'Adam', 'lr': 1e-4, 'betas': [0.9, 0.99]})
    with pytest.raises(ValueError, match=r'of \(4,\) for a weight of \(3,\)'):
        load_optimizer_state(optimizer, saved.state_dict())
    (group,) = optimizer.param_groups
    assert (group['lr'], tuple(group['betas'])) == (1e-4, (0.9, 0.99))
