"""A network built, saved and found again by the shapes of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hat_plugin.engine.checkpoint import load_weights
from hat_plugin.errors import CheckpointError, HatPluginError, OptionsError
from hat_plugin.restore import load_network
from hat_plugin.restore.detect import detect

HAT_BASE: dict[str, Any] = {
    'embed_dim': 24,
    'depths': (2, 1),
    'num_heads': (4, 2),
    'window_size': 8,
    'compress_ratio': 3,
    'squeeze_factor': 6,
    'overlap_ratio': 0.5,
    'mlp_ratio': 2.0,
    'upscale': 4,
    'upsampler': 'pixelshuffle',
}
HAT_OTHERS: list[dict[str, Any]] = [
    {},
    {'upscale': 2},
    {'upscale': 3},
    {'upscale': 8},
    {'upscale': 1},
    {'in_chans': 1},
    {'window_size': 16, 'overlap_ratio': 0.25},
    {'window_size': 7, 'overlap_ratio': 0.3},
    {'overlap_ratio': 0.75},
    {'compress_ratio': 24, 'squeeze_factor': 24},
    {'compress_ratio': 7, 'squeeze_factor': 5},
    {'mlp_ratio': 4.0},
    {'mlp_ratio': 1.3},
    {'qkv_bias': False},
    {'patch_norm': False},
    {'resi_connection': 'identity'},
    {'resi_connection': '3conv'},
    {'num_feat': 32},
    {'depths': (1,) * 7, 'num_heads': (2,) * 7},
    {'upsampler': 'pixelshuffledirect', 'upscale': 5},
    {'upsampler': 'nearest+conv', 'upscale': 4},
    {'upsampler': 'nearest+conv', 'upscale': 2},
    {'upsampler': '', 'upscale': 1},
    {'upsampler': '', 'upscale': 1, 'in_chans': 1},
    {'ape': True, 'img_size': 24},
]
SWINIR_BASE: dict[str, Any] = {
    'img_size': 32,
    'embed_dim': 24,
    'depths': (2, 2),
    'num_heads': (4, 2),
    'window_size': 8,
    'mlp_ratio': 2.0,
    'upscale': 2,
    'upsampler': 'pixelshuffle',
}
SWINIR_OTHERS: list[dict[str, Any]] = [
    {},
    {'upscale': 3},
    {'img_size': 48},
    {'img_size': 8},
    {'upsampler': 'pixelshuffledirect', 'upscale': 4},
    {'upsampler': 'nearest+conv', 'upscale': 4, 'resi_connection': '3conv'},
    {'upsampler': '', 'upscale': 1, 'in_chans': 1},
    {'upsampler': '', 'upscale': 1, 'in_chans': 1, 'window_size': 7, 'img_size': 28, 'img_range': 255.0},
]

RESTORMER_BASE: dict[str, Any] = {
    'dim': 8,
    'num_blocks': [1, 2, 1, 1],
    'num_refinement_blocks': 1,
    'heads': [1, 2, 4, 8],
}
RESTORMER_OTHERS: list[dict[str, Any]] = [
    {},
    {'inp_channels': 1, 'out_channels': 1, 'LayerNorm_type': 'BiasFree'},
    {'bias': True, 'num_blocks': [1, 1, 3, 2], 'num_refinement_blocks': 0, 'heads': [2, 1, 1, 4]},
    {'dual_pixel_task': True, 'inp_channels': 6},
    *({'dim': 6, 'ffn_expansion_factor': factor} for factor in (0.7, 1.0, 1.99, 2.3, 3.0)),
]
NAFNET_BASE: dict[str, Any] = {'width': 4, 'enc_blk_nums': [1, 2], 'middle_blk_num': 1, 'dec_blk_nums': [2, 1]}
NAFNET_OTHERS: list[dict[str, Any]] = [
    {},
    {'img_channel': 1, 'middle_blk_num': 2},
    {'enc_blk_nums': [2, 0, 1], 'dec_blk_nums': [0, 0, 1]},
    {'enc_blk_nums': [], 'dec_blk_nums': []},
]


def build(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    if architecture == 'HAT':
        from hat_plugin.archs.hat_arch import HAT as constructor
    elif architecture == 'Restormer':
        from hat_plugin.archs.restormer_arch import Restormer as constructor
    elif architecture == 'NAFNet':
        from hat_plugin.archs.nafnet_arch import NAFNet as constructor
    else:
        from basicsr.archs.swinir_arch import SwinIR as constructor
    return constructor(**arguments).eval().requires_grad_(False)


def named(arguments: dict[str, Any]) -> str:
    return ' '.join(f'{key}={value}' for key, value in arguments.items()) or 'base'


@pytest.mark.parametrize(
    ('architecture', 'arguments'),
    [pytest.param('HAT', {**HAT_BASE, **other}, id=f'HAT {named(other)}') for other in HAT_OTHERS]
    + [pytest.param('SwinIR', {**SWINIR_BASE, **other}, id=f'SwinIR {named(other)}') for other in SWINIR_OTHERS],
)
def test_the_network_found_computes_the_same(architecture: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    net = build(architecture, arguments)
    torch.save({'params_ema': net.state_dict()}, tmp_path / 'net.pth')
    network = load_network(tmp_path / 'net.pth', device='cpu')
    assert network.found.architecture == architecture
    for key in ('embed_dim', 'window_size', 'upscale', 'upsampler', 'qkv_bias', 'patch_norm', 'resi_connection'):
        if key in arguments:
            assert network.found.arguments[key] == arguments[key], key
    assert list(network.found.arguments['depths']) == list(arguments['depths'])
    assert list(network.found.arguments['num_heads']) == list(arguments['num_heads'])
    side = arguments['window_size'] * 3
    image = torch.rand(1, arguments.get('in_chans', 3), side, side)
    torch.testing.assert_close(network.net(image), net(image), rtol=0, atol=0)
    assert 'params_ema' in network.describe() and 'as published' in network.describe()


@pytest.mark.parametrize(
    ('architecture', 'arguments'),
    [
        pytest.param('Restormer', {**RESTORMER_BASE, **other}, id=f'Restormer {named(other)}')
        for other in RESTORMER_OTHERS
    ]
    + [pytest.param('NAFNet', {**NAFNET_BASE, **other}, id=f'NAFNet {named(other)}') for other in NAFNET_OTHERS],
)
def test_the_rivals_are_found(architecture: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    net = build(architecture, arguments)
    for parameter in net.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))  # NAFNet's betas and gammas are zero at first
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    network = load_network(tmp_path / 'net.pth', device='cpu')
    found = network.found
    assert found.architecture == architecture
    wanted = {key: value for key, value in arguments.items() if key != 'ffn_expansion_factor'}
    assert {key: found.arguments[key] for key in wanted} == wanted
    assert (found.scale, found.window) == (1, net.size_multiple)
    image = torch.rand(1, found.channels, 13, 22)
    torch.testing.assert_close(network.net(image), net(image), rtol=0, atol=0)


@pytest.mark.parametrize(
    ('arguments', 'name'),
    [
        ({'enc_blk_nums': [1, 1, 1, 28], 'middle_blk_num': 1, 'dec_blk_nums': [1, 1, 1, 1]}, 'NAFNetLocal'),
        ({'enc_blk_nums': [2, 2, 4, 8], 'middle_blk_num': 12, 'dec_blk_nums': [2, 2, 2, 2]}, 'NAFNet'),
    ],
)
def test_nafnets_are_restored_as_they_are_tested(arguments: dict[str, Any], name: str, tmp_path: Path) -> None:
    torch.save(build('NAFNet', {'width': 2, **arguments}).state_dict(), tmp_path / 'net.pth')
    network = load_network(tmp_path / 'net.pth', device='cpu')
    assert type(network.net.net).__name__ == name
    assert f'statistics ({name})' in network.describe()


@pytest.mark.parametrize(('upscale', 'window'), [(2, 8), (3, 8)])
def test_swinir_takes_any_size(upscale: int, window: int, tmp_path: Path) -> None:
    net = build('SwinIR', {**SWINIR_BASE, 'upscale': upscale})
    torch.save(net.state_dict(), tmp_path / 'net.pth')
    network = load_network(tmp_path / 'net.pth', device='cpu')
    for height, width in [(1, 1), (3, 50), (33, 21)]:
        output = network.net(torch.rand(1, 3, height, width))
        assert output.shape == (1, 3, height * upscale, width * upscale)


def test_other_containers_and_prefixes(tmp_path: Path) -> None:
    net = build('HAT', HAT_BASE)
    image = torch.rand(1, 3, 16, 16)
    torch.save({f'module.{key}': value for key, value in net.state_dict().items()}, tmp_path / 'bare.pth')
    save_file(net.state_dict(), tmp_path / 'net.safetensors')
    without_buffers = {key: value for key, value in net.state_dict().items() if 'index' not in key}
    torch.save({'params': without_buffers}, tmp_path / 'parameters.pth')
    for name in ('bare.pth', 'net.safetensors', 'parameters.pth'):
        network = load_network(tmp_path / name, device='cpu')
        torch.testing.assert_close(network.net(image), net(image), rtol=0, atol=0)


def test_scale_is_checked_and_decides_where_it_is_not_visible(tmp_path: Path) -> None:
    state = build('HAT', {**HAT_BASE, 'upsampler': 'nearest+conv', 'upscale': 3}).state_dict()
    assert detect(state, 'w', scale=3).scale == 3
    assert any('--scale 3' in phrase for phrase in detect(state, 'w').assumed)
    state = build('HAT', HAT_BASE).state_dict()
    assert detect(state, 'w', scale=4).scale == 4
    with pytest.raises(CheckpointError, match=r'w: the network enlarges 4 times, not 2'):
        detect(state, 'w', scale=2)


def test_unknown_and_incomplete_weights_are_named(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / 'linear.pth')
    with pytest.raises(CheckpointError, match=r'linear.pth: the weights belong to none of HAT, SwinIR.*weight.*--opt'):
        load_network(tmp_path / 'linear.pth')
    state = build('HAT', HAT_BASE).state_dict()
    del state['layers.0.residual_group.blocks.0.mlp.fc1.weight']
    torch.save(state, tmp_path / 'cut.pth')
    with pytest.raises(CheckpointError, match=r'cut.pth: looks like HAT, but .*mlp.fc1.weight'):
        load_network(tmp_path / 'cut.pth')
    state = build('HAT', HAT_BASE).state_dict()
    state['layers.1.norm9.weight'] = torch.zeros(3)
    torch.save(state, tmp_path / 'more.pth')
    with pytest.raises(CheckpointError, match='norm9'):
        load_network(tmp_path / 'more.pth')


@pytest.mark.parametrize(
    ('architecture', 'missing'),
    [
        ('HAT', 'layers.1.'),
        ('HAT', 'layers.0.residual_group.blocks.1.'),
        ('SwinIR', 'layers.1.'),
        ('SwinIR', 'layers.2.residual_group.blocks.1.'),
    ],
)
def test_a_gap_among_groups_or_blocks_is_no_smaller_network(tmp_path: Path, architecture: str, missing: str) -> None:
    base = HAT_BASE if architecture == 'HAT' else SWINIR_BASE
    state = build(architecture, {**base, 'depths': (3, 3, 3), 'num_heads': (2, 2, 2)}).state_dict()
    torch.save({key: value for key, value in state.items() if not key.startswith(missing)}, tmp_path / 'gap.pth')
    with pytest.raises(CheckpointError, match=rf"gap.pth: looks like {architecture}, but '{missing}\*' is missing"):
        load_network(tmp_path / 'gap.pth', device='cpu')


@pytest.mark.parametrize(
    ('architecture', 'arguments', 'missing'),
    [
        ('Restormer', {**RESTORMER_BASE, 'num_blocks': [3, 1, 1, 1]}, 'encoder_level1.1.'),
        ('NAFNet', {**NAFNET_BASE, 'enc_blk_nums': [3, 1]}, 'encoders.0.1.'),
    ],
)
def test_a_gap_among_the_blocks_of_the_rivals(
    tmp_path: Path, architecture: str, arguments: dict[str, Any], missing: str
) -> None:
    state = build(architecture, arguments).state_dict()
    torch.save({key: value for key, value in state.items() if not key.startswith(missing)}, tmp_path / 'gap.pth')
    with pytest.raises(CheckpointError, match=rf"gap.pth: looks like {architecture}, but '{missing}\*' is missing"):
        load_network(tmp_path / 'gap.pth', device='cpu')


def test_the_depths_are_told(tmp_path: Path) -> None:
    torch.save(build('HAT', HAT_BASE).state_dict(), tmp_path / 'net.pth')
    assert 'HAT x4, depths [2, 1], ' in load_network(tmp_path / 'net.pth', device='cpu').describe()


def test_weights_that_could_run_code_are_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / 'ran',)

    torch.save({'params': build('HAT', HAT_BASE).state_dict(), 'attack': Attack()}, tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError, match=r'bad.pth: refused'):
        load_network(tmp_path / 'bad.pth')
    assert not (tmp_path / 'ran').exists()


def test_the_option_file_decides(tmp_path: Path) -> None:
    net = build('HAT', {**HAT_BASE, 'conv_scale': 0.5})
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    lines = [f'  {key}: {list(value) if isinstance(value, tuple) else value}\n' for key, value in HAT_BASE.items()]
    (tmp_path / 'opt.yml').write_text('scale: 4\nnetwork_g:\n  type: HAT\n  conv_scale: 0.5\n' + ''.join(lines))
    network = load_network(tmp_path / 'net.pth', opt=tmp_path / 'opt.yml', device='cpu')
    image = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(network.net(image), net(image), rtol=0, atol=0)
    assert network.found.window == 8 and network.found.scale == 4
    with pytest.raises(OptionsError, match='enlarges 4 times, not 2'):
        load_network(tmp_path / 'net.pth', opt=tmp_path / 'opt.yml', scale=2)
    (tmp_path / 'other.yml').write_text('network_g:\n  type: HATT\n')
    with pytest.raises(OptionsError, match=r"'HATT' is not registered"):
        load_network(tmp_path / 'net.pth', opt=tmp_path / 'other.yml')
    (tmp_path / 'none.yml').write_text('scale: 4\n')
    with pytest.raises(OptionsError, match='network_g'):
        load_network(tmp_path / 'net.pth', opt=tmp_path / 'none.yml')


def test_the_option_file_opens_other_architectures(tmp_path: Path) -> None:
    from basicsr.archs.rrdbnet_arch import RRDBNet

    net = RRDBNet(num_in_ch=3, num_out_ch=3, scale=4, num_feat=8, num_block=1, num_grow_ch=4).eval()
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    section = 'network_g: {type: RRDBNet, num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_block: 1, num_grow_ch: 4}\n'
    (tmp_path / 'opt.yml').write_text('scale: 4\n' + section)
    network = load_network(tmp_path / 'net.pth', opt=tmp_path / 'opt.yml', device='cpu')
    image = torch.rand(1, 3, 5, 9)
    torch.testing.assert_close(network.net(image), net(image), rtol=0, atol=0)
    assert (network.found.scale, network.found.window, network.found.channels) == (4, 1, 3)


def test_differing_shapes_are_listed(tmp_path: Path) -> None:
    torch.save({'params': build('HAT', HAT_BASE).state_dict()}, tmp_path / 'net.pth')
    arguments = {**HAT_BASE, 'embed_dim': 32}
    lines = [f'  {key}: {list(value) if isinstance(value, tuple) else value}\n' for key, value in arguments.items()]
    (tmp_path / 'opt.yml').write_text('network_g:\n  type: HAT\n' + ''.join(lines))
    with pytest.raises(CheckpointError, match=r'conv_first.weight: \(24, 3, 3, 3\) in the file, \(32, 3, 3, 3\)'):
        load_network(tmp_path / 'net.pth', opt=tmp_path / 'opt.yml')


def test_bf16_is_near_fp32(tmp_path: Path) -> None:
    torch.save(build('HAT', HAT_BASE).state_dict(), tmp_path / 'net.pth')
    torch.save(build('SwinIR', SWINIR_BASE).state_dict(), tmp_path / 'swinir.pth')
    image = torch.rand(1, 3, 24, 24)
    for name in ('net.pth', 'swinir.pth'):
        full = load_network(tmp_path / name, device='cpu').net(image)
        half = load_network(tmp_path / name, device='cpu', precision='bf16').net(image)
        assert half.dtype == torch.float32
        assert 0 < (half - full).abs().max() < 0.03 * full.abs().max()


def test_devices_and_precisions_that_are_not_there(tmp_path: Path) -> None:
    torch.save(build('HAT', HAT_BASE).state_dict(), tmp_path / 'net.pth')
    with pytest.raises(HatPluginError, match=r"'cuda:77'.*CUDA devices"):
        load_network(tmp_path / 'net.pth', device='cuda:77')
    with pytest.raises(HatPluginError, match='gpu'):
        load_network(tmp_path / 'net.pth', device='gpu')
    with pytest.raises(HatPluginError, match='fp16 is for GPUs.*give bf16 or fp32'):
        load_network(tmp_path / 'net.pth', device='cpu', precision='fp16')
    with pytest.raises(HatPluginError, match="'fp8'; it must be fp32, bf16 or fp16"):
        load_network(tmp_path / 'net.pth', device='cpu', precision='fp8')  # type: ignore[arg-type]


def test_the_key_taken_is_said(tmp_path: Path) -> None:
    net = build('HAT', HAT_BASE)
    torch.save({'params': net.state_dict(), 'params_ema': net.state_dict()}, tmp_path / 'both.pth')
    assert load_weights(tmp_path / 'both.pth').key == 'params_ema'
    assert load_network(tmp_path / 'both.pth', device='cpu').source.endswith('both.pth (params_ema)')
