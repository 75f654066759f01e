"""The data of a training run: its training set as a stream of batches, and its validation loaders."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hat_plugin.data.build import build_dataset
from hat_plugin.data.loader import PictureLoader, build_train_loader, build_val_loader, sample_skips
from hat_plugin.data.sampler import Draw, samples_per_epoch
from hat_plugin.data.seeded import Failure, SeededDataset
from hat_plugin.engine import distributed
from hat_plugin.engine.resume import Progress
from hat_plugin.engine.stages import Stages
from hat_plugin.errors import DataError, HatPluginError


def total_batch_size(opt: dict[str, Any]) -> int:
    """Samples an iteration over all ranks: ``train: total_batch_size``, or all their ``batch_size_per_gpu``."""
    total, train_set = opt['train'].get('total_batch_size'), opt['datasets']['train']
    if total is None:
        per_rank = train_set['batch_size_per_gpu'] * (1 if opt['dist'] else max(opt['num_gpu'], 1))
        return int(per_rank * opt['world_size'])
    if total % opt['world_size']:
        raise HatPluginError(f'train: total_batch_size: {total} does not divide among {opt["world_size"]} ranks')
    mini_batches = opt['world_size'] * train_set['batch_size_per_gpu']
    if train_set.get('mini_batch_sizes') and total % mini_batches:
        raise HatPluginError(
            f'train: total_batch_size: {total} is no multiple of {mini_batches} (batch_size_per_gpu times ranks), which'
            ' stages of other mini_batch_sizes need; choose one'
        )
    return int(total)


@dataclass
class TrainingData:
    """The training set and the validation loaders."""

    dataset: Any
    options: dict[str, Any]
    stages: Stages
    epoch_length: int
    val_loaders: list[PictureLoader]

    @classmethod
    def build(cls, opt: dict[str, Any], world: distributed.World) -> TrainingData:
        """Build all data sets of the options."""
        train_opt, val_loaders = opt['datasets']['train'], []
        dataset = build_dataset(train_opt)
        for phase, options in opt['datasets'].items():
            if phase.split('_')[0] == 'val':
                val_set = build_dataset(options)
                val_loaders.append(build_val_loader(val_set, options, rank=world.rank, world_size=world.size))
        epoch_length = samples_per_epoch(len(dataset), train_opt.get('dataset_enlarge_ratio') or 1)
        stages = Stages.of(train_opt, total_batch_size(opt))
        return cls(dataset, train_opt, stages, epoch_length, val_loaders)

    def probe(self) -> None:
        """Read one sample of each set: what only the pictures show is found before an older run is moved aside.

        Copies are read, so that no file stays open that a worker could not open again. Collective.

        Raises:
            DataError: a sample cannot be made, on whichever rank.
        """
        train_set = SeededDataset(self.dataset, seed=0, **sample_skips(self.options))
        draws: list[tuple[Any, Draw]] = [(train_set, Draw(0, 0, self.stages.at(1).gt_size))]
        draws += [(loader.dataset, Draw(0, 0)) for loader in self.val_loaders]
        failure = ''
        for dataset, draw in draws:
            try:
                found = _copy(dataset)[draw]
            except TypeError:  # another's data set holds what cannot be copied
                continue
            if isinstance(found, Failure):
                failure = found.message
                break
        failures = [text for text in distributed.gather_objects(failure) if text]
        if failures:
            raise DataError(failure or failures[0])

    def epoch(self, progress: Progress) -> int:
        """Whole passes over the training set, ``dataset_enlarge_ratio`` counted in."""
        return progress.samples // self.epoch_length

    def batches(self, progress: Progress) -> Iterator[dict[str, Any]]:
        """This rank's batches from where the run is, without end."""
        world, workers = distributed.current_world(), int(self.options.get('num_worker_per_gpu') or 0)
        loader = build_train_loader(
            self.dataset,
            self.options,
            seed=progress.seed or 0,
            rank=world.rank,
            world_size=world.size,
            stages=self.stages,
            start_sample=progress.samples,
            start_iteration=progress.iteration,
            num_workers=workers,
        )
        return iter(loader)

    def log(self, logger: Any, opt: dict[str, Any], total_iter: int) -> None:
        """BasicSR's training statistics."""
        first, *later = self.stages.stages
        iterations = -(-self.epoch_length // first.batch)
        epochs = -(-self.stages.samples_until(total_iter) // self.epoch_length)
        logger.info(
            'Training statistics:'
            f'\n\tNumber of train images: {len(self.dataset)}'
            f'\n\tDataset enlarge ratio: {self.options.get("dataset_enlarge_ratio", 1)}'
            f'\n\tBatch size per gpu: {self.options["batch_size_per_gpu"]}'
            f'\n\tTotal batch size: {first.batch}'
            f'\n\tWorld size (gpu number): {opt["world_size"]}'
            f'\n\tRequire iter number per epoch: {iterations}'
            f'\n\tTotal epochs: {epochs}; iters: {total_iter}.'
        )
        for stage in (first, *later) if later else ():
            logger.info(f'From iteration {stage.first:,}: patches of {stage.gt_size}, batches of {stage.batch}.')


def _copy(dataset: Any) -> Any:
    """A copy to be read once; lists, of a million names it may be, are shared."""
    values = vars(dataset.dataset).values()
    return copy.deepcopy(dataset, {id(value): value for value in values if isinstance(value, list | tuple)})
