"""Converting a network's weights once, for inference."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar('Network', bound=nn.Module)

# Name to the type of the products and whether the residual stream takes it as well.
PRECISIONS: dict[str, tuple[torch.dtype, bool]] = {
    'fp32': (torch.float32, True),
    'bf16': (torch.bfloat16, True),
    'fp16': (torch.float16, True),
    'mixed': (torch.bfloat16, False),
    'mixed_fp16': (torch.float16, False),
}


def prepare_for_inference(net: Network, precision: str) -> Network:
    """Convert a network in place and switch it to evaluation: no weight is converted again in any pass.

    Autocast is not needed for it. The input may stay fp32, and the result has the input's type.

    Args:
        net: a network of this package's layers. In the mixed ones, normalisations and the convolutions ``conv_first``
            and ``conv_last``, which see pixels, keep fp32, and with them the residual stream; other networks may not
            bring their products' operands to one type and raise in their forward pass.
        precision: 'fp32'; 'bf16' or 'fp16' for everything; 'mixed' or 'mixed_fp16' for products in bf16 or fp16 around
            a residual stream in fp32, closer to fp32 and a little larger and slower.

    Returns:
        net.

    Raises:
        ValueError: there is no such precision; net is unchanged.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision '{precision}' is unknown: give one of {', '.join(PRECISIONS)}")
    dtype, everything = PRECISIONS[precision]
    net.to(dtype if everything else torch.float32)
    if not everything:
        for name, module in net.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and name not in ('conv_first', 'conv_last'):
                module.to(dtype)
        for name, parameter in net.named_parameters():
            if name.endswith('relative_position_bias_table'):
                parameter.data = parameter.data.to(dtype)
    if dtype != torch.float32:
        for module in net.modules():  # what GPUs would make of convolutions' weights at each call
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return net.eval()
