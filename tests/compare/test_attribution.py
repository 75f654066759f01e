"""Local attribution maps: integrals that add up, windows that are found again, Gini's coefficient by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.compare.attribution import KERNEL, SIGMA, attribute, detail, gini, integrated
from hat_plugin.errors import HatPluginError

SMALL: dict[str, Any] = {
    'window_size': 4,
    'depths': [1],
    'embed_dim': 8,
    'num_heads': [2],
    'compress_ratio': 2,
    'squeeze_factor': 4,
}


@pytest.fixture
def image(photos: Any) -> torch.Tensor:
    return torch.from_numpy(photos.small('coffee', 32, 40)).permute(2, 0, 1)[None].float() / 255


def blurred(image: torch.Tensor) -> torch.Tensor:
    """By a Gaussian written out."""
    offsets = torch.arange(KERNEL) - KERNEL // 2
    line = torch.exp(-offsets.square() / (2 * SIGMA**2))
    line = line / line.sum()
    kernel = (line[:, None] * line[None]).expand(3, 1, KERNEL, KERNEL)
    padded = functional.pad(image, [KERNEL // 2] * 4, mode='reflect')
    return functional.conv2d(padded, kernel, groups=3)


def test_contributions_add_up_to_what_the_path_adds(image: torch.Tensor) -> None:
    torch.manual_seed(0)
    net = HAT(upscale=2, upsampler='pixelshuffledirect', **SMALL).eval()
    with torch.no_grad():
        expected = detail(net(image), 20, 30, 16) - detail(net(blurred(image)), 20, 30, 16)
    coarse, fine = (integrated(net, image, 20, 30, 16, steps).sum() for steps in (8, 128))
    assert abs(fine - expected) < 0.02 * abs(expected)
    assert abs(fine - expected) < abs(coarse - expected)


def test_the_identity_uses_the_window_and_nothing_else(image: torch.Tensor) -> None:
    found = attribute(nn.Identity(), image, 10, 14, 8)
    assert found.map.max() == 1
    assert found.map[10:19, 14:23].sum() > 0  # a pixel more: differences reach there
    found.map[10:19, 14:23] = 0
    assert found.map.sum() == 0


def test_a_network_that_sees_farther_has_the_larger_index(image: torch.Tensor) -> None:
    def mean_of(side: int) -> nn.Module:
        return nn.AvgPool2d(side, 1, side // 2, count_include_pad=False)

    near, far = (attribute(mean_of(side), image, 10, 14, 8).diffusion for side in (3, 11))
    assert 0 < near < far < 100


def test_gini_by_hand() -> None:
    assert gini(np.ones((3, 4))) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 5])) == pytest.approx(0.75)
    assert gini(np.array([1, 2, 3, 4])) == pytest.approx(0.25)
    assert gini(np.zeros(5)) == 0


@pytest.mark.parametrize(('top', 'left'), [(25, 0), (0, 32), (-1, 0)])
def test_a_window_outside_is_refused(image: torch.Tensor, top: int, left: int) -> None:
    with pytest.raises(HatPluginError, match='does not lie inside the output, 40x32 pixels'):
        attribute(nn.Identity(), image, top, left, 8)
