"""PSNR and SSIM of bicubic on a prepared test set: the figures to see before any network is believed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from basicsr.metrics import calculate_psnr, calculate_ssim

from hat_plugin.data.bicubic import imresize
from hat_plugin.data.images import read_image
from hat_plugin.engine.progress import progress
from hat_plugin.engine.workers import worker_pool
from hat_plugin.prepare.sources import pictures_in

PROTOCOL = 'PSNR/SSIM on Y (BT.601) of RGB uint8, border = scale, mean over the images, gray read as RGB'


def bicubic_scores(gt: Path, lr: Path, scale: int, workers: int) -> dict[str, float]:
    """Enlarge the low-resolution images by bicubic and compare them with the ground truth.

    Args:
        gt, lr: folders of images of the same names.
        scale: their ratio.
        workers: processes.

    Returns:
        psnr in dB, ssim, and the count of images.
    """
    tasks = [(path, lr / path.name, scale) for path in pictures_in(gt).values()]
    with worker_pool(workers) as mapper:
        description = f'bicubic {gt.parent.name} x{scale}'
        scores = list(progress(mapper(_score, tasks), total=len(tasks), description=description))
    psnr, ssim = np.mean(scores, axis=0)
    return {'psnr': float(psnr), 'ssim': float(ssim), 'count': len(scores)}


def _score(task: tuple[Path, Path, int]) -> tuple[float, float]:
    gt, lr, scale = task
    truth, low = (_eight_bit(read_image(path, channels=3, name=str(path)))[..., ::-1] for path in (gt, lr))
    enlarged = imresize(np.ascontiguousarray(low), scale)
    arguments = {'crop_border': scale, 'test_y_channel': True}
    return calculate_psnr(enlarged, truth, **arguments), calculate_ssim(enlarged, truth, **arguments)


def _eight_bit(image: np.ndarray) -> np.ndarray:
    return image if image.dtype == np.uint8 else np.floor(image / 257 + 0.5).astype(np.uint8)
