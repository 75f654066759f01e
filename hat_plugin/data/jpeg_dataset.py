"""Clean pictures and the same as JPEG: JPEGDataset."""

from __future__ import annotations

from typing import Any, ClassVar

import cv2
import numpy as np
from basicsr.utils.color_util import rgb2ycbcr
from pydantic import Field, ValidationInfo, field_validator

from hat_plugin.data.degraded_dataset import Bounds, DegradedDataset, DegradedOptions, check_bounds
from hat_plugin.data.images import convert_channels
from hat_plugin.data.sources import Picture
from hat_plugin.engine.options import LoaderOptions
from hat_plugin.errors import DataError

BLOCK = 8


class JPEGOptions(DegradedOptions):
    """Options of JPEGDataset."""

    quality: Bounds = Field(description='of the JPEG, 1 (worst) to 100; training also takes [low, high]')

    @field_validator('quality')
    @classmethod
    def _qualities(cls, value: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        check_bounds(value, info, 1, 100)
        if not all(end.is_integer() for end in value):
            raise ValueError('whole numbers are wanted')
        return value


class JPEGDataset(DegradedDataset):
    """Clean pictures as the ground truth; as the LQ what is left of them after JPEG compression.

    The codec is OpenCV's libjpeg with its defaults, as in SwinIR's test: baseline, and for colour 4:2:0, chroma at half
    the resolution. Pictures have 8 bits. In training ``quality: [low, high]`` draws a whole number for each patch,
    uniformly. JPEG works in blocks of 8x8, which begin at the corner of half of the patches, as of whole pictures; in
    the other half they begin anywhere, as in the tiles of a picture. Validation and test compress the whole picture.

    ``gray: true`` takes MATLAB's Y (BT.601, 16 to 235, rounded) of colour pictures, as SwinIR's test does for LIVE1;
    pictures that are stored gray stay as they are (Classic5).

    Args:
        opt: the data set's block; see JPEGOptions.

    Raises:
        OptionsError: a key is unknown or wrong.
        DataError: the folder or a listed picture is missing.
    """

    OPTIONS: ClassVar[type[LoaderOptions]] = JPEGOptions
    GRAY_CHANNELS = None
    options: JPEGOptions

    def clean(self, pixels: np.ndarray, name: str) -> np.ndarray:
        """The pixels, gray where that is wanted.

        Raises:
            DataError: they have 16 bits, or transparency.
        """
        place = self.source.place(name)
        if pixels.dtype != np.uint8:
            raise DataError(f'{place}: has {pixels.dtype} pixels, JPEG has 8 bits; convert it to 8 bits')
        if not self.options.gray or pixels.shape[2] == 1:
            return pixels
        if pixels.shape[2] == 4:
            pixels = convert_channels(pixels[..., [2, 1, 0, 3]], 3, self.options.alpha, place)
        return np.asarray(rgb2ycbcr(pixels, y_only=True))[..., None]

    def degrade(self, clean: np.ndarray, random: np.random.RandomState) -> np.ndarray:
        """The picture, compressed, uint8."""
        low, high = (int(end) for end in self.options.quality)
        return compressed(clean, low if low == high else int(random.randint(low, high + 1)))

    def training_pair(
        self, picture: Picture, name: str, random: np.random.RandomState
    ) -> tuple[np.ndarray, np.ndarray]:
        """Patches whose blocks begin at the corner, or anywhere: those are cut from a larger one after compression."""
        side = self.gt_size
        larger = max(side, min(side + BLOCK - 1, *picture.size))
        if larger == side or random.random_sample() < 0.5:
            return super().training_pair(picture, name, random)
        gt = self.clean(self.patch(picture, name, larger), name)
        lq = self.degrade(gt, random)
        top, left = random.randint(larger - side + 1, size=2)
        place = np.s_[top : top + side, left : left + side]
        return lq[place], gt[place]


def compressed(image: np.ndarray, quality: int) -> np.ndarray:
    """A picture, (H, W, 1) or RGB (H, W, 3), uint8, encoded as JPEG and decoded, of the same shape."""
    gray = image.shape[2] == 1
    stored = np.ascontiguousarray(image if gray else image[..., ::-1])
    _, content = cv2.imencode('.jpg', stored, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded: Any = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR)
    return decoded[..., None] if gray else decoded[..., ::-1]
