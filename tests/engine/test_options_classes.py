"""Options of classes, ours and other people's: data sets, networks and models, and what a model does not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pydantic
import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY
from option_examples import options, problems

from hat_plugin.engine.options import RootOptions, inert_options, notes, prepare_options


class ThirdPartyNet(torch.nn.Module):
    def __init__(self, width: int, blocks: int = 2, **kwargs: Any) -> None:
        super().__init__()


class DataOptions(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra='forbid')
    dataroot: str
    sigma: float = 25.0


class ThirdPartyDataset(torch.utils.data.Dataset):  # type: ignore[type-arg]
    OPTIONS: ClassVar[type[pydantic.BaseModel]] = DataOptions


class FreeDataset(torch.utils.data.Dataset):  # type: ignore[type-arg]
    pass


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'ThirdPartyNet', ThirdPartyNet)
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, 'ThirdPartyDataset', ThirdPartyDataset)
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, 'FreeDataset', FreeDataset)


@pytest.mark.usefixtures('third_party')
def test_other_peoples_classes_are_checked_against_themselves() -> None:
    net = {'type': 'ThirdPartyNet', 'width': 3, 'anything': 1}
    assert problems(options(network_g=net)) == []
    assert problems(options(network_g={**net, 'blokcs': 3})) == [
        "network_g: blokcs: unknown argument of ThirdPartyNet; did you mean 'blocks'?"
    ]
    assert problems(options(network_g={'type': 'ThirdPartyNet'})) == [
        'network_g: width: missing, ThirdPartyNet needs it; add it'
    ]


@pytest.mark.usefixtures('third_party')
def test_data_sets_with_and_without_a_list_of_their_own() -> None:
    loader = {'name': 'x', 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 1}
    mine = {**loader, 'type': 'ThirdPartyDataset', 'dataroot': 'x'}
    assert problems(options(datasets__train=mine)) == []
    assert problems(options(datasets__train={**mine, 'sigam': 3})) == [
        "datasets: train: sigam: unknown option; did you mean 'sigma'?"
    ]
    assert problems(options(datasets__train={**loader, 'type': 'FreeDataset', 'whatever': [1]})) == []
    assert len(problems(options(datasets__train={**loader, 'type': 'FreeDataset', 'batch_size_per_gpu': 'x'}))) == 1


OWN = {'name': 'x', 'type': 'PairedCropDataset', 'dataroot_gt': 'gt', 'dataroot_lq': 'lq', 'gt_size': 64}
OWN |= {'num_worker_per_gpu': 0, 'batch_size_per_gpu': 1}


@pytest.mark.parametrize(
    ('key', 'value', 'text'),
    [
        ('use_shuffle', 'no', 'true or false is wanted'),
        ('alhpa', None, "did you mean 'alpha'"),
        ('io_backend', {'type': 'memcached'}, "'disk' or 'lmdb'"),
        ('io_backend', {'type': 'disk', 'tpye': 'lmdb'}, "io_backend: tpye: unknown option; did you mean 'type'"),
        ('io_backend', 'lmdb', 'stands where a section'),
        ('name', ..., 'name: missing (what the log'),
    ],
)
def test_our_data_sets_are_told_of_once(key: str, value: Any, text: str) -> None:
    block = {name: item for name, item in {**OWN, key: value}.items() if item is not ...}
    (line,) = problems(options(datasets__train=block))
    assert line.startswith(f'datasets: train: {key}: ')
    assert text in line


def test_basicsr_reads_memcached() -> None:
    backend = {'type': 'memcached', 'server_list_cfg': 'a', 'client_cfg': 'b'}
    assert problems(options(datasets__train__io_backend=backend)) == []


class ThirdPartyModel:
    pass


class ToldOptions(RootOptions):
    my_switch: bool = False


class ToldModel(ThirdPartyModel):
    OPTIONS: ClassVar[type[RootOptions]] = ToldOptions
    ADVERSARIAL: ClassVar[bool] = True


class HeirModel(ToldModel):
    pass


def test_a_model_says_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    for model in (ThirdPartyModel, ToldModel, HeirModel):
        monkeypatch.setitem(MODEL_REGISTRY._obj_map, model.__name__, model)
    assert problems(options(model_type='ThirdPartyModel', my_switch=True, another=1)) == []
    assert problems(options(model_type='HeirModel', my_switch=True, another=1)) == [], 'an heir may read more'
    found = problems(options(model_type='ToldModel', my_switch=True, another=1))
    assert [line.split(': ')[0] for line in found] == ['another', 'network_d', 'train', 'train']
    assert problems(options(model_type='RealHATMSEModel', queue_size=180)) == []


INERT: list[tuple[dict[str, Any], str]] = [
    ({'model_type': 'HATModel', 'train__optim_d': {'type': 'Adam', 'lr': 1}}, 'train: optim_d'),
    ({'train__net_d_iters': 1}, 'train: net_d_iters'),
    ({'train__amp': 'bf16'}, 'train: amp'),
    ({'tile': {'tile_size': 64}}, 'tile'),
    ({'logger__keep_checkpoints': 3}, 'logger: keep_checkpoints'),
    ({'datasets__val_1__use_hflip': True}, 'datasets: val_1: use_hflip'),
    ({'datasets__train__num_prefetch_queue': 3}, 'datasets: train: num_prefetch_queue'),
    ({'path__param_key_g': 'params'}, 'path: param_key_g'),
    ({'val': ...}, 'datasets: val_1'),
]


@pytest.mark.parametrize(('changes', 'place'), INERT, ids=[place for _, place in INERT])
def test_options_without_effect_are_told_of(changes: dict[str, Any], place: str, tmp_path: Path) -> None:
    opt = options(**changes)
    assert problems(opt) == []
    (line,) = inert_options(opt, is_train=True)
    assert line.startswith(f'{place}: has no effect here')
    assert inert_options(prepare_options(opt, root_path=tmp_path, is_train=True), is_train=True) == [line]
    assert line in notes(opt, is_train=True)
    assert inert_options(options(), is_train=True) == []


def test_our_models_read_what_the_plugin_adds() -> None:
    added = {'train__amp': 'bf16', 'tile': {'tile_size': 64}, 'logger__keep_checkpoints': 3}
    assert inert_options(options(model_type='HATModel', **added), is_train=True) == []


def test_what_a_data_set_needs_in_validation_has_an_effect() -> None:
    block = {'name': 'x', 'type': 'ImageNetPairedDataset', 'dataroot_gt': 'gt', 'gt_size': 64}
    opt = options(model_type='HATModel', datasets__val_1=block)
    assert problems(opt) == []
    assert inert_options(opt, is_train=True) == []
