"""Multiply-accumulate operations of a network, counted on the meta device: no memory, no arithmetic.

MACs, not FLOPs: one multiplication with its addition counts as one. Products of two activations (query with key,
weights with value) are counted apart, because published figures differ in whether they are in: HAT's and SwinIR's have
them, Restormer's has not. Element-wise work (normalisation, activation, softmax) is not counted, as in all of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Macs:
    """A network's cost for one input.

    Attributes:
        total: multiply-accumulates, attention products included.
        attention_products: the part of `total` that multiplies activations with activations.
    """

    total: int
    attention_products: int

    @property
    def without_attention_products(self) -> int:
        """The convolutions and linear layers alone."""
        return self.total - self.attention_products

    def __str__(self) -> str:
        return (
            f'{self.total / 1e9:.1f} G ({self.without_attention_products / 1e9:.1f} G without the attention products)'
        )


def count_macs(net: nn.Module, input_shape: Sequence[int]) -> Macs:
    """Count a forward pass.

    Args:
        net: a network on any device; it is left as it is.
        input_shape: of its one input, (B, C, H, W).

    Raises:
        Whatever the network raises for this shape, and NotImplementedError where it asks for a tensor's values.
    """
    twin = _meta_copy(net).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, _FusedAttention(counter) as fused:
        twin(torch.empty(*input_shape, device='meta'))
    by_operator = _by_operator(counter)
    # Weights never meet a batched product: linear layers arrive as mm/addmm, convolutions as convolution.
    plain = _batched(by_operator) - fused.counted_batched
    attention = plain // 2 + fused.macs
    return Macs((sum(by_operator.values()) - fused.counted) // 2 + fused.macs, attention)


def _meta_copy(net: nn.Module) -> nn.Module:
    """A copy whose weights and buffers have shapes but no storage."""
    memo: dict[int, Any] = {}
    for tensor in [*net.parameters(), *net.buffers()]:
        empty = torch.empty_like(tensor, device='meta')
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(net, memo)


def _by_operator(counter: FlopCounterMode) -> dict[str, int]:
    """FLOPs (two a MAC) that the counter has seen up to now."""
    counts: Mapping[Any, int] = counter.flop_counts.get('Global', {})
    return {str(operator): int(flops) for operator, flops in counts.items()}


def _batched(by_operator: Mapping[str, int]) -> int:
    return sum(flops for name, flops in by_operator.items() if name.endswith('bmm'))


class _FusedAttention(TorchFunctionMode):
    """Counts scaled_dot_product_attention by its shapes, whichever kernel torch would take and whatever its own counter
    makes of that kernel."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self._counter = counter
        self.macs = 0
        self.counted = 0
        self.counted_batched = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        before = _by_operator(self._counter)
        result = func(*args, **kwargs)
        after = _by_operator(self._counter)
        self.counted += sum(after.values()) - sum(before.values())
        self.counted_batched += _batched(after) - _batched(before)
        given = {**dict(zip(('query', 'key', 'value'), args, strict=False)), **kwargs}
        self.macs += _attention_macs(given['query'], given['key'], given['value'])
        return result


def _attention_macs(query: Tensor, key: Tensor, value: Tensor) -> int:
    """query (..., N, D), key (..., M, D), value (..., M, E)."""
    rows = math.prod(query.shape[:-1])
    return int(rows * key.shape[-2] * (query.shape[-1] + value.shape[-1]))
