"""Arrays through a network: depths, channels, tiles, self-ensemble, and values that are no picture."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from hat_plugin.errors import DataError
from hat_plugin.restore import Network, Settings, restore_image


def direct(network: Network, image: np.ndarray, clamp: bool = True) -> np.ndarray:
    """The network's answer to a float RGB picture, float64, without any of our pipeline."""
    tensor = torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1).copy())[None]
    with torch.no_grad():
        output = network.net.net(tensor)[0].permute(1, 2, 0).double().numpy()
    return output.clip(0, 1) if clamp else output


def faulty(network: Network, value: float) -> Network:
    """The network with one weight that makes its output `value`."""
    net = copy.deepcopy(network.net)
    for parameter in net.net.upsample.parameters():
        parameter.data.fill_(value)
    return replace(network, net=net)


@pytest.mark.parametrize(('dtype', 'top'), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_depths(dtype: type, top: int, network: Network, photos) -> None:
    photo = photos.small('coffee', 21, 33)
    image = (photo / 255 * top).astype(dtype)
    restored = restore_image(network, image)
    assert restored.dtype == dtype and restored.shape == (42, 66, 3)
    expected = direct(network, image / top)
    tolerance = 1e-6 if dtype is np.float32 else 0.51 / top
    assert np.abs(restored / top - expected).max() <= tolerance + 1e-6


def test_gray_goes_through_a_colour_network_and_back(network: Network, photos) -> None:
    gray = photos.small('chelsea', 24, 24)[..., 0]
    colour = direct(network, np.repeat(gray[..., None], 3, 2) / 255, clamp=False)
    expected = (colour @ [0.299, 0.587, 0.114]).clip(0, 1)
    for image in (gray, gray[..., None]):
        restored = restore_image(network, image)
        assert restored.shape == (48, 48, *image.shape[2:])
        assert np.abs(np.squeeze(restored) / 255 - expected).max() < 0.51 / 255 + 1e-6


def test_colour_goes_through_a_gray_network_by_channels(gray_network: Network, photos) -> None:
    photo = photos.small('chelsea', 24, 30)
    restored = restore_image(gray_network, photo)
    for channel in range(3):
        np.testing.assert_array_equal(restored[..., channel], restore_image(gray_network, photo[..., channel]))


def test_transparency_is_enlarged_by_the_network(network: Network, photos) -> None:
    photo = photos.small('coffee', 24, 24)
    alpha = photos.small('rocket', 24, 24)[..., 0]
    restored = restore_image(network, np.dstack([photo, alpha]))
    np.testing.assert_array_equal(restored[..., :3], restore_image(network, photo))
    np.testing.assert_array_equal(restored[..., 3], restore_image(network, alpha))
    opaque = restore_image(network, np.dstack([photo, np.full_like(alpha, 255)]))
    assert (opaque[..., 3] == 255).all()


def test_transparency_is_kept_at_the_same_size(same_size_network: Network, photos) -> None:
    alpha = photos.small('rocket', 24, 24)[..., 0]
    restored = restore_image(same_size_network, np.dstack([photos.small('coffee', 24, 24), alpha]))
    np.testing.assert_array_equal(restored[..., 3], alpha)


@pytest.mark.parametrize('size', [(1, 1), (1, 40), (7, 3), (8, 8), (40, 61)])
def test_any_size(size: tuple[int, int], network: Network, photos) -> None:
    photo = photos.small('astronaut', *size)
    assert restore_image(network, photo).shape == (size[0] * 2, size[1] * 2, 3)


def test_tiles_change_little_and_leave_no_seam(network: Network, photos) -> None:
    photo = photos.small('astronaut', 80, 112, top=20, left=180).astype(np.float32) / 255
    whole = restore_image(network, photo, Settings(tile=None))
    tiled = restore_image(network, photo, Settings(tile=48, overlap=16))
    assert 0 < np.abs(whole - tiled).max() < 0.01
    for axis in (0, 1):
        steps = np.abs(np.diff(tiled, axis=axis) - np.diff(whole, axis=axis))
        assert steps.max() < 0.2 * np.abs(np.diff(whole, axis=axis)).max(), 'an edge that the whole picture has not'


def test_self_ensemble_is_the_mean_of_eight_views(network: Network, photos) -> None:
    photo = photos.small('coffee', 17, 30).astype(np.float32) / 255
    views = []
    for flip in (False, True):
        for turns in range(4):
            view = np.rot90(photo[:, ::-1] if flip else photo, turns)
            output = np.rot90(direct(network, view, clamp=False), -turns)
            views.append(output[:, ::-1] if flip else output)
    restored = restore_image(network, photo, Settings(self_ensemble=True))
    np.testing.assert_allclose(restored, np.mean(views, 0).clip(0, 1), atol=1e-5)
    assert np.abs(restored - restore_image(network, photo)).max() > 1e-4


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_no_picture_is_made_of_nan(value: float, dtype: type, network: Network, photos) -> None:
    with pytest.raises(DataError, match='NaN or infinity'):
        restore_image(faulty(network, value), photos.small('coffee', 16, 16).astype(dtype))


def test_arrays_that_are_no_pictures_are_refused(network: Network) -> None:
    for shape in [(8,), (8, 8, 2), (1, 8, 8, 3), (0, 8, 3)]:
        with pytest.raises(DataError, match='shape'):
            restore_image(network, np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match='float64'):
        restore_image(network, np.zeros((8, 8, 3)))


def test_bf16_end_to_end(weights, network: Network, photos) -> None:
    from hat_plugin.restore import load_network

    photo = photos.small('coffee', 24, 24)
    half = restore_image(load_network(weights, device='cpu', precision='bf16'), photo)
    difference = np.abs(half.astype(int) - restore_image(network, photo))
    assert difference.max() <= 4
