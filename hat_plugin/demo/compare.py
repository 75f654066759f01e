"""The trained network against bicubic on the held-out photographs: figures, pictures, table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hat_plugin.compare import panels
from hat_plugin.data.bicubic import imresize
from hat_plugin.data.images import read_image
from hat_plugin.demo.photos import HELD_OUT, HeldOut
from hat_plugin.engine.files import write_text_atomic
from hat_plugin.restore.images import write_image
from hat_plugin.restore.network import Network
from hat_plugin.restore.pipeline import restore_image

PROTOCOL = 'PSNR in dB / SSIM on Y (BT.601) of RGB uint8, border 4, LR by MATLAB bicubic x4'
SCALE = 4


@dataclass(frozen=True)
class Score:
    """PSNR in dB and SSIM."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class Comparison:
    """One held-out photograph.

    Attributes:
        photo: which.
        truth, low, bicubic, restored: (H, W, 3), RGB, uint8; `low` at 1/4 of the size.
        by_bicubic, by_hat: the scores of `bicubic` and `restored`.
    """

    photo: HeldOut
    truth: np.ndarray
    low: np.ndarray
    bicubic: np.ndarray
    restored: np.ndarray
    by_bicubic: Score
    by_hat: Score

    @property
    def gain(self) -> float:
        """By how many dB HAT is above bicubic."""
        return self.by_hat.psnr - self.by_bicubic.psnr


def score(image: np.ndarray, truth: np.ndarray) -> Score:
    """BasicSR's PSNR and SSIM of an image (H, W, 3), RGB, uint8."""
    from basicsr.metrics import calculate_psnr, calculate_ssim

    pair, protocol = (image[..., ::-1], truth[..., ::-1]), {'crop_border': SCALE, 'test_y_channel': True}
    return Score(float(calculate_psnr(*pair, **protocol)), float(calculate_ssim(*pair, **protocol)))


def compare(network: Network, held_out: Path, restored: Path) -> list[Comparison]:
    """Restore each held-out photograph from its low resolution, and measure it.

    Args:
        network: the trained one.
        held_out: folder with GTmod4 and LRbicx4, as `basicsr prepare benchmark` makes it.
        restored: folder to write the restored photographs to.
    """
    restored.mkdir(parents=True, exist_ok=True)
    comparisons = []
    for photo in HELD_OUT:
        truth = read_image(held_out / f'GTmod{SCALE}' / f'{photo.name}.png')
        low = read_image(held_out / f'LRbicx{SCALE}' / f'{photo.name}.png')
        bicubic, by_hat = imresize(low, SCALE), restore_image(network, low)
        write_image(restored / f'{photo.name}.png', by_hat)
        comparisons.append(Comparison(photo, truth, low, bicubic, by_hat, score(bicubic, truth), score(by_hat, truth)))
    return comparisons


def table(comparisons: list[Comparison]) -> list[str]:
    """A Markdown table that is aligned, so that it reads on a terminal too."""
    rows = [['photo', 'bicubic', 'HAT', 'gain in dB'], ['-' * 12, '-' * 14, '-' * 14, '-' * 10]]
    scores = [(item.photo.name, item.by_bicubic, item.by_hat) for item in comparisons]
    mean = [
        Score(float(np.mean([one.psnr for one in column])), float(np.mean([one.ssim for one in column])))
        for column in ([item.by_bicubic for item in comparisons], [item.by_hat for item in comparisons])
    ]
    for name, bicubic, hat in [*scores, ('mean', mean[0], mean[1])]:
        pair = [f'{one.psnr:.2f} / {one.ssim:.4f}' for one in (bicubic, hat)]
        rows.append([name, *pair, f'{hat.psnr - bicubic.psnr:+.2f}'])
    return ['| {:<12} | {:>14} | {:>14} | {:>10} |'.format(*row) for row in rows]


def write_results(folder: Path, comparisons: list[Comparison], title: str) -> None:
    """Write ``comparison.png`` and ``comparison.md``."""
    panels.draw(folder / 'comparison.png', title, [_panels(item) for item in comparisons])
    write_text_atomic(folder / 'comparison.md', '\n'.join([f'{title}. {PROTOCOL}.', '', *table(comparisons), '']))


def _panels(item: Comparison) -> list[panels.Panel]:
    """A row of the picture."""
    place = panels.corner(item.truth, item.photo.top, item.photo.left, SCALE)
    low = f'{item.low.shape[1]}x{item.low.shape[0]} pixels'
    size = f'{item.truth.shape[1]}x{item.truth.shape[0]} pixels'
    return [
        panels.Panel(item.photo.name, 'not in the training set', panels.overview(item.truth, *place)),
        panels.Panel('Low resolution', low, panels.crop(item.low, *place, SCALE)),
        panels.Panel('Bicubic', f'{item.by_bicubic.psnr:.2f} dB', panels.crop(item.bicubic, *place)),
        panels.Panel('HAT', f'{item.by_hat.psnr:.2f} dB ({item.gain:+.2f})', panels.crop(item.restored, *place)),
        panels.Panel('Ground truth', size, panels.crop(item.truth, *place)),
    ]
