"""A small trained-looking network for the tests of restoring."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hat_plugin.restore import Network, load_network


def save_hat(path: Path, **others: object) -> Path:
    """Random weights of a small HAT in a file."""
    from hat_plugin.archs.hat_arch import HAT

    torch.manual_seed(1)
    arguments = {
        'embed_dim': 16,
        'depths': (2,),
        'num_heads': (2,),
        'window_size': 8,
        'compress_ratio': 4,
        'squeeze_factor': 4,
        'mlp_ratio': 2.0,
        'upscale': 2,
        'upsampler': 'pixelshuffledirect',
    }
    net = HAT(**{**arguments, **others})
    torch.save({'params': net.state_dict()}, path)
    return path


@pytest.fixture(scope='session')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small HAT x2 for colour."""
    return save_hat(tmp_path_factory.mktemp('weights') / 'hat_x2.pth')


@pytest.fixture(scope='session')
def hungry_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a HAT x4 that needs some memory."""
    return save_hat(tmp_path_factory.mktemp('weights') / 'hat_x4.pth', embed_dim=48, upscale=4)


@pytest.fixture(scope='session')
def network(weights: Path) -> Network:
    return load_network(weights, device='cpu')


@pytest.fixture(scope='session')
def same_size_network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    path = tmp_path_factory.mktemp('weights') / 'hat_same.pth'
    return load_network(save_hat(path, upscale=1, upsampler=''), device='cpu')


@pytest.fixture(scope='session')
def gray_network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    path = tmp_path_factory.mktemp('weights') / 'hat_gray.pth'
    return load_network(save_hat(path, upscale=1, upsampler='', in_chans=1), device='cpu')
