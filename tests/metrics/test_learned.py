"""LPIPS, DISTS and NIQE: what the packages are handed, and the errors without them. Their weights are not here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from hat_plugin.errors import HatPluginError
from hat_plugin.metrics import learned


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No network of an earlier test."""
    learned._lpips.cache_clear()
    learned._pyiqa.cache_clear()
    yield
    learned._lpips.cache_clear()
    learned._pyiqa.cache_clear()


@pytest.fixture
def pictures(photos: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two crops, (64, 64, 3), BGR, uint8."""
    first, second = (np.ascontiguousarray(photos.small(name, 64, 64)[..., ::-1]) for name in ('coffee', 'chelsea'))
    return first, second


@pytest.fixture
def pyiqa(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A stand-in for pyiqa whose metrics say what they were called with."""
    calls: list[Any] = []
    devices: list[torch.device] = []

    def create_metric(name: str, device: torch.device) -> Any:
        calls.append(name)
        devices.append(device)

        def metric(*images: torch.Tensor) -> torch.Tensor:
            calls.append(images)
            return images[0].mean()[None]

        return metric

    module = ModuleType('pyiqa')
    module.create_metric, module.devices = create_metric, devices  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, 'pyiqa', module)
    return calls


def as_rgb(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255


def test_dists_and_niqe_hand_over_rgb_in_0_to_1(pyiqa: list[Any], pictures: tuple[np.ndarray, np.ndarray]) -> None:
    value = learned.calculate_dists(*pictures, crop_border=4)
    name, (first, second) = pyiqa
    assert name == 'dists'
    expected = [as_rgb(picture[4:-4, 4:-4]) for picture in pictures]
    torch.testing.assert_close(first.cpu(), expected[0])
    torch.testing.assert_close(second.cpu(), expected[1])
    assert value == pytest.approx(expected[0].mean().item())
    learned.calculate_niqe_pyiqa(pictures[0][..., 0], crop_border=0)
    assert pyiqa[2] == 'niqe'
    assert pyiqa[3][0].shape == (1, 3, 64, 64)
    learned.calculate_dists(*pictures, crop_border=0)
    assert [call for call in pyiqa if isinstance(call, str)] == ['dists', 'niqe']  # built once


def test_networks_are_kept_for_a_device(pyiqa: list[Any], pictures: tuple[np.ndarray, np.ndarray]) -> None:
    for device in ('cpu', 'cpu:0', 'cpu'):
        learned.calculate_dists(*pictures, crop_border=0, device=device)
    assert sys.modules['pyiqa'].devices == [torch.device('cpu'), torch.device('cpu:0')]
    with pytest.raises(RuntimeError, match='gpu'):
        learned.calculate_dists(*pictures, crop_border=0, device='gpu')


def test_lpips_is_the_packages(monkeypatch: pytest.MonkeyPatch, pictures: tuple[np.ndarray, np.ndarray]) -> None:
    package = pytest.importorskip('lpips')
    torch.manual_seed(0)
    network = package.LPIPS(net='alex', verbose=False, pnet_rand=True)
    monkeypatch.setattr(package, 'LPIPS', lambda net, verbose: network)
    expected = network.cpu()(*(2 * as_rgb(picture[2:-2, 2:-2]) - 1 for picture in pictures)).item()
    assert learned.calculate_lpips(*pictures, crop_border=2) == pytest.approx(expected, rel=1e-4)
    floats = tuple(picture.astype(np.float64) for picture in pictures)
    assert learned.calculate_lpips(*floats, crop_border=2) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ('metric', 'count', 'package'),
    [
        (learned.calculate_lpips, 2, 'lpips'),
        (learned.calculate_dists, 2, 'pyiqa'),
        (learned.calculate_niqe_pyiqa, 1, 'pyiqa'),
    ],
)
def test_without_the_package_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, pictures: Any, metric: Any, count: int, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(HatPluginError, match=rf'needs the package {package} .*pip install {package}`'):
        metric(*pictures[:count], crop_border=0)


def test_without_weights_the_way_to_them_is_named(monkeypatch: pytest.MonkeyPatch, pictures: Any) -> None:
    def refuse(name: str, device: torch.device) -> None:
        raise OSError('no network')

    module = ModuleType('pyiqa')
    module.create_metric = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, 'pyiqa', module)
    with pytest.raises(HatPluginError, match=r"DISTS could not be downloaded \(no network\).*create_metric\('dists'\)"):
        learned.calculate_dists(*pictures, crop_border=0)
