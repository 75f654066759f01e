"""HATUNet found by the shapes of its weights: each option, what they cannot show, files that are not whole."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from torch import Tensor

from hat_plugin.archs.hat_unet_arch import HATUNet
from hat_plugin.errors import CheckpointError
from hat_plugin.restore import load_network
from hat_plugin.restore.detect import detect

BASE: dict[str, Any] = {
    'embed_dim': 8,
    'depths': [2, 1, 1],
    'num_heads': [1, 2, 4],
    'refinement_depth': 1,
    'window_size': 4,
}
DEFAULTS = {name: one.default for name, one in inspect.signature(HATUNet).parameters.items()}
OTHERS: list[dict[str, Any]] = [
    {},
    {'in_chans': 1},
    {'depths': [1, 2], 'num_heads': [2, 1]},
    {'depths': [3], 'num_heads': [2], 'refinement_depth': 2},
    {'refinement_depth': 0},
    {'window_size': 7},
    {'mlp_ratio': 1.5},
    {'qkv_bias': False},
    {'local_enhancement': False},
    {'fusion': 'concat'},
    {'fusion': 'gate'},
    {'compress_ratio': 4},
    {'lem_norm': 'instance'},
    {'lem_norm': 'batch'},
    {'squeeze_factor': 4},
    {'feed_forward': 'gated'},
    {'feed_forward': 'gated', 'mlp_ratio': 1.5},
    {'overlap_ratio': 0.5},
    {'overlap_ratio': 1.0, 'local_enhancement': False},
    {'downsampler': 'pixelunshuffle'},
    {'level_upsampler': 'interpolate'},
    {'level_upsampler': 'pixelshuffle'},
    {'skip': 'add'},
    {'upscale': 2},
    {'upscale': 3, 'in_chans': 1},
]


def build(**changes: Any) -> HATUNet:
    """Random weights everywhere, the last convolution and statistics of batches included."""
    torch.manual_seed(0)
    net = HATUNet(**{**BASE, **changes}).eval().requires_grad_(False)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.rand_like(tensor))
    return net


def named(arguments: dict[str, Any]) -> str:
    return ' '.join(f'{key}={value}' for key, value in arguments.items()) or 'base'


@pytest.mark.parametrize('changes', OTHERS, ids=named)
def test_the_network_found_has_the_same_arguments_and_output(changes: dict[str, Any], tmp_path: Path) -> None:
    net = build(**changes)
    torch.save({'params_ema': net.state_dict()}, tmp_path / 'net.pth')
    network = load_network(tmp_path / 'net.pth', device='cpu')
    found = network.found
    assert found.architecture == 'HATUNet'
    assert {**DEFAULTS, **found.arguments} == {**DEFAULTS, **BASE, **changes}
    assert (found.scale, found.channels, found.window) == (net.upscale, net.in_chans, net.size_multiple)
    image = torch.rand(1, net.in_chans, 13, 22)
    torch.testing.assert_close(network.net(image), net(image), rtol=0, atol=0)


@pytest.mark.parametrize(
    'changes',
    [
        {'embed_dim': 10, 'num_heads': [1, 1, 1], 'mlp_ratio': 1.77, 'compress_ratio': 3, 'squeeze_factor': 7},
        {'embed_dim': 9, 'num_heads': [1, 1, 1], 'mlp_ratio': 2.3, 'compress_ratio': 8, 'squeeze_factor': 5},
        {'window_size': 7, 'overlap_ratio': 0.3},
    ],
    ids=named,
)
def test_factors_that_do_not_come_out_even_give_the_same_widths(changes: dict[str, Any], tmp_path: Path) -> None:
    net = build(**changes)
    torch.save(net.state_dict(), tmp_path / 'net.pth')
    image = torch.rand(1, 3, 9, 14)
    found = load_network(tmp_path / 'net.pth', device='cpu').net(image)
    torch.testing.assert_close(found, net(image), rtol=0, atol=0)


def test_what_weights_cannot_show_is_said(tmp_path: Path) -> None:
    torch.save(build(arrangement='sequential').state_dict(), tmp_path / 'net.pth')
    line = load_network(tmp_path / 'net.pth', device='cpu').describe()
    assert 'HATUNet same size, depths [2, 1, 1], ' in line
    assert 'by default: shift true, no qk_scale, arrangement parallel; else give --opt X.yml' in line
    for changes in ({'fusion': 'gate'}, {'local_enhancement': False}):
        assert detect(build(**changes).state_dict(), 'w').assumed == ('shift true', 'no qk_scale')


def test_the_option_file_supplies_it(tmp_path: Path) -> None:
    changes: dict[str, Any] = {'arrangement': 'sequential', 'shift': False, 'qk_scale': 0.2}
    net, image = build(**changes), torch.rand(1, 3, 16, 16)
    torch.save(net.state_dict(), tmp_path / 'net.pth')
    lines = [f'  {key}: {value}\n' for key, value in {**BASE, **changes}.items()]
    (tmp_path / 'opt.yml').write_text('network_g:\n  type: HATUNet\n' + ''.join(lines))
    told = load_network(tmp_path / 'net.pth', opt=tmp_path / 'opt.yml', device='cpu')
    torch.testing.assert_close(told.net(image), net(image), rtol=0, atol=0)
    assert not torch.equal(load_network(tmp_path / 'net.pth', device='cpu').net(image), net(image))


def without(*parts: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {key: value for key, value in state.items() if not any(part in key for part in parts)}


def of_another(part: str, **changes: Any) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """The entries of one part are those of a network with other options."""

    def mix(state: dict[str, Tensor]) -> dict[str, Tensor]:
        other = {key: value for key, value in build(**changes).state_dict().items() if key.startswith(part)}
        return without(part)(state) | other

    return mix


@pytest.mark.parametrize(
    ('mix', 'says'),
    [
        (of_another('decoder.0.', fusion='gate'), 'decoder.0.blocks.0.fusion.gate.weight: not in the network'),
        (of_another('encoder.0.', local_enhancement=False), 'encoder.0.blocks.0.local.conv.weight: not in the file'),
        (of_another('refinement.', lem_norm='instance'), 'norm1.weight: not in the network'),
        (of_another('bottleneck.', overlap_ratio=0.5), r'HATUNet cannot be built .*depths \[1, 0, 1\].*--opt'),
        (
            of_another('bottleneck.', num_heads=[1, 1, 3], embed_dim=9),
            'HATUNet cannot be built .*cannot be shared by 3 heads',
        ),
        (of_another('decoder.1.', depths=[3, 1, 1]), 'decoder.1.blocks.2.norm1.weight: not in the network'),
        (of_another('up.1.', skip='add'), 'up.1.merge.weight: not in the file'),
        (of_another('up.1.', level_upsampler='interpolate'), 'up.1.body.1.weight: not in the network'),
        (of_another('down.', embed_dim=16), r'down.0.body.weight: \(32, 16, 2, 2\) in the file'),
        (without('up.0.'), r"looks like HATUNet, but 'up.0.body\*' is missing"),
        (without('encoder.0.'), r"looks like HATUNet, but 'encoder.0.\*' is missing"),
        (without('conv_last'), 'conv_last.weight: not in the file'),
        (lambda state: {**state, 'conv_first.weight': torch.zeros(8)}, 'looks like HATUNet, but an entry has an odd'),
        (
            of_another('bottleneck.blocks.0.attn.rel', num_heads=[1, 2, 4], window_size=5),
            r'encoder.0.blocks.0.attn.relative_position_bias_table: \(49, 1\) in the file, \(81, 1\)',
        ),
    ],
)
def test_mixtures_and_incomplete_files_are_refused(
    mix: Callable[[dict[str, Tensor]], dict[str, Tensor]], says: str, tmp_path: Path
) -> None:
    torch.save(mix(build().state_dict()), tmp_path / 'net.pth')
    with pytest.raises(CheckpointError, match=says):
        load_network(tmp_path / 'net.pth', device='cpu')


def test_statistics_of_batches_are_not_made_up(tmp_path: Path) -> None:
    state = build(lem_norm='batch').state_dict()
    torch.save(without('decoder.0.blocks.0.local.norm2.running_var')(state), tmp_path / 'net.pth')
    with pytest.raises(CheckpointError, match='decoder.0.blocks.0.local.norm2.running_var: not in the file'):
        load_network(tmp_path / 'net.pth', device='cpu')


def test_a_photograph_is_restored(cli: Any, photos: Any, tmp_path: Path) -> None:
    torch.save({'params': HATUNet(**BASE).state_dict()}, tmp_path / 'net.pth')  # untrained: it hands pictures through
    photo = photos.small('coffee', 45, 37)
    cv2.imwrite(str(tmp_path / 'photo.png'), photo)
    arguments = ('--weights', tmp_path / 'net.pth', '--device', 'cpu', '--tile', 32, '--overlap', 16)
    outcome = cli('restore', tmp_path / 'photo.png', '-o', tmp_path / 'out.png', *arguments)
    assert outcome.code == 0, outcome.err
    assert 'HATUNet same size' in outcome.out
    assert (cv2.imread(str(tmp_path / 'out.png')) == photo).all()
