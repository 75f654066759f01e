"""Memory estimates against arithmetic by hand and against what processes really take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hat_plugin.engine import machine, memory
from hat_plugin.engine.memory import available_bytes, estimate_forward_bytes, estimate_training_bytes

MEGA = 1_000_000


class Chain(nn.Module):
    """Five elementwise steps: at most two results are alive at once, besides the input."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(5):
            x = x + 1
        return x


def small_hat() -> nn.Module:
    from hat_plugin.archs.hat_arch import HAT

    return HAT(
        upscale=2, in_chans=3, embed_dim=48, depths=(2, 2), num_heads=(4, 4), window_size=8, compress_ratio=4,
        squeeze_factor=8, overlap_ratio=0.5, mlp_ratio=2, upsampler='pixelshuffle',
    )  # fmt: skip


def test_live_bytes_are_counted_to_the_byte() -> None:
    bytes_of_one = 1 * 3 * 100 * 100 * 4
    assert estimate_forward_bytes(Chain(), (1, 3, 100, 100)) == 3 * bytes_of_one  # the caller holds the input
    assert estimate_forward_bytes(nn.Linear(100, 7), (5, 100)) == (5 * 100 + 5 * 7) * 4
    assert estimate_forward_bytes(nn.Conv2d(3, 8, 3, padding=1), (1, 3, 10, 10)) == (3 + 8 + 8) * 100 * 4
    assert estimate_forward_bytes(nn.Flatten(), (1, 3, 10, 10)) == 1200, 'a view takes nothing'


def test_dtype_autocast_and_batch_are_reckoned_with() -> None:
    net = small_hat()
    single = estimate_forward_bytes(net, (1, 3, 32, 32))
    assert 1.7 * single < estimate_forward_bytes(net, (2, 3, 32, 32)) < 2.1 * single
    assert estimate_forward_bytes(net.bfloat16(), (1, 3, 32, 32), torch.bfloat16) < 0.75 * single


def test_neither_memory_nor_arithmetic_nor_the_network_is_touched() -> None:
    net = small_hat()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.train()
    assert estimate_forward_bytes(net, (1, 3, 4096, 4096)) > 10_000 * MEGA
    assert net.training and all(parameter.grad is None for parameter in net.parameters())
    torch.testing.assert_close(net.state_dict(), before)
    assert net(torch.rand(1, 3, 16, 16)).shape == (1, 3, 32, 32)
    with torch.device('meta'):
        weightless = small_hat()
    assert estimate_forward_bytes(weightless, (1, 3, 32, 32)) == estimate_forward_bytes(net, (1, 3, 32, 32))


def test_training_holds_weights_gradients_and_states() -> None:
    net = nn.Linear(1000, 1000, bias=False)
    weights = 4 * MEGA
    # In the step: gradients and two temporaries, beside weights, EMA and two states.
    assert estimate_training_bytes(net, (1, 1000)) == 7 * weights
    assert estimate_training_bytes(net, (1, 1000), optimizer_states=0, ema=False) == 4 * weights
    with pytest.raises(ValueError, match='fp8'):
        estimate_training_bytes(net, (1, 1000), 'fp8')


def test_training_takes_more_than_forward_and_less_with_bf16_or_checkpoints() -> None:
    net, shape = small_hat(), (2, 3, 32, 32)
    full = estimate_training_bytes(net, shape)
    assert full > 3 * estimate_forward_bytes(net, shape)
    assert estimate_training_bytes(net, shape, 'bf16') < full


MEASURE = """
import torch
torch.set_num_threads(1)
from tests_net import small_hat
from hat_plugin.engine.memory import estimate_forward_bytes, estimate_training_bytes

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith(name))

net = small_hat()
for side, training in (80, False), (160, False), (48, True):
    if training:
        expected = estimate_training_bytes(net, (1, 3, side, side), optimizer_states=0, ema=False)
        expected -= sum(parameter.nbytes for parameter in net.parameters())
    else:
        expected = estimate_forward_bytes(net, (1, 3, side, side))
    image = torch.rand(1, 3, side, side)
    with torch.set_grad_enabled(training):
        net(torch.rand(1, 3, 8, 8))
        open('/proc/self/clear_refs', 'w').write('5')
        before = status('VmRSS')
        output = net(image)
        if training:
            output.mean().backward()
    print(status('VmHWM') - before, expected)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_a_process_takes_what_was_estimated(tmp_path: Path, repository: Path) -> None:
    if not os.access('/proc/self/clear_refs', os.W_OK):
        pytest.skip('the peak of resident memory cannot be reset here')
    source = Path(__file__).read_text(encoding='utf-8')
    network = source[source.index('def small_hat') : source.index('def test_live_bytes')]
    (tmp_path / 'tests_net.py').write_text('from torch import nn\n' + network)
    environment = {**os.environ, 'PYTHONPATH': f'{repository}{os.pathsep}{tmp_path}', 'MALLOC_MMAP_THRESHOLD_': '65536'}
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', MEASURE], capture_output=True, text=True, timeout=200, env=environment
    )
    assert done.returncode == 0, done.stderr
    pairs = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(pairs) == 3
    for measured, expected in pairs:
        assert expected / 2 < measured < expected * 2, f'{measured / MEGA:.0f} MB against {expected / MEGA:.0f} MB'


def test_available_bytes_of_this_machine() -> None:
    assert 10 * MEGA < available_bytes('cpu') < 2**50


@pytest.mark.parametrize(
    ('membership', 'folder', 'limit', 'usage', 'kept'),
    [
        ('0::/a/b\n', 'a', 'memory.max', 'memory.current', 'inactive_file 100\n'),
        ('4:memory:/a/b\n0::/\n', 'memory/a', 'memory.limit_in_bytes', 'memory.usage_in_bytes', 'inactive_file 100\n'),
        ('9:cpu,memory:/gone\n', 'memory', 'memory.limit_in_bytes', 'memory.usage_in_bytes', 'inactive_file 100\n'),
    ],
)
def test_limits_of_control_groups(
    membership: str, folder: str, limit: str, usage: str, kept: str, tmp_path: Path
) -> None:
    group = tmp_path / 'cgroup' / folder
    group.mkdir(parents=True)
    (group / limit).write_text('5000\n')
    (group / usage).write_text('3000\n')
    (group / 'memory.stat').write_text(f'anon 1\n{kept}')
    (tmp_path / 'membership').write_text(membership)
    assert machine._control_group_bytes(tmp_path / 'cgroup', tmp_path / 'membership') == [2100]
    (group / limit).write_text('max\n' if limit == 'memory.max' else str(2**63 - 4096))
    assert machine._control_group_bytes(tmp_path / 'cgroup', tmp_path / 'membership') == []


def test_the_largest_tile_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_hat()
    settings = {'multiple': 8, 'dtype': torch.float32, 'device': torch.device('cpu'), 'smallest': 32}

    def tile(available: int, **others: int) -> int:
        monkeypatch.setattr(memory, 'available_bytes', lambda device: available)
        return memory.largest_fitting_tile(net, (1, 3, 300, 500), **settings, **others)

    plenty, some = tile(10**10), tile(60 * MEGA)
    assert plenty == 500
    assert 32 < some < 300 and some % 8 == 0
    assert tile(60 * MEGA, reserve=15 * MEGA) < some
    assert tile(1000) == 32
    planned = estimate_forward_bytes(net, (1, 3, some, some))
    assert 0.8 * planned < 60 * MEGA * memory.USABLE_SHARE['cpu'] < 1.3 * planned


def test_pixels_between_two_squares() -> None:
    """300x500 pixels lie between squares of 256 and 512 pixels; of bytes in proportion to pixels none are wasted."""

    def pixels(budget: float) -> float:
        return memory._fitting_pixels(lambda side: 7 * side * side, 8, 300 * 500, budget)

    assert pixels(7 * 512 * 512) == 300 * 500
    assert pixels(7 * 300 * 500) == pytest.approx(300 * 500)
    assert pixels(7 * 1000) == pytest.approx(1000)
    assert pixels(7 * 60) == 0


def test_a_network_that_cannot_be_walked_through_is_tried_whole() -> None:
    class LooksAtValues(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() > 0 else -x

    side = memory.largest_fitting_tile(
        LooksAtValues(), (1, 3, 64, 64), multiple=8, dtype=torch.float32, device=torch.device('cpu'), smallest=32
    )
    assert side == 64
