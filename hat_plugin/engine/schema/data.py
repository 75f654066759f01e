"""What data sets read from their section: the loader's keys, which are everyone's, and the keys of each data set.

A data set's class says its own by ``OPTIONS``, a pydantic model; BasicSR's, which say nothing, stand in a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, create_model, model_validator

from hat_plugin.engine.schema.classes import find_class, of_registry
from hat_plugin.engine.schema.report import Place, at, section_problems
from hat_plugin.engine.schema.values import (
    NO_FOLDER,
    Count,
    CountOrZero,
    Counts,
    Flag,
    FolderName,
    Int,
    PerChannel,
    Positive,
    Section,
    Text,
)


class LoaderOptions(Section):
    """Keys of a ``datasets:`` block that the pipeline and the loader read, whatever the data set.

    A data set's own model inherits them, and its class names it as ``OPTIONS``. A key given as ``~`` is not given.
    """

    @model_validator(mode='before')
    @classmethod
    def _without_none(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None or key not in cls.model_fields}

    name: FolderName = Field(default='', description='what the log and the results folder call this data set')
    type: Text = Field(default='', description='a registered data set, PairedCropDataset say')
    phase: Text = Field(default='train', description='train, val or test; filled in from the name of the block')
    scale: Count = Field(default=1, description='filled in from the top level, where it stands there')
    use_shuffle: Flag = Field(default=True, description='another order each epoch (training)')
    dataset_enlarge_ratio: Positive = Field(default=1, description='how often the data set counts as an epoch')
    num_worker_per_gpu: CountOrZero | None = Field(default=None, description='processes that read pictures')
    batch_size_per_gpu: Count = Field(default=1, description='pictures in a step of one device')
    mini_batch_sizes: Counts | None = Field(default=None, description='pictures in a step of one device, by stage')
    iters: Counts | None = Field(default=None, description='iterations of each stage; the last goes on to the end')
    gt_sizes: Counts | None = Field(default=None, description='side of a training patch of the ground truth, by stage')
    prefetch_mode: Literal['cpu', 'cuda'] | None = Field(
        default=None, description='cpu: at least one process reads ahead; cuda: batches are copied to the GPU ahead'
    )
    num_prefetch_queue: Count = Field(default=2, description='batches each process reads ahead (prefetch_mode)')
    pin_memory: Flag = Field(default=True, description='page-locked memory, where there is CUDA')
    persistent_workers: Flag = Field(default=False, description='keep processes between validations')
    multiprocessing_context: Literal['fork', 'spawn', 'forkserver'] | None = Field(
        default=None, description='how processes are started; the system chooses where it is not given'
    )
    on_corrupt: Literal['error', 'skip'] = Field(
        default='error', description='skip: leave a picture out that cannot be read, log and count it'
    )


class BackendOptions(Section):
    """Where the bytes come from."""

    type: Literal['disk', 'lmdb'] = Field(description='disk or lmdb')


class FileClientOptions(Section):
    """Where the bytes of BasicSR's own data sets come from."""

    type: Literal['disk', 'lmdb', 'memcached'] = Field(description='disk or lmdb')
    server_list_cfg: Text | None = None
    client_cfg: Text | None = None
    sys_path: Text | None = None


DATASET = of_registry('DATASET_REGISTRY', 'data set', example='PairedImageDataset')
# Keys that are no user's, and no remedy.
_FILLED_IN = ('phase', 'scale')
# Keys that an option file must have, though a data set can be made without them.
_NEEDED = ('name',)
_NEEDED_IN_TRAINING = ('num_worker_per_gpu', 'batch_size_per_gpu')
_TYPES: dict[str, Any] = {
    'io_backend': FileClientOptions,
    'dataroot_gt': Text,
    'dataroot_lq': Text,
    'dataroot_flow': Text | None,
    'meta_info_file': Text | None,
    'meta_info': Text | None,
    'filename_tmpl': Text | None,
    'gt_size': Count | None,
    'use_hflip': Flag | None,
    'use_rot': Flag | None,
    'color': Text | None,
    'mean': PerChannel | None,
    'std': PerChannel | None,
    'num_frame': Int | None,
    'interval_list': list[Int] | None,
    'random_reverse': Flag | None,
    'flip_sequence': Flag | None,
    'val_partition': Text | None,
    'test_mode': Flag | None,
    'cache_data': Flag | None,
    'padding': Text | None,
    'use_duf_downsampling': Flag | None,
}
_PAIRED = 'dataroot_gt dataroot_lq meta_info_file filename_tmpl gt_size use_hflip use_rot color mean std'
_REDS = (
    'dataroot_gt dataroot_lq dataroot_flow meta_info_file val_partition num_frame gt_size interval_list random_reverse '
    'use_hflip use_rot test_mode'
)
_VIMEO = 'dataroot_gt dataroot_lq meta_info_file num_frame gt_size random_reverse flip_sequence use_hflip use_rot'
_VIDEO_TEST = 'dataroot_gt dataroot_lq meta_info_file cache_data num_frame padding'
# data set -> (all its keys, keys it cannot do without, keys it cannot do without in training)
BASICSR_DATASETS: dict[str, tuple[str, str, str]] = {
    'PairedImageDataset': (_PAIRED, 'dataroot_gt dataroot_lq', 'gt_size use_hflip use_rot'),
    'RealESRGANPairedDataset': (
        'dataroot_gt dataroot_lq meta_info filename_tmpl gt_size use_hflip use_rot mean std',
        'dataroot_gt dataroot_lq',
        'gt_size use_hflip use_rot',
    ),
    'SingleImageDataset': ('dataroot_lq meta_info_file color mean std', 'dataroot_lq', ''),
    'FFHQDataset': ('dataroot_gt mean std use_hflip', 'dataroot_gt mean std use_hflip', ''),
    'REDSDataset': (_REDS, 'dataroot_gt dataroot_lq meta_info_file num_frame', 'gt_size use_hflip use_rot'),
    'REDSRecurrentDataset': (_REDS, 'dataroot_gt dataroot_lq meta_info_file num_frame', 'gt_size use_hflip use_rot'),
    'Vimeo90KDataset': (_VIMEO, 'dataroot_gt dataroot_lq meta_info_file num_frame', 'gt_size use_hflip use_rot'),
    'Vimeo90KRecurrentDataset': (_VIMEO, 'dataroot_gt dataroot_lq meta_info_file num_frame', 'gt_size'),
    'VideoTestDataset': (_VIDEO_TEST, 'dataroot_gt dataroot_lq cache_data num_frame padding', ''),
    'VideoTestVimeo90KDataset': (_VIDEO_TEST, 'dataroot_gt dataroot_lq meta_info_file num_frame padding', ''),
    'VideoTestDUFDataset': (
        f'{_VIDEO_TEST} use_duf_downsampling',
        'dataroot_gt dataroot_lq cache_data num_frame padding use_duf_downsampling',
        '',
    ),
    'VideoRecurrentTestDataset': (_VIDEO_TEST, 'dataroot_gt dataroot_lq cache_data', ''),
}


def dataset_schema(target: Any, *, training: bool) -> type[BaseModel] | None:
    """All keys of a data set, the loader's included; None where its class does not say which it reads."""
    own = getattr(target, 'OPTIONS', None)
    if isinstance(own, type) and issubclass(own, BaseModel):
        return own if issubclass(own, LoaderOptions) else create_model(own.__name__, __base__=(own, LoaderOptions))
    name = target.__name__
    if not target.__module__.startswith('basicsr.') or name not in BASICSR_DATASETS:
        return None
    known, required, required_in_training = (set(part.split()) for part in BASICSR_DATASETS[name])
    required = required | {'io_backend'} | (required_in_training if training else set())
    fields: dict[str, Any] = {
        key: (_TYPES[key], Field(description=f'{name} needs it') if key in required else None)
        for key in sorted(known | {'io_backend'})
    }
    return create_model(f'{name}Options', __base__=LoaderOptions, **fields)


def renamed(section: Mapping[str, Any]) -> dict[str, Any]:
    """A data set's section in its class's words: NAFNet's files say ``use_flip`` where BasicSR says ``use_hflip``."""
    target = DATASET.find(section.get('type'))
    schema = dataset_schema(target, training=False) if target is not None else None
    keys = schema.model_fields.keys() if schema is not None else set()
    if 'use_flip' in keys or 'use_hflip' not in keys or 'use_hflip' in section:
        return dict(section)
    return {'use_hflip' if key == 'use_flip' else key: value for key, value in section.items()}


def required_keys(name: Any) -> set[str]:
    """The keys that a data set of that type cannot do without in validation."""
    target = DATASET.find(name)
    schema = dataset_schema(target, training=False) if target is not None else None
    return {key for key, field in schema.model_fields.items() if field.is_required()} if schema is not None else set()


def option_of(section: Mapping[str, Any], key: str) -> Any:
    """An option's value, or its data set's default for it; None where the data set has no such option."""
    if section.get(key) is not None:
        return section[key]
    target = DATASET.find(section.get('type'))
    schema = dataset_schema(target, training=False) if target is not None else None
    return schema.model_fields[key].default if schema is not None and key in schema.model_fields else None


def dataset_problems(section: Any, place: Place, *, training: bool) -> list[str]:
    """Check one data set's section against what its class reads; a class that does not say takes what it is given."""
    target, problems = find_class(DATASET, section, place)
    if not isinstance(section, Mapping):
        return problems
    section = renamed(section)
    for key in (*_NEEDED, *(_NEEDED_IN_TRAINING if training else ())):
        if section.get(key) is None:
            meaning = LoaderOptions.model_fields[key].description
            problems.append(f'{at((*place, key))}: missing ({meaning}); add it')
    schema = dataset_schema(target, training=training) if target is not None else None
    if schema is None:
        shared = {key: value for key, value in section.items() if key in LoaderOptions.model_fields}
        if target is None:  # its type is told of above
            shared.pop('type', None)
        return problems + section_problems(LoaderOptions, shared, place)
    return problems + section_problems(schema, section, place, hidden=_FILLED_IN) + _lmdb_problems(section, place)


def _lmdb_problems(section: Mapping[str, Any], place: Place) -> list[str]:
    """Folders whose names do not fit the backend."""
    backend = section.get('io_backend')
    kind = backend.get('type') if isinstance(backend, Mapping) else None
    problems = []
    for key in ('dataroot_gt', 'dataroot_lq'):
        root = section.get(key)
        if root == NO_FOLDER:
            continue
        if kind == 'lmdb' and isinstance(root, str) and not root.rstrip('/').endswith('.lmdb'):
            problems.append(
                f"{at((*place, key))}: {root!r}: an LMDB's folder ends in .lmdb; name it, or use io_backend: type: disk"
            )
        if kind == 'disk' and isinstance(root, str) and root.rstrip('/').endswith('.lmdb'):
            problems.append(f'{at((*place, key))}: {root!r} is an LMDB; write io_backend: type: lmdb')
    return problems
