"""PairedCropDataset: equal to BasicSR's data set, from folders, lists and LMDBs; its checks and policies."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms.functional import normalize

from hat_plugin.data.bicubic import imresize
from hat_plugin.data.build import build_dataset
from hat_plugin.data.lmdb_io import LmdbReader, LmdbWriter
from hat_plugin.data.paired_crop_dataset import PairedCropDataset
from hat_plugin.errors import DataError, OptionsError

from .conftest import Pairs, write_pair

LMDB = {'io_backend': {'type': 'lmdb'}}


def draw(opt: dict[str, Any], index: int, seed: int = 3) -> dict[str, Any]:
    dataset = build_dataset(opt)
    random.seed(seed)
    return dataset[index]


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert torch.equal(left['lq'], right['lq'])
    assert torch.equal(left['gt'], right['gt'])


@pytest.mark.parametrize('changes', [{}, {'use_hflip': False}, {'use_rot': False}, {'phase': 'val'}, {'color': 'y'}])
def test_equals_basicsr_from_the_same_seed(pairs: Pairs, changes: dict[str, Any]) -> None:
    ours, theirs = (
        build_dataset(pairs.options(**changes)),
        build_dataset(pairs.options('PairedImageDataset', **changes)),
    )
    where = {path['gt_path']: index for index, path in enumerate(theirs.paths)}
    for index, path in enumerate(ours.paths):
        for seed in range(3):
            random.seed(seed)
            left = ours[index]
            random.seed(seed)
            right = theirs[where[path['gt_path']]]
            assert left['lq_path'] == right['lq_path']
            assert left['gt'].is_contiguous()
            for key in ('lq', 'gt'):
                assert torch.allclose(left[key], right[key], rtol=0, atol=1e-6 if changes.get('color') else 0)


@pytest.mark.parametrize('kind', ['png', 'raw'])
@pytest.mark.parametrize('phase', ['train', 'val'])
def test_lmdb_equals_folder(pairs: Pairs, lmdb_pairs: dict[str, Pairs], kind: str, phase: str) -> None:
    in_lmdb = build_dataset(lmdb_pairs[kind].options(phase=phase, **LMDB))
    assert [path['gt_path'] for path in in_lmdb.paths] == list(lmdb_pairs[kind].names)
    for name in ('coffee', 'r2'):
        listed = [Path(path['gt_path']).stem for path in build_dataset(pairs.options()).paths]
        random.seed(1)
        left = in_lmdb[lmdb_pairs[kind].names.index(name)]
        assert_same(left, draw(pairs.options(phase=phase), listed.index(name), seed=1))


def test_raw_lmdb_reads_the_patch_alone(lmdb_pairs: dict[str, Pairs], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    crop = LmdbReader.crop

    def watched(self: LmdbReader, key: str, top: int, left: int, height: int, width: int) -> np.ndarray:
        sizes.append((height, width))
        return crop(self, key, top, left, height, width)

    monkeypatch.setattr(LmdbReader, 'crop', watched)
    monkeypatch.setattr(LmdbReader, 'image', None)
    draw(lmdb_pairs['raw'].options(**LMDB), 0)
    assert sizes == [(16, 16), (64, 64)]


def test_one_lmdb_for_training_and_validation(lmdb_pairs: dict[str, Pairs]) -> None:
    """BasicSR cannot: LMDB refuses to be opened twice in one process."""
    train = build_dataset(lmdb_pairs['png'].options(**LMDB))
    val = build_dataset(lmdb_pairs['png'].options(phase='val', **LMDB))
    assert train[0]['gt'].shape == (3, 64, 64)
    assert val[0]['gt'].shape[1:] == (132, 128)


def test_sixteen_bits_and_gray(tmp_path: Path, photos: Any) -> None:
    pairs = Pairs(tmp_path / 'GT', tmp_path / 'LQ', ('deep',))
    pairs.gt.mkdir()
    pairs.lq.mkdir()
    deep = photos.small('coffee', 96, 96).astype(np.uint16) * 200 + 7
    write_pair(pairs, 'deep', deep)
    sample = build_dataset(pairs.options(phase='val'))[0]
    assert torch.equal(sample['gt'], torch.from_numpy((deep.astype(np.float32) / 65535).transpose(2, 0, 1)))
    gray = build_dataset(pairs.options(channels=1))[0]
    assert gray['gt'].shape == (1, 64, 64)
    assert gray['lq'].shape == (1, 16, 16)
    for kind in ('png', 'raw'):
        for folder in (pairs.gt, pairs.lq):
            with LmdbWriter(tmp_path / f'{kind}{folder.name}.lmdb', kind) as writer:
                writer.put_image('deep', cv2.imread(str(folder / 'deep.png'), cv2.IMREAD_UNCHANGED))
        roots = {f'dataroot_{key}': str(tmp_path / f'{kind}{key.upper()}.lmdb') for key in ('gt', 'lq')}
        assert_same(build_dataset(pairs.options(phase='val', **roots, **LMDB))[0], sample)
        assert build_dataset(pairs.options(channels=1, **roots, **LMDB))[0]['gt'].shape == (1, 64, 64)


def test_mean_and_std_normalise(pairs: Pairs) -> None:
    plain = draw(pairs.options(), 0)
    scaled = draw(pairs.options(mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4]), 0)
    assert torch.equal(scaled['gt'], normalize(plain['gt'], [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
    assert torch.equal(
        draw(pairs.options(mean=[0.4, 0.5, 0.6]), 0)['lq'], normalize(plain['lq'], [0.4, 0.5, 0.6], [1] * 3)
    )


def test_meta_info_with_spaces_selects_and_orders(pairs: Pairs, tmp_path: Path, lmdb_pairs: dict[str, Pairs]) -> None:
    meta = tmp_path / 'meta_info.txt'
    meta.write_text('coffee 2.png (128,128,3)\nr1.png (104,128,3) 1\n\nchelsea.png\n')
    opt = pairs.options(meta_info_file=str(meta))
    assert [Path(path['gt_path']).name for path in build_dataset(opt).paths] == [
        'coffee 2.png',
        'r1.png',
        'chelsea.png',
    ]
    opt = lmdb_pairs['raw'].options(meta_info_file=str(meta), **LMDB)
    assert [path['gt_path'].split('-')[0] for path in build_dataset(opt).paths] == ['coffee_2', 'r1', 'chelsea']


@pytest.mark.parametrize('line', ['../GT/r1.png', '/etc/r1.png (1,1,3)', 'C:\\r1.png', 'a/../../r1.png'])
def test_meta_info_that_leads_out_is_refused(pairs: Pairs, tmp_path: Path, line: str) -> None:
    (tmp_path / 'meta.txt').write_text(f'r2.png (104,128,3)\n{line}\n')
    with pytest.raises(DataError, match=r'meta\.txt, line 2'):
        build_dataset(pairs.options(meta_info_file=str(tmp_path / 'meta.txt')))


def test_missing_pictures_are_named_before_training(pairs: Pairs, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"astronautx4\.png' is missing, and 6 more of 7.*filename_tmpl"):
        build_dataset(pairs.options(filename_tmpl='{}x4'))
    (pairs.gt / 'r1.png').unlink()
    with pytest.raises(DataError, match=r"r1\.png' has no ground truth"):
        build_dataset(pairs.options())
    (tmp_path / 'meta.txt').write_text('r1.png (104,128,3)\n')
    with pytest.raises(DataError, match=r"GT: 'r1\.png' is missing"):
        build_dataset(pairs.options(meta_info_file=str(tmp_path / 'meta.txt')))


def test_filename_template(pairs: Pairs) -> None:
    for path in pairs.lq.iterdir():
        path.rename(path.with_name(f'{path.stem}x4.png'))
    dataset = build_dataset(pairs.options(filename_tmpl='{}x4'))
    assert dataset.paths[0]['lq_path'].endswith('astronautx4.png')


def test_lmdb_errors_name_lmdb_and_key(lmdb_pairs: dict[str, Pairs], pairs: Pairs, tmp_path: Path) -> None:
    raw = lmdb_pairs['raw']
    with pytest.raises(DataError, match='is an LMDB, but io_backend says type: disk'):
        build_dataset(raw.options())
    with pytest.raises(DataError, match='is no LMDB'):
        build_dataset(pairs.options(**LMDB))
    (tmp_path / 'meta.txt').write_text('absent.png (104,128,3)\n')
    with pytest.raises(DataError, match=r"GT_raw\.lmdb: no picture 'absent'"):
        build_dataset(raw.options(meta_info_file=str(tmp_path / 'meta.txt'), **LMDB))
    meta = raw.gt / 'meta_info.txt'
    meta.write_text(meta.read_text().replace('r1.raw', 'rx.raw'))
    with pytest.raises(DataError, match=r"LQ_raw\.lmdb: 'rx' is missing"):
        build_dataset(raw.options(**LMDB))
    other = raw.lq / 'meta_info.txt'
    other.write_text(other.read_text().replace('r1.raw', 'rx.raw'))
    dataset = build_dataset(raw.options(**LMDB))
    with pytest.raises(DataError, match=r"raw\.lmdb: 'rx' is in meta_info"):
        dataset[[path['gt_path'] for path in dataset.paths].index('rx')]


def test_sizes_that_do_not_fit_are_named(pairs: Pairs, lmdb_pairs: dict[str, Pairs]) -> None:
    with pytest.raises(DataError, match=r'astronaut \(132x128\) is not 2 times .*astronaut \(33x32\)'):
        build_dataset(lmdb_pairs['png'].options(scale=2, **LMDB))  # known from meta_info: before training
    dataset = build_dataset(pairs.options(scale=2))
    with pytest.raises(DataError, match=r'astronaut\.png \(132x128\) is not 2 times .*LQ/astronaut\.png'):
        dataset[0]


def test_ground_truth_with_a_remainder_is_cut(pairs: Pairs, photos: Any) -> None:
    odd = photos.small('rocket', 99, 131)
    cv2.imwrite(str(pairs.gt / 'r1.png'), odd[..., ::-1])
    cv2.imwrite(str(pairs.lq / 'r1.png'), imresize(np.ascontiguousarray(odd[:96, :128, ::-1]), 0.25))
    for phase, size in (('train', (64, 64)), ('val', (96, 128))):
        dataset = build_dataset(pairs.options(phase=phase))
        index = next(index for index, path in enumerate(dataset.paths) if path['gt_path'].endswith('r1.png'))
        assert dataset[index]['gt'].shape[1:] == size


class TestSmallImages:
    """A picture smaller than the patch: found early where sizes are known, then treated as the policy says."""

    @pytest.fixture
    def small(self, pairs: Pairs, photos: Any) -> Pairs:
        write_pair(pairs, 'tiny', photos.small('coffee', 40, 96))
        return pairs

    def test_error(self, small: Pairs, tmp_path: Path) -> None:
        meta = tmp_path / 'meta.txt'
        meta.write_text('r1.png (104,128,3)\ntiny.png (40,96,3)\n')
        with pytest.raises(DataError, match=r'tiny\.png: LQ of 10x24 is smaller.*small_images.* 1 of 2'):
            build_dataset(small.options(meta_info_file=str(meta)))
        dataset = build_dataset(small.options())
        with pytest.raises(DataError, match=r'tiny\.png: LQ of 10x24 is smaller than the patch of 16x16'):
            dataset[len(dataset) - 1]

    def test_pad_keeps_lq_and_gt_aligned(self, small: Pairs) -> None:
        dataset = build_dataset(small.options(small_images='pad'))
        for seed in range(4):
            random.seed(seed)
            sample = dataset[len(dataset) - 1]
            assert sample['gt'].shape == (3, 64, 64)
            blocks = sample['gt'].reshape(3, 16, 4, 16, 4).mean(dim=(2, 4))
            assert torch.nn.functional.mse_loss(blocks, sample['lq']) < 3e-3

    def test_skip_drops_known_ones(self, small: Pairs, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        meta = tmp_path / 'meta.txt'
        meta.write_text('r1.png (104,128,3)\ntiny.png (40,96,3)\n')
        with caplog.at_level(logging.WARNING):
            dataset = build_dataset(small.options(meta_info_file=str(meta), small_images='skip'))
        assert [Path(path['gt_path']).name for path in dataset.paths] == ['r1.png']
        assert '1 of 2 pictures are too small' in caplog.text

    def test_skip_replaces_unknown_ones(self, small: Pairs) -> None:
        from hat_plugin.data.loader import build_train_loader
        from hat_plugin.engine.stages import Stages

        for policy, stops in (('skip', False), ('error', True)):
            opt = small.options(small_images=policy, on_corrupt='skip')  # on_corrupt is about damaged files alone
            loader = build_train_loader(
                build_dataset(opt), opt, seed=0, rank=0, world_size=1, stages=Stages.constant(8), num_workers=0
            )
            if stops:
                with pytest.raises(DataError, match=r'tiny\.png'):
                    next(iter(loader))
            else:
                assert not any('tiny' in path for path in next(iter(loader))['gt_path'])
                assert len(loader.skipped) == 1


def test_transparent_pictures(pairs: Pairs, photos: Any) -> None:
    clear = np.dstack([photos.small('coffee', 96, 96), np.full((96, 96), 128, np.uint8)])
    for folder, image in ((pairs.gt, clear), (pairs.lq, np.ascontiguousarray(clear[::4, ::4]))):
        cv2.imwrite(str(folder / 'astronaut.png'), image)
    with pytest.raises(DataError, match=r'astronaut\.png.*transparent'):
        draw(pairs.options(), 0)
    assert draw(pairs.options(alpha='drop'), 0)['gt'].shape == (3, 64, 64)


def test_options_are_checked(pairs: Pairs) -> None:
    with pytest.raises(OptionsError, match='use_hfip') as caught:
        PairedCropDataset(pairs.options(use_hfip=True, gt_size='large', color='x'))
    assert len(caught.value.problems) == 3
    with pytest.raises(DataError, match=r'gt_size: 62.*multiple of the scale, 4'):
        PairedCropDataset(pairs.options(gt_size=62))
    PairedCropDataset(pairs.options(meta_info_file=None, color=None, prefetch_mode=None, mean=None))


def test_shared_test_set_as_benchmark(shared_data: Path, tmp_path: Path) -> None:
    """Set5 with its LQ made by MATLAB's bicubic, as `basicsr prepare benchmark` does."""
    (tmp_path / 'LQ').mkdir()
    source = shared_data / 'test' / 'Set5'
    folder = next((path for path in (source, *source.rglob('*')) if path.is_dir() and list(path.glob('*.png'))), None)
    if folder is None:
        pytest.skip('Set5 holds no PNG')
    for path in folder.glob('*.png'):
        image = cv2.imread(str(path))
        image = image[: image.shape[0] // 4 * 4, : image.shape[1] // 4 * 4]
        cv2.imwrite(str(tmp_path / 'LQ' / path.name), imresize(image, 0.25))
    dataset = build_dataset(
        {
            'name': 'Set5',
            'type': 'PairedCropDataset',
            'phase': 'val',
            'scale': 4,
            'dataroot_gt': str(folder),
            'dataroot_lq': str(tmp_path / 'LQ'),
            'io_backend': {'type': 'disk'},
        }
    )
    assert len(dataset) == 5
    assert all(dataset[i]['gt'].shape[-1] == 4 * dataset[i]['lq'].shape[-1] for i in range(5))
