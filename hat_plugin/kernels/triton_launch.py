"""From tensors to the grids, strides and sizes of the Triton kernels. All sizes are checked here: beyond is no net.

Block sizes are the fastest of some twenty on an H100 (window 16, heads of 30). One stage: where the compiler was asked
to load ahead, it fetched the bias entry by entry into shared memory, and kernels took two to three times as long. No
kernel takes more shared memory than compute capability 8.6 has, 99 KB.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from hat_plugin.errors import HatPluginError
from hat_plugin.kernels.operands import rounds_to_tf32
from hat_plugin.layers.windows import MASKED

logger = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CAPABILITY = (8, 0)  # of the first GPUs that multiply bf16; unasked, older ones and AMD's take torch's kernels

_LARGEST_TABLE = 39 * 39  # rows: windows of 16 pixels that see 24, of 20 that see themselves
_TOKENS = 64  # of a block of queries or keys
_PAIRS = {2: 1 << 14, 4: 1 << 12}  # of a tile of all queries of a window and a block of keys, by bytes of a number
_PROGRAMS = 512  # that share a sum over windows: about four for each multiprocessor of a large GPU
_RESIDENT_QUERIES, _RESIDENT_TOKENS, _RESIDENT_PROGRAMS = 128, 256, 264  # of `resident_kernel`; tokens: at most


class TritonError(HatPluginError):
    """Attention by Triton was asked for and cannot be had; the message says why and what to do."""


def require_triton() -> None:
    """Raise a TritonError unless triton is installed. It is not imported."""
    if importlib.util.find_spec('triton') is None:
        raise TritonError(
            'attention or products by triton were asked for, and the package is not installed: `pip install triton` '
            '(Linux), or choose another HAT_ATTENTION or HAT_PRODUCTS'
        )


def takes(x: Tensor, table: Tensor) -> bool:
    """Whether the kernels were measured ahead for such operands on a GPU, and are there.

    Args:
        x: queries, or what has their device and type.
        table: the bias, (rows, heads); a bias by window is not for them.
    """
    small = table.ndim == 2 and table.shape[0] <= _LARGEST_TABLE
    return x.is_cuda and small and x.dtype in DTYPES and table.dtype in DTYPES and works(x.device)


@torch.compiler.assume_constant_result
def works(device: torch.device) -> bool:
    """Whether triton is installed and its kernels run on a GPU; tried once, since triton needs a C compiler there."""
    return _tried(device)


@functools.cache
def _tried(device: torch.device) -> bool:
    if importlib.util.find_spec('triton') is None:
        return False
    if device.type == 'cuda' and (torch.version.hip or torch.cuda.get_device_capability(device) < CAPABILITY):
        return False
    plain = unset_fake_temporarily(), torch.no_grad(), torch.autocast(device.type, enabled=False)
    try:
        with plain[0], plain[1], plain[2]:
            x = torch.linspace(-1, 1, 256, device=device).view(1, 4, 4, 16)
            sizes = Sizes(0.25, 1, 4, None, 0)
            found = run_forward(x, x, x, x.new_zeros(sizes.table_rows, 1), sizes)[0].view(16, 16)
            expected = (x.view(16, 16) @ x.view(16, 16).t() * sizes.scale).softmax(-1) @ x.view(16, 16)
            if not torch.allclose(found, expected, atol=1e-2):
                raise TritonError('what they compute is wrong')
    except torch.OutOfMemoryError:  # of this moment; says nothing of the kernels
        raise
    except Exception as error:  # whatever a compiler, linker or driver may raise
        logger.warning("triton's kernels cannot run on %s, torch's take their place: %s", device, error)
        return False
    return True


@functools.lru_cache(maxsize=1)
def _kernels() -> ModuleType:
    """The device code; this imports triton."""
    require_triton()
    return importlib.import_module('hat_plugin.kernels.triton_kernels')


@functools.lru_cache(maxsize=1)
def _gradient_kernels() -> ModuleType:
    return importlib.import_module('hat_plugin.kernels.triton_gradient_kernels')


def interpreted() -> bool:
    """Whether triton runs kernels by its interpreter, on the CPU, as TRITON_INTERPRET=1 has it do. Imports triton."""
    return type(_kernels().forward_kernel).__name__ == 'InterpretedFunction'


@dataclass(frozen=True)
class Sizes:
    """What an operator is told beside its tensors, in the order of its schema.

    Attributes:
        scale: factor of the products.
        num_heads: number of heads.
        window_size: side of a window of queries in pixels.
        overlap_size: side of a window of keys in pixels; None for self-attention.
        shift_size: pixels by which windows are moved down and right.
    """

    scale: float
    num_heads: int
    window_size: int
    overlap_size: int | None
    shift_size: int

    @property
    def side(self) -> int:
        """Side of a window of keys."""
        return self.window_size if self.overlap_size is None else self.overlap_size

    @property
    def table_rows(self) -> int:
        """Differences of position of a query and a key."""
        return (self.window_size + self.side - 1) ** 2


def check(q: Tensor, k: Tensor, v: Tensor, table: Tensor, sizes: Sizes) -> None:
    """Raise a ValueError or TritonError unless the kernels can take these."""
    window, side, shift = sizes.window_size, sizes.side, sizes.shift_size
    if q.ndim != 4 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(f'q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: give three of (B, H, W, C)')
    if sizes.num_heads < 1 or window < 2 or side < window or (side - window) % 2:
        raise ValueError(
            f'{sizes.num_heads} heads, window_size {window}, overlap_size {sizes.overlap_size}: give a head or more, '
            'a window of 2 pixels or more, and an overlapping window larger by an even number'
        )
    if q.shape[1] % window or q.shape[2] % window or q.shape[3] % sizes.num_heads or 0 in q.shape[1:]:
        raise ValueError(
            f'an image of {q.shape[1]}x{q.shape[2]} and {q.shape[3]} channels does not fall into windows of '
            f'{window} and {sizes.num_heads} heads: pad it to multiples'
        )
    if not 0 <= shift < window or (shift and sizes.overlap_size is not None):
        raise ValueError(f'shift_size {shift}: give 0, or less than window_size {window} and no overlap_size')
    if tuple(table.shape) != (sizes.table_rows, sizes.num_heads):
        raise ValueError(f'table {tuple(table.shape)} does not fit: give {(sizes.table_rows, sizes.num_heads)}')
    if not q.dtype == k.dtype == v.dtype or q.dtype not in DTYPES or table.dtype not in DTYPES:
        raise ValueError(
            f'q {q.dtype}, k {k.dtype}, v {v.dtype}, table {table.dtype}: give fp32, bf16 or fp16, the same for q, k, v'
        )
    if not q.device == k.device == v.device == table.device:
        raise ValueError(f'q on {q.device}, k on {k.device}, v on {v.device}, table on {table.device}: give one device')
    if q.is_cuda == interpreted():
        raise TritonError(
            f'attention by triton was asked for on {q.device}: it runs on a GPU, or with TRITON_INTERPRET=1 in the '
            'environment when Python starts by its interpreter on the CPU (slowly: for tests)'
        )


def empty_outputs(q: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Room for the output, (B, H, W, C), and the log-sum-exp of each query, (windows, heads, N), fp32."""
    windows = q.shape[0] * (q.shape[1] // sizes.window_size) * (q.shape[2] // sizes.window_size)
    lse = q.new_empty((windows, sizes.num_heads, sizes.window_size**2), dtype=torch.float32)
    return q.new_empty(q.shape), lse


def run_forward(q: Tensor, k: Tensor, v: Tensor, table: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, as `empty_outputs`; arguments checked by `check`."""
    out, lse = empty_outputs(q, sizes)
    if q.numel():
        views, places = _placed(q, k, v, out)
        operands = (*views, _by_head(table), out, lse, sizes.scale, *q.shape[1:3])
        constants = _constants(views, sizes)
        with torch.cuda.device_of(q):
            if q.element_size() == 2 and sizes.side == sizes.window_size and lse.shape[2] <= _RESIDENT_TOKENS:
                grid, shares, blocks = _resident_blocks(lse)
                _kernels().resident_kernel[grid](*operands, *shares, *places, **constants, **blocks)
            else:
                few = q.element_size() == 4  # keys at a time: fp32 products hold each operand twice
                grid, blocks = _blocks(lse, sizes, *((128, 32, 8) if few else (_TOKENS, _TOKENS, 4)))
                _kernels().forward_kernel[grid](*operands, *places, **constants, **blocks)
    return out, lse


def run_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, table: Tensor, out: Tensor, lse: Tensor, sizes: Sizes
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, contiguous, and of the table."""
    grad_q, grad_k, grad_v = (q.new_empty(q.shape) for _ in range(3))
    grad_table = torch.zeros(table.shape, dtype=torch.float32, device=table.device)
    if not q.numel():
        return grad_q, grad_k, grad_v, grad_table.to(table.dtype)
    windows, heads, tokens = lse.shape
    grad, by_head, delta = grad.contiguous(), _by_head(table), torch.empty_like(lse)
    views, places = _placed(q, k, v, out)
    numbers, constants = (sizes.scale, *q.shape[1:3]), _constants(views, sizes)
    padded, keys = power_of_two(tokens), sizes.side**2
    block = max(16, min(_TOKENS, power_of_two(keys), _PAIRS[q.element_size()] // padded))
    blocks = -(-keys // block)
    share = -(-windows // max(1, _PROGRAMS // (heads * blocks)))  # windows of a program
    shares = -(-windows // share)
    sums = torch.empty((shares, heads, tokens, keys), dtype=torch.float32, device=q.device)
    overlapping = sizes.side > sizes.window_size
    of_k, of_v = (x.new_empty(windows, keys, q.shape[3]) if overlapping else x for x in (grad_k, grad_v))
    kernels = _gradient_kernels()
    with torch.cuda.device_of(q):
        grid, meta = _blocks(lse, sizes, _TOKENS, _TOKENS, 4)
        kernels.query_kernel[grid](
            *views, by_head, out, grad, lse, delta, grad_q, *numbers, *places, **constants, **meta
        )  # fmt: skip
        kernels.key_kernel[(shares, blocks, heads)](
            *(*views, by_head, grad, lse, delta, of_k, of_v, sums, *numbers, windows, share, *places),
            **constants,
            TOKENS=padded,
            BLOCK_K=block,
            num_warps=8 if padded > _TOKENS else 4,
            num_stages=1,
        )
        if overlapping:
            pixels = lse.shape[0] * tokens
            kernels.overlap_kernel[(-(-pixels // _TOKENS), heads)](
                *(of_k, of_v, grad_k, grad_v, *q.shape[1:3], pixels),
                **{name: constants[name] for name in ('HEADS', 'WIDTH', 'PADDED', 'WINDOW', 'SIDE')},
                BLOCK=_TOKENS,
            )
        kernels.table_kernel[(-(-sizes.table_rows // _TOKENS), heads)](
            *(sums.sum(0), grad_table),
            **{name: constants[name] for name in ('HEADS', 'WINDOW', 'SIDE', 'CROSS')},
            BLOCK_ROWS=_TOKENS,
            BLOCK_Q=_TOKENS,
        )
    return grad_q, grad_k, grad_v, grad_table.to(table.dtype)


def power_of_two(number: int) -> int:
    """The power of two, 16 at least, that is not less: Triton's blocks are powers of two, its products start at 16."""
    return max(16, 1 << (number - 1).bit_length())


def _resident_blocks(lse: Tensor) -> tuple[tuple[int, int], tuple[int, int], dict[str, int]]:
    """The grid of `resident_kernel`, the number of windows and those of a program, and the sizes of blocks."""
    windows, heads, tokens = lse.shape
    padded = power_of_two(tokens)
    queries = min(_RESIDENT_QUERIES, padded)
    blocks = heads * -(-tokens // queries)
    share = -(-windows // max(1, _RESIDENT_PROGRAMS // blocks))
    sizes = {'BLOCK_Q': queries, 'TOKENS': padded, 'num_warps': 8 if queries > _TOKENS else 4, 'num_stages': 1}
    return (blocks, -(-windows // share)), (windows, share), sizes


def _blocks(lse: Tensor, sizes: Sizes, queries: int, keys: int, warps: int) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid of the kernels that go by blocks of queries, and the sizes of their blocks: so many at most."""
    windows, heads, tokens = lse.shape
    queries, keys = min(queries, power_of_two(tokens)), min(keys, power_of_two(sizes.side**2))
    return (windows * -(-tokens // queries), heads), {
        'BLOCK_Q': queries,
        'BLOCK_K': keys,
        'num_warps': warps,
        'num_stages': 1,
    }


def _placed(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """q, k and v so that they share their strides, as views of one qkv tensor do; these and those of out, whose columns
    are C apart."""
    views = (q, k, v)
    if not q.stride() == k.stride() == v.stride() or q.stride(3) != 1:
        views = (q.contiguous(), k.contiguous(), v.contiguous())
    return views, (*views[0].stride()[:3], *out.stride()[:2])


def arithmetic(x: Tensor) -> dict[str, Any]:
    """How products are computed: fp32 by three of TF32, which is as exact, or by one where torch may do so.

    On the CPU, by triton's interpreter, as they are; but its products take bf16 for integers.
    """
    if x.device.type == 'cpu':
        return {'PRECISION': 'ieee', 'UPCAST': x.dtype == torch.bfloat16}
    return {'PRECISION': 'tf32' if rounds_to_tf32(torch.backends.cuda.matmul) else 'tf32x3', 'UPCAST': False}


def _by_head(table: Tensor) -> Tensor:
    """(heads, rows), fp32: neighbouring keys read neighbouring entries."""
    return table.detach().t().float().contiguous()


def _constants(views: tuple[Tensor, ...], sizes: Sizes) -> dict[str, Any]:
    """What is known when a kernel is compiled."""
    q = views[0]
    width = q.shape[3] // sizes.num_heads
    steps = (width, *q.stride()[:3])
    return {
        'ALIGNMENT': math.gcd(16, *(x.data_ptr() for x in views), *(step * q.element_size() for step in steps)),
        'HEADS': sizes.num_heads,
        'WIDTH': width,
        'PADDED': power_of_two(width),
        'WINDOW': sizes.window_size,
        'SIDE': sizes.side,
        'SHIFT': sizes.shift_size,
        'CROSS': sizes.overlap_size is not None,
        'MASKED': MASKED,
        **arithmetic(q),
    }
