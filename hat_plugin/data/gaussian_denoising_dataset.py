"""Clean pictures and white Gaussian noise: GaussianDenoisingDataset."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from hat_plugin.data.degraded_dataset import Bounds, DegradedDataset, DegradedOptions, check_bounds
from hat_plugin.engine.options import LoaderOptions


class GaussianDenoisingOptions(DegradedOptions):
    """Options of GaussianDenoisingDataset."""

    sigma: Bounds = Field(
        description='standard deviation of the noise in units of 1 / 255, 25 say; training also takes [low, high]'
    )

    @field_validator('sigma')
    @classmethod
    def _levels(cls, value: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        check_bounds(value, info, 0, 255)
        return value


class GaussianDenoisingDataset(DegradedDataset):
    """Clean pictures as the ground truth; as the LQ the same with white Gaussian noise, neither clipped nor rounded.

    The sum is rounded once, to float32. In training ``sigma: [low, high]`` draws a level for each patch, uniformly. In
    validation and test the noise of each picture is numpy's after ``np.random.seed(0)``,
    ``np.random.normal(0, sigma / 255, (H, W, C))``, added to RGB, as Restormer's tests do; SwinIR's test adds the same
    numbers to BGR. ``gray: true`` takes ``cv2.cvtColor``'s gray (BT.601 without offset) of colour pictures; both tests
    let ``cv2.imread`` make it, which for PNGs differs by 1 / 255 here and there. Stored gray is the same for all.

    Args:
        opt: the data set's block; see GaussianDenoisingOptions.

    Raises:
        OptionsError: a key is unknown or wrong.
        DataError: the folder or a listed picture is missing.
    """

    OPTIONS: ClassVar[type[LoaderOptions]] = GaussianDenoisingOptions
    options: GaussianDenoisingOptions

    def degrade(self, clean: np.ndarray, random: np.random.RandomState) -> np.ndarray:
        """The picture with noise, float32, in about [0, 1]."""
        sigma = self.sigma(random)
        values = clean.astype(np.float32) / np.float32(np.iinfo(clean.dtype).max)
        return (values + random.normal(0, sigma / 255, clean.shape)).astype(np.float32)

    def sigma(self, random: np.random.RandomState) -> float:
        """The noise level of a picture; a fixed one takes no random number, on which the published noise depends."""
        low, high = self.options.sigma
        return low if low == high else random.uniform(low, high)
