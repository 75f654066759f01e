"""HAT's promises: sizes, scales, precisions, errors, and no option that does nothing."""

from __future__ import annotations

import copy
import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from hat_plugin.archs.hat_arch import HAT, hat, hat_l, hat_s
from hat_plugin.layers.attention import attention_backend

Small = Callable[..., HAT]


def image(channels: int = 3, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ('build', 'counts'),
    [
        (hat_s, (9_473_471, 9_658_111, 9_621_183)),
        (hat, (20_624_795, 20_809_435, 20_772_507)),
        (hat_l, (40_698_863, 40_883_503, 40_846_575)),
    ],
)
def test_parameter_counts_are_the_published_ones(build: Callable[[int], HAT], counts: tuple[int, ...]) -> None:
    with torch.device('meta'):
        assert tuple(sum(p.numel() for p in build(scale).parameters()) for scale in (2, 3, 4)) == counts


def test_macs_are_the_published_ones() -> None:
    with torch.device('meta'), FlopCounterMode(display=False) as counter, torch.no_grad():
        hat(4)(torch.empty(1, 3, 64, 64))
    assert counter.get_total_flops() / 2e9 == pytest.approx(103.9, abs=0.05)


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (3, 8), (8, 8), (9, 17), (20, 2)])
@pytest.mark.parametrize('upsampler', ['pixelshuffle', ''])
def test_any_size(small: Small, size: tuple[int, int], upsampler: str) -> None:
    scale = 2 if upsampler else 1
    with torch.no_grad():
        y = small(upsampler=upsampler, upscale=scale)(image(3, *size))
    assert y.shape == (2, 3, size[0] * scale, size[1] * scale)
    assert y.isfinite().all()


def test_side_too_short_to_mirror_repeats_its_last_pixel(small: Small) -> None:
    net, x = small(), image(3, 3, 16)
    with torch.no_grad():
        assert torch.equal(net(x), net(F.pad(x, (0, 0, 0, 5), mode='replicate'))[:, :, :6])


@pytest.mark.parametrize(
    ('upsampler', 'scales'),
    [('pixelshuffle', (1, 2, 3, 4, 8)), ('nearest+conv', (1, 2, 3, 4, 8)), ('pixelshuffledirect', range(1, 9))],
)
def test_scales(small: Small, upsampler: str, scales: range) -> None:
    for scale in scales:
        net = small(upsampler=upsampler, upscale=scale, in_chans=1)
        y = net(image(1, 8, 11))
        assert y.shape == (2, 1, 8 * scale, 11 * scale)
        y.sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_nearest_conv_is_what_it_says(small: Small) -> None:
    net = small(upsampler='nearest+conv', upscale=4)
    features = torch.randn(1, 12, 5, 6)
    weights = dict(net.named_parameters())

    def convolve(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, weights[f'{name}.weight'], weights[f'{name}.bias'], padding=1)

    x = F.leaky_relu(convolve('conv_before_upsample.0', features), 0.01)
    for name in ('conv_up1', 'conv_up2'):
        x = F.leaky_relu(convolve(name, x.repeat_interleave(2, 2).repeat_interleave(2, 3)), 0.2)
    x = convolve('conv_last', F.leaky_relu(convolve('conv_hr', x), 0.2))
    torch.testing.assert_close(net.forward_head(features), x)


def test_pixelshuffledirect_is_what_it_says(small: Small) -> None:
    net = small(upsampler='pixelshuffledirect', upscale=5)
    features = torch.randn(1, 12, 4, 3)
    convolution = net.get_submodule('upsample.0')
    torch.testing.assert_close(net.forward_head(features), F.pixel_shuffle(convolution(features), 5))


@pytest.mark.parametrize('upsampler', ['', None])
def test_same_size_restoration_adds_to_its_input(small: Small, upsampler: str | None) -> None:
    net, x = small(upsampler=upsampler, upscale=1), image(3, 13, 10)
    with torch.no_grad():
        assert (net(x) - x).abs().max() > 0.01
        for parameter in net.get_submodule('conv_last').parameters():
            parameter.zero_()
        torch.testing.assert_close(net(x), x)


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'window_size': 7, 'overlap_ratio': 0.5}, ['0.5', '7', '0.571429']),
        ({'window_size': 8, 'overlap_ratio': -0.5}, ['-0.5']),
        ({'window_size': 1}, ['window_size 1']),
        ({'embed_dim': 13}, ['13', '2 heads', '14']),
        ({'num_heads': [0]}, ['0 heads']),
        ({'depths': [2, 2]}, ['[2, 2]', '[2]']),
        ({'depths': [], 'num_heads': []}, ['depths []']),
        ({'upscale': 5}, ['5', 'pixelshuffledirect']),
        ({'upscale': 0, 'upsampler': 'pixelshuffledirect'}, ['upscale 0']),
        ({'upscale': 2, 'upsampler': ''}, ['upscale is 2', 'pixelshuffle']),
        ({'upsampler': 'bicubic'}, ['bicubic', 'nearest+conv']),
        ({'resi_connection': '2conv'}, ['2conv', '3conv']),
        ({'squeeze_factor': 30}, ['squeeze_factor 30', '12']),
        ({'compress_ratio': 0}, ['compress_ratio 0']),
        ({'in_chans': 0}, ['in_chans 0']),
        ({'img_range': 0}, ['img_range 0']),
        ({'drop_rate': 1.5}, ['drop_rate 1.5']),
        ({'attn_drop_rate': -0.1}, ['attn_drop_rate -0.1']),
        ({'drop_path_rate': 1.0}, ['drop_path_rate 1.0']),
        ({'use_checkpoint': -1}, ['use_checkpoint -1']),
        ({'img_size': 4, 'patch_size': 8}, ['img_size 4', 'patch_size 8']),
    ],
    ids=str,
)
def test_impossible_arguments_raise_with_value_and_remedy(small: Small, changes: dict, named: list[str]) -> None:
    with pytest.raises(ValueError, match='give') as caught:
        small(**changes)
    assert all(part in str(caught.value) for part in named), caught.value


def test_unknown_argument_raises() -> None:
    with pytest.raises(TypeError, match='embed_dims'):
        HAT(embed_dims=180)  # type: ignore[call-arg]


def test_published_defaults_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="upsampler ''"):
        HAT(window_size=8)


@pytest.mark.parametrize('shape', [(3, 8, 8), (1, 1, 8, 8), (1, 4, 8, 8)])
def test_image_of_wrong_shape_raises(small: Small, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match='in_chans'):
        small()(torch.zeros(shape))


class RootMeanSquare(nn.Module):
    """A normalisation that is not torch's, to see that norm_layer is used."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * x.square().mean(-1, keepdim=True).add(1e-5).rsqrt() * self.weight


EFFECTS: list[dict[str, Any]] = [
    {'depths': [3]},
    {'num_heads': [3]},
    {'window_size': 4},
    {'overlap_ratio': 0.25},
    {'conv_scale': 0.5},
    {'qk_scale': 1.0},
    {'qkv_bias': False},
    {'compress_ratio': 3},
    {'squeeze_factor': 2},
    {'mlp_ratio': 3.0},
    {'num_feat': 4},
    {'img_range': 255.0},
    {'patch_norm': False},
    {'ape': True},
    {'norm_layer': RootMeanSquare},
    {'resi_connection': 'identity'},
    {'resi_connection': '3conv'},
]


@pytest.mark.parametrize('changes', EFFECTS, ids=str)
def test_option_changes_the_output(small: Small, changes: dict[str, Any]) -> None:
    plain, changed, x = small(), small(**changes), image()
    shapes = {name: value.shape for name, value in plain.state_dict().items()}
    fitting = {name: value for name, value in changed.state_dict().items() if value.shape == shapes.get(name)}
    common = {name: value for name, value in plain.state_dict().items() if name in fitting}
    changed.load_state_dict(common, strict=False)  # equal weights wherever they fit, so that the option alone differs
    with torch.no_grad():
        assert (plain(x) - changed(x)).abs().max() > 1e-3


@pytest.mark.parametrize('option', ['drop_rate', 'attn_drop_rate', 'drop_path_rate'])
def test_dropout_acts_in_training_alone(small: Small, option: str) -> None:
    net, x = small(**{'drop_path_rate': 0.0, option: 0.5}), image()
    plain = small(drop_path_rate=0.0)
    with torch.no_grad():
        assert torch.equal(net(x), plain(x))
        assert (net.train()(x) - plain(x)).abs().max() > 1e-4  # whatever is drawn: what is not dropped is doubled
    assert torch.equal(plain.train()(x), plain.eval()(x))  # with gradients, where neither goes in strips


def test_drop_path_rises_to_its_rate(small: Small) -> None:
    net = small(depths=[2, 3], num_heads=[2, 2], drop_path_rate=0.4)
    rates = [module.drop_prob for module in net.modules() if type(module).__name__ == 'DropPath']
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_absolute_positions_fit_other_sizes(small: Small) -> None:
    net = small(ape=True, img_size=(16, 32), patch_size=2)
    assert net.absolute_pos_embed is not None
    assert net.absolute_pos_embed.shape == (1, 8 * 16, 12)
    with torch.no_grad():
        before = net(image(3, 24, 24))
        net.absolute_pos_embed += 1
        assert (net(image(3, 24, 24)) - before).abs().max() > 1e-3


def test_sizes_without_meaning_change_nothing(small: Small) -> None:
    """img_size and patch_size stand in published option files; without ape they are read by nobody."""
    with torch.no_grad():
        assert torch.equal(small(img_size=48, patch_size=4)(image()), small()(image()))


@pytest.mark.parametrize(('use_checkpoint', 'expected'), [(False, 0), (0, 0), (True, 6), (1, 1), (4, 4), (99, 6)])
def test_checkpointing_recomputes_and_keeps_gradients(small: Small, use_checkpoint: int, expected: int) -> None:
    sizes: dict[str, Any] = {'depths': [2, 2], 'num_heads': [2, 2], 'drop_rate': 0.2, 'drop_path_rate': 0.3}
    plain, net = small(**sizes).train(), small(**sizes, use_checkpoint=use_checkpoint).train()
    runs: list[str] = []
    for each in (plain, net):
        for name, module in each.named_modules():
            if name.endswith('.norm2'):  # before the point where a recomputation has all it needs and stops
                module.register_forward_hook(lambda *_, name=name: runs.append(name))
    for each in (plain, net):
        torch.manual_seed(5)
        runs.clear()
        each(image()).square().mean().backward()
    assert len(runs) == 6 + expected
    for (name, p), q in zip(plain.named_parameters(), net.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    runs.clear()
    with torch.no_grad():
        net(image())
    assert len(runs) == 6


class Largest(TorchDispatchMode):
    """Remembers the largest storage that any operation returned, in elements of fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() // 4 for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


@pytest.mark.parametrize(('backend', 'fits'), [('sdpa', True), ('reference', False)])
def test_no_tensor_of_all_windows_and_token_pairs(small: Small, backend: str, fits: bool) -> None:
    """Neither masks nor products, not even for one head; the plain path shows that the test would see them."""
    net = small(window_size=16, upscale=1)
    windows, tokens = 16, 256
    with torch.no_grad(), attention_backend(backend), Largest() as largest:
        net(torch.rand(1, 3, 64, 64))
    assert (largest.elements < windows * tokens * tokens) == fits


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(small: Small, dtype: torch.dtype) -> None:
    net, x = small(), image(3, 13, 16)
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01
    with torch.no_grad():
        exact = net(x)
        with torch.autocast('cpu', dtype=dtype):
            cast = net(x)
        assert cast.dtype == torch.float32
        assert (cast - exact).abs().max() < tolerance * (exact.max() - exact.min())
        converted = net.to(dtype)
        for given in (x, x.to(dtype)):
            y = converted(given)
            assert y.dtype == given.dtype
            assert (y.float() - exact).abs().max() < tolerance * (exact.max() - exact.min())


def test_gradients_under_autocast(small: Small) -> None:
    net = small()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        net(image()).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_mean_moves_with_the_module_and_stays_out_of_files(small: Small) -> None:
    net = small()
    assert net.mean.flatten().tolist() == pytest.approx([0.4488, 0.4371, 0.4040])
    assert net.double().mean.dtype == torch.float64
    assert net.to('meta').mean.device.type == 'meta'
    assert 'mean' not in net.state_dict()
    assert small(in_chans=1).mean.flatten().tolist() == [0.0]


def test_changed_weights_change_the_output_at_once(small: Small) -> None:
    """Nothing that depends on weights is kept between passes: whatever changes them, the next pass sees it."""
    net, x = small(), image()
    names = [name for name, _ in net.named_parameters() if 'bias_table' in name]

    def output() -> Tensor:
        with torch.no_grad():
            return net(x)

    seen = [output()]
    other = small(seed=1).state_dict()
    net.load_state_dict({**net.state_dict(), **{name: other[name] for name in names}})
    seen.append(output())
    net.get_parameter(names[0]).data.mul_(0.5)  # as BasicSR's EMA does: no version counter sees it
    seen.append(output())
    with torch.no_grad():
        net.get_parameter(names[1]).add_(1.0 + torch.arange(2))
        net.get_parameter(names[-1]).mul_(-1)
    seen.append(output())
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    net(x).square().mean().backward()
    optimiser.step()
    seen.append(output())
    assert all((one - two).abs().max() > 1e-4 for one, two in itertools.pairwise(seen))
    fresh = small()
    fresh.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(x), output())
        torch.testing.assert_close(net.double()(x.double()).float(), seen[-1], rtol=1e-4, atol=1e-4)


def test_copies_and_files(small: Small) -> None:
    net, x = small(), image()
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(net)(x), net(x))
        assert torch.equal(torch.load(buffer, weights_only=False)(x), net(x))


@pytest.mark.parametrize('assign', [True, False])
def test_built_on_meta_then_loaded(small: Small, assign: bool) -> None:
    net, x = small(), image()
    with torch.device('meta'):
        other = small()
    if not assign:
        other.to_empty(device='cpu')
    other.load_state_dict(net.state_dict(), assign=assign)
    with torch.no_grad():
        assert torch.equal(other(x), net(x))


def test_ladder(small: Small) -> None:
    net, x = small(), image()
    with torch.no_grad():
        features = net.forward_features((x - net.mean) * net.img_range)
        assert features.shape == (2, 12, 16, 24)
        assert torch.equal(net.forward_head(features) / net.img_range + net.mean, net(x))
    assert (net.window_size, net.upscale, net.in_chans) == (8, 2, 3)


def test_compiles_as_one_graph(small: Small) -> None:
    net, x = small(), image(3, 13, 16)
    compiled = torch.compile(net, backend='eager', fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x))


def test_other_sizes_are_not_compiled_one_by_one(small: Small) -> None:
    """One graph for the first size, one for all that need no padding, one more where padding comes in."""
    net = small(depths=(1,), num_heads=(2,))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = torch.compile(net, backend='eager', fullgraph=True)
    with torch.no_grad():
        for height, width in ((24, 32), (40, 48), (16, 24), (56, 40), (64, 64), (13, 20), (29, 31)):
            x = image(3, height, width)
            torch.testing.assert_close(compiled(x), net(x))
    assert counters['stats']['unique_graphs'] <= 4


def test_golden_output() -> None:
    """Weights and image from a formula; numbers from spandrel 0.4's HAT."""
    net = HAT(**GOLDEN_SIZES).eval()
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            steps = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_((torch.sin(steps * 1.7 + number) * 0.3).reshape(parameter.shape))
        x = torch.sin(torch.arange(3 * 10 * 13, dtype=torch.float64)).reshape(1, 3, 10, 13).float() * 0.5 + 0.5
        y = net(x)
    assert y.shape == (1, 3, 20, 26)
    got = [y.mean().item(), y.std().item(), y[0, 0, 0, 0].item(), y[0, 1, 9, 20].item(), y[0, 2, 19, 25].item()]
    assert got == pytest.approx(GOLDEN, rel=1e-4)
    assert all(math.isfinite(value) for value in got)


GOLDEN_SIZES: dict[str, Any] = {
    'embed_dim': 12,
    'depths': [2],
    'num_heads': [2],
    'window_size': 8,
    'compress_ratio': 2,
    'squeeze_factor': 4,
    'conv_scale': 0.5,
    'mlp_ratio': 2.0,
    'upscale': 2,
    'upsampler': 'pixelshuffle',
    'num_feat': 8,
}
GOLDEN = [0.468567, 0.249774, 0.642565, 0.566210, 0.280171]
