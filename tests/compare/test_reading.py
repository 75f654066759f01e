"""Comparison files and test files: what they stand for, and what is refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hat_plugin.compare.reading import read_comparison
from hat_plugin.errors import OptionsError

Options = dict[str, Any]
Write = Callable[..., str]


def problems(file: str, **arguments: Any) -> list[str]:
    with pytest.raises(OptionsError) as caught:
        read_comparison([file], **arguments)
    return caught.value.problems


def test_a_comparison_file_stands_for_a_training_and_a_test_of_each_network(
    comparison: Options, written: Write
) -> None:
    found = read_comparison([written(comparison)], trains=True)
    assert [contender.label for contender in found.contenders] == ['HAT', 'SwinIR']
    for contender in found.contenders:
        assert contender.train is not None
        assert contender.train['network_g'] == contender.test['network_g'] == comparison['networks'][contender.label]
        assert contender.train['name'] == f'small_{contender.label}'
        assert list(contender.train['datasets']) == ['train']
        assert 'val' not in contender.train  # nothing to validate on
        assert list(contender.test['datasets']) == ['test_1']
        assert str(contender.weights) == f'experiments/small_{contender.label}/models/net_g_latest.pth'
        assert contender.test['path']['param_key_g'] == 'params_ema'
        assert {**contender.train, 'name': '', 'network_g': {}} == {
            **(found.contenders[0].train or {}), 'name': '', 'network_g': {},
        }  # fmt: skip


def test_seeds_repeat_each_training(comparison: Options, written: Write) -> None:
    alone = read_comparison([written(comparison)], trains=True)
    comparison['seeds'] = [comparison.pop('manual_seed'), 7]
    comparison['differences'] = {'SwinIR': {'train': {'grad_clip': 1.0}}}
    found = read_comparison([written(comparison)], trains=True)
    assert [run.label for run in found.runs] == ['HAT', 'SwinIR', 'HAT_seed7', 'SwinIR_seed7']
    assert found.contenders[0].train == alone.contenders[0].train, 'what was trained without seeds is taken up'
    for contender in found.contenders:
        first, second = (run.train or {} for run in contender.runs)
        assert (first['manual_seed'], second['manual_seed']) == (1, 7)
        assert {**first, 'manual_seed': 7, 'name': second['name']} == second
        assert second['name'] == f'small_{contender.label}_seed7'
    assert found.runs[3].differences == ('train: grad_clip: 1.0',)


def test_validation_sets_serve_both_and_are_tested_on_where_there_are_no_others(
    comparison: Options, written: Write
) -> None:
    comparison['datasets']['val_1'] = {**comparison['datasets']['test_1'], 'name': 'held_out'}
    comparison['val']['val_freq'] = 1
    first = read_comparison([written(comparison)], trains=True).contenders[0]
    assert first.train is not None
    assert list(first.train['datasets']) == ['train', 'val_1']
    assert list(first.test['datasets']) == ['test_1']
    del comparison['datasets']['test_1']
    first = read_comparison([written(comparison)], trains=True).contenders[0]
    assert list(first.test['datasets']) == ['val_1']


def test_differences_are_those_of_one_network_and_are_told(comparison: Options, written: Write) -> None:
    comparison['differences'] = {'SwinIR': {'train': {'optim_g': {'lr': 0.5}}}}
    hat, swinir = read_comparison([written(comparison)], trains=True).contenders
    assert hat.train is not None
    assert swinir.train is not None
    assert (hat.train['train']['optim_g']['lr'], swinir.train['train']['optim_g']['lr']) == (1e-3, 0.5)
    assert swinir.train['train']['optim_g']['type'] == 'Adam'
    assert (hat.differences, swinir.differences) == ((), ('train: optim_g: lr: 0.5',))


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        ({'networks': {}}, 'networks: empty'),
        ({'networks': {'bicubic': {'type': 'HAT'}}}, 'networks: bicubic: the name is taken'),
        ({'networks': {'a/b': {'type': 'HAT'}}}, 'one plain folder name is wanted'),
        ({'network_g': {'type': 'HAT'}}, 'network_g: has no effect beside networks'),
        ({'weights': {'Hat': 'x.pth'}}, 'weights: Hat: no such network; known here: HAT, SwinIR'),
        ({'weights': {'HAT': 'x.pth'}}, 'weights: HAT: x.pth: no such file'),
        ({'differences': {'HAT': {'datasets': {}}}}, 'differences: HAT: datasets: is the same for all'),
        ({'differences': {'HAT': {'trian': {}}}}, "differences: HAT: trian: unknown option; did you mean 'train'?"),
        ({'networks': {'HAT': {'type': 'HATT'}}}, "networks: HAT: type: 'HATT' is no known network"),
        ({'networks': {'HAT': {'type': 'HAT', 'embed_dim': 7}}}, 'networks: HAT: HAT cannot be built'),
        (
            {'train': None, 'path': {'strict_load_g': False}},
            'path: strict_load_g: has no effect without a train section',
        ),
        (
            {'weights': {'HAT': 'x.pth'}, 'differences': {'HAT': {'train': {'total_iter': 3}}}},
            'differences: HAT: train: has no effect: its weights are named',
        ),
        ({'seeds': [1]}, 'seeds: '),
        ({'seeds': [1, 'a']}, "seeds: 1: 'a': a whole number is wanted"),
        ({'seeds': [1, 2, 1], 'manual_seed': None}, 'seeds: 1: stands there twice'),
        ({'seeds': [1, 2]}, 'manual_seed: has no effect beside seeds'),
        (
            {'seeds': [1, 2], 'differences': {'HAT': {'manual_seed': 3}}},
            'differences: HAT: manual_seed: has no effect beside seeds',
        ),
        ({'seeds': [1, 2], 'train': None}, 'seeds: has no effect without a train section'),
        (
            {'seeds': [1, 2], 'weights': {'HAT': 'x.pth', 'SwinIR': 'x.pth'}},
            'seeds: has no effect: the weights of all networks are named',
        ),
        (
            {'seeds': [1, 2], 'networks': {'HAT': {'type': 'HAT'}, 'HAT_seed2': {'type': 'HAT'}}},
            'networks: HAT_seed2: the name is taken',
        ),
        ({'published': {'Hat': {}}}, 'published: Hat: figures: missing'),
        (
            {'published': {'Hat': {'source': 'a', 'figures': {}}}},
            'published: Hat: no such network; known here: HAT, SwinIR',
        ),
        (
            {'published': {'HAT': {'source': 'a', 'figures': {'photo': {'psnr': 30}}}}},
            "published: HAT: figures: photo: unknown test set; did you mean 'photos'?",
        ),
        (
            {'published': {'HAT': {'source': 'a', 'figures': {'photos': {'psn': 30}}}}},
            "published: HAT: figures: photos: psn: unknown metric; did you mean 'psnr'?",
        ),
        ({'published': {'HAT': {'source': 'a', 'figures': {'photos': {'psnr': '30'}}}}}, 'remove the quotes'),
        ({'difference': {}}, "difference: unknown option; did you mean 'differences'?"),
        ({'tets': 1}, 'tets: unknown option'),
    ],
    ids=str,
)
def test_mistakes_are_told_by_their_places_in_the_file(
    comparison: Options, written: Write, change: Options, expected: str
) -> None:
    found = problems(written({**comparison, **change}), trains=True)
    assert any(expected in line for line in found), found


def test_all_mistakes_come_at_once_and_once(comparison: Options, written: Write) -> None:
    comparison['networks']['HAT']['windw_size'] = 4
    comparison['train']['optim_g']['lr'] = 'fast'
    comparison['val']['metrics']['psnr']['type'] = 'calculate_psnrr'
    comparison['differences'] = {'SwinIR': {'train': {'grad_clip': 'no'}}}
    found = problems(written(comparison), trains=True)
    assert len(found) == 4
    assert sum(line.startswith('differences: SwinIR: train: grad_clip') for line in found) == 1
    assert sum(line.startswith('train: optim_g: lr') for line in found) == 1
    assert found[0].startswith('networks: HAT: windw_size: unknown')


def test_without_training_the_weights_must_be_there(comparison: Options, written: Write, work: Path) -> None:
    found = problems(written(comparison))
    assert [line.split(':')[1].strip() for line in found] == ['HAT', 'SwinIR']
    assert all('add --train' in line for line in found)
    del comparison['train']
    found = problems(written(comparison), trains=True)
    assert all('name them under weights:, or add a train section' in line for line in found)
    assert len(found) == 2


def test_data_that_is_not_there_is_told(comparison: Options, written: Write) -> None:
    comparison['datasets']['test_1']['dataroot_gt'] = 'elsewhere'
    assert len(problems(written(comparison), trains=True)) == 1
    read_comparison([written(comparison)], trains=True, need_data=False)


# -- test files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tests(comparison: Options, work: Path) -> list[Options]:
    """Test files of two networks, with weights."""
    (work / 'weights.pth').write_bytes(b'')
    common = {key: comparison[key] for key in ('model_type', 'scale', 'num_gpu', 'val')}
    data = {'test_1': comparison['datasets']['test_1']}
    path = {'pretrain_network_g': 'weights.pth'}
    return [
        {'name': f'test_{label}_SRx2', **common, 'datasets': data, 'network_g': network, 'path': path}
        for label, network in comparison['networks'].items()
    ]


def test_test_files_are_called_by_what_their_names_do_not_share(tests: list[Options], written: Write) -> None:
    files = [written(opt, f'{number}.yml') for number, opt in enumerate(tests)]
    found = read_comparison(files)
    assert found.name == 'compare_SRx2'
    assert [contender.label for contender in found.contenders] == ['HAT', 'SwinIR']
    assert [contender.test for contender in found.contenders] == tests
    assert all(contender.train is None for contender in found.contenders)


@pytest.mark.parametrize(
    ('section', 'change', 'expected'),
    [
        ('val', {'precision': 'bf16'}, "val: precision: None in 0.yml, 'bf16' in 1.yml"),
        ('val', {'use_image': False}, 'val: use_image'),
        ('datasets', {'test_2': {'name': 'more', 'type': 'PairedCropDataset', 'dataroot_gt': 'gt', 'dataroot_lq': 'lq',
                                 'io_backend': {'type': 'disk'}}}, 'datasets: test_2: name'),
        ('tile', {'tile_size': 32, 'tile_pad': 4}, 'tile'),
    ],
    ids=['precision', 'use_image', 'data', 'tile'],
)  # fmt: skip
def test_other_terms_are_refused(
    tests: list[Options], written: Write, section: str, change: Options, expected: str
) -> None:
    tests[1][section] = {**(tests[1].get(section) or {}), **change}
    files = [written(opt, f'{number}.yml') for number, opt in enumerate(tests)]
    with pytest.raises(OptionsError, match='figures are compared on the same terms alone') as caught:
        read_comparison(files)
    assert expected in str(caught.value)


def test_what_does_not_change_figures_may_differ(tests: list[Options], written: Write) -> None:
    tests[1]['val'] = {**tests[1]['val'], 'save_img': True, 'suffix': 'x', 'pbar': True}
    read_comparison([written(opt, f'{number}.yml') for number, opt in enumerate(tests)])


def test_a_comparison_file_stands_alone_and_names_differ(
    tests: list[Options], comparison: Options, written: Write
) -> None:
    one = written(tests[0], 'one.yml')
    with pytest.raises(OptionsError, match='stands alone'):
        read_comparison([one, written(comparison)])
    with pytest.raises(OptionsError, match='make them differ'):
        read_comparison([one, written(tests[0], 'two.yml')])
    del tests[1]['path']
    with pytest.raises(OptionsError, match='two.yml: path: pretrain_network_g: missing'):
        read_comparison([one, written(tests[1], 'two.yml')])
