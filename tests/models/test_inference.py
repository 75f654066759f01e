"""How a whole picture comes into a network: who pads it, and how."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.archs.hat_unet_arch import HATUNet
from hat_plugin.archs.nafnet_arch import NAFNet, NAFNetLocal
from hat_plugin.archs.restormer_arch import Restormer
from hat_plugin.layers.precision import PRECISIONS, prepare_for_inference
from hat_plugin.models.grids import restore_in_grids
from hat_plugin.models.inference import padding_of, restore_batch, window_of

SMALL: dict[str, Any] = {'dim': 4, 'num_blocks': [1] * 4, 'num_refinement_blocks': 1, 'heads': [1, 1, 2, 4]}
NETWORKS = {
    'NAFNet': lambda: NAFNet(width=4, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1]),
    'NAFNetLocal': lambda: NAFNetLocal(width=4, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1], train_size=(1, 3, 8, 8)),
    'Restormer': lambda: Restormer(**SMALL),
    'Restormer BiasFree': lambda: Restormer(**SMALL, LayerNorm_type='BiasFree'),
}


@pytest.fixture(params=NETWORKS)
def net(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    made = NETWORKS[request.param]().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def test_a_network_that_pads_is_left_to_it(net: Any) -> None:
    """NAFNet pads with zeros, as published; mirrored by us, the border would be another."""
    x = torch.rand(2, 3, 13, 21)
    grids = {'crop_size_h': 13, 'crop_size_w': 21}
    with torch.no_grad():
        assert torch.equal(restore_batch(net, x[:1], {'tile': {'tile_size': 64}})[0], net(x[:1]))
        assert torch.equal(restore_in_grids(net, x[:1], {'val': grids})[0], net(x[:1]))


def test_padding_that_is_asked_for_is_mirrored(net: Any) -> None:
    x = torch.rand(1, 3, 13, 21)
    opt = {'val': {'window_size': 24}, 'tile': {'tile_size': 64}}
    with torch.no_grad():
        expected = net(F.pad(x, (0, 3, 0, 11), mode='reflect'))[..., :13, :21]
        assert torch.equal(restore_batch(net, x, opt)[0], expected)


def test_tiles_fit_the_deepest_level_and_windows_are_padded(net: Any) -> None:
    assert (window_of(net, {}), padding_of(net, {})) == (net.size_multiple, 1)
    hat = HAT(upscale=1, window_size=4, embed_dim=8, depths=[1], num_heads=[1], compress_ratio=2, squeeze_factor=4)
    opt = {'val': {'window_size': 6}}
    assert (window_of(hat, opt), padding_of(hat, opt)) == (12, 12)
    assert (window_of(net, opt), padding_of(net, opt)) == (net.size_multiple * 3, 6)


def test_bf16_is_near_fp32(net: Any) -> None:
    x = torch.rand(1, 3, 24, 32)
    with torch.no_grad():
        expected = net(x)
    found, _ = restore_batch(net, x, {'val': {'precision': 'bf16'}})
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()
    converted, _ = restore_batch(net.bfloat16(), x, {})
    assert (converted - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize('precision', ['mixed', 'mixed_fp16'])
@pytest.mark.parametrize(
    'arguments',
    [
        {},
        {'feed_forward': 'gated', 'overlap_ratio': 0.5, 'fusion': 'gate', 'upscale': 2},
        {'lem_norm': 'batch', 'squeeze_factor': 4, 'fusion': 'concat'},
        {'lem_norm': 'instance', 'downsampler': 'pixelunshuffle', 'level_upsampler': 'interpolate'},
    ],
)
def test_a_converted_hatunet_keeps_its_stream_in_fp32(precision: str, arguments: dict[str, Any], photos: Any) -> None:
    torch.manual_seed(0)
    size = {'embed_dim': 16, 'depths': [2, 1], 'num_heads': [1, 2], 'refinement_depth': 1}
    net = HATUNet(**size, **arguments).eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    x = torch.from_numpy(photos.small('coffee', 48, 40)).permute(2, 0, 1)[None].float() / 255
    expected = net(x)
    found = prepare_for_inference(net, precision)(x)
    assert found.dtype == torch.float32
    assert net.bottleneck.blocks[0].attn.qkv.weight.dtype == PRECISIONS[precision][0]
    noise = (found - expected).square().mean() / expected.square().mean()
    assert 0 < noise < {'mixed': 2e-3, 'mixed_fp16': 5e-5}[precision]


def streams(net: HATUNet, run: Any) -> set[torch.dtype]:
    """What comes into the blocks of a network while something runs."""
    seen: set[torch.dtype] = set()
    blocks = [module for module in net.modules() if type(module).__name__ == 'HybridBlock']
    hooks = [block.register_forward_pre_hook(lambda _, given: seen.add(given[0].dtype)) for block in blocks]
    run()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
@pytest.mark.parametrize('downsampler', ['conv', 'pixelunshuffle'])
def test_every_block_of_a_hatunet_has_its_stream_in_fp32(device: str, downsampler: str) -> None:
    """CUDA's normalisation takes no bf16 with weights in fp32."""
    size = {'embed_dim': 16, 'depths': [1, 1], 'num_heads': [1, 2], 'refinement_depth': 1, 'downsampler': downsampler}
    net, x = HATUNet(**size).to(device), torch.rand(1, 3, 16, 16, device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = net(x).square().mean()
        loss.backward()

    assert streams(net.train(), step) == {torch.float32}
    assert all(parameter.grad is not None for parameter in net.parameters())
    prepare_for_inference(net, 'mixed').requires_grad_(False)
    assert streams(net, lambda: net(x)) == {torch.float32}


@pytest.mark.gpu
def test_fp16_on_a_gpu_is_near_fp32(net: Any) -> None:
    net = net.cuda()
    x = torch.rand(1, 3, 24, 32, device='cuda')
    expected, _ = restore_batch(net, x, {})
    found, _ = restore_batch(net, x, {'val': {'precision': 'fp16'}})
    assert 0 < (found - expected).abs().max() < 0.01 * expected.abs().max()
