"""Weights files of all common forms are read; broken and dangerous ones are refused; writes are whole or not at all."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hat_plugin.engine.checkpoint import load_into, load_weights, numbered_states, read_torch_file, save_torch_file
from hat_plugin.engine.files import atomic_file
from hat_plugin.errors import CheckpointError


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 3))


def wrapped(state_dict: dict) -> dict:
    return {f'module.{key}': value for key, value in state_dict.items()}


@pytest.mark.parametrize(
    ('form', 'key'),
    [
        (lambda sd: {'params': wrapped(sd), 'params_ema': sd}, 'params_ema'),
        (lambda sd: {'params': sd}, 'params'),
        (lambda sd: sd, None),
        (wrapped, None),
        (lambda sd: {'epoch': 3, 'state_dict': sd}, 'state_dict'),
        (lambda sd: {'anything': {f'module._orig_mod.{k}': v for k, v in sd.items()}}, 'anything'),
    ],
)
def test_forms_of_weights_files(tmp_path, net, form, key):
    expected = net.state_dict()
    torch.save(form(expected), tmp_path / 'w.pth')
    weights = load_weights(tmp_path / 'w.pth')
    assert weights.key == key
    assert list(weights.state_dict) == list(expected)
    other = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 3))
    assert load_into(other, weights) == []
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())


def test_the_wanted_key_goes_first(tmp_path, net):
    torch.save({'params': net.state_dict(), 'params_ema': net.state_dict()}, tmp_path / 'w.pth')
    assert load_weights(tmp_path / 'w.pth', 'params').key == 'params'
    assert load_weights(tmp_path / 'w.pth', 'absent').key == 'params_ema'


def test_safetensors(tmp_path, net):
    save_file(net.state_dict(), tmp_path / 'w.safetensors')
    assert load_into(net, load_weights(tmp_path / 'w.safetensors')) == []
    (tmp_path / 'w.safetensors').write_bytes(b'no')
    with pytest.raises(CheckpointError, match='safetensors'):
        load_weights(tmp_path / 'w.safetensors')


class Evil:
    def __reduce__(self):
        return os.system, ('touch evil_ran',)


def test_code_in_a_weights_file_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'params': Evil()}, 'evil.pth')
    (tmp_path / 'plain.pth').write_bytes(pickle.dumps(Evil()))
    for name in ('evil.pth', 'plain.pth'):
        with pytest.raises(CheckpointError, match=name):
            load_weights(name)
    assert not (tmp_path / 'evil_ran').exists()


@pytest.mark.parametrize('size', [0, 10, 0.5, 0.99])
def test_truncated_files_are_named(tmp_path, net, size):
    file = tmp_path / 'w.pth'
    torch.save({'params': net.state_dict()}, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: size if isinstance(size, int) else int(len(whole) * size)])
    with pytest.raises(CheckpointError, match=r'w\.pth'):
        load_weights(file)


@pytest.mark.parametrize(
    'content', [b'<!DOCTYPE html><html>not found</html>', b'version https://git-lfs.github.com/spec']
)
def test_a_web_page_in_the_place_of_weights_is_called_so(tmp_path, content):
    (tmp_path / 'HAT.pth').write_bytes(content)
    with pytest.raises(CheckpointError, match='not a PyTorch file.*download it again'):
        load_weights(tmp_path / 'HAT.pth')


def test_a_mismatch_lists_the_shapes_and_changes_nothing(tmp_path, net):
    torch.save(net.state_dict(), tmp_path / 'w.pth')
    other = nn.Sequential(nn.Conv2d(1, 2, 5), nn.Conv2d(2, 1, 3), nn.Conv2d(1, 1, 1))
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_into(other, load_weights(tmp_path / 'w.pth'))
    text = str(error.value)
    assert '0.weight: (2, 1, 3, 3) in the file, (2, 1, 5, 5) in the network' in text
    assert '2.bias: not in the file' in text
    assert 'strict_load_g: false' in text
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
    left_out = load_into(other, load_weights(tmp_path / 'w.pth'), strict=False)
    assert len(left_out) == 3
    assert torch.equal(other[1].weight, net[1].weight)


def test_nothing_that_fits_is_an_error_even_when_not_strict(tmp_path, net):
    torch.save({'x.weight': torch.ones(1)}, tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match='0 of 4'):
        load_into(net, load_weights(tmp_path / 'w.pth'), strict=False)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / 'a.bin'
    file.write_bytes(b'old')

    def fail() -> None:
        with atomic_file(file) as aside:
            aside.write_bytes(b'half')
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert file.read_bytes() == b'old'
    assert [path.name for path in tmp_path.iterdir()] == ['a.bin']


FULL_DISK = """
import resource, signal, sys, torch
from hat_plugin.engine.checkpoint import save_torch_file
from hat_plugin.errors import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_torch_file(sys.argv[1], {'params': torch.zeros(100_000)})
except CheckpointError as error:
    print('REFUSED', error)
"""


@pytest.mark.skipif(not hasattr(resource, 'RLIMIT_FSIZE'), reason='needs RLIMIT_FSIZE')
def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path):
    file = tmp_path / 'net_g_1.pth'
    save_torch_file(file, {'params': torch.ones(3)})
    result = subprocess.run([sys.executable, '-c', FULL_DISK, str(file)], capture_output=True, text=True, check=True)
    assert 'REFUSED' in result.stdout
    assert str(file) in result.stdout
    assert torch.equal(read_torch_file(file)['params'], torch.ones(3))
    assert [path.name for path in tmp_path.iterdir()] == ['net_g_1.pth']


def test_states_come_newest_first_and_others_are_passed_over(tmp_path):
    for name in ('5.state', '40.state', '100.state', 'latest.state', '7.pth', '.100.state.tmp'):
        (tmp_path / name).touch()
    assert [iteration for iteration, _ in numbered_states(tmp_path)] == [100, 40, 5]
