"""A light HAT that starts as an interpolation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.archs.initialise import start_as_interpolation_
from hat_plugin.data.bicubic import imresize

NETWORK: dict[str, Any] = {
    'embed_dim': 16,
    'depths': [1],
    'num_heads': [2],
    'window_size': 4,
    'squeeze_factor': 4,
    'upscale': 4,
    'upsampler': 'pixelshuffledirect',
}


def bicubic_response(scale: int) -> torch.Tensor:
    impulse = np.zeros((5, 5))
    impulse[2, 2] = 1.0
    return torch.from_numpy(imresize(impulse, scale))


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('resi_connection', ['1conv', '3conv'])
def test_it_is_bicubic_inside_the_border(photos: Any, scale: int, channels: int, resi_connection: str) -> None:
    torch.manual_seed(0)
    net = HAT(**{**NETWORK, 'upscale': scale, 'in_chans': channels, 'resi_connection': resi_connection}).eval()
    start_as_interpolation_(net, bicubic_response(scale))
    image = photos.small('coffee', 20, 28)[..., :channels].astype(np.float32) / 255
    with torch.no_grad():
        output = net(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    border = 2 * scale
    inside = (slice(border, -border), slice(border, -border))
    np.testing.assert_allclose(output[inside], imresize(image, scale)[inside], atol=2e-6)


def test_all_of_it_learns() -> None:
    torch.manual_seed(0)
    net = HAT(**NETWORK)
    start_as_interpolation_(net, bicubic_response(4))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
    lq, gt = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32)
    for _ in range(2):  # the first step moves the last convolution off zero, the second reaches what is behind it
        optimiser.zero_grad()
        (net(lq) - gt).square().mean().backward()
        optimiser.step()
    still = [name for name, parameter in net.named_parameters() if not parameter.grad.abs().max() > 0]
    assert not still


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'upsampler': 'pixelshuffle'}, 'pixelshuffledirect'),
        ({'resi_connection': 'identity'}, '1conv'),
        ({'embed_dim': 8}, 'give 10 or more'),
    ],
)
def test_other_networks_are_refused_unchanged(change: dict[str, Any], words: str) -> None:
    net = HAT(**{**NETWORK, **change})
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        start_as_interpolation_(net, bicubic_response(4))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_response_of_another_scale_is_refused() -> None:
    with pytest.raises(ValueError, match=r'\(20, 20\)'):
        start_as_interpolation_(HAT(**NETWORK), bicubic_response(2))
