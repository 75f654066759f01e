"""`basicsr export`: what ONNX Runtime makes of a network is what PyTorch makes. More in kernels/test_traced.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.cli import main
from hat_plugin.errors import HatPluginError
from hat_plugin.layers.embedding import pad_to_multiple

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

SMALL: dict[str, Any] = {
    'embed_dim': 24, 'depths': [2], 'num_heads': [2], 'window_size': 8, 'compress_ratio': 4, 'squeeze_factor': 8,
    'mlp_ratio': 2.0, 'upscale': 2, 'upsampler': 'pixelshuffle',
}  # fmt: skip


def hat() -> nn.Module:
    """With weights large enough to tell a branch that is missing."""
    torch.manual_seed(0)
    net = HAT(**SMALL)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return net.eval()


def weights_of(net: nn.Module, folder: Path) -> str:
    torch.save({'params_ema': net.state_dict()}, folder / 'weights.pth')
    return str(folder / 'weights.pth')


def test_a_picture_of_any_size_from_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, target = hat(), tmp_path / 'new' / 'hat.onnx'
    assert main(['export', '-w', weights_of(net, tmp_path), '-o', str(target)]) == 0
    assert capsys.readouterr().out.count('ONNX Runtime differs by') == 5
    session = onnxruntime.InferenceSession(str(target))
    for shape in (1, 3, 40, 24), (3, 3, 61, 19), (1, 3, 7, 7), (1, 3, 1, 30):
        image = torch.rand(shape)
        (restored,) = session.run(None, {'image': image.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(restored), net(image), atol=1e-5, rtol=0)
    facts = {entry.key: entry.value for entry in onnx.load(target).metadata_props}
    assert facts['architecture'] == 'HAT' and facts['scale'] == '2'
    assert [path.name for path in target.parent.iterdir()] == ['hat.onnx'], 'one file, nothing beside it'
    assert main(['export', '-w', weights_of(net, tmp_path), '-o', str(target)]) == 2
    assert '--overwrite' in capsys.readouterr().err


def test_a_network_of_one_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from basicsr.archs.swinir_arch import SwinIR

    net = SwinIR(
        upscale=2, img_size=16, window_size=8, img_range=1.0, depths=[2], embed_dim=24, num_heads=[2], mlp_ratio=2,
        upsampler='pixelshuffle',
    ).eval()  # fmt: skip
    target = tmp_path / 'swin.onnx'
    arguments = ['export', '-w', weights_of(net, tmp_path), '-o', str(target)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert '--size' in error and str(target) in error and not target.exists()
    assert main([*arguments, '--size', '21x30']) == 0
    image = torch.rand(1, 3, 21, 30)
    (restored,) = onnxruntime.InferenceSession(str(target)).run(None, {'image': image.numpy()})
    with torch.no_grad():
        whole = net(pad_to_multiple(image, 8))[..., :42, :60]
    torch.testing.assert_close(torch.from_numpy(restored), whole, atol=1e-5, rtol=0)


def test_results_that_differ_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hat_plugin import export

    monkeypatch.setattr(export, 'TOLERANCE', 0.0)
    target = tmp_path / 'new' / 'hat.onnx'
    assert main(['export', '-w', weights_of(hat(), tmp_path), '-o', str(target), '--size', '16x24']) == 2
    assert 'is not written' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['weights.pth'], 'no folder either'


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [(['-o', 'x.pt'], '.onnx'), (['-o', 'x.onnx', '-w', 'absent.pth'], 'absent.pth')],
)
def test_bad_arguments(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = [str(tmp_path / word) if word.startswith('x.') else word for word in arguments]
    assert main(['export', '-w', 'weights.pth', *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_network_without_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hat_plugin import export

    network = export.load_network(weights_of(hat(), tmp_path), device='cpu')
    monkeypatch.setattr(network.net, 'forward', lambda image: image if image.sum() > 0 else -image)
    with pytest.raises(HatPluginError, match=r'weights\.pth.* HAT has no graph .*; give --size HxW'):
        export.export(network)


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from hat_plugin import export

    monkeypatch.setattr(export, 'PACKAGES', ('onnx', 'a_package_of_nobody'))
    assert main(['export', '-w', 'weights.pth', '-o', 'x.onnx']) == 2
    assert 'a_package_of_nobody: not installed; pip install' in capsys.readouterr().err
