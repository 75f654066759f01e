"""Metrics that need a package of their own: LPIPS from lpips, DISTS and NIQE from pyiqa."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hat_plugin.errors import HatPluginError
from hat_plugin.losses.pretrained import extra_package, load_lpips
from hat_plugin.metrics.pictures import prepared, prepared_pair


def calculate_lpips(
    img: np.ndarray,
    img2: np.ndarray,
    crop_border: int,
    input_order: str = 'HWC',
    net: str = 'alex',
    device: str | None = None,
    better: str = 'lower',
) -> float:
    """LPIPS 0.1, lower is better; write ``better: lower`` in the option file.

    Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018.

    Args:
        img, img2: (H, W, C), BGR or gray, or (H, W); in 0..255, uint8 or float.
        crop_border: pixels left out along each side.
        input_order: 'HWC' or 'CHW'.
        net: 'alex' (in most tables), 'vgg' or 'squeeze'.
        device: where to compute, 'cpu' say; this process's GPU, if it has one, by default.
        better: BasicSR's validation hands it over and reads it itself.

    Raises:
        ValueError: another `net`; and see `prepared_pair`.
        HatPluginError: the package lpips is missing, or the weights of its network.
    """
    where = _device(device)
    first, second = (_as_tensor(picture, where) for picture in prepared_pair(img, img2, crop_border, input_order))
    with torch.no_grad():
        return float(_lpips(net, where)(first, second, normalize=True))


def calculate_dists(
    img: np.ndarray,
    img2: np.ndarray,
    crop_border: int,
    input_order: str = 'HWC',
    device: str | None = None,
    better: str = 'lower',
) -> float:
    """DISTS as pyiqa computes it, lower is better; write ``better: lower`` in the option file.

    Source: Ding et al., Image Quality Assessment: Unifying Structure and Texture Similarity, TPAMI 2020.

    Args:
        img, img2, crop_border, input_order, device, better: see `calculate_lpips`.

    Raises:
        ValueError: see `prepared_pair`.
        HatPluginError: the package pyiqa is missing, or the weights of its network.
    """
    where = _device(device)
    first, second = (_as_tensor(picture, where) for picture in prepared_pair(img, img2, crop_border, input_order))
    with torch.no_grad():
        return float(_pyiqa('dists', where)(first, second))


def calculate_niqe_pyiqa(
    img: np.ndarray, crop_border: int, input_order: str = 'HWC', device: str | None = None, better: str = 'lower'
) -> float:
    """NIQE as pyiqa computes it, lower is better; write ``better: lower`` in the option file.

    BasicSR's ``calculate_niqe`` needs no package.

    Source: Mittal et al., Making a Completely Blind Image Quality Analyzer, SPL 2013.

    Args:
        img: the restored picture; it is not compared with another.
        crop_border, input_order, device, better: see `calculate_lpips`.

    Raises:
        ValueError: see `prepared`.
        HatPluginError: the package pyiqa is missing, or its table of statistics.
    """
    where = _device(device)
    picture = _as_tensor(prepared(img, crop_border, input_order), where)
    with torch.no_grad():
        return float(_pyiqa('niqe', where)(picture))


def _as_tensor(picture: np.ndarray, device: torch.device) -> Tensor:
    """(H, W, 3) BGR or (H, W, 1), in 0..255, as (1, 3, H, W), RGB in [0, 1]."""
    picture = np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture[..., ::-1]
    tensor = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1), dtype=np.float32))
    return (tensor / 255).unsqueeze(0).to(device)


def _device(name: str | None) -> torch.device:
    if name is not None:
        return torch.device(name)
    # With its number: networks are kept for a device, and which one is current may change.
    return torch.device('cuda', torch.cuda.current_device()) if torch.cuda.is_available() else torch.device('cpu')


@lru_cache(maxsize=2)
def _lpips(net: str, device: torch.device) -> Any:
    return load_lpips(net).to(device)


@lru_cache(maxsize=2)
def _pyiqa(name: str, device: torch.device) -> Any:
    package = extra_package('pyiqa', name.upper())
    try:
        return package.create_metric(name, device=device)
    except (OSError, RuntimeError) as error:
        raise HatPluginError(
            f'the weights of {name.upper()} could not be downloaded ({error}); run '
            f'`python -c "import pyiqa; pyiqa.create_metric(\'{name}\')"` where there is a network, and copy the file '
            'that it names to the same place here'
        ) from error
