"""What all losses here have in common: gradients, precision, reduction, and what they refuse."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from basicsr.losses import build_loss
from torch import Tensor

from hat_plugin.losses.edge_loss import EdgeLoss
from hat_plugin.losses.fft_loss import FFTLoss
from hat_plugin.losses.focal_frequency_loss import FocalFrequencyLoss
from hat_plugin.losses.gradient_weighted_loss import GradientWeightedLoss
from hat_plugin.losses.psnr_loss import PSNRLoss
from hat_plugin.losses.ssim_loss import MSSSIMLoss, SSIMLoss

# Each loss with arguments that let it take pictures of 12x12.
SMALL: dict[str, dict[str, Any]] = {
    'PSNRLoss': {},
    'SSIMLoss': {'window_size': 5},
    'MSSSIMLoss': {'window_size': 5, 'weights': [0.4, 0.6]},
    'FFTLoss': {},
    'FocalFrequencyLoss': {'alpha': 0.5, 'patch_factor': 2},
    'EdgeLoss': {},
    'GradientWeightedLoss': {},
}


@pytest.mark.parametrize('name', SMALL)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    loss = build_loss({'type': name, **SMALL[name]})
    first, second = torch.rand(2, 1, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if name == 'FocalFrequencyLoss':  # its weights pass no gradient: hold them still
        weights = loss._weights(
            torch.view_as_real(torch.fft.fft2(loss._patches(first - second), norm='ortho')).square().sum(-1)
        )
        loss._weights = lambda _: weights
    assert torch.autograd.gradcheck(lambda images: loss(images, second), first.requires_grad_())


@pytest.mark.parametrize('name', SMALL)
def test_equal_pictures_give_the_least_loss_and_a_finite_gradient(name: str) -> None:
    loss = build_loss({'type': name, **SMALL[name]})
    image = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = loss(image, image.detach().clone())
    found.backward()
    assert found.item() == pytest.approx({'PSNRLoss': -80, 'EdgeLoss': 1e-3}.get(name, 0), abs=1e-5)
    assert torch.isfinite(image.grad).all()


@pytest.mark.parametrize('name', SMALL)
def test_float32_under_autocast_and_for_half_precision(name: str, pair: tuple[Tensor, Tensor]) -> None:
    loss = build_loss({'type': name, **SMALL[name]})
    first, second = (images.float() for images in pair)
    plain = loss(first, second)
    assert plain.dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(loss(first, second), plain, rtol=0, atol=0)
    assert loss(first.bfloat16(), second.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(plain.double(), loss(*pair), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', SMALL)
def test_weight_and_reduction(name: str, pair: tuple[Tensor, Tensor]) -> None:
    every = build_loss({'type': name, 'reduction': 'none', **SMALL[name]})(*pair)
    assert every.ndim >= 1
    torch.testing.assert_close(build_loss({'type': name, **SMALL[name]})(*pair), every.mean())
    total = build_loss({'type': name, 'reduction': 'sum', 'loss_weight': 0.5, **SMALL[name]})(*pair)
    torch.testing.assert_close(total, 0.5 * every.sum())


@pytest.mark.parametrize('name', SMALL)
def test_gray_and_odd_sizes(name: str, pair: tuple[Tensor, Tensor]) -> None:
    first, second = (images[:, :1, :46, :62] for images in pair)
    loss = build_loss({'type': name, **SMALL[name]})
    if name != 'FocalFrequencyLoss':
        first, second = first[..., :-1, :-1], second[..., :-1, :-1]
    assert torch.isfinite(loss(first, second))


@pytest.mark.parametrize('name', SMALL)
def test_bad_arguments_and_pictures_are_refused(name: str, pair: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="reduction: 'average': mean, sum or none"):
        build_loss({'type': name, 'reduction': 'average'})
    with pytest.raises(ValueError, match='loss_weight: nan: a finite number'):
        build_loss({'type': name, 'loss_weight': float('nan')})
    with pytest.raises(TypeError, match='reductoin'):
        build_loss({'type': name, 'reductoin': 'mean'})
    with pytest.raises(ValueError, match=rf'{name}: \(2, 3, 48, 64\) and \(2, 3, 48, 63\): two batches'):
        build_loss({'type': name})(pair[0], pair[1][..., :-1])
    kinds = {parameter.kind for parameter in inspect.signature(type(build_loss({'type': name}))).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


@pytest.mark.parametrize(
    ('loss', 'arguments', 'message'),
    [
        (SSIMLoss, {'window_size': 10}, 'window_size: 10: an odd number'),
        (SSIMLoss, {'sigma': 0}, 'sigma: 0: a finite number above 0'),
        (MSSSIMLoss, {'weights': []}, r'weights: \[\]: a list of numbers'),
        (MSSSIMLoss, {'weights': [0.5, -1]}, 'weights: -1: a finite number above 0'),
        (FFTLoss, {'norm': 'forward'}, "norm: 'forward': backward or ortho"),
        (FocalFrequencyLoss, {'alpha': -1}, 'alpha: -1: a number of at least 0'),
        (FocalFrequencyLoss, {'patch_factor': 0}, 'patch_factor: 0: a whole number'),
        (EdgeLoss, {'eps': 0}, 'eps: 0: a finite number above 0'),
        (GradientWeightedLoss, {'alpha': -1}, 'alpha: -1: a number of at least 0'),
    ],
)
def test_bad_values_are_refused(loss: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(**arguments)


@pytest.mark.parametrize(
    ('loss', 'shape', 'message'),
    [
        (PSNRLoss(toY=True), (1, 1, 12, 12), 'toY: pictures of 3 channels are wanted, these have 1'),
        (SSIMLoss(), (1, 3, 12, 10), 'pictures of 12x10 are smaller than the window of 11; .*gt_size'),
        (MSSSIMLoss(), (1, 3, 160, 256), 'pictures of 160x256 are too small for 5 scales, which need 161 pixels'),
        (FocalFrequencyLoss(patch_factor=5), (1, 3, 10, 12), 'patch_factor: 5 does not divide .* 10x12'),
    ],
)
def test_pictures_that_do_not_fit_are_refused(loss: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(torch.rand(shape), torch.rand(shape))


@pytest.mark.gpu
@pytest.mark.parametrize('name', SMALL)
def test_on_a_gpu_under_autocast(name: str, pair: tuple[Tensor, Tensor]) -> None:
    loss = build_loss({'type': name, **SMALL[name]})
    first, second = (images.float() for images in pair)
    with torch.autocast('cuda', torch.float16):
        found = loss.cuda()(first.cuda(), second.cuda())
    torch.testing.assert_close(found.cpu(), loss.cpu()(first, second), rtol=1e-4, atol=1e-5)
