"""Which kernels, if any, compute a layer without gradients together with what comes before and after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hat_plugin.kernels import tile_products, triton_products


def kernels_for(x: Tensor, *weights: Tensor | None) -> Any | None:
    """`triton_products` on a GPU, `tile_products` on the CPU, whose calls are alike; None: torch computes.

    Args:
        x: pixels.
        weights: those of the first layer, (outputs, inputs), and any others.
    """
    if torch.is_grad_enabled():
        return None
    return next((kernels for kernels in (triton_products, tile_products) if kernels.takes(x, *weights)), None)
