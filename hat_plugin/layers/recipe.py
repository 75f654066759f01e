"""What a layer's gradients need to know of it: what its input is made from, and which layers read that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hat_plugin.kernels.operands import Norm, is_hooked
from hat_plugin.layers.convolution import Conv2d, Geometry
from hat_plugin.layers.linear import is_plain_linear

_CONVOLUTIONS = (nn.Conv2d, Conv2d)


def is_plain(module: nn.Module) -> bool:
    """Whether it is a step or a layer that `through` knows, and nobody waits for its call by a hook."""
    kind = type(module)
    if kind in _CONVOLUTIONS:
        known = Geometry.of(module) is not None  # type: ignore[arg-type]
    elif kind is nn.GELU:
        known = module.approximate == 'none'
    else:
        known = is_plain_linear(module) or kind is nn.LayerNorm or kind is nn.Identity
    return known and not is_hooked(module)


class Made(NamedTuple):
    """A step as a function of its input and its parameters."""

    function: Callable[..., Tensor]
    parameters: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, step: nn.Module) -> Made | None:
        """None where it is not known to give the same again, or somebody waits for its call by a hook."""
        if type(step) is nn.LayerNorm and is_plain(step):
            return cls(_LayerNorm(step.eps), (step.weight, step.bias))
        return cls(F.gelu, ()) if type(step) is nn.GELU and is_plain(step) else None


@dataclass(frozen=True)
class _LayerNorm:
    """A layer normalisation of an input by its parameters."""

    eps: float

    def __call__(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        x = x if weight is None else x.to(weight.dtype)  # as autocast has it; CUDA takes no others
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)


class Reader(NamedTuple):
    """A layer that reads what was made. A geometry: a convolution; no weight: what was made itself."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    geometry: Geometry | None = None

    @classmethod
    def of(cls, layer: nn.Module) -> Reader | None:
        """None where a layer is of no such kind, or is hooked."""
        if not is_plain(layer):
            return None
        if type(layer) is nn.Identity:
            return cls()
        if isinstance(layer, nn.Linear):
            return cls(layer.weight, layer.bias)
        return cls(layer.weight, layer.bias, Geometry.of(layer)) if isinstance(layer, nn.Conv2d) else None


class Recipe(NamedTuple):
    """What `_Through` is to do with its tensors: the step's parameters, then each layer's weight and bias."""

    step: Callable[..., Tensor]
    parameters: int
    geometries: tuple[Geometry | None, ...]
    dtype: torch.dtype

    def readers(self, tensors: Sequence[Tensor | None]) -> list[Reader]:
        """The layers, in dtype."""
        weights = [None if tensor is None else tensor.to(self.dtype) for tensor in tensors[self.parameters :]]
        return [Reader(*pair) for pair in zip(weights[::2], weights[1::2], self.geometries, strict=True)]

    def norm(self, tensors: Sequence[Tensor | None]) -> Norm | None:
        """The step, if it is a layer normalisation with a weight and a bias."""
        if not isinstance(self.step, _LayerNorm) or tensors[0] is None or tensors[1] is None:
            return None
        return Norm(tensors[0], tensors[1], self.step.eps)

    def compute(self, x: Tensor, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """By torch's operators, with all gradients."""
        y = self.step(x, *tensors[: self.parameters])
        results = []
        for weight, bias, geometry in self.readers(tensors):
            if weight is None:
                results.append(y)
            elif geometry is None:
                results.append(F.linear(y.to(self.dtype), weight, bias))
            else:
                image = y.to(self.dtype).permute(0, 3, 1, 2)
                results.append(F.conv2d(image, weight, bias, *geometry).permute(0, 2, 3, 1))
        return tuple(results)
