"""Decoding: depths, channels, transparency, orientation, and errors that name the file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from hat_plugin.data.images import from_float_tensor, list_images, read_image, to_float_tensor
from hat_plugin.errors import DataError


@pytest.fixture
def photo(photos: Any) -> np.ndarray:
    return photos.small('coffee', 40, 56)


def save(path: Path, array: np.ndarray) -> Path:
    """Write RGB(A) or gray, 8 or 16 bit."""
    code = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}.get(array.shape[2] if array.ndim == 3 else 1)
    assert cv2.imwrite(str(path), array if code is None else cv2.cvtColor(array, code))
    return path


def test_colour_of_8_and_16_bits(tmp_path: Path, photo: np.ndarray) -> None:
    wide = photo.astype(np.uint16) * 257 + 3
    assert np.array_equal(read_image(save(tmp_path / 'a.png', photo)), photo)
    sixteen = read_image(save(tmp_path / 'b.png', wide))
    assert sixteen.dtype == np.uint16
    assert np.array_equal(sixteen, wide)
    assert np.array_equal(read_image(save(tmp_path / 'c.tif', wide)), wide)
    assert np.array_equal(read_image((tmp_path / 'a.png').read_bytes()), photo)


def test_gray_is_repeated_and_colour_becomes_gray(tmp_path: Path, photo: np.ndarray) -> None:
    gray = save(tmp_path / 'g.png', photo[..., 1])
    assert np.array_equal(read_image(gray), np.repeat(photo[..., 1:2], 3, axis=2))
    assert read_image(gray, channels=1).shape == (40, 56, 1)
    assert read_image(gray, channels=None).shape == (40, 56, 1)
    colour = save(tmp_path / 'c.png', photo)
    luma = np.round(photo @ np.array([0.299, 0.587, 0.114]))
    assert np.abs(read_image(colour, channels=1)[..., 0] - luma).max() <= 1


def test_transparency_is_kept_refused_or_dropped_but_never_lost_unseen(tmp_path: Path, photo: np.ndarray) -> None:
    clear = np.dstack([photo, np.full(photo.shape[:2], 200, np.uint8)])
    path = save(tmp_path / 'clear.png', clear)
    assert np.array_equal(read_image(path, channels=None), clear)
    with pytest.raises(DataError, match=r'clear\.png.*transparent'):
        read_image(path)
    assert np.array_equal(read_image(path, alpha='drop'), photo)
    opaque = np.dstack([photo, np.full(photo.shape[:2], 255, np.uint8)])
    assert np.array_equal(read_image(save(tmp_path / 'opaque.png', opaque)), photo)


def test_jpeg_is_turned_as_its_exif_says(tmp_path: Path, photo: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo).save(tmp_path / 'turned.jpg', quality=95, exif=exif)
    assert read_image(tmp_path / 'turned.jpg').shape == (56, 40, 3)


def test_jpeg_with_data_behind_its_end_is_read(tmp_path: Path, photo: np.ndarray) -> None:
    path = save(tmp_path / 'maker.jpg', photo)
    whole = read_image(path)
    path.write_bytes(path.read_bytes() + b'maker notes' * 20)
    assert np.array_equal(read_image(path), whole)


@pytest.mark.parametrize('suffix', ['png', 'jpg'])
@pytest.mark.parametrize('keep', [0.0, 0.02, 0.5, 0.97])
def test_cut_short_files_are_named(tmp_path: Path, photo: np.ndarray, suffix: str, keep: float) -> None:
    path = save(tmp_path / f'half.{suffix}', photo)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DataError, match=rf'half\.{suffix}'):
        read_image(path)


def test_flipped_bytes_text_and_missing_files_are_named(tmp_path: Path, photo: np.ndarray) -> None:
    path = save(tmp_path / 'flip.png', photo)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r'flip\.png'):
        read_image(path)
    (tmp_path / 'text.png').write_text('Not found')
    with pytest.raises(DataError, match=r'text\.png.*not a picture'):
        read_image(tmp_path / 'text.png')
    with pytest.raises(DataError, match=r'absent\.png.*No such file'):
        read_image(tmp_path / 'absent.png')
    with pytest.raises(DataError, match='lmdb: key'):
        read_image(b'\x89PNG\r\n\x1a\nnothing', name='lmdb: key')


def test_float_pictures_are_refused(tmp_path: Path, photo: np.ndarray) -> None:
    assert cv2.imwrite(str(tmp_path / 'f.tiff'), photo.astype(np.float32))
    with pytest.raises(DataError, match=r'f\.tiff.*float32'):
        read_image(tmp_path / 'f.tiff')


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_to_tensor_and_back_is_exact(photo: np.ndarray, dtype: type) -> None:
    values = photo.astype(dtype) * (257 if dtype == np.uint16 else 1)
    tensor = to_float_tensor(values)
    assert tensor.shape == (3, 40, 56)
    assert tensor.is_contiguous()
    assert tensor.dtype == torch.float32
    expected = np.float32(values) / np.iinfo(dtype).max
    assert np.array_equal(tensor.numpy().transpose(1, 2, 0), expected)
    assert np.array_equal(from_float_tensor(tensor[None], dtype), values)


def test_from_tensor_clamps_and_refuses_nan() -> None:
    assert from_float_tensor(torch.tensor([[[-1.0, 0.5, 2.0]]])).ravel().tolist() == [0, 128, 255]
    with pytest.raises(DataError, match='NaN'):
        from_float_tensor(torch.full((3, 4, 4), float('nan')))


def test_list_images_is_sorted_and_nested(tmp_path: Path, photo: np.ndarray) -> None:
    (tmp_path / 'sub').mkdir()
    for name in ('b.png', 'a.PNG', 'sub/c d.jpg', '.hidden.png'):
        (tmp_path / name).write_bytes(b'x')
    (tmp_path / 'notes.txt').write_text('x')
    assert list_images(tmp_path) == ['a.PNG', 'b.png', 'sub/c d.jpg']
    with pytest.raises(DataError, match='no such folder'):
        list_images(tmp_path / 'none')


def test_a_link_to_a_folder_above_is_not_followed(tmp_path: Path, photo: np.ndarray) -> None:
    (tmp_path / 'in' / 'sub').mkdir(parents=True)
    save(tmp_path / 'in' / 'sub' / 'a.png', photo)
    save(tmp_path / 'elsewhere.png', photo)
    (tmp_path / 'in' / 'sub' / 'up').symlink_to(tmp_path / 'in')
    (tmp_path / 'in' / 'again').symlink_to(tmp_path / 'in' / 'sub')
    assert list_images(tmp_path / 'in') == ['again/a.png', 'sub/a.png']
    with pytest.raises(DataError, match='elsewhere.png: is a file, not a folder'):
        list_images(tmp_path / 'elsewhere.png')


def zero_filled(content: bytes, keep: float) -> bytes:
    kept = int(len(content) * keep)
    return content[:kept] + bytes(len(content) - kept)


@pytest.mark.parametrize('keep', [0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    ('suffix', 'options'),
    [
        ('jpg', {'quality': 90}),
        ('jpg', {'quality': 90, 'progressive': True}),
        ('webp', {'quality': 80}),
        ('webp', {'lossless': True}),
        ('png', {}),
        ('tif', {'compression': 'tiff_lzw'}),
    ],
)
def test_files_filled_up_with_zeros_are_named(
    tmp_path: Path, photos: Any, suffix: str, options: Any, keep: float
) -> None:
    path = tmp_path / f'filled.{suffix}'
    Image.fromarray(photos['coffee']).save(path, **options)
    read_image(path)
    path.write_bytes(zero_filled(path.read_bytes(), keep))
    with pytest.raises(DataError, match=rf'filled\.{suffix}'):
        read_image(path)


def test_a_preview_s_end_is_not_the_picture_s(tmp_path: Path, photos: Any) -> None:
    preview = cv2.imencode('.jpg', photos.small('rocket'))[1].tobytes()
    content = cv2.imencode('.jpg', photos['coffee'])[1].tobytes()
    head = content[:2] + b'\xff\xe1' + (len(preview) + 2).to_bytes(2, 'big') + preview
    assert np.array_equal(read_image(head + content[2:]), read_image(content))
    with pytest.raises(DataError, match='JPEG without its end'):
        read_image(head + zero_filled(content[2:], 0.5))
    # Behind the end zeros and anything else may stand.
    assert np.array_equal(read_image(content + b'maker notes' + bytes(5000)), read_image(content))


@pytest.mark.parametrize('value', [0, 90, 255])
@pytest.mark.parametrize('options', [{'quality': 75, 'method': 6}, {'quality': 1}, {'lossless': True}])
def test_flat_webps_are_good(photos: Any, value: int, options: dict[str, Any]) -> None:
    image = np.full((1500, 2000, 3), value, np.uint8)
    image[:300, :300] = photos['coffee'][:300, :300]
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, 'webp', **options)
        assert read_image(file.getvalue()).shape == image.shape
        assert read_image(file.getvalue() + bytes(5000)).shape == image.shape
