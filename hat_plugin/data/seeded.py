"""Any data set, made deterministic, with errors that name the file and, where wanted, unusable samples skipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, default_collate, get_worker_info

from hat_plugin.data.sampler import Draw, preserved_random_state, seed_sample
from hat_plugin.errors import DataError

MAX_REPLACEMENTS = 20


class SmallImageError(DataError):
    """A picture is smaller than the patch that is to be cut from it."""


@dataclass(frozen=True)
class Failure:
    """A sample could not be made. It travels as a value: an exception would arrive buried in a worker's traceback."""

    message: str


@dataclass(frozen=True)
class Loaded:
    """A sample and what was skipped on the way to it; `sample` is None where nothing took the skipped one's place."""

    sample: Any
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """A collated batch (None where every sample of it was skipped), and the messages of the samples skipped."""

    data: Any
    skipped: tuple[str, ...] = ()

    def pin_memory(self) -> Batch:
        """Tensors in page-locked memory; torch's DataLoader calls this where ``pin_memory`` is on."""
        if not isinstance(self.data, dict):
            return self
        pinned = {key: value.pin_memory() if torch.is_tensor(value) else value for key, value in self.data.items()}
        return Batch(pinned, self.skipped)


class SeededDataset(Dataset[Loaded | Failure]):
    """Wraps any data set: a sample is drawn with all generators seeded from (seed, its number).

    Where a draw says the side of its patch, it is written into the data set's ``opt['gt_size']`` first, which data sets
    of BasicSR's kind look up for each sample.

    In the main process (no workers) the generators are given back afterwards, so that training draws the same numbers
    whether pictures are read by workers or not.

    Args:
        dataset: the data set to wrap.
        seed: of the run.
        skip_corrupt: skip a sample that cannot be made, instead of stopping the run (``on_corrupt: skip``).
        skip_small: skip a picture that is smaller than the patch (``small_images: skip``).
        replace: put the next picture that can be read in a skipped one's place (training), or leave it out.
        add_index: add the data-set index to the sample as ``index`` (validation).
    """

    def __init__(
        self,
        dataset: Any,
        *,
        seed: int,
        skip_corrupt: bool = False,
        skip_small: bool = False,
        replace: bool = True,
        add_index: bool = False,
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        self.skip_corrupt = skip_corrupt
        self.skip_small = skip_small
        self.replace = replace
        self.add_index = add_index

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def opt(self) -> dict[str, Any]:
        """The wrapped data set's options: BasicSR's models ask for ``dataloader.dataset.opt['name']``."""
        return self.dataset.opt

    def __getitem__(self, draw: Draw) -> Loaded | Failure:
        if get_worker_info() is not None:
            return self._load(draw)
        with preserved_random_state():
            return self._load(draw)

    def _load(self, draw: Draw) -> Loaded | Failure:
        skipped: list[str] = []
        for attempt in range(MAX_REPLACEMENTS):
            position = (draw.index + attempt) % len(self.dataset)
            seed_sample(self.seed, draw.number)
            try:
                sample = self._sample(position, draw.gt_size)
            except Exception as error:  # another's data set may raise anything
                message = self._message(error, position)
                if not (self.skip_small if isinstance(error, SmallImageError) else self.skip_corrupt):
                    return Failure(message)
                skipped.append(message)
                if self.replace:
                    continue
                return Loaded(None, tuple(skipped))
            if self.add_index and isinstance(sample, dict):
                sample = {**sample, 'index': position}
            return Loaded(sample, tuple(skipped))
        return Failure(f'{MAX_REPLACEMENTS} pictures in a row were skipped; the last: {skipped[-1]}')

    def _sample(self, position: int, gt_size: int | None) -> Any:
        if gt_size is None:
            return self.dataset[position]
        self.dataset.opt['gt_size'] = gt_size
        sample = self.dataset[position]
        sides = tuple(sample['gt'].shape[-2:])
        if sides != (gt_size, gt_size):
            raise DataError(
                f'{_path_of(self.dataset, position)}: {type(self.dataset).__name__} gave a patch of {sides} where the'
                f" stage's gt_size is {gt_size}: it does not look opt['gt_size'] up for each sample, and cannot be"
                ' trained on by stages; remove mini_batch_sizes, iters and gt_sizes, or take PairedCropDataset'
            )
        return sample

    def _message(self, error: Exception, index: int) -> str:
        """Our own errors name the file; others' are given its name, as far as the data set tells it."""
        if isinstance(error, DataError):
            return str(error)
        kind = type(self.dataset).__name__
        return f'{_path_of(self.dataset, index)}: {kind} failed on it: {type(error).__name__}: {error}'


def collate(items: list[Loaded | Failure]) -> Batch | Failure:
    """Stack samples to a batch; a failure, or samples that do not fit together, become one Failure."""
    for item in items:
        if isinstance(item, Failure):
            return item
    loaded = [item for item in items if isinstance(item, Loaded)]
    samples = [item.sample for item in loaded if item.sample is not None]
    skipped = tuple(message for item in loaded for message in item.skipped)
    if not samples:
        return Batch(None, skipped)
    try:
        return Batch(default_collate(samples), skipped)
    except (RuntimeError, TypeError, KeyError) as error:
        listed = '\n'.join(f'  {_describe(sample)}' for sample in samples)
        return Failure(f'these samples do not fit into one batch ({error}):\n{listed}')


def _path_of(dataset: Any, index: int) -> str:
    """The file or files behind a sample, or LMDB and key, as far as the data set says."""
    try:
        entry = dataset.paths[index]
    except (AttributeError, IndexError, KeyError, TypeError):
        return f'sample {index}'
    roots = getattr(dataset, 'opt', None) or {}
    entries = entry if isinstance(entry, dict) else {'gt_path' if 'dataroot_gt' in roots else 'lq_path': entry}
    places = []
    for key, value in sorted(entries.items()):
        root = str(roots.get(f'dataroot_{key.removesuffix("_path")}', ''))
        if key.endswith('_path'):
            places.append(f'{root}: {value}' if root.endswith('.lmdb') else str(value))
    return ', '.join(dict.fromkeys(places))


def _describe(sample: Any) -> str:
    """Paths and shapes of a sample, in a line."""
    if not isinstance(sample, dict):
        return repr(type(sample))
    parts = [str(value) for key, value in sample.items() if key.endswith('_path')]
    parts += [f'{key} {tuple(value.shape)}' for key, value in sample.items() if isinstance(value, torch.Tensor)]
    return ' '.join(parts)
