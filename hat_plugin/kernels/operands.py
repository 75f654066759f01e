"""What kernels of layers are given: normalisations, layers, tensors, and whether these fit each other."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody waits for calls of a module."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks)


class Norm(NamedTuple):
    """A layer normalisation over channels: weight and bias (C), and what is added to the variance."""

    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, module: nn.Module) -> Norm | None:
        """A module's, or None: it is another step, has no weight and bias, or somebody waits for its call."""
        if type(module) is not nn.LayerNorm or module.bias is None or is_hooked(module):
            return None
        return cls(module.weight, module.bias, module.eps)


class Layer(NamedTuple):
    """What a pixel's inputs become, a linear layer or a 3x3 convolution, and what follows.

    Attributes:
        weight: (outputs, inputs) or (outputs, inputs, 3, 3).
        bias: (outputs), or None.
        gelu: whether a GELU follows.
    """

    weight: Tensor
    bias: Tensor | None = None
    gelu: bool = False


def turned(weight: Tensor) -> Tensor:
    """The weight of the layer that makes the gradient of a layer's input from that of its output."""
    swapped = weight.transpose(0, 1)
    return swapped.flip(2, 3) if swapped.ndim == 4 else swapped


def is_traced() -> bool:
    """Whether operators are recorded or tensors stand for others: what a kernel does by itself would be missed."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    functorch: bool = torch._C._are_functorch_transforms_active()
    return functorch or has_tangents()


def has_tangents() -> bool:
    """Whether tensors may carry tangents (`torch.autograd.forward_ad`), which kernels of ours would lose."""
    level: int = torch.autograd.forward_ad._current_level
    return level >= 0


def is_exported() -> bool:
    """Whether the operators recorded are for where this package is not: for ONNX, or TorchScript."""
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


def rounds_to_tf32(backend: Any) -> bool:
    """Whether `torch.backends.cuda.matmul`, or `.cudnn`, may take fp32 for TF32."""
    try:
        return bool(backend.allow_tf32)
    except RuntimeError:  # it was set by torch's newer option
        return bool(backend.fp32_precision == 'tf32')


def ordinary(device_type: str, *tensors: Tensor | None) -> bool:
    """Whether kernels that read memory by themselves may be given these: nothing traces, casts or stands for them.

    Args:
        device_type: 'cpu' or 'cuda': where all must be, on one device.
        tensors: not empty; None is passed over.
    """
    if is_traced() or torch.is_autocast_enabled(device_type):
        return False
    device: torch.device | None = None
    for x in tensors:  # asked some hundred times in a pass: no generator, nothing twice
        if x is None:
            continue
        if type(x) is not Tensor and type(x) is not nn.Parameter:
            return False
        if device is None:
            device = x.device
            if device.type != device_type:
                return False
        if x.device != device or not x.numel():
            return False
    return True


def check_fit(
    x: Tensor,
    layers: tuple[Layer, ...],
    norm: Norm | None = None,
    add: Tensor | None = None,
    scaled: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """All operands by name, of `product` or of a kernel like it, x being (B, ..., C).

    Raises:
        ValueError: shapes do not fit each other.
    """
    tensors = {'x': x}
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = x.shape[-1]
    if x.ndim < 2 or 0 in x.shape or not 1 <= len(layers) <= 2:
        raise ValueError(f'x {tuple(x.shape)} and {len(layers)} layers: give (B, ..., C) and one layer or two')
    if norm is not None:
        tensors |= {'norm.weight': norm.weight, 'norm.bias': norm.bias}
        shapes |= {'norm.weight': (inputs,), 'norm.bias': (inputs,)}
    alone = len(layers) == 1 and norm is None and add is None and scaled is None
    for number, (weight, bias, gelu) in enumerate(layers):
        linear = gelu or not alone
        if (weight.shape[2:] != () and (linear or weight.shape[2:] != (3, 3))) or 0 in weight.shape or weight.ndim < 2:
            raise ValueError(
                f'weight {tuple(weight.shape)}: give (outputs, inputs){"" if linear else " or a 3x3 kernel"}'
            )
        tensors[f'weight {number}'], shapes[f'weight {number}'] = weight, (weight.shape[0], inputs, *weight.shape[2:])
        inputs = weight.shape[0]
        if bias is not None:
            tensors[f'bias {number}'], shapes[f'bias {number}'] = bias, (inputs,)
    image = (*x.shape[:-1], inputs)
    if add is not None:
        tensors['add'], shapes['add'] = add, image
    if scaled is not None:
        tensors |= {'scaled': scaled[0], 'factor': scaled[1]}
        shapes |= {'scaled': image, 'factor': (x.shape[0], inputs)}
    for name, tensor in tensors.items():
        if name in shapes and tuple(tensor.shape) != shapes[name]:
            raise ValueError(f'{name} {tuple(tensor.shape)} does not fit x {tuple(x.shape)}: give {shapes[name]}')
    return tensors


def check_fused(
    x: Tensor,
    layers: tuple[Layer, ...],
    norm: Norm | None = None,
    add: Tensor | None = None,
    scaled: tuple[Tensor, Tensor] | None = None,
) -> None:
    """What `triton_products` and `tile_products` take: x and `add` in fp32 or the weights' type, all on one device.

    Args:
        scaled: its factor is (1 or B, ..., outputs).

    Raises:
        ValueError: the operands do not fit each other.
    """
    dtype, outputs = layers[0].weight.dtype, layers[-1].weight.shape[0]
    if scaled is not None:
        factor = scaled[1].reshape(-1, outputs)
        scaled = scaled[0], factor.expand(x.shape[0], outputs) if factor.shape[0] == 1 else factor
    for name, tensor in check_fit(x, layers, norm, add, scaled).items():
        fits = tensor.dtype == dtype or (tensor.dtype == torch.float32 and not name.startswith('weight'))
        if not fits or tensor.device != x.device:
            raise ValueError(
                f'{name} is {tensor.dtype} on {tensor.device}: give {dtype}, as the weight, on {x.device}; '
                'all but weights may be fp32'
            )
