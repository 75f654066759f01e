"""ImageNetPairedDataset, FolderDataset and RealESRGANDataset."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from hat_plugin.data.augment import random_corner
from hat_plugin.data.bicubic import imresize
from hat_plugin.data.build import build_dataset
from hat_plugin.data.lmdb_io import LmdbWriter
from hat_plugin.errors import DataError

# The data set's block of HAT's published train_HAT_SRx4_ImageNet_from_scratch.yml, with other folders.
PUBLISHED_IMAGENET: dict[str, Any] = {
    'name': 'ImageNet',
    'type': 'ImageNetPairedDataset',
    'io_backend': {'type': 'disk'},
    'gt_size': 64,
    'use_hflip': True,
    'use_rot': True,
    'use_shuffle': True,
    'num_worker_per_gpu': 6,
    'batch_size_per_gpu': 4,
    'dataset_enlarge_ratio': 1,
    'prefetch_mode': None,
}


@pytest.fixture
def imagenet(tmp_path: Path, photos: Any) -> dict[str, Any]:
    """JPEGs in folders by class, one of them small, with the usual train_map.txt."""
    root = tmp_path / 'train'
    for name, image in (
        ('n01/n01_1.JPEG', photos.small('coffee', 131, 150)),
        ('n01/n01_2.JPEG', photos.small('chelsea', 50, 45)),
        ('n02/n02_1.JPEG', photos.small('astronaut', 200, 70)[..., 1]),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(root / name), image[..., ::-1] if image.ndim == 3 else image)
    (tmp_path / 'train_map.txt').write_text('n01/n01_1.JPEG 0\nn01/n01_2.JPEG 0\nn02/n02_1.JPEG 1\n')
    return {
        **PUBLISHED_IMAGENET,
        'phase': 'train',
        'scale': 4,
        'dataroot_gt': str(root),
        'dataroot_lq': str(root),
        'meta_info_file': str(tmp_path / 'train_map.txt'),
    }


@pytest.mark.parametrize('scale', [1, 2, 3, 4])
def test_imagenet_patch_equals_reducing_the_whole(imagenet: dict[str, Any], scale: int) -> None:
    side = 48 // scale
    dataset = build_dataset(imagenet | {'scale': scale, 'gt_size': 48, 'use_hflip': False, 'use_rot': False})
    gt = cv2.imread(dataset.paths[0])[..., ::-1]
    gt = np.ascontiguousarray(gt[: 131 // scale * scale, : 150 // scale * scale]).astype(np.float32) / 255
    whole = imresize(gt, 1 / scale)
    corners = set()
    for seed in range(60):
        random.seed(seed)
        sample = dataset[0]
        random.seed(seed)
        top, left = random_corner(*whole.shape[:2], side)
        corners.add((top == 0, left == 0, top + side == whole.shape[0], left + side == whole.shape[1]))
        expected = whole[top : top + side, left : left + side].transpose(2, 0, 1)
        assert np.abs(sample['lq'].numpy() - expected).max() < 1e-6
        assert np.array_equal(sample['gt'].numpy(), gt[top * scale :, left * scale :][:48, :48].transpose(2, 0, 1))
    assert scale < 3 or len(corners) > 2  # borders were met


def test_imagenet_published_block(imagenet: dict[str, Any]) -> None:
    dataset = build_dataset(imagenet)
    assert len(dataset) == 3
    for index in range(3):
        sample = dataset[index]
        assert sample['gt'].shape == (3, 64, 64)
        assert sample['lq'].shape == (3, 16, 16)
        assert sample['gt_path'] == sample['lq_path'] == dataset.paths[index]
        assert sample['gt'].dtype == torch.float32


def test_imagenet_small_picture_is_enlarged_and_kept_rgb(imagenet: dict[str, Any]) -> None:
    dataset = build_dataset(imagenet | {'use_hflip': False, 'use_rot': False})
    stored = cv2.imread(dataset.paths[1])[:48, :44, ::-1].astype(np.float32) / 255
    enlarged = cv2.resize(np.ascontiguousarray(stored), (64, 64))
    sample = dataset[1]
    assert np.allclose(sample['gt'].numpy(), enlarged.transpose(2, 0, 1), atol=1e-6)
    assert np.allclose(sample['lq'].numpy(), imresize(enlarged, 0.25).transpose(2, 0, 1), atol=1e-6)


def test_imagenet_validation_rounding_and_lmdb(imagenet: dict[str, Any], tmp_path: Path) -> None:
    whole = build_dataset(imagenet | {'phase': 'val'})[0]
    assert whole['gt'].shape == (3, 128, 148)
    assert whole['lq'].shape == (3, 32, 37)
    rounded = build_dataset(imagenet | {'phase': 'val', 'round_lq': True})[0]['lq']
    assert torch.equal(rounded, (rounded * 255).round() / 255)
    assert (rounded - whole['lq'].clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
    with LmdbWriter(tmp_path / 'i.lmdb', 'raw') as writer:
        writer.put_image('n01_1', cv2.imread(build_dataset(imagenet).paths[0]))
    opt = imagenet | {'phase': 'val', 'dataroot_gt': str(tmp_path / 'i.lmdb'), 'io_backend': {'type': 'lmdb'}}
    opt = opt | {'dataroot_lq': None, 'meta_info_file': None}
    assert torch.equal(build_dataset(opt)[0]['lq'], whole['lq'])


def test_imagenet_errors(imagenet: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match='LQ is made from dataroot_gt'):
        build_dataset(imagenet | {'dataroot_lq': str(tmp_path)})
    with pytest.raises(DataError, match=r'n01_1\.JPEG: no such file'):
        build_dataset(imagenet | {'dataroot_gt': str(tmp_path), 'dataroot_lq': None})
    with pytest.raises(DataError, match='65 is not a multiple'):
        build_dataset(imagenet | {'gt_size': 65})
    dataset = build_dataset(imagenet)
    Path(dataset.paths[0]).write_bytes(b'\xff\xd8\xff\xe0 no more')
    with pytest.raises(DataError, match=r'n01_1\.JPEG'):
        dataset[0]


def test_folder(tmp_path: Path, photos: Any) -> None:
    (tmp_path / 'in' / 'sub').mkdir(parents=True)
    image = photos.small('coffee', 30, 41)
    cv2.imwrite(str(tmp_path / 'in' / 'b.png'), image[..., ::-1])
    cv2.imwrite(str(tmp_path / 'in' / 'sub' / 'a c.png'), image[..., 0].astype(np.uint16) * 257)
    opt = {'name': 'x', 'type': 'FolderDataset', 'phase': 'test', 'dataroot_lq': str(tmp_path / 'in'), 'scale': 4}
    opt['io_backend'] = {'type': 'disk'}
    dataset = build_dataset(opt)
    assert [Path(path).name for path in dataset.paths] == ['b.png', 'a c.png']
    assert torch.equal(dataset[0]['lq'], torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1))
    assert dataset[1]['lq'].shape == (3, 30, 41)
    assert torch.equal(dataset[1]['lq'][0], dataset[0]['lq'][0])  # 16 bits of the same values
    assert dataset[1]['lq_path'] == str(tmp_path / 'in' / 'sub' / 'a c.png')
    assert build_dataset(opt | {'channels': 1})[0]['lq'].shape == (1, 30, 41)
    (tmp_path / 'meta.txt').write_text('sub/a c.png (30,41,1)\n')
    assert len(build_dataset(opt | {'meta_info_file': str(tmp_path / 'meta.txt')})) == 1
    (tmp_path / 'in' / 'sub' / 'b.jpg').write_bytes(b'x')
    assert len(build_dataset(opt)) == 3  # results of it go to a folder sub/ of theirs
    (tmp_path / 'in' / 'b.jpg').write_bytes(b'x')
    with pytest.raises(DataError, match=r'b\.png and .*b\.jpg: .*one name'):
        build_dataset(opt)


@pytest.fixture
def realesrgan(tmp_path: Path, photos: Any) -> dict[str, Any]:
    """The data set's block of HAT's published Real-HAT option files, with another folder."""
    (tmp_path / 'sub').mkdir()
    for name in ('coffee', 'chelsea'):
        cv2.imwrite(str(tmp_path / 'sub' / f'{name}.png'), photos.small(name, 120, 130)[..., ::-1])
    kinds = ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso']
    both = {
        'blur_kernel_size': 21, 'kernel_list': kinds, 'kernel_prob': [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
        'sinc_prob': 0.1, 'blur_sigma': [0.2, 3], 'betag_range': [0.5, 4], 'betap_range': [1, 2],
    }  # fmt: skip
    (tmp_path / 'meta.txt').write_text('chelsea.png\ncoffee.png\n')
    return {
        'name': 'DF2K+OST', 'type': 'RealESRGANDataset', 'phase': 'train', 'scale': 4,
        'dataroot_gt': str(tmp_path / 'sub'), 'meta_info_file': str(tmp_path / 'meta.txt'),
        'io_backend': {'type': 'disk'}, **both, **{f'{key}2': value for key, value in both.items()},
        'final_sinc_prob': 0.8, 'gt_size': 256, 'use_hflip': True, 'use_rot': False, 'use_shuffle': True,
        'num_worker_per_gpu': 5, 'batch_size_per_gpu': 4, 'dataset_enlarge_ratio': 1, 'prefetch_mode': None,
    }  # fmt: skip


def test_realesrgan_reads_the_list_of_published_files(realesrgan: dict[str, Any]) -> None:
    dataset = build_dataset(realesrgan)
    assert type(dataset).__module__.startswith('hat_plugin')
    assert [Path(path).name for path in dataset.paths] == ['chelsea.png', 'coffee.png']
    sample = dataset[0]
    assert sample['gt'].shape == (3, 400, 400)
    assert sample['kernel1'].shape == sample['kernel2'].shape == sample['sinc_kernel'].shape == (21, 21)
    unlisted = {key: value for key, value in realesrgan.items() if key != 'meta_info_file'}
    assert len(build_dataset(unlisted)) == 2
    assert len(build_dataset(unlisted | {'meta_info': realesrgan['meta_info_file']})) == 2
    Path(dataset.paths[1]).unlink()
    with pytest.raises(DataError, match=r'coffee\.png'):
        dataset[1]
