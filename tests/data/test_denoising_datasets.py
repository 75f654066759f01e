"""GaussianDenoisingDataset, and Restormer's name for it: the noise, who draws it, and what option files may say."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from option_examples import options, problems

from hat_plugin.check_data import Checks, check_dataset
from hat_plugin.data.build import build_dataset
from hat_plugin.data.loader import build_train_loader, build_val_loader
from hat_plugin.engine.options import check_options
from hat_plugin.engine.stages import Stages
from hat_plugin.errors import DataError, OptionsError

from .conftest import Pairs, write_pair

# The data sets' blocks of Restormer's published GaussianColorDenoising_RestormerSigma15.yml, word for word.
PUBLISHED_TRAIN: dict[str, Any] = {
    'name': 'TrainSet', 'type': 'Dataset_GaussianDenoising', 'sigma_type': 'constant', 'sigma_range': 15, 'in_ch': 3,
    'dataroot_gt': './Denoising/Datasets/train/DFWB', 'dataroot_lq': 'none', 'geometric_augs': True,
    'filename_tmpl': '{}', 'io_backend': {'type': 'disk'}, 'use_shuffle': True, 'num_worker_per_gpu': 8,
    'batch_size_per_gpu': 8, 'mini_batch_sizes': [8, 5, 4, 2, 1, 1],
    'iters': [92000, 64000, 48000, 36000, 36000, 24000], 'gt_size': 384, 'gt_sizes': [128, 160, 192, 256, 320, 384],
    'dataset_enlarge_ratio': 1, 'prefetch_mode': None,
}  # fmt: skip
PUBLISHED_VAL: dict[str, Any] = {
    'name': 'ValSet', 'type': 'Dataset_GaussianDenoising', 'sigma_test': 15, 'in_ch': 3,
    'dataroot_gt': './Denoising/Datasets/test/CBSD68', 'dataroot_lq': 'none', 'io_backend': {'type': 'disk'},
}  # fmt: skip
BLIND = {'sigma_type': 'random', 'sigma_range': [0, 50]}


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same draws each time."""
    random.seed(1)
    np.random.seed(1)


def noisy(pairs: Pairs, **changes: Any) -> dict[str, Any]:
    """A block of the pairs' ground truth with noise."""
    block = pairs.options('GaussianDenoisingDataset', scale=1, sigma=25, **changes)
    del block['dataroot_lq']
    return block


def noise(sample: dict[str, Any]) -> torch.Tensor:
    """In units of 1 / 255."""
    return (sample['lq'] - sample['gt']) * 255


@pytest.mark.parametrize('sigma', [15, 25.0, 50])
@pytest.mark.parametrize('gray', [False, True])
def test_validation_noise_is_the_published_one(pairs: Pairs, sigma: float, gray: bool) -> None:
    dataset = build_dataset(noisy(pairs, phase='val') | {'sigma': sigma, 'gray': gray})
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    samples = [dataset[index] for index in (1, 0, 1)]
    assert np.array_equal(np.random.get_state()[1], before)
    for sample in samples:  # in any order: each picture begins anew
        bgr = cv2.imread(sample['gt_path'])
        picture = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)[..., None] if gray else bgr[..., ::-1]
        expected = np.float32(picture) / 255.0
        assert np.array_equal(sample['gt'].numpy(), expected.transpose(2, 0, 1))
        np.random.seed(seed=0)
        expected += np.random.normal(0, sigma / 255.0, expected.shape)
        assert np.array_equal(sample['lq'].numpy(), expected.transpose(2, 0, 1))
        assert sample['lq_path'] == sample['gt_path']


def test_a_fixed_level_in_training(pairs: Pairs) -> None:
    dataset = build_dataset(noisy(pairs, gt_size=96))
    values = torch.cat([noise(dataset[index % 7]).flatten() for index in range(40)])
    assert abs(float(values.mean())) < 0.1  # of a million numbers; its standard deviation is 0.024
    assert abs(float(values.std()) - 25) < 0.1
    assert abs(float((values**4).mean()) / 25**4 - 3) < 0.05
    assert any(float(dataset[index]['lq'].min()) < 0 for index in range(7))  # nothing is clipped


def test_a_range_of_levels_in_training(pairs: Pairs) -> None:
    dataset = build_dataset(noisy(pairs) | {'sigma': [10, 50]})
    levels = np.array([float(noise(dataset[index % 7]).std()) for index in range(300)])
    assert 9 < levels.min() < 12
    assert 48 < levels.max() < 52
    assert abs(levels.mean() - 30) < 3  # uniform: 30, of 300 levels within 0.67
    assert abs(levels.std() - 40 / 12**0.5) < 1.5


def test_no_noise_is_the_picture(pairs: Pairs) -> None:
    sample = build_dataset(noisy(pairs) | {'sigma': 0})[3]
    assert torch.equal(sample['lq'], sample['gt'])


def stream(opt: dict[str, Any], count: int, *, workers: int = 0, start: int = 0) -> list[dict[str, Any]]:
    where = {'seed': 7, 'rank': 0, 'world_size': 1, 'stages': Stages.constant(3), 'start_sample': start}
    loader = iter(build_train_loader(build_dataset(opt), opt, **where, num_workers=workers))
    return [next(loader) for _ in range(count)]


@pytest.mark.filterwarnings('ignore:This DataLoader will create')
def test_noise_depends_on_the_sample_number_alone(pairs: Pairs) -> None:
    opt = noisy(pairs) | {'sigma': [0, 50]}
    whole = stream(opt, 6)
    resumed = stream(opt, 2, workers=2, start=12)
    for others, part in ((stream(opt, 6, workers=2), whole), (resumed, whole[4:])):
        assert all(
            torch.equal(a['lq'], b['lq']) and a['gt_path'] == b['gt_path'] for a, b in zip(others, part, strict=True)
        )
    drawn = torch.cat([noise(batch) for batch in whole])
    assert len({float(value) for value in drawn[:, 0, 0, 0]}) == 18  # no two samples share their noise
    val = opt | {'phase': 'val', 'sigma': 25}
    first, second = ([batch['lq'] for batch in build_val_loader(build_dataset(val), val)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize('kind', ['png', 'raw'])
@pytest.mark.parametrize('phase', ['train', 'val'])
def test_lmdb_equals_folder(pairs: Pairs, lmdb_pairs: dict[str, Pairs], kind: str, phase: str) -> None:
    samples = []
    for opt in (noisy(pairs, phase=phase), noisy(lmdb_pairs[kind], phase=phase, io_backend={'type': 'lmdb'})):
        dataset = build_dataset(opt)
        index = [Path(path).stem for path in dataset.paths].index('coffee')
        random.seed(1)
        np.random.seed(1)
        samples.append(dataset[index])
    assert torch.equal(samples[0]['lq'], samples[1]['lq'])
    assert torch.equal(samples[0]['gt'], samples[1]['gt'])


def test_sixteen_bits_and_stored_gray(pairs: Pairs, photos: Any) -> None:
    deep = photos.small('coffee', 96, 96).astype(np.uint16) * 200 + 7
    write_pair(pairs, 'a deep', deep)
    write_pair(pairs, 'a gray', photos.small('coffee', 96, 96)[..., 0])
    dataset = build_dataset(noisy(pairs, phase='val'))
    assert torch.equal(dataset[0]['gt'], torch.from_numpy((deep.astype(np.float32) / 65535).transpose(2, 0, 1)))
    assert abs(float(noise(dataset[0]).std()) - 25) < 0.5
    assert dataset[1]['lq'].shape == (3, 96, 96)
    assert build_dataset(noisy(pairs, phase='val', gray=True))[1]['lq'].shape == (1, 96, 96)


@pytest.mark.parametrize('kind', ['folder', 'raw'])
def test_pictures_smaller_than_the_patch(pairs: Pairs, lmdb_pairs: dict[str, Pairs], kind: str) -> None:
    block = noisy(pairs) if kind == 'folder' else noisy(lmdb_pairs['raw'], io_backend={'type': 'lmdb'})
    block['gt_size'] = 129  # all are 128 wide
    with pytest.raises(DataError, match=r'astronaut.*132x128 is smaller than gt_size 129.*pad or skip'):
        build_dataset(block)[0]
    assert build_dataset(block | {'small_images': 'pad'})[0]['lq'].shape == (3, 129, 129)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({'sigma': [50, 10]}, r'sigma: \[50, 10\]: a number is wanted, or a range'),
    ({'sigma': '25'}, "sigma: '25': a number is wanted"),
    ({'sigma': 256}, 'sigma: 256: values from 0 to 255'),
    ({'sigma': [0, 50], 'phase': 'val'}, r'sigma: \[0, 50\]: a range is for training'),
    ({'scale': 4}, 'scale: 4: .*write scale: 1'),
    ({'gt_size': None}, 'gt_size: None: training needs'),
    ({'color': 'y'}, "color: 'y': write gray: true"),
    ({'channels': 1}, 'channels: 1: write gray: true'),
    ({'dataroot_lq': 'lq'}, 'dataroot_lq: unknown option'),
    ({'dataroot_gt': 'none/there'}, 'none/there: no such folder'),
]


@pytest.mark.parametrize(('changes', 'message'), MISTAKES)
def test_mistakes(pairs: Pairs, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_dataset(noisy(pairs) | changes)


def test_option_files_are_checked_without_data() -> None:
    loader = {'num_worker_per_gpu': 0, 'batch_size_per_gpu': 1}
    block = {'name': 'a', 'type': 'GaussianDenoisingDataset', 'dataroot_gt': 'gt', 'sigma': [0, 50], 'gt_size': 64}
    val = {'name': 'b', 'type': 'GaussianDenoisingDataset', 'dataroot_gt': 'gt', 'sigma': 25}
    right = {'scale': 1, 'network_g__upscale': 1, 'datasets__train': {**block, **loader}, 'datasets__val_1': val}
    assert problems(options(**right)) == []
    assert 'scale: 2: pictures keep their size' in '\n'.join(problems(options(**right | {'scale': 2})))
    found = problems(options(**right | {'datasets__val_1': {**val, 'sigma': [0, 50]}}))
    assert [line[:27] for line in found] == ['datasets: val_1: sigma: [0,']
    without = {key: value for key, value in {**block, **loader}.items() if key not in ('gt_size', 'sigma')}
    found = problems(options(**right | {'datasets__train': without}))
    assert [line.split(':')[2] for line in found] == [' gt_size', ' sigma']
    one = right | {'network_g__num_in_ch': 1}
    assert all('write num_in_ch: 3, or gray: true here' in line for line in problems(options(**one)))
    assert len(problems(options(**one))) == 2
    one |= {'datasets__train': {**block, **loader, 'gray': True}, 'datasets__val_1': {**val, 'gray': True}}
    assert problems(options(**one)) == []


@pytest.mark.parametrize('in_ch', [1, 3])
@pytest.mark.parametrize('levels', [{}, BLIND])
def test_published_option_files_of_restormer(pairs: Pairs, levels: dict[str, Any], in_ch: int) -> None:
    published = options(
        scale=1,
        network_g__upscale=1,
        network_g__num_in_ch=in_ch,
        datasets__train=PUBLISHED_TRAIN | levels | {'in_ch': in_ch},
        datasets__val_1=PUBLISHED_VAL | {'in_ch': in_ch},
    )
    assert problems(published) == []
    assert [line.split(': ')[2] for line in problems(published, need_data=True)] == ['dataroot_gt', 'dataroot_gt']
    published['network_g']['num_in_ch'] = 4 - in_ch
    assert len(problems(published)) == 2
    for section in ('train', 'val_1'):
        published['datasets'][section]['dataroot_gt'] = str(pairs.gt)
    published['network_g']['num_in_ch'] = in_ch
    check_options(published, 'file.yml', is_train=True)
    train = build_dataset(published['datasets']['train'] | {'phase': 'train', 'scale': 1})
    assert train[0]['lq'].shape == (in_ch, 384, 384)  # larger than any picture: mirrored, as published
    val = published['datasets']['val_1'] | {'phase': 'val', 'scale': 1}
    ours = build_dataset(noisy(pairs, phase='val') | {'sigma': 15, 'gray': in_ch == 1})
    assert torch.equal(build_dataset(val)[2]['lq'], ours[2]['lq'])
    report = check_dataset(val, Checks(), quiet=True)
    assert (report.images, report.problems) == (7, [])


@pytest.mark.parametrize(
    ('levels', 'wanted'),
    [
        ({'sigma_type': 'choice', 'sigma_range': [5, 25, 50]}, {5, 25, 50}),
        ({'sigma_type': 'constant', 'sigma_range': 25}, {25}),
    ],
)
def test_levels_of_restormers_files(pairs: Pairs, levels: dict[str, Any], wanted: set[int]) -> None:
    changes = {'dataroot_gt': str(pairs.gt), 'gt_size': 96, 'phase': 'train', 'scale': 1, **levels}
    dataset = build_dataset(PUBLISHED_TRAIN | changes)
    assert {round(float(noise(dataset[index % 7]).std()) / 5) * 5 for index in range(40)} == wanted


def test_geometric_augs_turn_pictures(pairs: Pairs) -> None:
    changes = {'dataroot_gt': str(pairs.gt), 'phase': 'train', 'scale': 1, 'gt_size': 128, 'sigma_range': 0}
    for turned in (True, False):
        dataset = build_dataset(PUBLISHED_TRAIN | changes | {'geometric_augs': turned})
        name = [Path(path).stem for path in dataset.paths].index('coffee')  # 120x128: mirrored to one patch
        ways = len({dataset[name]['gt'].numpy().tobytes() for _ in range(60)})
        assert ways == (8 if turned else 1)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'sigma_range': [0, 50]}, 'sigma_range: .*one number is wanted'),
        ({'sigma_type': 'random'}, r'sigma_range: 15: \[low, high\] is wanted'),
        ({'sigma_type': None}, 'sigma_type: None: training needs it'),
        ({'gt_size': None}, 'gt_size: None: training needs it'),
        ({'phase': 'val'}, 'sigma_test: None: validation needs it'),
        ({'dataroot_lq': 'lq'}, "dataroot_lq: 'lq'.*'none'"),
        ({'in_ch': 2}, 'in_ch: 2'),
    ],
)
def test_mistakes_in_restormers_files(pairs: Pairs, changes: dict[str, Any], message: str) -> None:
    block = PUBLISHED_TRAIN | {'phase': 'train', 'scale': 1, 'dataroot_gt': str(pairs.gt)}
    with pytest.raises(DataError, match=message) as caught:
        build_dataset(block | changes)
    assert isinstance(caught.value.__cause__, OptionsError)


def test_mcmaster_with_noise_has_the_published_psnr(shared_data: Path) -> None:
    """20 log10(255 / 25) = 20.17 dB; on 8 bits, where what leaves [0, 255] is clipped, 20.89."""
    folder = shared_data / 'test' / 'McMaster'
    if not folder.is_dir():
        pytest.skip(f'no {folder}')
    block = {'name': 'McMaster', 'type': 'GaussianDenoisingDataset', 'phase': 'val', 'scale': 1, 'sigma': 25}
    unclipped, clipped = [], []
    for sample in build_dataset(block | {'dataroot_gt': str(folder)}):
        lq, gt = sample['lq'].double(), sample['gt'].double()
        unclipped.append(float(-10 * ((lq - gt) ** 2).mean().log10()))
        clipped.append(float(-10 * (((lq.clamp(0, 1) * 255).round() / 255 - gt) ** 2).mean().log10()))
    assert len(unclipped) == 18
    assert np.mean(unclipped) == pytest.approx(20.176, abs=0.001)
    assert np.mean(clipped) == pytest.approx(20.890, abs=0.001)
