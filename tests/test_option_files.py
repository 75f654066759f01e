"""Every file in options/: right by our checker, readable by BasicSR's own parser, buildable, and as generated."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from basicsr.utils.options import parse_options

from hat_plugin.compare.reading import read_comparison
from hat_plugin.engine.macs import count_macs
from hat_plugin.engine.networks import build
from hat_plugin.engine.options import apply_force_yml, check_options, inert_options, load_options, read_yaml
from hat_plugin.errors import OptionsError

OPTIONS = Path(__file__).resolve().parent.parent / 'options'
COMPARISONS = sorted(OPTIONS.glob('compare_*.yml'))
FILES = sorted(set(OPTIONS.glob('*.yml')) - set(COMPARISONS))


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location('options_generate', OPTIONS / 'generate' / '__main__.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_generated_files_are_as_the_generator_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(OPTIONS / 'generate')
    for name, text in generator().generated().items():
        assert (OPTIONS / name).read_text(encoding='utf-8') == text, f'{name} differs: run `python options/generate`'


def test_the_promised_files_are_there() -> None:
    names = {file.stem for file in FILES}
    for label in ('HAT', 'HAT-S', 'HAT-L'):
        assert {f'{kind}_{label}_SRx{scale}' for kind in ('train', 'test') for scale in (2, 3, 4)} <= names
    for label in ('HAT', 'HAT-L'):
        runs = {f'train_{label}_SRx{scale}_ImageNet' for scale in (2, 3, 4)}
        assert runs | {f'{run}_finetune' for run in runs} <= names
    assert {'train_SwinIR_SRx4', 'train_HAT-light_SRx4', 'test_HAT_tile', 'test_HAT_folder'} <= names
    restoration = {f'HAT_denoise_{kind}_sigma{sigma}' for kind in ('color', 'gray') for sigma in (15, 25, 50)}
    restoration |= {f'HAT_JPEG_q{quality}' for quality in (10, 20, 30, 40)}
    restoration |= {f'{label}_{data}' for label in ('HATUNet', 'Restormer', 'NAFNet') for data in ('SIDD', 'GoPro')}
    restoration |= {'HAT_SIDD', 'HATUNet_denoise_color_blind', 'SwinIR_denoise_color_sigma25'}
    restoration |= {'RealHAT_SRx4_mse', 'RealHAT_SRx4_gan'}
    assert {f'{kind}_{run}' for kind in ('train', 'test') for run in restoration} <= names


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_an_option_file_is_right(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_train = file.stem.startswith(('train', 'demo'))
    ours = load_options(file, root_path=tmp_path, is_train=is_train, need_data=False)
    text = file.read_text(encoding='utf-8')
    assert text.startswith('# '), 'the first line says what the file is for'
    if not file.stem.startswith('demo'):
        assert ours['name'] == file.stem
        assert f'-opt options/{file.name}' in text.split('name:')[0], 'it opens with its command'
    monkeypatch.setattr(sys, 'argv', ['train.py', '-opt', str(file)])
    theirs, _ = parse_options(str(tmp_path), is_train=is_train)
    for section in ('datasets', 'network_g', 'train'):
        assert theirs.get(section) == ours.get(section), f'{section} reads otherwise in plain BasicSR'
    assert theirs['path'] == {**ours['path']}


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_its_network_builds(file: Path) -> None:
    opt = read_yaml(file)
    net = build(opt['network_g'])
    count = sum(p.numel() for p in net.parameters()) / 1e6
    millions = {'HAT': 20.8, 'HAT-S': 9.6, 'HAT-L': 40.8, 'HAT-light': 1.25, 'SwinIR': 11.9, 'Restormer': 26.1}
    label = file.stem.split('_')[1]
    if label in millions and not file.stem.startswith('demo'):
        assert count == pytest.approx(millions[label], rel=0.035)
    if told := re.search(r'([\d.]+) M parameters', file.read_text(encoding='utf-8')):
        assert count == pytest.approx(float(told[1]), rel=0.035), 'the header says otherwise'


def test_a_run_that_starts_from_another_names_it() -> None:
    for file in FILES:
        start = (read_yaml(file).get('path') or {}).get('pretrain_network_g') or ''
        if start.startswith('experiments/train_'):
            run = start.split('/')[1]
            assert (OPTIONS / f'{run}.yml').is_file(), f'{file.name} starts from {run}, of which there is no file'


# -- comparisons -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('file', COMPARISONS, ids=lambda file: file.stem)
def test_a_comparison_file_is_right(file: Path) -> None:
    found = read_comparison([str(file)], trains=True, need_data=False)
    text = file.read_text(encoding='utf-8')
    assert found.name == file.stem
    assert f'basicsr compare -opt options/{file.name} --train' in text.split('name:')[0], 'it opens with its command'
    assert len(found.contenders) > 1
    assert all(contender.train is not None and not contender.differences for contender in found.contenders)


def test_the_five_of_one_cost_cost_the_same() -> None:
    networks = read_yaml(OPTIONS / 'compare_denoise_color_sigma25_light.yml')['networks']
    assert set(networks) == {'HATUNet', 'HAT', 'SwinIR', 'Restormer', 'NAFNet'}
    for network in networks.values():
        assert count_macs(build(network), (1, 3, 256, 256)).total / 1e9 == pytest.approx(7, rel=0.05)


@pytest.mark.parametrize(
    ('labels', 'task'),
    [
        (('HAT', 'HAT-S', 'HAT-L', 'SwinIR'), 'SRx4'),
        (('HATUNet', 'HAT', 'Restormer', 'NAFNet'), 'SIDD'),
        (('HATUNet', 'Restormer', 'NAFNet'), 'GoPro'),
        (('HAT', 'SwinIR'), 'denoise_color_sigma25'),
    ],
)
def test_test_files_of_one_task_are_comparable(
    labels: tuple[str, ...], task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [str(OPTIONS / f'test_{label}_{task}.yml') for label in labels]
    found = read_comparison(files, need_data=False)
    assert (found.name, [contender.label for contender in found.contenders]) == (f'compare_{task}', list(labels))


def test_published_figures_outlive_a_set_or_a_metric_that_is_left_out(tmp_path: Path) -> None:
    """People test on the sets that they have, and by metrics of their own."""
    opt = apply_force_yml(read_yaml(OPTIONS / 'test_HAT_SRx4.yml'), ['datasets:test_1:name=mine'])
    del opt['datasets']['test_5'], opt['val']['metrics']['ssim']
    check_options(opt, 'x.yml', is_train=False, need_data=False)
    told = [line for line in inert_options(opt, is_train=False) if line.startswith('published')]
    assert told[0] == 'published: figures: Set5: has no effect here: no test set of that name'
    assert told[1] == 'published: figures: Set14: has no effect here: ssim is not measured'
    assert told[-1] == 'published: figures: Manga109: has no effect here: no test set of that name'
    opt['datasets']['test_2']['name'] = 'Set_14'
    with pytest.raises(OptionsError, match="figures: Set14: unknown test set; did you mean 'Set_14'"):
        check_options(opt, 'x.yml', is_train=False, need_data=False)
