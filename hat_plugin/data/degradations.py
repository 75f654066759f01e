"""The second-order degradation of Real-ESRGAN on batches of tensors, on any device, and the pool of training pairs.

Source: X. Wang et al., Real-ESRGAN, 2021, sections 3.1 to 3.4. Random numbers are drawn from the global generators of
python, numpy and torch in the order of BasicSR's RealESRGANModel: with the same seed both give the same LQ.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from basicsr.data.degradations import random_add_gaussian_noise_pt, random_add_poisson_noise_pt
from basicsr.utils import DiffJPEG
from basicsr.utils.img_process_util import filter2D
from torch import Tensor, nn
from torch.nn import functional

from hat_plugin.errors import HatPluginError, OptionsError

_RESIZE_MODES = ('area', 'bilinear', 'bicubic')
_STAGE_KEYS = (
    'resize_prob',
    'resize_range',
    'gaussian_noise_prob',
    'noise_range',
    'poisson_scale_range',
    'gray_noise_prob',
    'jpeg_range',
)


@dataclass(frozen=True)
class Stage:
    """One pass of blur, resize, noise and JPEG.

    Attributes:
        resize_prob: chances of enlarging, reducing and keeping the size.
        resize_range: smallest and largest factor.
        gaussian_noise_prob: chance of Gaussian noise; else Poisson noise.
        noise_range: standard deviations, on the scale of 0 to 255.
        poisson_scale_range: strength of Poisson noise.
        gray_noise_prob: chance that the noise is the same in all channels.
        jpeg_range: qualities.
    """

    resize_prob: list[float]
    resize_range: list[float]
    gaussian_noise_prob: float
    noise_range: list[float]
    poisson_scale_range: list[float]
    gray_noise_prob: float
    jpeg_range: list[float]

    def random_factor(self) -> float:
        """A factor to resize by."""
        direction = random.choices(['up', 'down', 'keep'], self.resize_prob)[0]
        if direction == 'up':
            return float(np.random.uniform(1, self.resize_range[1]))
        if direction == 'down':
            return float(np.random.uniform(self.resize_range[0], 1))
        return 1.0

    def add_noise(self, image: Tensor) -> Tensor:
        """Gaussian or Poisson noise of random strength for each picture; clipped to [0, 1]."""
        rest = {'clip': True, 'rounds': False, 'gray_prob': self.gray_noise_prob}
        if np.random.uniform() < self.gaussian_noise_prob:
            return random_add_gaussian_noise_pt(image, sigma_range=self.noise_range, **rest)
        return random_add_poisson_noise_pt(image, scale_range=self.poisson_scale_range, **rest)


class SecondOrderDegradation(nn.Module):
    """Makes an LQ from a ground truth: two stages, then a sinc filter; the sizes come out as GT / scale.

    Args:
        first: the first stage.
        second: the second stage.
        second_blur_prob: chance that the second stage blurs.
        scale: of the network.
    """

    def __init__(self, first: Stage, second: Stage, *, second_blur_prob: float, scale: int) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.second_blur_prob = second_blur_prob
        self.scale = scale
        self.jpeg = DiffJPEG(differentiable=False)

    @classmethod
    def from_options(cls, opt: Mapping[str, Any]) -> SecondOrderDegradation:
        """Read the published top-level keys: ``resize_prob``, ..., ``second_blur_prob``, ``resize_prob2``, ...

        Raises:
            OptionsError: keys are missing; all are named.
        """
        wanted = [*_STAGE_KEYS, 'second_blur_prob', *(f'{key}2' for key in _STAGE_KEYS), 'scale']
        missing = [f'{key}: missing; the degradation reads it at top level' for key in wanted if opt.get(key) is None]
        if missing:
            raise OptionsError(str(opt.get('name', 'options')), missing)
        first = Stage(**{key: opt[key] for key in _STAGE_KEYS})
        second = Stage(**{key: opt[f'{key}2'] for key in _STAGE_KEYS})
        return cls(first, second, second_blur_prob=opt['second_blur_prob'], scale=int(opt['scale']))

    @torch.no_grad()
    def forward(self, gt: Tensor, kernel1: Tensor, kernel2: Tensor, sinc_kernel: Tensor) -> Tensor:
        """Degrade a batch.

        Args:
            gt: (B, 3, H, W), RGB in [0, 1].
            kernel1: blur of the first stage, (B, 21, 21).
            kernel2: blur of the second stage, (B, 21, 21).
            sinc_kernel: the last filter, (B, 21, 21).

        Returns:
            (B, 3, H // scale, W // scale), rounded to multiples of 1 / 255.
        """
        height, width = gt.shape[-2:]
        image = _blur(gt, kernel1)
        factor = self.first.random_factor()
        image = functional.interpolate(image, scale_factor=factor, mode=random.choice(_RESIZE_MODES))
        image = self._compress(self.first.add_noise(image), self.first)

        if np.random.uniform() < self.second_blur_prob:
            image = _blur(image, kernel2)
        factor = self.second.random_factor()
        size = int(height / self.scale * factor), int(width / self.scale * factor)
        image = functional.interpolate(image, size=size, mode=random.choice(_RESIZE_MODES))
        image = self.second.add_noise(image)

        size = height // self.scale, width // self.scale
        if np.random.uniform() < 0.5:
            image = self._compress(self._sharpen_edges(image, size, sinc_kernel), self.second)
        else:
            image = self._sharpen_edges(self._compress(image, self.second), size, sinc_kernel)
        return (image * 255.0).round().clamp(0, 255) / 255.0

    def _compress(self, image: Tensor, stage: Stage) -> Tensor:
        quality = image.new_zeros(image.shape[0]).uniform_(*stage.jpeg_range)
        return self.jpeg(image.clamp(0, 1), quality=quality)

    @staticmethod
    def _sharpen_edges(image: Tensor, size: tuple[int, int], sinc_kernel: Tensor) -> Tensor:
        """Bring the picture to its final size; the sinc filter leaves ringing as over-sharpening does."""
        image = functional.interpolate(image, size=size, mode=random.choice(_RESIZE_MODES))
        return _blur(image, sinc_kernel)


def _blur(image: Tensor, kernel: Tensor) -> Tensor:
    """BasicSR's filter; its ``view`` fails on the permuted tensors that come out of its JPEG on today's torch."""
    return filter2D(image.contiguous(), kernel)


class PairPool:
    """Mixes pairs of many batches, since all pictures of one batch are resized by the same factors.

    Until it is full a batch comes back as it went in; after that, in exchange for pairs drawn at random.

    Args:
        size: pairs to keep.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._lq = self._gt = torch.empty(0)
        self._filled = 0

    @torch.no_grad()
    def exchange(self, lq: Tensor, gt: Tensor) -> tuple[Tensor, Tensor]:
        """Put a batch in, take one out. Pairs of another size than those in the pool empty it first.

        Raises:
            HatPluginError: the pool holds less than a batch.
        """
        batch = lq.shape[0]
        if self.size < batch:
            raise HatPluginError(f'queue_size: {self.size} is less than the batch of {batch}; choose a multiple of it')
        if self._lq.shape[1:] != lq.shape[1:] or self._gt.shape[1:] != gt.shape[1:]:
            self._lq, self._gt = lq.new_zeros(self.size, *lq.shape[1:]), gt.new_zeros(self.size, *gt.shape[1:])
            self._filled = 0
        if self._filled + batch <= self.size:
            places = slice(self._filled, self._filled + batch)
            self._lq[places], self._gt[places] = lq, gt
            self._filled += batch
            return lq, gt
        # BasicSR shuffles the whole pool and exchanges its beginning; exchanging at random places is the same for less.
        chosen = torch.randperm(self._filled)[:batch].to(lq.device)
        out = self._lq[chosen], self._gt[chosen]
        self._lq[chosen], self._gt[chosen] = lq, gt
        return out

    def state_dict(self) -> dict[str, Tensor]:
        """The pairs, on the CPU."""
        return {'lq': self._lq[: self._filled].cpu(), 'gt': self._gt[: self._filled].cpu()}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Take pairs back; those beyond this pool's size are left out."""
        kept = [state[key][: self.size].to(device) for key in ('lq', 'gt')]
        self._filled = kept[0].shape[0]
        rest = self.size - self._filled
        self._lq, self._gt = (torch.cat([pairs, pairs.new_zeros(rest, *pairs.shape[1:])]) for pairs in kept)
