"""Formats, depths, transparency and orientation of picture files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from hat_plugin.errors import DataError
from hat_plugin.restore.images import WRITTEN_SUFFIXES, keeps_16_bits, read_picture, write_image


def deepened(photo: np.ndarray) -> np.ndarray:
    """A 16-bit picture whose lower bytes are not those of an 8-bit one."""
    noise = np.random.default_rng(0).integers(0, 200, photo.shape, dtype=np.uint16)
    return photo.astype(np.uint16) * 256 + noise


@pytest.mark.parametrize('suffix', WRITTEN_SUFFIXES)
def test_colour_round_trip(suffix: str, photos, tmp_path: Path) -> None:
    photo = photos.small('coffee')
    write_image(tmp_path / f'a{suffix}', photo)
    back = read_picture(tmp_path / f'a{suffix}')
    assert back.dtype == np.uint8 and back.shape == photo.shape
    difference = np.abs(back.astype(int) - photo)
    assert difference.mean() < 3 if 'jp' in suffix else difference.max() == 0


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.tiff'])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_16_bits_are_kept(suffix: str, channels: int, photos, tmp_path: Path) -> None:
    photo = deepened(photos.small('chelsea'))
    picture = np.concatenate([photo, photo[..., :1]], axis=2)[..., :channels]
    write_image(tmp_path / f'a{suffix}', picture)
    np.testing.assert_array_equal(read_picture(tmp_path / f'a{suffix}'), picture)
    assert keeps_16_bits(suffix)


def test_16_bits_are_rounded_where_there_are_8(photos, tmp_path: Path) -> None:
    photo = photos.small('chelsea').astype(np.uint16) * 257 + 100
    write_image(tmp_path / 'a.bmp', photo)
    np.testing.assert_array_equal(read_picture(tmp_path / 'a.bmp'), photos.small('chelsea'))
    assert not keeps_16_bits('.bmp')


def test_transparency(photos, tmp_path: Path) -> None:
    photo = photos.small('coffee')
    picture = np.dstack([photo, photo[..., 0]])
    for suffix in ('.png', '.webp', '.tif'):
        write_image(tmp_path / f'a{suffix}', picture)
        back = read_picture(tmp_path / f'a{suffix}')
        np.testing.assert_array_equal(back[..., 3], picture[..., 3])
        seen = picture[..., 3] > 0
        np.testing.assert_array_equal(back[seen], picture[seen])
    with pytest.raises(DataError, match=r'a.jpg: .jpg has no transparency; give --ext png'):
        write_image(tmp_path / 'a.jpg', picture)
    assert not (tmp_path / 'a.jpg').exists()
    picture[..., 3] = 255
    write_image(tmp_path / 'a.bmp', picture)  # nothing is lost
    np.testing.assert_array_equal(read_picture(tmp_path / 'a.bmp'), photo)


def test_pictures_too_large_for_pillow_are_read(photos, tmp_path: Path, monkeypatch) -> None:
    photo = photos.small('coffee')
    write_image(tmp_path / 'a.png', photo)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    np.testing.assert_array_equal(read_picture(tmp_path / 'a.png'), photo)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp', '.tif'])
def test_pictures_stand_upright(suffix: str, orientation: int, photos, tmp_path: Path) -> None:
    upright = cv2.GaussianBlur(photos.small('astronaut', 48, 64), (9, 9), 3)
    lying = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {'lossless': True} if suffix == '.webp' else {'quality': 98} if suffix == '.jpg' else {}
    Image.fromarray(np.ascontiguousarray(lying)).save(tmp_path / f'a{suffix}', exif=exif, **options)
    back = read_picture(tmp_path / f'a{suffix}')
    assert back.shape == upright.shape
    assert np.abs(back.astype(int) - upright).max() < 20


def test_unknown_formats_and_sizes_are_refused(photos, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'a.gif: pictures are written as .png'):
        write_image(tmp_path / 'a.gif', photos.small('coffee'))
    with pytest.raises(DataError, match='--ext png'):
        write_image(tmp_path / 'a.webp', np.zeros((1, 20000, 3), np.uint8))
    with pytest.raises(DataError, match=r'missing\.png: cannot be read'):
        read_picture(tmp_path / 'missing.png')
    assert list(tmp_path.iterdir()) == []
