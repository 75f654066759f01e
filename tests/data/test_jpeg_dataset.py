"""JPEGDataset: equal to the codec called directly; qualities, gray, where the blocks begin."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from hat_plugin.data.build import build_dataset
from hat_plugin.data.jpeg_dataset import compressed
from hat_plugin.errors import DataError

from .conftest import Pairs, write_pair


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same draws each time."""
    random.seed(1)
    np.random.seed(1)


def jpeg(pairs: Pairs, **changes: Any) -> dict[str, Any]:
    """A block of the pairs' ground truth as JPEG."""
    block = pairs.options('JPEGDataset', scale=1, **{'quality': 20, **changes})
    del block['dataroot_lq']
    return block


def pixels(tensor: torch.Tensor) -> np.ndarray:
    """(H, W, C), uint8."""
    return (tensor * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def by_opencv(bgr_or_gray: np.ndarray, quality: int) -> np.ndarray:
    _, content = cv2.imencode('.jpg', bgr_or_gray, [int(cv2.IMWRITE_JPEG_QUALITY), quality])
    return cv2.imdecode(content, 0 if bgr_or_gray.ndim == 2 else 1)


@pytest.mark.parametrize('quality', [10, 40, 100])
def test_validation_is_the_codec_on_the_whole_picture(pairs: Pairs, quality: int) -> None:
    dataset = build_dataset(jpeg(pairs, phase='val', quality=quality))
    for sample in (dataset[index] for index in range(7)):
        bgr = cv2.imread(sample['gt_path'])
        assert np.array_equal(pixels(sample['gt']), bgr[..., ::-1])
        assert np.array_equal(pixels(sample['lq']), by_opencv(bgr, quality)[..., ::-1])


def test_gray_is_matlabs_y_of_colour_and_gray_as_stored(pairs: Pairs, photos: Any) -> None:
    stored = photos.small('coffee', 91, 93)[..., 0]
    write_pair(pairs, 'a gray', stored)
    dataset = build_dataset(jpeg(pairs, phase='val', gray=True))
    assert np.array_equal(pixels(dataset[0]['gt'])[..., 0], stored)
    assert np.array_equal(pixels(dataset[0]['lq'])[..., 0], by_opencv(stored, 20))
    bgr = cv2.imread(dataset[1]['gt_path']).astype(np.float64)
    y = np.round(bgr @ [24.966, 128.553, 65.481] / 255 + 16).astype(np.uint8)
    assert np.array_equal(pixels(dataset[1]['gt'])[..., 0], y)
    assert np.array_equal(pixels(dataset[1]['lq'])[..., 0], by_opencv(y, 20))


def test_gray_heeds_transparency(pairs: Pairs, photos: Any) -> None:
    rgba = np.dstack([photos.small('coffee', 96, 96), np.full((96, 96), 255, np.uint8)])
    opaque, half = cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA), cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA)
    half[:8, :8, 3] = 128
    cv2.imwrite(str(pairs.gt / 'a1.png'), opaque)
    cv2.imwrite(str(pairs.gt / 'a2.png'), half)
    dataset = build_dataset(jpeg(pairs, phase='val', gray=True))
    y = np.round(opaque[..., :3].astype(np.float64) @ [24.966, 128.553, 65.481] / 255 + 16)
    assert np.array_equal(pixels(dataset[0]['gt'])[..., 0], y)
    with pytest.raises(DataError, match=r'a2\.png: has transparent pixels'):
        dataset[1]
    dropped = build_dataset(jpeg(pairs, phase='val', gray=True, alpha='drop'))
    assert torch.equal(dropped[1]['gt'], dropped[0]['gt'])


@pytest.mark.parametrize('gray', [False, True])
def test_training_patches_are_compressed_from_their_corner_or_from_anywhere(pairs: Pairs, gray: bool) -> None:
    dataset = build_dataset(jpeg(pairs, gt_size=48, gray=gray))
    at_corner = 0
    for index in range(80):
        sample = dataset[index % 7]
        assert sample['lq'].shape == sample['gt'].shape == (1 if gray else 3, 48, 48)
        assert 0 < float((sample['lq'] - sample['gt']).abs().mean()) < 0.1
        at_corner += np.array_equal(pixels(sample['lq']), compressed(pixels(sample['gt']), 20))
    assert 25 < at_corner < 65  # half, and of the others one in 64


def test_a_picture_no_larger_than_the_patch(pairs: Pairs) -> None:
    sample = build_dataset(jpeg(pairs, gt_size=128, small_images='pad'))[0]
    assert np.array_equal(pixels(sample['lq']), compressed(pixels(sample['gt']), 20))


def test_a_range_of_qualities_is_drawn_with_its_ends(pairs: Pairs) -> None:
    dataset = build_dataset(jpeg(pairs, quality=[30, 33], gt_size=64))
    drawn = set()
    for index in range(120):
        sample = dataset[index % 7]
        truth, found = pixels(sample['gt']), pixels(sample['lq'])
        drawn |= {quality for quality in range(28, 36) if np.array_equal(compressed(truth, quality), found)}
    assert drawn == {30, 31, 32, 33}


def test_lower_quality_is_farther_from_the_picture(pairs: Pairs) -> None:
    errors = []
    for quality in (10, 20, 40, 90):
        sample = build_dataset(jpeg(pairs, phase='val', quality=quality))[0]
        errors.append(float(((sample['lq'] - sample['gt']) ** 2).mean()))
    assert errors == sorted(errors, reverse=True)
    assert 24 < -10 * np.log10(errors[0]) < 34  # at quality 10


@pytest.mark.parametrize('kind', ['png', 'raw'])
@pytest.mark.parametrize('gray', [False, True])
def test_lmdb_equals_folder(pairs: Pairs, lmdb_pairs: dict[str, Pairs], kind: str, gray: bool) -> None:
    for phase in ('train', 'val'):
        samples = []
        for opt in (jpeg(pairs, phase=phase), jpeg(lmdb_pairs[kind], phase=phase, io_backend={'type': 'lmdb'})):
            dataset = build_dataset(opt | {'gray': gray})
            index = [Path(path).stem for path in dataset.paths].index('coffee')
            random.seed(1)
            np.random.seed(1)
            samples.append(dataset[index])
        assert torch.equal(samples[0]['lq'], samples[1]['lq'])
        assert torch.equal(samples[0]['gt'], samples[1]['gt'])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'quality': 0}, 'quality: 0: values from 1 to 100'),
        ({'quality': 10.5}, 'quality: 10.5: whole numbers'),
        ({'quality': [40, 10]}, r'quality: \[40, 10\]'),
        ({'quality': [10, 40], 'phase': 'test'}, 'a range is for training'),
        ({'sigma': 25}, 'sigma: unknown option'),
    ],
)
def test_mistakes(pairs: Pairs, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_dataset(jpeg(pairs) | changes)


def test_sixteen_bits_are_refused(pairs: Pairs, photos: Any) -> None:
    write_pair(pairs, 'a deep', photos.small('coffee', 96, 96).astype(np.uint16) * 200)
    with pytest.raises(DataError, match=r'a deep\.png: has uint16 pixels, JPEG has 8 bits'):
        build_dataset(jpeg(pairs))[0]
