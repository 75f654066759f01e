"""From tensors to the pointers and strides of the C interface. `geometry` checks that they fit: beyond is no net."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from hat_plugin.kernels.geometry import DTYPES, Geometry, empty_image, empty_windows
from hat_plugin.kernels.library import WindowAttentionArguments, WindowGradientArguments, strides


def run_windows(
    library: ctypes.CDLL,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    scale: float,
    threads: int | None = None,
) -> Tensor:
    """Call the kernel on windows; arguments as in `window_attention`, checked by `check_windows`."""
    out = empty_windows(q)
    _, heads, queries, width = q.shape
    sizes = {
        'heads': heads,
        'width': width,
        'rows': 1,
        'columns': 1,
        'margin': 0,
        'shift': 0,
        'height_q': 1,
        'width_q': queries,
        'window_height': 1,
        'window_width': queries,
        'height_k': 1,
        'width_k': k.shape[2],
        'key_height': 1,
        'key_width': k.shape[2],
        'mask_mode': 0 if mask is None else 1,
    }
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    placed = [strides(x.stride(0), 0, x.stride(2), x.stride(1)) for x in (q, k, v, out)]
    with _Call((q, k, v, out), placed, None, bias, mask, scale, threads, sizes) as call:
        call.check(library.hat_window_attention(ctypes.byref(call.arguments)))
    return out


def run_image(
    library: ctypes.CDLL,
    qkv: Tensor,
    bias: Tensor,
    masks: Tensor | None,
    geometry: Geometry,
    threads: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Call the kernel on an image; arguments as in `image_window_attention`, checked by `check_image`.

    Returns:
        The output, and of each query its largest logit and the sum of all logits' exponentials after that was
        subtracted: (windows, heads, N, 2), fp32.
    """
    out, softmax = empty_image(qkv, geometry)
    with _image_call(qkv, out, softmax, bias, masks, geometry, threads) as call:
        call.check(library.hat_window_attention(ctypes.byref(call.arguments)))
    return out, softmax


def run_image_gradient(
    library: ctypes.CDLL,
    grad: Tensor,
    qkv: Tensor,
    out: Tensor,
    softmax: Tensor,
    bias: Tensor,
    masks: Tensor | None,
    geometry: Geometry,
    threads: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients of `run_image` for qkv, in its shape and dtype, and for the bias, (heads, N, M) in its dtype.

    Args:
        library: the kernels.
        grad: the gradient of `out`.
        qkv, bias, masks, geometry: as given to `run_image`.
        out, softmax: as it returned them.
        threads: on whose number the order of the bias's sum depends; the rest depends on no thread.

    Raises:
        ValueError: grad or out is none of such an image.
    """
    for name, tensor in (('grad', grad), ('out', out)):
        if tensor.shape != (*qkv.shape[:3], qkv.shape[3] // 3) or tensor.dtype != qkv.dtype:
            raise ValueError(
                f'{name} {tuple(tensor.shape)}, {tensor.dtype}, is not of qkv {tuple(qkv.shape)}, {qkv.dtype}'
            )
    grad, out, softmax = grad.contiguous(), out.contiguous(), softmax.contiguous()
    channels, heads = grad.shape[3], geometry.num_heads
    dqkv = qkv.new_empty(qkv.shape)
    dq, dk, dv = targets = list(dqkv.split(channels, dim=3))
    if geometry.margin:  # several windows add to a key
        dkv = dqkv.new_zeros((*grad.shape[:3], 2 * channels), dtype=torch.float32)
        dk, dv = dkv.split(channels, dim=3)
    threads = threads or torch.get_num_threads()
    windows = grad.shape[0] * grad.shape[1] * grad.shape[2] // geometry.window_size**2
    # Two tasks for a thread at the least: they do not end at the same time.
    parts = max(1, min(-(-2 * threads // heads), windows))
    dbias = torch.zeros((parts, *bias.shape), dtype=torch.float32)
    with _image_call(qkv, out, softmax, bias, masks, geometry, threads) as call:
        head = channels // heads
        placed = [strides(x.stride(0), x.stride(1), x.stride(2), head) for x in (grad, dq, dk, dv)]
        pointers = (x.data_ptr() for x in (grad, dq, dk, dv))
        arguments = WindowGradientArguments(call.arguments, *pointers, *placed, dbias.data_ptr(), parts)
        call.check(library.hat_window_attention_gradient(ctypes.byref(arguments)))
    if geometry.margin:
        targets[1].copy_(dk)
        targets[2].copy_(dv)
    return dqkv, (dbias.sum(0) if parts > 1 else dbias[0]).to(bias.dtype)


def run_gather(library: ctypes.CDLL, table: Tensor, index: Tensor, threads: int | None = None) -> Tensor:
    """The bias of each pair of tokens: a table (rows, heads) and rows of it (N, M), int64, to (heads, N, M).

    Raises:
        ValueError: other dtypes.
        IndexError: the table has no such row.
        RuntimeError: memory ran out.
    """
    if table.dtype not in DTYPES or index.dtype != torch.int64 or table.device.type != 'cpu':
        raise ValueError(
            f'a table of {table.dtype} on {table.device}, rows {index.dtype}: give fp32 or bf16, and int64'
        )
    table, index = table.contiguous(), index.contiguous()
    (rows, heads), half = table.shape, table.dtype == torch.bfloat16
    out = table.new_empty(heads, *index.shape)
    threads = threads or torch.get_num_threads()
    addresses = (table.data_ptr(), index.data_ptr(), out.data_ptr())
    failed = library.hat_gather_bias(*addresses, rows, heads, index.numel(), half, threads)
    if failed == 1:
        raise RuntimeError(f'no memory left for the bias of {tuple(index.shape)} pairs: give smaller tiles')
    if failed:
        raise IndexError(
            f'a bias table of {rows} rows does not have all that the position index asks for: '
            'give weights and window_size that belong together'
        )
    return out


def _image_call(
    qkv: Tensor,
    out: Tensor,
    softmax: Tensor,
    bias: Tensor,
    masks: Tensor | None,
    geometry: Geometry,
    threads: int | None,
) -> _Call:
    _, height, width, channels = out.shape
    head, sizes = channels // geometry.num_heads, image_sizes(height, width, channels, geometry)
    qkv = qkv if qkv.stride(3) == 1 else qkv.contiguous()
    tensors = (*qkv.split(channels, dim=3), out)
    placed = [strides(x.stride(0), x.stride(1), x.stride(2), head) for x in tensors]
    mask = masks if geometry.shift_size else None
    return _Call(tensors, placed, softmax, bias, mask, geometry.scale, threads, sizes)


def image_sizes(height: int, width: int, channels: int, geometry: Geometry) -> dict[str, int]:
    """How an image, and its keys likewise, fall into windows and heads: fields of `WindowAttentionArguments`."""
    side = geometry.window_size
    return {
        'heads': geometry.num_heads,
        'width': channels // geometry.num_heads,
        'rows': height // side,
        'columns': width // side,
        'height_q': height,
        'width_q': width,
        'window_height': side,
        'window_width': side,
        'height_k': height,
        'width_k': width,
        'key_height': geometry.overlap_size,
        'key_width': geometry.overlap_size,
        'margin': geometry.margin,
        'shift': geometry.shift_size,
        'mask_mode': 2 if geometry.shift_size else 0,
    }


class _Call:
    """The struct of a call, and the tensors that must live as long as it is used.

    Args:
        tensors: q, k, v, and the output.
        placed: their strides.
        softmax: as `run_image` returns it, or None.
        bias, mask, scale, threads: as in `run_windows`.
        sizes: the other fields.
    """

    def __init__(
        self,
        tensors: tuple[Tensor, ...],
        placed: list[ctypes.Array[ctypes.c_int64]],
        softmax: Tensor | None,
        bias: Tensor,
        mask: Tensor | None,
        scale: float,
        threads: int | None,
        sizes: dict[str, int],
    ) -> None:
        bias = bias.contiguous()
        mask = None if mask is None else mask.to(bias.dtype).contiguous()
        self.shape = tuple(tensors[0].shape)
        self._kept = (*tensors, softmax, bias, mask)
        self.arguments = WindowAttentionArguments(
            *(x.data_ptr() for x in tensors[:3]),
            bias.data_ptr(),
            None if mask is None else mask.data_ptr(),
            tensors[3].data_ptr(),
            None if softmax is None else softmax.data_ptr(),
            *placed,
            batch=tensors[0].shape[0],
            half=tensors[0].dtype == torch.bfloat16,
            half_bias=bias.dtype == torch.bfloat16,
            threads=threads or torch.get_num_threads(),
            scale=scale,
            **sizes,
        )

    def __enter__(self) -> _Call:
        return self

    def __exit__(self, *_: Any) -> None:
        self._kept = ()

    def check(self, failed: int) -> None:
        """Raise a RuntimeError where the kernel had no memory."""
        if failed:
            raise RuntimeError(f'no memory left for the attention of {self.shape}: give smaller tiles')
