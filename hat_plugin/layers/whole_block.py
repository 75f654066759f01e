"""Blocks of windows that one kernel computes, in inference, from one residual to the next: which, and how."""

from __future__ import annotations

from torch import Tensor, nn

from hat_plugin.kernels import tile_blocks
from hat_plugin.kernels.geometry import Geometry
from hat_plugin.kernels.operands import Layer, Norm
from hat_plugin.kernels.tile_blocks import BlockLayers, window_block
from hat_plugin.layers.attention import gather_bias, takes_image
from hat_plugin.layers.config import WindowTables
from hat_plugin.layers.feed_forward import Mlp
from hat_plugin.layers.recipe import is_plain
from hat_plugin.layers.self_attention import WindowAttention


def block_layers(
    x: Tensor,
    norms: tuple[nn.Module, nn.Module],
    qkv: nn.Linear,
    proj: nn.Linear,
    mlp: nn.Module,
    window_size: int,
    *,
    queries_alone: bool = False,
) -> BlockLayers | None:
    """The layers of a block, for `tile_blocks.window_block`; None where this is not the kernel to take.

    Args:
        x: the stream, (B, H, W, C), H and W being multiples of the window.
        norms: before attention, and before the MLP.
        qkv: (3 * C, C).
        proj: (C, C).
        mlp: what follows attention.
        window_size: side of a window in pixels.
        queries_alone: whether keys and values are made before, by the rest of qkv.
    """
    if not isinstance(mlp, Mlp) or not takes_image(x, 0.0):
        return None
    if not all(map(is_plain, (*norms, qkv, proj, mlp.fc1, mlp.act, mlp.fc2))) or type(mlp.act) is not nn.GELU:
        return None
    norm, mlp_norm = map(Norm.of, norms)
    if norm is None or mlp_norm is None:
        return None
    outputs = qkv.weight.shape[0] // (3 if queries_alone else 1)
    queries = Layer(qkv.weight[:outputs], None if qkv.bias is None else qkv.bias[:outputs])
    projection, up, down = (Layer(layer.weight, layer.bias) for layer in (proj, mlp.fc1, mlp.fc2))
    layers = BlockLayers(norm, queries, projection, mlp_norm, up, down)
    return layers if tile_blocks.takes(x, layers, window_size) else None


def whole_block(
    x: Tensor,
    layers: BlockLayers,
    attn: WindowAttention,
    tables: WindowTables,
    shift_size: int,
    branch: tuple[Tensor, Tensor] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """A block of self-attention and an MLP, in inference by one kernel.

    Args:
        x: the stream, (B, H, W, C).
        layers: what `block_layers` found.
        attn: whose bias it is.
        tables: of the network.
        shift_size: pixels by which windows are moved.
        branch: as in `window_block`.
        out: as in `window_block`.

    Returns:
        (B, H, W, C), in x's type.
    """
    side = attn.window_size
    return window_block(
        x,
        layers,
        gather_bias(attn.relative_position_bias_table, tables.self_index),
        Geometry(attn.scale, attn.num_heads, side, side, shift_size),
        masks=tables.masks,
        branch=branch,
        out=out,
    )
