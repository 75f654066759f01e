"""MATLAB's bicubic: the field's figures, an independent implementation, and closed forms."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from hat_plugin.data.bicubic import imresize, mod_crop
from hat_plugin.errors import DataError

# RGB uint8, down and up again, Y of BT.601, border = scale; Set14's gray image read as three channels.
FIGURES = {
    ('Set5', 2): (33.68, 0.9305),
    ('Set5', 4): (28.43, 0.8113),
    ('Set14', 2): (30.33, 0.8700),
    ('Set14', 4): (26.09, 0.7050),
}


@pytest.mark.parametrize(('name', 'scale'), FIGURES)
def test_figures_of_set5_and_set14(shared_data, name, scale):
    from basicsr.metrics import calculate_psnr, calculate_ssim

    scores = []
    for path in sorted((shared_data / 'test' / name).iterdir()):
        truth = mod_crop(cv2.imread(str(path)), scale)
        result = imresize(imresize(truth, 1 / scale), scale)
        measures = (calculate_psnr, calculate_ssim)
        scores.append([measure(result, truth, scale, test_y_channel=True) for measure in measures])
    psnr, ssim = np.mean(scores, axis=0)
    assert (round(psnr, 2), round(ssim, 4)) == FIGURES[name, scale]


@pytest.mark.parametrize('scale', [1 / 2, 1 / 3, 1 / 4, 0.37, 2, 3, 4, 1.6])
def test_agrees_with_basicsr_on_floats(photos, scale):
    from basicsr.utils.matlab_functions import imresize as reference

    image = photos.small('coffee', 47, 66).astype(np.float32) / 255
    result = imresize(image, scale)
    expected = reference(image, scale)
    assert result.shape == expected.shape
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=2e-5)


def test_integers_are_the_rounded_clipped_double(photos):
    image = photos.small('astronaut', 60, 44)
    exact = np.clip(np.floor(imresize(image.astype(np.float64), 1 / 4) + 0.5), 0, 255)
    assert np.array_equal(imresize(image, 1 / 4), exact)
    wide = image.astype(np.uint16) * 257
    assert imresize(wide, 1 / 4).dtype == np.uint16
    assert np.abs(imresize(wide, 1 / 4) / 257 - exact).max() <= 0.5 + 1e-6


def test_overshoot_is_clipped_in_integers_and_kept_in_floats():
    edge = np.zeros((16, 16), np.uint8)
    edge[:, 8:] = 255
    assert imresize(edge.astype(np.float64), 2).min() < -1
    enlarged = imresize(edge, 2)
    assert enlarged[0, 14] == 0  # where the float is negative
    assert enlarged.max() == 255


@pytest.mark.parametrize('scale', [1 / 4, 1 / 3, 2, 2.5])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32, np.float64])
def test_a_constant_stays_constant(scale, dtype):
    result = imresize(np.full((13, 21, 3), 77, dtype), scale)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, 77, atol=1e-4)


@pytest.mark.parametrize('scale', [1 / 4, 1 / 2, 2, 3])
def test_a_ramp_stays_a_ramp_inside(scale):
    """Pixel centres: column k (from 0) of the output lies at (k + 0.5) / scale - 0.5 of the input."""
    ramp = np.tile(np.arange(48, dtype=np.float64), (24, 1))
    result = imresize(ramp, scale)
    columns = (np.arange(result.shape[1]) + 0.5) / scale - 0.5
    margin = int(np.ceil(4 * max(1.0, scale)))
    inside = slice(margin, -margin) if result.shape[1] > 2 * margin else slice(5, 7)
    np.testing.assert_allclose(result[2, inside], columns[inside], atol=1e-9)


def test_size_and_scale():
    image = np.random.default_rng(0).random((49, 30))
    assert imresize(image, 1 / 49).shape == (1, 1)  # ceil(49 * (1 / 49)), which floats make 1 or 2
    assert imresize(image, 1 / 4).shape == (13, 8)
    assert imresize(image, size=(20, 61)).shape == (20, 61)
    assert np.array_equal(imresize(image, size=(49, 30)), image)
    np.testing.assert_allclose(imresize(image[:48, :28], size=(12, 7)), imresize(image[:48, :28], 1 / 4), atol=1e-12)


def test_an_image_smaller_than_the_kernel():
    assert imresize(np.full((1, 2, 3), 9, np.uint8), 1 / 4).tolist() == [[[9, 9, 9]]]


def test_gray_is_a_channel_of_its_own(photos):
    image = photos.small('rocket', 40, 40)
    assert np.array_equal(imresize(image[..., 0], 1 / 2), imresize(image, 1 / 2)[..., 0])


@pytest.mark.parametrize(
    ('image', 'arguments', 'said'),
    [
        (np.zeros((4, 4), np.int32), {'scale': 2}, 'int32'),
        (np.zeros((4,), np.uint8), {'scale': 2}, r'\(4,\)'),
        (np.zeros((0, 4), np.uint8), {'scale': 2}, r'\(0, 4\)'),
        (np.zeros((4, 4), np.uint8), {'scale': -1}, '-1'),
        (np.zeros((4, 4), np.uint8), {'scale': float('nan')}, 'nan'),
        (np.zeros((4, 4), np.uint8), {'size': (0, 3)}, r'\(0, 3\)'),
        (np.zeros((4, 4), np.uint8), {}, 'either'),
        (np.zeros((4, 4), np.uint8), {'scale': 2, 'size': (8, 8)}, 'either'),
    ],
)
def test_what_it_does_not_take(image, arguments, said):
    with pytest.raises(ValueError, match=said):
        imresize(image, **arguments)


def test_mod_crop():
    image = np.arange(5 * 7).reshape(5, 7)
    assert np.array_equal(mod_crop(image, 2), image[:4, :6])
    assert mod_crop(image, 5).shape == (5, 5)
    with pytest.raises(DataError, match='7x5'):
        mod_crop(image, 6)
