"""The same samples whatever the workers, processes and starting points; errors that can be read."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hat_plugin.data.build import build_dataset
from hat_plugin.data.loader import build_train_loader, build_val_loader
from hat_plugin.data.sampler import Draw, GlobalBatchSampler, SampleOrder
from hat_plugin.data.seeded import Batch
from hat_plugin.engine.stages import Stages
from hat_plugin.errors import DataError, HatPluginError

from .conftest import Pairs

Samples = dict[str, Any]
GOLDEN = [0, 6, 2, 4, 3, 7, 8, 1, 5, 9, 3, 1, 6, 7, 2, 0, 9, 8, 5, 4]
pytestmark = pytest.mark.filterwarnings('ignore:This DataLoader will create')


def batches(
    opt: Samples, count: int, *, workers: int = 0, start: int = 0, rank: int = 0, world: int = 1, size: int = 3
) -> list[Samples]:
    loader = build_train_loader(
        build_dataset(opt),
        opt,
        seed=7,
        rank=rank,
        world_size=world,
        stages=Stages.constant(size * world),
        start_sample=start,
        num_workers=workers,
    )
    iterator = iter(loader)
    return [next(iterator) for _ in range(count)]


def same(left: list[Samples], right: list[Samples]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a['lq'], b['lq']) and torch.equal(a['gt'], b['gt']) and a['gt_path'] == b['gt_path']
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize('kind', ['PairedCropDataset', 'PairedImageDataset'])
def test_stream_does_not_depend_on_workers_or_start(pairs: Pairs, kind: str) -> None:
    opt = pairs.options(kind)
    whole = batches(opt, 8)
    for workers in (2, 3):
        assert same(batches(opt, 8, workers=workers), whole)
    # in the middle of the second epoch, with other workers than before: a resumed run
    assert same(batches(opt, 3, workers=2, start=15), whole[5:])
    assert same(batches(opt, 3, start=15), whole[5:])


def test_epochs_differ_and_each_holds_every_picture(pairs: Pairs) -> None:
    stream = batches(pairs.options(), 14, size=1)
    paths = [batch['gt_path'][0] for batch in stream]
    assert sorted(paths[:7]) == sorted(paths[7:]) == sorted(set(paths))
    assert paths[:7] != paths[7:]
    first, second = ({b['gt_path'][0]: b['gt'] for b in part} for part in (stream[:7], stream[7:]))
    assert not all(torch.equal(first[path], second[path]) for path in first)  # other patches, too


def test_ranks_together_equal_one(pairs: Pairs) -> None:
    opt = pairs.options()
    alone = batches(opt, 4, size=4)
    ranks = [batches(opt, 4, size=2, rank=rank, world=2) for rank in (0, 1)]
    for step, whole in enumerate(alone):
        merged = torch.stack([ranks[k % 2][step]['gt'][k // 2] for k in range(4)])
        assert torch.equal(merged, whole['gt'])


def test_main_process_random_state_is_left_alone(pairs: Pairs) -> None:
    opt = pairs.options()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    for workers in (0, 2):
        batches(opt, 2, workers=workers)
    next(iter(build_val_loader(build_dataset(opt), opt)))
    after = random.getstate(), np.random.get_state()[1], torch.get_rng_state()
    assert before[0] == after[0]
    assert np.array_equal(before[1], after[1])
    assert torch.equal(before[2], after[2])


def test_order_options(pairs: Pairs) -> None:
    plain = pairs.options(use_shuffle=False)
    paths = [os.path.basename(batch['gt_path'][0]) for batch in batches(plain, 9, size=1)]
    names = sorted(f'{name}.png' for name in pairs.names)
    assert paths == [*names, *names[:2]]
    order = SampleOrder(5, seed=3, enlarge=2.5)
    assert order.samples_per_epoch == 13
    assert sorted(order[k] for k in range(5)) != list(range(5))  # shuffled over all 13
    assert {order[k] for k in range(13)} == set(range(5))


def test_batch_larger_than_the_data_set(pairs: Pairs) -> None:
    assert batches(pairs.options(), 2, size=20)[1]['gt'].shape == (20, 3, 64, 64)


def test_order_is_frozen() -> None:
    """A golden: the order of a run must not change with a later version, or resumed runs would differ."""
    order = SampleOrder(10, seed=2**40 + 5)
    assert [order[k] for k in range(20)] == GOLDEN
    sampler = iter(GlobalBatchSampler(order, Stages.constant(6), rank=1, world_size=3, start=6))
    assert next(sampler) == [Draw(7, GOLDEN[7]), Draw(10, GOLDEN[10])]


def test_impossible_runs_are_refused(pairs: Pairs) -> None:
    with pytest.raises(HatPluginError, match='empty'):
        SampleOrder(0, seed=0)
    with pytest.raises(HatPluginError, match='-1'):
        SampleOrder(3, seed=-1)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('kind', ['PairedCropDataset', 'PairedImageDataset'])
def test_corrupt_picture_is_named(pairs: Pairs, kind: str, workers: int) -> None:
    bad = pairs.gt / 'chelsea.png'
    bad.write_bytes(bad.read_bytes()[:2000])
    with pytest.raises(DataError, match=r'chelsea\.png') as caught:
        batches(pairs.options(kind), 7, workers=workers)
    assert 'Traceback' not in str(caught.value)


@pytest.mark.parametrize('workers', [0, 2])
def test_corrupt_picture_is_skipped_counted_and_logged_where_wanted(
    pairs: Pairs, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    bad = pairs.gt / 'chelsea.png'
    bad.write_bytes(b'')
    opt = pairs.options(on_corrupt='skip')
    loader = build_train_loader(
        build_dataset(opt), opt, seed=1, rank=0, world_size=1, stages=Stages.constant(7), num_workers=workers
    )
    with caplog.at_level(logging.WARNING):
        iterator = iter(loader)
        paths = [path for _ in range(2) for path in next(iterator)['gt_path']]
    assert len(paths) == 14
    assert str(bad) not in paths
    assert list(loader.skipped.values()) == [2]
    assert sum('chelsea.png' in record.message for record in caplog.records) == 1
    vals = build_val_loader(build_dataset(opt | {'phase': 'val'}), opt | {'phase': 'val'})
    assert [int(batch['index']) for batch in vals] == [0, 2, 3, 4, 5, 6]


def test_a_folder_of_nothing_but_corrupt_pictures_ends(pairs: Pairs) -> None:
    for name in pairs.names:
        (pairs.gt / f'{name}.png').write_bytes(b'')
    with pytest.raises(DataError, match='in a row'):
        batches(pairs.options(on_corrupt='skip'), 1)


def test_samples_of_different_sizes_are_named(pairs: Pairs) -> None:
    opt = pairs.options(phase='val')
    with pytest.raises(DataError, match=r'(?s)do not fit into one batch.*chelsea\.png'):
        batches(opt, 1, size=7)


class _Dying:
    """A data set whose worker is killed, as by the kernel when memory runs out."""

    opt: dict[str, Any] = {}

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Samples:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}


def test_killed_worker_is_told_with_likely_causes() -> None:
    loader = build_train_loader(
        _Dying(), {'name': 'x'}, seed=0, rank=0, world_size=1, stages=Stages.constant(1), num_workers=1
    )
    with pytest.raises(DataError, match='shm-size'):
        next(iter(loader))


DIES_WITH_A_LOADER = """
from hat_plugin.data.loader import build_train_loader
from hat_plugin.engine.stages import Stages

class Numbers:
    opt = {}
    def __len__(self): return 4
    def __getitem__(self, index): return {'number': index}

def train():
    for batch in build_train_loader(
        Numbers(), {'name': 'x'}, seed=0, rank=0, world_size=1, stages=Stages.constant(1), num_workers=1
    ):
        raise MemoryError('as on a GPU')

train()
"""


def test_a_process_that_dies_of_an_exception_does_not_wait_for_its_workers(repository: Path) -> None:
    environment = os.environ | {'PYTHONPATH': str(repository)}
    command = [sys.executable, '-c', DIES_WITH_A_LOADER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 1
    assert 'MemoryError: as on a GPU' in done.stderr


def test_val_loader_shards_in_order_with_index(pairs: Pairs) -> None:
    opt = pairs.options(phase='val')
    dataset = build_dataset(opt)
    shards = [build_val_loader(dataset, opt, rank=rank, world_size=3) for rank in range(3)]
    seen = [[int(batch['index']) for batch in shard] for shard in shards]
    assert seen == [[0, 3, 6], [1, 4], [2, 5]]
    assert [len(shard) for shard in shards] == [3, 2, 2]
    assert shards[0].dataset.opt['name'] == 'pairs'
    opt = opt | {'num_worker_per_gpu': 2, 'persistent_workers': True}
    loader = build_val_loader(dataset, opt)
    for _ in range(2):  # a second validation with the same workers
        assert [int(batch['index']) for batch in loader] == list(range(7))
    assert next(iter(loader))['lq'].shape[0] == 1


def test_prefetch_mode_cpu_reads_in_a_process(pairs: Pairs) -> None:
    opt = pairs.options(prefetch_mode='cpu', num_prefetch_queue=3)
    loader = build_train_loader(
        build_dataset(opt), opt, seed=7, rank=0, world_size=1, stages=Stages.constant(3), num_workers=0
    )
    assert (loader.num_workers, loader.prefetch_factor) == (1, 3)
    assert same([next(iter(loader))], batches(pairs.options(), 1))


@pytest.mark.parametrize('kind', ['png', 'raw'])
def test_spawned_workers(lmdb_pairs: dict[str, Pairs], kind: str) -> None:
    opt = lmdb_pairs[kind].options(io_backend={'type': 'lmdb'})
    batches(opt, 1)  # opened in this process first
    assert same(batches(opt | {'multiprocessing_context': 'spawn'}, 2, workers=1), batches(opt, 2))


def test_batches_can_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda self: self + 1)  # there may be no CUDA to pin for
    batch = Batch({'lq': torch.zeros(2), 'lq_path': ['a']}, ('skipped',)).pin_memory()
    assert batch == Batch({'lq': batch.data['lq'], 'lq_path': ['a']}, ('skipped',))
    assert batch.data['lq'].tolist() == [1, 1]


@pytest.mark.gpu
def test_prefetch_mode_cuda_copies_ahead(pairs: Pairs) -> None:
    opt = pairs.options(prefetch_mode='cuda')
    ahead = batches(opt, 5, workers=2)
    assert all(batch['gt'].is_cuda for batch in ahead)
    pinned = batches(pairs.options(), 1, workers=1)[0]
    assert pinned['gt'].is_pinned()
    assert same(
        [{k: v.cpu() if torch.is_tensor(v) else v for k, v in b.items()} for b in ahead], batches(pairs.options(), 5)
    )


def test_build_dataset_says_what_is_wrong(pairs: Pairs, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'pairs \(PairedCropDatset\): no such type.*PairedCropDataset'):
        build_dataset(pairs.options('PairedCropDatset'))
    opt = pairs.options('PairedImageDataset')
    del opt['dataroot_lq']
    with pytest.raises(DataError, match=r"PairedImageDataset.*'dataroot_lq' is missing"):
        build_dataset(opt)
    with pytest.raises(DataError, match='no such folder'):
        build_dataset(pairs.options(dataroot_gt=str(tmp_path / 'none')))


def test_basicsr_data_sets_get_order_and_checks(pairs: Pairs, lmdb_pairs: dict[str, Pairs]) -> None:
    paths = [path['gt_path'] for path in build_dataset(pairs.options('PairedImageDataset')).paths]
    assert paths == sorted(paths)
    opt = lmdb_pairs['png'].options('PairedImageDataset', io_backend={'type': 'lmdb'})
    with pytest.raises(DataError, match=r'GT_png\.lmdb: astronaut, .*LQ_png\.lmdb: astronaut: .* failed on it'):
        batches(opt | {'scale': 2, 'use_shuffle': False}, 1, workers=1)  # a wrong scale, met in a worker
    os.truncate(lmdb_pairs['png'].gt / 'data.mdb', 20_000)
    with pytest.raises(DataError, match=r'GT_png\.lmdb.*cut short'):  # BasicSR would be killed by SIGBUS
        build_dataset(opt)


def test_loader_options_are_checked(pairs: Pairs) -> None:
    opt = pairs.options('PairedImageDataset')
    with pytest.raises(HatPluginError, match=r'prefetch_mode.*gpu'):
        build_val_loader(build_dataset(opt), opt | {'prefetch_mode': 'gpu'})
