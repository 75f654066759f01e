"""How much memory a network will take, and how much is free.

The network runs on fake tensors (shapes, types and strides, no storage), and each storage is counted from the operation
that makes it to the moment the last reference goes; a convolution on the CPU counts its output twice, since oneDNN
computes in a layout of its own. That gives the peak of live bytes for any network, with neither the memory nor the
arithmetic. Other scratch inside operators and what the allocator holds back are not seen.

Measured by hand on two CPU cores with torch 2.13 (peak resident memory of a fresh process above what it held before,
freed blocks given back to the system at once), as measured / estimated, fp32: forward at 128 and 256, training at 64:

    HAT 1.00, 1.00, 1.03 · SwinIR (2 groups) 1.05, 1.09, 1.53 · HATUNet 1.03, 0.79, 0.87 · Restormer 0.91, 0.79, 1.01
    NAFNet 0.94, 0.82, 0.51 · RRDBNet (6 blocks) 1.01, 1.00, 1.07

Left to itself glibc keeps freed blocks: the same forward passes took 1.0 to 2.4 times the estimate. CUDA was not
measured.
"""

from __future__ import annotations

import copy
import logging
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from hat_plugin.engine.machine import free_bytes
from hat_plugin.layers.strips import estimating

logger = logging.getLogger(__name__)

# The share of the free memory that a picture may plan with; the rest is for what the estimate does not see.
USABLE_SHARE = {'cpu': 0.4, 'cuda': 0.8}
_ALLOCATOR_MESSAGES = (
    "can't allocate memory",  # DefaultCPUAllocator on Linux
    'not enough memory: you tried to allocate',  # DefaultCPUAllocator on Windows
    'std::bad_alloc',
    'ALLOC_FAILED',  # cuBLAS and cuDNN handles
    'could not create a primitive',  # oneDNN, which has no word for it; also '... primitive descriptor'
    'could not execute a primitive',
    'could not create a memory',
    'no memory left for',  # our own kernels
)
_AMP_TYPES = {None: None, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator failed (CUDA, CPU, Python), as told from any other error."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(text in str(error) for text in _ALLOCATOR_MESSAGES))


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages made while the mode is on, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self.add(value)
                if func is torch.ops.aten.convolution.default and value.device.type == 'cpu':
                    self.peak = max(self.peak, self.live + int(value.untyped_storage().nbytes()))
        return result

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = int(storage.nbytes())
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size).atexit = False

    def ignore(self, tensor: Tensor) -> None:
        """Leave a tensor that stood before (a weight) out of the count."""
        self._known.add(tensor.untyped_storage()._cdata)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _bare(net: nn.Module) -> nn.Module:
    """The network inside torch.compile's and DistributedDataParallel's wrappers."""
    inner = getattr(net, '_orig_mod', net)
    if isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = inner.module
    return inner


@contextmanager
def _fake_copy(net: nn.Module) -> Iterator[tuple[nn.Module, torch.device, _LiveBytes]]:
    """A copy of `net` with fake weights and its device, inside a mode that counts what is made beside them."""
    net = _bare(net)
    counter = _LiveBytes()
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    memo: dict[int, Any] = {}
    device = torch.device('cpu')
    with fakes:
        for tensor in [*net.parameters(), *net.buffers()]:
            device = torch.device('cpu') if tensor.device.type == 'meta' else tensor.device
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
            memo[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
            counter.ignore(memo[id(tensor)])
    twin = copy.deepcopy(net, memo)  # outside the mode: tensors that are plain attributes stay real
    with fakes, counter:
        yield twin, device, counter


def estimate_forward_bytes(net: nn.Module, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> int:
    """Peak bytes of one forward pass without gradients, above the weights, input and output included.

    An autocast that is on at the call is reckoned with. `net` itself is not touched (caches included).

    Args:
        net: a network on any device ('meta' is reckoned as the CPU).
        shape: of the input, (B, C, H, W).
        dtype: of the input; give the weights' own where they were converted.

    Returns:
        Bytes.

    Raises:
        Whatever the network raises for this shape, also where it asks for a tensor's values to decide its way.
    """
    with torch.no_grad(), estimating(), _fake_copy(net) as (twin, device, counter):
        twin.eval()
        twin(torch.empty(*shape, dtype=dtype, device=device))
        return counter.peak


def estimate_training_bytes(
    net: nn.Module, batch_shape: Sequence[int], amp: str | None = None, *, optimizer_states: int = 2, ema: bool = True
) -> int:
    """Peak bytes of a training step of one process: weights, gradients, activations, optimiser, EMA.

    Args:
        net: the network, in the type its weights are trained in.
        batch_shape: of one micro-batch of input, (B, C, H, W).
        amp: None, 'bf16' or 'fp16': autocast of the forward pass.
        optimizer_states: numbers the optimiser keeps for a weight (Adam 2, SGD with momentum 1).
        ema: whether an averaged copy of the weights is kept.

    Returns:
        Bytes. The data loader's workers, CUDA's context and discriminators or feature networks of losses come on top.

    Raises:
        ValueError: for another `amp`.
        Whatever the network raises for this shape.
    """
    if amp not in _AMP_TYPES:
        raise ValueError(f'amp is {amp!r}; it must be one of null, bf16, fp16')
    amp_type = _AMP_TYPES[amp]
    bare = _bare(net)
    weights = sum(tensor.nbytes for tensor in [*bare.parameters(), *bare.buffers()])
    trained = sum(parameter.nbytes for parameter in bare.parameters() if parameter.requires_grad)
    kept = weights + trained * (optimizer_states + int(ema))
    with torch.enable_grad(), _fake_copy(net) as (twin, device, counter):
        twin.train()
        with torch.autocast(device.type, amp_type) if amp_type else nullcontext():
            loss = twin(torch.empty(*batch_shape, device=device)).float().abs().mean()
        loss.backward()
        peak = counter.peak
    step = 3 * trained  # gradients, and two temporaries of a foreach step
    return kept + max(peak, step)


def available_bytes(device: torch.device | str = 'cpu') -> int:
    """Bytes that can still be allocated on `device` without pushing anything out.

    CPU: see `hat_plugin.engine.machine.free_bytes`. CUDA: free memory and torch's own unused cache.
    """
    device = torch.device(device)
    if device.type == 'cuda':
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_bytes()


# By the first weight, so that a network is known again in another wrapper.
_ESTIMATES = WeakIdKeyDictionary()


def _bytes_of_square(net: nn.Module, lead: tuple[int, int], side: int, dtype: torch.dtype) -> int:
    """`estimate_forward_bytes` of (*lead, side, side); kept for `net`."""
    autocast = torch.is_autocast_enabled('cpu') or torch.is_autocast_enabled('cuda')
    key = (type(net), lead, side, dtype, autocast, torch.get_num_threads())
    known: dict[tuple[Any, ...], int] = _ESTIMATES.setdefault(next(net.parameters(), net), {})
    if key not in known:
        known[key] = estimate_forward_bytes(net, (*lead, side, side), dtype)
    return known[key]


def _fitting_pixels(sizes: Callable[[int], int], multiple: int, pixels: int, budget: float) -> float:
    """As many pixels as a budget of bytes is enough for, up to those asked for.

    Squares of multiple * 2 ** n pixels a side are tried from the first that holds the pixels down to one that fits;
    between two of them bytes are taken to grow with the pixels.
    """
    side = multiple << max(0, math.ceil(math.log2(math.sqrt(pixels) / multiple)))
    larger, needed = 0, 0
    while (taken := sizes(side)) > budget:
        if side == multiple:
            return 0.0
        larger, needed, side = side, taken, side // 2
    if not larger:
        return float(pixels)
    return side**2 + (larger**2 - side**2) * (budget - taken) / (needed - taken)


def largest_fitting_tile(
    net: nn.Module,
    shape: Sequence[int],
    *,
    multiple: int,
    dtype: torch.dtype,
    device: torch.device,
    smallest: int,
    reserve: int = 0,
) -> int:
    """The longer side of the picture if the whole of it fits into the free memory, else the largest tile that does.

    Args:
        net: the network; see `estimate_forward_bytes`.
        shape: of the picture, (B, C, H, W).
        multiple: the network's window; a tile is a multiple of it.
        dtype: of the picture.
        device: where the network computes.
        smallest: a tile is not made smaller than this, even if it is not expected to fit.
        reserve: bytes to leave on `device` for something else.

    Returns:
        Side in pixels. Where the network cannot be walked through with fake tensors, the whole (with a debug line).
    """
    batch, channels, height, width = shape
    whole = max(height, width)
    try:
        budget = available_bytes(device) * USABLE_SHARE.get(device.type, 0.4) - reserve

        def sizes(side: int) -> int:
            return _bytes_of_square(net, (batch, channels), side, dtype)

        pixels = _fitting_pixels(sizes, multiple, height * width, budget)
    except Exception as error:  # another's network may do anything with a tensor; an estimate must not stop a picture
        logger.debug('no memory estimate for %s: %r', type(net).__name__, error)
        return whole
    if height * width <= pixels:
        return whole
    side = int(math.sqrt(pixels)) // multiple * multiple
    return min(whole, max(side, smallest))
