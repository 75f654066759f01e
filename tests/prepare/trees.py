"""What the tests of `basicsr prepare` share besides fixtures."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

SMALL = ('--sub-size', '48', '--sub-step', '24', '--min-size', '24', '--workers', '1')
"""Arguments that suit pictures of about 100 pixels."""


def save(path: Path, image: np.ndarray) -> Path:
    """Write an image (BGR) and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path
