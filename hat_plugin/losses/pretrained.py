"""Networks that losses and metrics look through: from which package, with which weights, and what to say without."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from hat_plugin.errors import HatPluginError

# Where BasicSR's PerceptualLoss looks for its network's weights before torchvision does.
VGG19_FILE = Path('experiments/pretrained_models/vgg19-dcbb9e9d.pth')
# LPIPS's names of its trunks, and torchvision's.
LPIPS_TRUNKS = {'alex': 'alexnet', 'vgg': 'vgg16', 'squeeze': 'squeezenet1_1'}


def missing_weights(network: str, error: Exception, place: Path | None = None) -> HatPluginError:
    """The error to raise where a network of torchvision's cannot be loaded.

    Args:
        network: torchvision's name, vgg19 say.
        error: what happened.
        place: where the file goes; torchvision's own folder by default.
    """
    url = torchvision.models.get_model_weights(network)['IMAGENET1K_V1'].url
    place = place or Path(torch.hub.get_dir()) / 'checkpoints' / Path(url).name
    return HatPluginError(
        f'the weights of {network} could not be loaded or downloaded ({_first_line(error)}). Put {url} under '
        f'{place.resolve()}'
    )


def extra_package(name: str, what: str) -> Any:
    """An optional package.

    Raises:
        HatPluginError: it is not installed, or broken.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise HatPluginError(f'{what} needs the package {name} ({_first_line(error)}); `pip install {name}`') from error


def load_lpips(net: str) -> nn.Module:
    """LPIPS 0.1 over a frozen trunk, in float32; called with ``normalize=True`` it takes pictures in [0, 1].

    Args:
        net: 'alex', 'vgg' or 'squeeze'.

    Raises:
        ValueError: another trunk.
        HatPluginError: the package is missing, or the trunk's weights can be neither found nor downloaded.
    """
    if net not in LPIPS_TRUNKS:
        raise ValueError(f'net: {net!r}: one of {", ".join(LPIPS_TRUNKS)} is wanted')
    package = extra_package('lpips', 'LPIPS')
    try:
        network: nn.Module = package.LPIPS(net=net, verbose=False)
    except (OSError, RuntimeError) as error:
        raise missing_weights(LPIPS_TRUNKS[net], error) from error
    return network.eval().requires_grad_(False)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
