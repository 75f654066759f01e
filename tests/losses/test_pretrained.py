"""LPIPS as a loss, and the errors where packages or weights are missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from basicsr.losses import build_loss

from hat_plugin.errors import HatPluginError
from hat_plugin.losses.pretrained import load_lpips, missing_weights


@pytest.fixture
def random_trunk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package lpips, whose trunks get random weights here in the place of downloaded ones."""
    package = pytest.importorskip('lpips')
    original = package.LPIPS

    def build(net: str, verbose: bool) -> torch.nn.Module:
        torch.manual_seed(0)
        return original(net=net, verbose=verbose, pnet_rand=True)

    monkeypatch.setattr(package, 'LPIPS', build)
    return package


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No download, and an empty folder of torchvision's weights, which is given."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise URLError('no network')

    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', refuse)
    return tmp_path / 'hub' / 'checkpoints'


def test_lpips_loss_is_the_packages(random_trunk: Any) -> None:
    first, second = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for net in ('vgg', 'alex'):
        loss = build_loss({'type': 'LPIPSLoss', 'net': net, 'reduction': 'none', 'loss_weight': 2.0})
        expected = random_trunk.LPIPS(net=net, verbose=False)(2 * first - 1, 2 * second - 1)
        torch.testing.assert_close(loss(first, second), 2 * expected)
    assert build_loss({'type': 'LPIPSLoss'}).network.pnet_type == 'vgg'


def test_lpips_loss_is_frozen_has_a_gradient_and_never_drops_features(random_trunk: Any) -> None:
    loss = build_loss({'type': 'LPIPSLoss', 'net': 'alex'}).train()
    first, second = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert loss(first, second) == loss(first, second)
    loss(first.requires_grad_(), second).backward()
    assert first.grad is not None
    assert 0 < first.grad.abs().sum() < float('inf')
    same = second.clone().requires_grad_()
    loss(same, second).backward()
    assert same.grad is not None
    assert torch.isfinite(same.grad).all()


def test_what_lpips_refuses(random_trunk: Any) -> None:
    with pytest.raises(ValueError, match="net: 'vgg19': one of alex, vgg, squeeze"):
        build_loss({'type': 'LPIPSLoss', 'net': 'vgg19'})
    with pytest.raises(ValueError, match='RGB pictures are wanted, these have 1 channels'):
        build_loss({'type': 'LPIPSLoss', 'net': 'alex'})(*torch.rand(2, 1, 1, 64, 64))


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'lpips', None)
    with pytest.raises(HatPluginError, match=r'LPIPS needs the package lpips .*`pip install lpips`'):
        build_loss({'type': 'LPIPSLoss'})


@pytest.mark.parametrize(
    ('net', 'file'),
    [('alex', 'alexnet-owt-7be5be79.pth'), ('vgg', 'vgg16-397923af.pth'), ('squeeze', 'squeezenet1_1-b8a52dc0.pth')],
)
def test_without_weights_the_file_and_its_place_are_named(no_network: Path, net: str, file: str) -> None:
    pytest.importorskip('lpips')
    with pytest.raises(HatPluginError, match='no network') as caught:
        load_lpips(net)
    assert f'Put https://download.pytorch.org/models/{file} under {no_network / file}' in str(caught.value)


def test_the_perceptual_loss_looks_where_its_error_says(no_network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BasicSR's own, as it is: with a file of that name in that place it needs no network."""
    import torchvision

    from hat_plugin.losses.pretrained import VGG19_FILE

    monkeypatch.chdir(no_network.parent.parent)
    section = {'type': 'PerceptualLoss', 'layer_weights': {'conv1_2': 1.0}, 'style_weight': 0.5}
    with pytest.raises(URLError):
        build_loss(dict(section))
    VGG19_FILE.parent.mkdir(parents=True)
    torch.save(torchvision.models.vgg19().state_dict(), VGG19_FILE)
    first, second = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for term in build_loss(dict(section))(first.requires_grad_(), second):
        assert term.item() > 0
        assert torch.isfinite(torch.autograd.grad(term, first, retain_graph=True)[0]).all()


def test_files_of_other_vggs_go_to_torchvisions_folder(no_network: Path) -> None:
    message = str(missing_weights('vgg16', URLError('no network')))
    assert f'vgg16-397923af.pth under {no_network}' in message
    assert 'vgg19-dcbb9e9d.pth under ' in str(missing_weights('vgg19', URLError('no network'), Path('here')))


def test_gan_loss_works_as_it_is() -> None:
    logits = torch.zeros(1, 1, 4, 4).requires_grad_()
    loss = build_loss({'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1})
    assert loss(logits, True, is_disc=False).item() == pytest.approx(0.1 * 0.693147, rel=1e-5)
    assert loss(logits, True, is_disc=True).item() == pytest.approx(0.693147, rel=1e-5)
