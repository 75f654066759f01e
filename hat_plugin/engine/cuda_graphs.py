"""A network's training pass as CUDA graphs: recorded once for a shape, then launched as a whole.

HAT has some 6,000 kernels in a step, most of a few microseconds; launched one by one the host is what a GPU waits for.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from basicsr.utils import get_root_logger
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_MOST = 4  # shapes that are recorded: the stages of progressive training; each keeps its activations


class _Pass(nn.Module):
    """What is recorded: the network's own forward, with the network's parameters."""

    def __init__(self, net: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net
        self.original = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.original(x)


class CudaGraphs:
    """Takes the place of a network's forward: in training, by graphs; else, and for further shapes, as it was.

    Args:
        net: on a CUDA device; what it computes in training depends on the input's shape and values alone.

    Gradients of the parameters are written to the same memory at each backward pass: where several are added up,
    `make_room` for the sum before the first.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._forward: Callable[[Tensor], Tensor] = net.forward
        self._recorded: dict[tuple[Any, ...], Callable[[Tensor], Tensor]] = {}
        net.forward = self

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[[Tensor], Tensor]:
        """A copied network runs by its own forward."""
        copied: nn.Module = memo[id(self._net)]
        return MethodType(type(copied).forward, copied)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to what the network makes of it."""
        if not (self._net.training and torch.is_grad_enabled() and x.is_cuda):
            return self._forward(x)
        autocast = torch.get_autocast_dtype('cuda') if torch.is_autocast_enabled('cuda') else None
        key = (tuple(x.shape), x.dtype, autocast)
        if key not in self._recorded and len(self._recorded) < _MOST:
            self._recorded[key] = self._record(x, autocast)
        return self._recorded.get(key, self._forward)(x).clone()  # the next pass writes to the same memory

    def _record(self, x: Tensor, autocast: torch.dtype | None) -> Callable[[Tensor], Tensor]:
        """The graphs for x's shape; the network's own forward where it cannot be recorded. Random states stay."""
        casting: Any = contextlib.nullcontext()
        if autocast is not None:
            casting = torch.autocast('cuda', autocast, cache_enabled=False)
        try:
            with torch.random.fork_rng([x.device]), casting, _beside_other_threads():
                recorded: Any = torch.cuda.make_graphed_callables(
                    _Pass(self._net, self._forward), (x.detach().clone(),)
                )
        except RuntimeError as error:
            get_root_logger().warning(f'train: cuda_graphs: not possible here, training goes on without: {error}')
            torch.cuda.synchronize(x.device)
            return self._forward
        get_root_logger().info(f'train: cuda_graphs: recorded for {tuple(x.shape)}')
        return recorded


@contextlib.contextmanager
def _beside_other_threads() -> Iterator[None]:
    """Let other threads allocate while this one records: a loader's, which pins batches, would fail and end the run."""
    graph = torch.cuda.graph
    torch.cuda.graph = functools.partial(graph, capture_error_mode='thread_local')  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        torch.cuda.graph = graph  # type: ignore[misc]


def graphs_for(net: nn.Module, device: torch.device) -> CudaGraphs | None:
    """`CudaGraphs` for a network in training; None, and a warning, where there are none."""
    if isinstance(net, nn.DataParallel | DistributedDataParallel):
        get_root_logger().warning('train: cuda_graphs: never tried with several GPUs; training goes without')
    elif device.type != 'cuda':
        get_root_logger().warning('train: cuda_graphs: there is no CUDA device; training goes without')
    else:
        return CudaGraphs(net)
    return None


def make_room(optimizer: torch.optim.Optimizer) -> None:
    """Zeros for the sum of several gradients, where there are no gradients yet."""
    for group in optimizer.param_groups:
        for parameter in group['params']:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
