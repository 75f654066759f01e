"""Restoring where memory runs out for real: the process has a limit, and its allocators fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import pytest

LIMITED = """
import resource, sys
import torch
from hat_plugin.restore import load_network, plan_jobs, restore_files

weights, source, target, megabytes = sys.argv[1:]
torch.set_num_threads(1)
network = load_network(weights, device='cpu')
jobs = plan_jobs(source, target)
held = next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmData')) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + int(megabytes) * 2**20,) * 2)
summary = restore_files(network, jobs)
print('WRITTEN', *sorted(path.name for path in summary.written))
print('FAILED', *sorted(path.name for path, _ in summary.failures))
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='limits memory as Linux does')
@pytest.mark.parametrize('megabytes', [40])
def test_a_picture_shrinks_its_tiles_or_fails_alone(
    tmp_path: Path, photos, hungry_weights: Path, megabytes: int
) -> None:
    """Neither a crash nor a traceback: each picture is written, in smaller tiles if need be, or named."""
    folder = tmp_path / 'in'
    folder.mkdir()
    for name, height, width in (('a', 24, 24), ('b', 200, 260), ('c', 30, 20)):
        cv2.imwrite(str(folder / f'{name}.png'), photos.small('coffee', height, width, left=20))
    command = [sys.executable, '-c', LIMITED, hungry_weights, folder, tmp_path / 'out', megabytes]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written, failed = (set(line.split()[1:]) for line in done.stdout.splitlines())
    assert written | failed == {'a.png', 'b.png', 'c.png'}
    assert 'out of memory with tiles' in done.stderr
    assert {path.name for path in (tmp_path / 'out').glob('*')} == written
