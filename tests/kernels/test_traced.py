"""With the kernels there, whoever records operators is given torch's: what kernels write by address is not recorded."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import nn

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.archs.hat_unet_arch import HATUNet
from hat_plugin.archs.nafnet_arch import NAFNet
from hat_plugin.layers.embedding import pad_to_multiple

pytestmark = pytest.mark.usefixtures('by_cpp')


def trained(net: nn.Module) -> nn.Module:
    """As if trained: residual networks begin as the identity, of which every graph is the same."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return net.eval()


def hat() -> nn.Module:
    return trained(
        HAT(
            embed_dim=24,
            depths=(2,),
            num_heads=(2,),
            window_size=8,
            compress_ratio=2,
            squeeze_factor=8,
            upscale=2,
            upsampler='pixelshuffle',
        )
    )


def hat_unet() -> nn.Module:
    return trained(HATUNet(embed_dim=16, depths=(1, 1, 2, 2), num_heads=(1, 2, 2, 4), refinement_depth=1))


def nafnet() -> nn.Module:
    return trained(NAFNet(width=16, enc_blk_nums=[1, 1], middle_blk_num=1, dec_blk_nums=[1, 1]))


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('build', [hat, hat_unet, nafnet])
def test_torchscript(build: Callable[[], nn.Module], grad: bool) -> None:
    net = build()
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(net, (torch.rand(1, 3, 21, 30),), check_trace=False)
        other = torch.rand(1, 3, 21, 30)
        torch.testing.assert_close(traced(other), net(other), atol=1e-5, rtol=0)


@pytest.mark.parametrize('build', [hat, hat_unet])
def test_onnx_by_torchs_own_function(build: Callable[[], nn.Module]) -> None:
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    net, file = build(), io.BytesIO()
    torch.onnx.export(net, (torch.rand(1, 3, 21, 30),), file, input_names=['x'], dynamo=True, external_data=False)
    other = torch.rand(1, 3, 21, 30)
    (found,) = onnxruntime.InferenceSession(file.getvalue()).run(None, {'x': other.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), net(other), atol=1e-5, rtol=0)


class Padded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return pad_to_multiple(x, 8)


def test_padding_without_a_branch_on_sizes() -> None:
    """One graph for all sizes pads as the branches do."""
    auto = torch.export.Dim.AUTO
    program = torch.export.export(Padded(), (torch.rand(2, 3, 13, 22),), dynamic_shapes=({2: auto, 3: auto},))
    for height, width in (16, 24), (9, 5), (3, 30), (2, 7), (41, 8):
        image = torch.rand(2, 3, height, width)
        assert torch.equal(program.module()(image), pad_to_multiple(image, 8))
