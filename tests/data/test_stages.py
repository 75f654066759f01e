"""Batches of training by stages: their shapes, whatever the workers, the ranks and the place where a run goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hat_plugin.data.build import build_dataset
from hat_plugin.data.lmdb_io import LmdbReader
from hat_plugin.data.loader import build_train_loader
from hat_plugin.engine.options import registered
from hat_plugin.engine.stages import Stages
from hat_plugin.errors import DataError

from .conftest import Pairs

PLAN = {
    'batch_size_per_gpu': 4,
    'gt_size': 64,
    'mini_batch_sizes': [4, 3, 1],
    'iters': [2, 3, 1],
    'gt_sizes': [32, 48, 64],
}
SHAPES = [(4, 32), (4, 32), (3, 48), (3, 48), (3, 48), (1, 64), (1, 64)]
pytestmark = pytest.mark.filterwarnings('ignore:This DataLoader will create')


def batches(
    opt: dict[str, Any], count: int, *, done: int = 0, workers: int = 0, rank: int = 0, world: int = 1, total: int = 4
) -> list[dict[str, Any]]:
    stages = Stages.of(opt, total)
    loader = build_train_loader(
        build_dataset(opt),
        opt,
        seed=7,
        rank=rank,
        world_size=world,
        stages=stages,
        start_sample=stages.samples_until(done),
        start_iteration=done,
        num_workers=workers,
    )
    iterator = iter(loader)
    return [next(iterator) for _ in range(count)]


def same(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a['lq'], b['lq']) and torch.equal(a['gt'], b['gt']) and a['gt_path'] == b['gt_path']
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize('kind', ['PairedCropDataset', 'PairedImageDataset', 'Dataset_PairedImage'])
def test_each_iteration_has_the_batch_and_the_patch_of_its_stage(pairs: Pairs, kind: str) -> None:
    opt = pairs.options(kind, **PLAN)
    if kind == 'Dataset_PairedImage':
        opt['geometric_augs'] = True
    found = batches(opt, 7)
    assert [(len(batch['gt']), batch['gt'].shape[-1]) for batch in found] == SHAPES
    for (size, side), batch in zip(SHAPES, found, strict=True):
        assert batch['gt'].shape == (size, 3, side, side)
        assert batch['lq'].shape == (size, 3, side // 4, side // 4)


def test_imagenets_pairs_grow_too(pairs: Pairs) -> None:
    opt = pairs.options('ImageNetPairedDataset', **PLAN)
    del opt['dataroot_lq']
    found = batches(opt, 7)
    assert [(len(batch['gt']), batch['gt'].shape[-1]) for batch in found] == SHAPES


@pytest.mark.skipif(registered('DATASET_REGISTRY', 'Dataset_GaussianDenoising') is None, reason='not registered')
def test_restormers_noise_grows_too(pairs: Pairs) -> None:
    opt = {key: value for key, value in pairs.options(**PLAN).items() if key not in ('use_hflip', 'use_rot')}
    opt.update(type='Dataset_GaussianDenoising', scale=1, dataroot_lq='none', in_ch=3, geometric_augs=True,
               sigma_type='random', sigma_range=[0, 50])  # fmt: skip
    assert [(len(batch['lq']), batch['lq'].shape[-1]) for batch in batches(opt, 7)] == SHAPES


@pytest.mark.parametrize('kind', ['PairedCropDataset', 'PairedImageDataset'])
def test_workers_that_read_over_a_boundary_and_resumed_runs_give_the_same_batches(pairs: Pairs, kind: str) -> None:
    opt = pairs.options(kind, **PLAN)
    whole = batches(opt, 9)
    for workers in (2, 3):
        assert same(batches(opt, 9, workers=workers), whole)
    for done in (1, 2, 4, 5, 6):
        assert same(batches(opt, 3, done=done), whole[done : done + 3])
    assert same(batches(opt, 4, done=4, workers=2), whole[4:8])


def test_ranks_together_equal_one(pairs: Pairs) -> None:
    opt = pairs.options(**PLAN)
    alone = batches(opt, 7, total=8)
    ranks = [batches(opt, 7, rank=rank, world=2, total=8) for rank in (0, 1)]
    for step, whole in enumerate(alone):
        merged = torch.stack([ranks[k % 2][step]['gt'][k // 2] for k in range(len(whole['gt']))])
        assert torch.equal(merged, whole['gt'])
        assert len(whole['gt']) == 2 * len(ranks[0][step]['gt'])


def test_a_raw_lmdb_is_read_no_further_than_the_stages_patch(
    lmdb_pairs: dict[str, Pairs], monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = []
    crop = LmdbReader.crop

    def noted(self: LmdbReader, key: str, top: int, left: int, height: int, width: int) -> Any:
        sides.append((height, width))
        return crop(self, key, top, left, height, width)

    monkeypatch.setattr(LmdbReader, 'crop', noted)
    opt = lmdb_pairs['raw'].options(**PLAN, io_backend={'type': 'lmdb'})
    batches(opt, 6)
    assert set(sides[: 2 * 8]) == {(8, 8), (32, 32)}  # LQ and GT of two batches of four
    assert set(sides[2 * 8 : 2 * 17]) == {(12, 12), (48, 48)}
    assert set(sides[2 * 17 :]) == {(16, 16), (64, 64)}


def test_small_pictures_are_padded_to_the_patch_of_the_stage(pairs: Pairs) -> None:
    opt = pairs.options('Dataset_PairedImage', **{**PLAN, 'gt_size': 160, 'gt_sizes': [32, 48, 160]})
    opt['geometric_augs'] = True
    found = batches(opt, 6)  # the pictures have 96 rows and a few more
    assert found[5]['gt'].shape == (1, 3, 160, 160)


class Stubborn:
    """A data set that keeps the side of its patches."""

    def __init__(self) -> None:
        self.opt: dict[str, Any] = {'name': 'stubborn'}
        self.paths = ['one.png']

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {'gt': torch.zeros(3, 64, 64)}


def test_a_data_set_that_keeps_its_patches_is_refused() -> None:
    stages = Stages.of(PLAN, 4)
    loader = build_train_loader(
        Stubborn(), {'name': 'x'}, seed=0, rank=0, world_size=1, stages=stages, num_workers=0
    )  # fmt: skip
    with pytest.raises(DataError, match=r"Stubborn gave a patch of \(64, 64\) where the stage's gt_size is 32"):
        next(iter(loader))
