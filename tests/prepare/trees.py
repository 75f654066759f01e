"""What the tests of `basicsr prepare` share besides fixtures."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from hat_plugin.data.lmdb_io import LmdbReader

SMALL = ('--sub-size', '48', '--sub-step', '24', '--min-size', '24', '--workers', '1')
"""Arguments that suit pictures of about 100 pixels."""


def save(path: Path, image: np.ndarray) -> Path:
    """Write an image (BGR) and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def contents(folder):
    """All that was prepared, whatever the database's own pages look like."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith('.lmdb'):
            reader = LmdbReader(path)
            found[path.name] = {key: reader.read(key) for key in reader}, (path / 'meta_info.txt').read_text()
        elif path.is_dir():
            found[path.name] = {file.name: file.read_bytes() for file in sorted(path.iterdir())}
        elif path.suffix == '.txt':
            found[path.name] = path.read_text()
        elif path.suffix == '.json':
            found[path.name] = json.loads(path.read_text())['outputs']
    return found


def own_process(*arguments: object) -> list[str]:
    """`basicsr ...` as a command line for a process of its own, to be killed.

    It commits after every picture, so that a kill comes upon half a database, and says when the imports are over.
    """
    script = (
        'import sys, hat_plugin.data.lmdb_writer as w; w._BATCH_BYTES = 1\n'
        'from hat_plugin.cli import main; import hat_plugin.prepare.command\n'
        'print("begun", flush=True); sys.exit(main(sys.argv[1:]))'
    )
    return [sys.executable, '-c', script, *map(str, arguments)]


def run_and_kill(command: list[str], journal: Path, size: int) -> None:
    """Start a command of `own_process` and kill it as soon as a writer's journal has more than so many bytes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b'begun\n'
    while process.poll() is None:
        if journal.exists() and journal.stat().st_size > size:
            process.kill()
        time.sleep(0.001)
    assert process.returncode == -9


def pair_of(image: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A noisy version of a photograph, and the photograph."""
    noise = np.random.default_rng(seed).normal(0, 12, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), image


def assert_pairs_are_read(folder: Path, gt: str, lq: str, count: int, patch: int = 32) -> None:
    """PairedCropDataset reads the pairs in training and validation, and BasicSR's own where it can."""
    import torch

    from hat_plugin.data.paired_crop_dataset import PairedCropDataset

    backend = 'lmdb' if gt.endswith('.lmdb') else 'disk'
    options = {
        'dataroot_gt': str(folder / gt),
        'dataroot_lq': str(folder / lq),
        'io_backend': {'type': backend},
        'scale': 1,
    }
    training = PairedCropDataset({**options, 'phase': 'train', 'gt_size': patch, 'use_hflip': True, 'use_rot': True})
    validation = PairedCropDataset({**options, 'phase': 'val'})
    assert len(training) == len(validation) == count
    sample = training[0]
    assert sample['lq'].shape == sample['gt'].shape == (3, patch, patch)
    # The same place, turned alike: noise of a few levels is all that tells them apart.
    assert 0 < torch.mean(torch.abs(sample['lq'] - sample['gt'])) < 0.08
    whole = validation[count - 1]
    assert whole['lq'].shape == whole['gt'].shape
