"""Which blocks of windows one kernel computes from one residual to the next, in inference."""

from __future__ import annotations

from torch import Tensor, nn

from hat_plugin.kernels import tile_blocks
from hat_plugin.kernels.operands import Layer, Norm
from hat_plugin.kernels.tile_blocks import BlockLayers
from hat_plugin.layers.attention import takes_image
from hat_plugin.layers.feed_forward import Mlp
from hat_plugin.layers.lean import is_plain


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
