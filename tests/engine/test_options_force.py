"""--force_yml: values are YAML, places are sections and list items, and nothing is evaluated."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest

from hat_plugin.engine.options import apply_force_yml, check_options
from hat_plugin.errors import OptionsError

OPTIONS: dict[str, Any] = {
    'name': 'run',
    'manual_seed': 0,
    'path': {'pretrain_network_g': 'x.pth'},
    'train': {
        'total_iter': 100,
        'optim_g': {'type': 'Adam', 'lr': 0.1},
        'scheduler': {'type': 'MultiStepLR', 'milestones': [50]},
    },
}


def test_force_yml_reads_values_as_yaml() -> None:
    entries = [
        'train:optim_g:lr=1e-4',
        'manual_seed=-1',
        'path:pretrain_network_g=null',
        'name=a=b',
        'train:optim_g:betas=[0.5, 0.9]',
        'train:losses=[{type: L1Loss}]',
        'train:losses:0:loss_weight=2',
        'tile:tile_size=128',
    ]
    opt = copy.deepcopy(OPTIONS)
    changed = apply_force_yml(opt, entries)
    assert changed['train']['optim_g'] == {'type': 'Adam', 'lr': 1e-4, 'betas': [0.5, 0.9]}
    assert (changed['manual_seed'], changed['path']['pretrain_network_g'], changed['name']) == (-1, None, 'a=b')
    assert changed['train']['losses'] == [{'type': 'L1Loss', 'loss_weight': 2}]
    assert changed['tile'] == {'tile_size': 128}
    assert opt == OPTIONS


MALICE = [
    'name=__import__("os").system("touch pwned")',
    'train:total_iter=[__import__("os").system("touch pwned")]',
    'name"]=0;open("pwned","w")#=1',
    'name=!!python/object/apply:os.system ["touch pwned"]',
]


@pytest.mark.parametrize('entry', MALICE)
def test_force_yml_evaluates_nothing(entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(OptionsError):
        check_options(apply_force_yml(OPTIONS, [entry]), 'x', is_train=True, need_data=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('entry', 'text'),
    [
        ('train', 'section:key=value'),
        ('=3', 'section:key=value'),
        ('trian:total_iter=3', "did you mean 'train'"),
        ('train:total_iter:x=3', 'stands in no section'),
        ('train:total_iter:x:y=3', 'no section train: total_iter: x'),
        ('train:scheduler:milestones:7=3', 'no list that has such an item'),
        ('name=[', 'not YAML'),
    ],
)
def test_force_yml_refuses_with_the_entry(entry: str, text: str) -> None:
    with pytest.raises(OptionsError, match='--force_yml') as caught:
        apply_force_yml(copy.deepcopy(OPTIONS), [entry, 'manual_seed=1'])
    assert text in str(caught.value)
    assert repr(entry) in str(caught.value)
