"""A pair of pictures for the losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor


@pytest.fixture
def pair(photos: Any) -> tuple[Tensor, Tensor]:
    """Two crops of photographs with noise on one of each, (2, 3, 48, 64), float64 in [0, 1]."""
    truth = np.stack([photos.small(name, 48, 64) for name in ('astronaut', 'coffee')]) / 255
    noisy = np.clip(truth + np.random.default_rng(0).normal(0, 0.1, truth.shape), 0, 1)
    first, second = (torch.from_numpy(array.transpose(0, 3, 1, 2).copy()) for array in (noisy, truth))
    return first, second
