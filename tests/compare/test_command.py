"""``basicsr compare``: networks trained, measured as ``basicsr test`` measures, once; the page in a browser."""

from __future__ import annotations

import csv
import html.parser
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from skimage.metrics import peak_signal_noise_ratio

from hat_plugin.compare.measuring import Scores
from hat_plugin.compare.reading import read_comparison
from hat_plugin.compare.tables import Result, figures, latex, marked
from hat_plugin.data.bicubic import imresize

Options = dict[str, Any]
Cli = Callable[..., Any]
Write = Callable[..., str]
RESULTS = Path('results/small')


@pytest.fixture
def compared(comparison: Options, written: Write, cli: Cli) -> Any:
    """What the command said; the current directory holds what it made."""
    file = written(comparison)
    window = '--attribution', 'coffee1:30,40'
    outcome = cli('compare', '-opt', file, '--train', '--rounds', '0', '--show', 'chelsea5:8,4', 'coffee4', *window)
    assert outcome.code == 0, outcome.err
    return outcome


def record() -> Options:
    found: Options = json.loads((RESULTS / 'report.json').read_text(encoding='utf-8'))
    return found


def stamps() -> dict[Path, int]:
    files = [*RESULTS.glob('scores/*'), *Path('experiments').glob('*/models/*')]
    return {file: file.stat().st_mtime_ns for file in files}


def test_from_the_option_file_to_the_page(compared: Any, comparison: Options, cli: Cli) -> None:
    found = record()
    pictures = found['pictures']['photos']
    assert set(pictures) == {'bicubic', 'HAT', 'SwinIR'}
    assert len(pictures['HAT']) == 6
    (log,) = RESULTS.glob('compare_*.log')
    told = log.read_text(encoding='utf-8')
    assert all(f'[{number}/2] basicsr train -opt' in told for number in (1, 2))
    assert '**' in compared.out
    assert '| bicubic' in compared.out
    assert 'SwinIR, photos psnr' in compared.out
    for label in ('HAT', 'SwinIR'):  # the figures are those of `basicsr test` with the same options
        test = read_comparison(['small.yml']).contenders[label == 'SwinIR'].test
        Path('test.yml').write_text(yaml.safe_dump(test), encoding='utf-8')
        assert cli('test', '-opt', 'test.yml').code == 0
        theirs = json.loads(Path(f'results/small_{label}/metrics.json').read_text(encoding='utf-8'))['datasets']
        assert theirs['photos']['images'] == pictures[label]
        assert theirs['photos']['mean'] == found['means']['photos'][label]
        assert 0 < found['diffusion'][0]['diffusion'][label] < 100
        trained = yaml.safe_load((RESULTS / 'options' / f'train_{label}.yml').read_text(encoding='utf-8'))
        assert trained['network_g'] == comparison['networks'][label]
    rows = list(csv.DictReader((RESULTS / 'pictures.csv').open(encoding='utf-8')))
    assert len(rows) == 3 * 6 * 2
    assert all(float(row['value']) == pictures[row['who']][row['picture']][row['metric']] for row in rows)
    assert (RESULTS / 'table.tex').read_text(encoding='utf-8').count(r'\\') == 4
    figure = cv2.imread(str(RESULTS / 'figure.png'))
    assert figure is not None
    assert figure.shape[0] > 2 * 48 * 3  # two rows of pictures three times as large


def test_costs_are_counted_and_measured(compared: Any, cli: Cli) -> None:
    for cost in record()['costs'].values():
        assert cost['macs']['total'] > cost['macs']['attention_products'] > 0
        assert (cost['seconds'], cost['bytes']) == (None, None)
    outcome = cli('compare', '-opt', 'small.yml', '--rounds', '2')
    assert outcome.code == 0, outcome.err
    for cost in record()['costs'].values():
        assert cost['seconds']['median'] > 0
        assert 64 * 64 * 3 * 4 < cost['bytes'] < 1e9
    assert ' MB |' in outcome.out


def test_the_baseline_is_matlab_s_bicubic(compared: Any) -> None:
    means = []
    for name, row in record()['pictures']['photos']['bicubic'].items():
        truth, low = (cv2.imread(f'{folder}/{name}.png')[..., ::-1] for folder in ('gt', 'lq'))
        weights = np.array([65.481, 128.553, 24.966]) / 255
        first, second = (np.round(image @ weights + 16)[2:-2, 2:-2] for image in (imresize(low, 2), truth))
        assert row['psnr'] == pytest.approx(peak_signal_noise_ratio(second, first, data_range=255), abs=0.05)
        means.append(row['psnr'])
    assert record()['means']['photos']['bicubic']['psnr'] == pytest.approx(np.mean(means))


def test_what_is_there_is_not_done_again(compared: Any, cli: Cli) -> None:
    before = stamps()
    assert len(before) == 3 + 2 * 2
    assert cli('compare', '-opt', 'small.yml', '--train', '--rounds', '0').code == 0
    assert stamps() == before


def test_what_has_changed_is_measured_again(compared: Any, cli: Cli) -> None:
    before = stamps()
    cv2.imwrite('gt/coffee1.png', cv2.imread('gt/coffee1.png')[::-1])
    assert cli('compare', '-opt', 'small.yml', '--rounds', '0').code == 0
    after = stamps()
    assert all((after[file] != before[file]) == (file.parent.name == 'scores') for file in before)
    os.utime('experiments/small_HAT/models/net_g_latest.pth')  # the same content
    next((RESULTS / 'pictures').rglob('coffee1_SwinIR.png')).unlink()
    assert cli('compare', '-opt', 'small.yml', '--rounds', '0').code == 0
    again = stamps()
    assert {file.name for file in after if again[file] != after[file]} == {'photos_SwinIR.json', 'net_g_latest.pth'}
    assert cli('compare', '-opt', 'small.yml', '--rounds', '0', '--precision', 'bf16').code == 0
    last = stamps()
    assert sum(last[file] != again[file] for file in again) == 3


def test_runs_of_other_options_are_refused(compared: Any, comparison: Options, written: Write, cli: Cli) -> None:
    comparison['train']['optim_g']['lr'] = 1e-4
    outcome = cli('compare', '-opt', written(comparison), '--train')
    assert outcome.code == 2
    assert 'experiments/small_HAT: was trained with other options' in outcome.err
    assert 'train: optim_g: lr: 0.001 in' in outcome.err
    comparison['train']['optim_g']['lr'] = 1e-3
    comparison['logger']['print_freq'] = 7  # changes no outcome
    assert cli('compare', '-opt', written(comparison), '--train', '--rounds', '0').code == 0
    Path('experiments/small_SwinIR/train_SwinIR.yml').unlink()
    outcome = cli('compare', '-opt', written(comparison), '--train')
    assert (outcome.code, 'nobody knows how it was trained' in outcome.err) == (2, True)


def test_seeds_are_added_to_what_is_there(compared: Any, comparison: Options, written: Write, cli: Cli) -> None:
    before, means = stamps(), record()['means']['photos']
    del comparison['manual_seed']
    file = written({**comparison, 'seeds': [1, 5]})
    outcome = cli('compare', '-opt', file, '--rounds', '0')
    assert outcome.code == 2
    assert 'networks: SwinIR_seed5: no weights (experiments/small_SwinIR_seed5/' in outcome.err
    outcome = cli('compare', '-opt', file, '--train', '--rounds', '0')
    assert outcome.code == 0, outcome.err
    assert {path: stamp for path, stamp in stamps().items() if path in before} == before
    found = record()
    for label in ('HAT', 'SwinIR'):
        runs = [label, f'{label}_seed5']
        each = [np.mean([row['psnr'] for row in found['pictures']['photos'][run].values()]) for run in runs]
        assert each[0] == pytest.approx(means[label]['psnr']) != pytest.approx(each[1])
        assert found['means']['photos'][label]['psnr'] == pytest.approx(np.mean(each))
        spread = f'{np.mean(each):.2f} ± {np.std(each, ddof=1):.2f}'
        row = next(line for line in outcome.out.splitlines() if line.startswith(f'| {label} '))
        assert spread in row
        assert f'{label}_seed5: weights experiments/small_{label}_seed5/models/net_g_latest.pth' in found['protocol']
    assert len(found['differences']['photos']['psnr']['SwinIR']['by_seed']) == 2
    assert r'$\pm$' in (RESULTS / 'table.tex').read_text(encoding='utf-8')
    page = (RESULTS / 'report.html').read_text(encoding='utf-8')
    assert spread in page and 'by seed' in page


def test_test_files_are_compared_as_they_are(compared: Any, written: Write, cli: Cli) -> None:
    files = []
    published = {'source': 'a paper', 'figures': {'photos': {'ssim': 0.5}}}
    for contender in read_comparison(['small.yml']).contenders:
        own = {'published': published} if contender.label == 'HAT' else {}
        files.append(written({**contender.test, 'name': f'test_{contender.label}_x2', **own}, f'{contender.label}.yml'))
    before = record()
    outcome = cli('compare', '-opt', *files, '--rounds', '0', '--precision', 'bf16', '-o', 'elsewhere')
    assert outcome.code == 0
    found = json.loads(Path('elsewhere/report.json').read_text(encoding='utf-8'))
    assert found['name'] == 'compare_x2'
    assert 'precision: bf16' in found['protocol']
    for label in ('HAT', 'SwinIR'):
        ours, theirs = (each['means']['photos'][label]['psnr'] for each in (found, before))
        assert ours != theirs
        assert ours == pytest.approx(theirs, abs=0.3)
    assert found['published'] == {'HAT': published}
    assert 'HAT, published: a paper' in found['protocol']
    rows = [line.split('|')[1:4] for line in outcome.out.splitlines() if line.startswith('| HAT')]
    assert [cell.strip() for cell in rows[1]] == ['HAT, published', '-', '0.5000']
    assert 'HAT, published & - & - & - & 0.5000' in Path('elsewhere/table.tex').read_text(encoding='utf-8')
    assert 'HAT, published' in Path('elsewhere/report.html').read_text(encoding='utf-8')


def test_nothing_is_written_where_options_are_wrong(comparison: Options, written: Write, cli: Cli, work: Path) -> None:
    before = set(work.rglob('*'))
    comparison['val']['metrics']['psnr']['crop_boarder'] = 1
    file = written(comparison)
    assert cli('compare', '-opt', file, '--train').code == 2
    del comparison['val']['metrics']
    outcome = cli('compare', '-opt', written(comparison), '--train')
    assert (outcome.code, 'metrics: missing' in outcome.err) == (2, True)
    outcome = cli('compare', '-opt', file, '--train', '--attribution', 'coffee1:a,b')
    assert (outcome.code, 'write it as PICTURE:TOP,LEFT' in outcome.err) == (2, True)
    assert set(work.rglob('*')) == {*before, work / file}


def test_weights_that_do_not_fit_are_found_before_anything_is_measured(
    compared: Any, comparison: Options, written: Write, cli: Cli
) -> None:
    Path('broken.pth').write_bytes(b'<html>')
    for weights, expected in (
        ({'SwinIR': 'broken.pth'}, 'broken.pth: not a PyTorch file'),
        ({'SwinIR': 'experiments/small_HAT/models/net_g_latest.pth'}, 'entries fit'),
    ):
        outcome = cli('compare', '-opt', written({**comparison, 'weights': weights}), '-o', 'other')
        assert (outcome.code, expected in outcome.err) == (2, True), outcome.err
        assert not Path('other/scores').exists()


def test_pictures_that_are_not_there(compared: Any, cli: Cli) -> None:
    for arguments, expected in (
        (['--show', 'coffee9'], 'no such picture among 6; there are photos/coffee'),
        (['--attribution', 'coffee9'], 'no such picture among 6'),
        (['--attribution', 'coffee1:40,0'], 'a window of 16 pixels there does not lie inside the picture, 64x48'),
    ):
        outcome = cli('compare', '-opt', 'small.yml', *arguments)
        assert (outcome.code, expected in outcome.err) == (2, True), outcome.err


def test_a_stopped_training_is_gone_on_with(comparison: Options, written: Write, work: Path) -> None:
    comparison['train']['total_iter'] = 120
    comparison['datasets']['train']['dataset_enlarge_ratio'] = 1000
    command = [
        sys.executable,
        '-m',
        'hat_plugin.cli',
        'compare',
        '-opt',
        written(comparison),
        '--train',
        '--rounds',
        '0',
    ]
    quiet = {**os.environ, 'OMP_NUM_THREADS': '1'}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=quiet) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if 'iter:      20' in line:
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
    assert process.returncode == 130
    assert not list(work.glob('experiments/*/models/net_g_latest.pth'))
    done = subprocess.run(
        [*command, '--force_yml', 'logger:print_freq=100'], capture_output=True, text=True, env=quiet, check=True
    )
    assert 'Resuming training from epoch' in done.stdout + done.stderr
    assert set(record()['means']['photos']) == {'bicubic', 'HAT', 'SwinIR'}


def test_two_ranks_compare_as_one(comparison: Options, written: Write, cli: Cli) -> None:
    comparison['train']['total_batch_size'] = 4
    file = written(comparison)
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--rdzv-backend=c10d']
    launcher += ['--rdzv-endpoint=localhost:0', '-m', 'hat_plugin.cli', 'compare', '-opt', file, '--train']
    command = [*launcher, '--launcher', 'pytorch', '--rounds', '0', '--attribution', 'coffee1']
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('Look at results/small/report.html') == 1
    two = record()
    shutil.rmtree('results')
    assert cli('compare', '-opt', file, '--rounds', '0').code == 0  # the same weights, one process
    assert record()['pictures'] == two['pictures']
    shutil.rmtree('experiments')
    assert cli('compare', '-opt', file, '--train', '--rounds', '0').code == 0  # and trained by one process
    for label, row in record()['means']['photos'].items():
        assert row['psnr'] == pytest.approx(two['means']['photos'][label]['psnr'], abs=0.01)


def test_pictures_without_truth_are_shown_beside_the_others(
    compared: Any, comparison: Options, written: Write, cli: Cli
) -> None:
    comparison['datasets']['test_2'] = {
        'name': 'real', 'type': 'SingleImageDataset', 'dataroot_lq': 'lq', 'io_backend': {'type': 'disk'},
    }  # fmt: skip
    outcome = cli('compare', '-opt', written(comparison), '--rounds', '0')
    assert outcome.code == 0, outcome.err
    assert list(record()['means']['real']['HAT']) == []
    assert 'real psnr' not in outcome.out
    assert len(list((RESULTS / 'pictures' / 'real').glob('*_HAT.png'))) == 6
    assert not list((RESULTS / 'pictures' / 'real').glob('*_truth.png'))


def test_check_reads_comparison_files(comparison: Options, written: Write, cli: Cli) -> None:
    outcome = cli('check', '-opt', written(comparison), '--workers', '0')
    assert outcome.code == 0, outcome.err
    assert 'the options are right (small, 2 networks, 2 trainings)' in outcome.out
    assert 'data test_1 (photos): 12 images read, 6 pairs, all good' in outcome.out
    comparison['networks']['HAT']['embed_dim'] = 9
    outcome = cli('check', '-opt', written(comparison), '--no-data')
    assert (outcome.code, 'networks: HAT: HAT cannot be built' in outcome.err) == (2, True)


@pytest.mark.parametrize('command', ['train', 'test'])
def test_other_commands_know_a_comparison_file(comparison: Options, written: Write, cli: Cli, command: str) -> None:
    outcome = cli(command, '-opt', written(comparison))
    assert outcome.code == 2
    assert 'small.yml: 1 problem\n  - networks: this is a comparison file' in outcome.err
    assert 'run `basicsr compare` with it' in outcome.err


# -- the page --------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Files that a page refers to, its texts, and the elements that are in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.files: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = [value for name, value in attrs if name in ('src', 'href') and value]
        self.files += [value for value in values if not value.startswith('data:')]


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(compared: Any) -> None:
    text = (RESULTS / 'report.html').read_text(encoding='utf-8')
    page = Page(text)
    assert len(page.files) == 1 + 3 + 4  # figure, maps, files beside
    assert all((RESULTS / file).is_file() for file in page.files)
    assert '://' not in text.replace('http://www.w3.org', '')
    data = json.loads(text.split('type="application/json">')[1].split('</script>')[0])
    assert len(data['pictures']) == 6
    for picture in data['pictures']:
        assert list(picture['files']) == ['bicubic', 'HAT', 'SwinIR', 'truth']
        assert all((RESULTS / file).is_file() for file in picture['files'].values())
    assert data['pictures'][data['first']]['name'] == 'photos / chelsea5'


def test_names_cannot_become_elements_of_the_page(comparison: Options, written: Write, cli: Cli) -> None:
    comparison['networks'] = {'<b>&amp;"\'': comparison['networks']['HAT']}
    comparison['datasets']['test_1']['name'] = '<script>alert(1)<-script>'
    outcome = cli('compare', '-opt', written(comparison), '--train', '--rounds', '0')
    assert outcome.code == 0, outcome.err
    page = Page((RESULTS / 'report.html').read_text(encoding='utf-8'))
    assert page.tags.count('script') == 2
    assert 'b' not in page.tags


@pytest.mark.skipif(shutil.which('chromium') is None, reason='no browser: chromium is not installed')
def test_the_viewer_works_in_a_browser(compared: Any, work: Path) -> None:
    page = work / RESULTS / 'report.html'
    probe = page.with_name('probe.html')
    script = """<script>
    addEventListener('load', () => {
      const by = id => document.getElementById(id);
      by('left').value = 'truth'; by('left').onchange();
      by('split').value = 250; by('split').oninput();
      by('zoom').value = 4; by('zoom').onchange();
      setTimeout(() => { document.title = [by('over').alt, by('over').naturalWidth, by('over').style.clipPath,
        by('over').style.width, by('left-note').textContent, by('right-note').textContent,
        [...document.images].filter(image => !image.naturalWidth).length].join('|'); }, 300);
    });</script>"""
    probe.write_text(page.read_text(encoding='utf-8').replace('</body>', script + '</body>'), encoding='utf-8')
    options = ['--headless', '--no-sandbox', '--disable-gpu', '--virtual-time-budget=5000', '--dump-dom']
    done = subprocess.run(
        ['chromium', *options, probe.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    title = done.stdout.split('<title>')[1].split('</title>')[0].split('|')
    assert title[:4] == ['truth', '64', 'inset(0px 75% 0px 0px)', '256px']
    assert title[4].strip() == 'truth'
    assert title[5].startswith('HAT psnr ')
    assert title[6] == '0', 'pictures that did not load'


# -- tables ----------------------------------------------------------------------------------------------------------


def result(rows: dict[str, list[float]], better: str = 'higher') -> Result:
    from hat_plugin.compare.cost import Cost
    from hat_plugin.compare.protocol import Comparison, Contender

    findings = {who: Scores({str(i): {'m_1': value} for i, value in enumerate(values)}) for who, values in rows.items()}
    contenders = tuple(Contender(who, {'scale': 2}) for who in list(rows)[1:])
    costs = {each.label: Cost(1_000_000) for each in contenders}
    return Result(
        Comparison('x', 'x.yml', contenders), {'set': findings}, costs, [], {'metrics': {'m_1': {'better': better}}}
    )


@pytest.mark.parametrize(
    ('better', 'expected'),
    [
        ('higher', ['1.00', '**3.00**', '<u>2.50</u>', '<u>2.50</u>', '2.00']),
        ('lower', ['1.00', '3.00', '<u>2.50</u>', '<u>2.50</u>', '**2.00**']),
    ],
)
def test_the_best_is_bold_and_the_second_underlined(better: str, expected: list[str]) -> None:
    found = result({'bicubic': [1, 1], 'a': [3, 3], 'b': [2.5, 2.5], 'c': [2, 3.001], 'd': [2, 2]}, better)
    assert [marked(row)[0] for row in figures(found)[1]] == expected


def test_latex_needs_no_editing() -> None:
    text = latex(result({'bicubic': [0.5], 'a_b^2': [0.9], 'c': [0.8]}))
    assert r'a\_b\^{}2 & 1.00 & - & \textbf{0.9000} \\' in text
    assert r'c & 1.00 & - & \underline{0.8000} \\' in text
    assert r'Method & Params (M) & MACs (G) & set m\_1 \\' in text
