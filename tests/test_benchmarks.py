"""The benchmark: its arithmetic with clocks of our own, measurements of known work, and one quick run of all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY))  # benchmarks/ is of the checkout, not of the distribution
pytest.importorskip('spandrel')

from benchmarks import attention, growth, limits, networks, probe, report, summary
from benchmarks.__main__ import PARTS, main
from benchmarks.comparison import Entry, compare
from benchmarks.networks import OURS, PUBLISHED, SWINIR, Contender
from benchmarks.probe import Finding, Task
from benchmarks.settings import Settings
from hat_plugin.compare import machine, text, timing
from hat_plugin.compare.timing import Plan, Sample

CPU = torch.device('cpu')
ONCE = Plan(rounds=2, most=2, budget=0.0, sample=0.0)


class Clock:
    """Stands for the time module; work moves it."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def perf_counter(self) -> float:
        return self.wall

    def process_time(self) -> float:
        return self.cpu

    def work(self, wall: float, cpu: float) -> Callable[[], None]:
        def call() -> None:
            self.wall += wall
            self.cpu += cpu

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stand_in = Clock()
    monkeypatch.setattr(timing, 'time', stand_in)
    monkeypatch.setattr(timing.gc, 'collect', lambda: 0)  # of a large test process it takes its time
    return stand_in


def test_median_and_quartiles() -> None:
    value = timing.spread([4.0, 1.0, 3.0, 2.0, 100.0])
    assert (value.low, value.median, value.high) == (2.0, 3.0, 4.0)
    assert f'{value:.1f}' == '3.0 [2.0, 4.0]'
    assert timing.spread([7.0]) == timing.Spread(7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match='nothing was measured'):
        timing.spread([])


def test_ratio_is_taken_within_a_round() -> None:
    """The load doubles in the second round: it meets both, and the ratio stays."""
    base = [Sample(2.0, 1.0), Sample(4.0, 1.0)]
    other = [Sample(1.0, 0.25), Sample(2.0, 0.25)]
    assert timing.ratios(base, other, 'wall') == timing.Spread(2.0, 2.0, 2.0)
    assert timing.ratios(base, other, 'cpu') == timing.Spread(4.0, 4.0, 4.0)


def test_turns_alternate_and_time_is_of_one_call(clock: Clock) -> None:
    order: list[str] = []

    def call(name: str, wall: float) -> Callable[[], None]:
        work = clock.work(wall, wall / 2)
        return lambda: (order.append(name), work())[1]

    calls = {'slow': call('slow', 4.0), 'fast': call('fast', 0.25)}
    samples = timing.alternate(calls, CPU, Plan(rounds=2, most=9, budget=10.0, sample=0.5))
    # Warm-up, the fast one twice; then turns: fast twice a turn, every other round backwards.
    assert order[:3] == ['slow', 'slow', 'fast'] or order[:3] == ['slow', 'fast', 'fast']
    turns = order[order.index('fast') + 2 :]
    assert turns[:6] == ['slow', 'fast', 'fast', 'fast', 'fast', 'slow']
    assert samples['slow'] == [Sample(4.0, 2.0)] * len(samples['slow'])
    assert samples['fast'] == [Sample(0.25, 0.125)] * len(samples['slow'])
    assert len(samples['slow']) == 3  # 4.5 s a round: after the third, 10 s are spent


@pytest.mark.parametrize(('plan', 'expected'), [(Plan(4, 9, 0.0), 4), (Plan(2, 3, 1e9), 3), (Plan(5, 3, 0.0), 5)])
def test_number_of_rounds(clock: Clock, plan: Plan, expected: int) -> None:
    assert len(timing.alternate({'x': clock.work(1.0, 1.0)}, CPU, plan)['x']) == expected


def test_table() -> None:
    assert text.markdown_table(('', 'a|b'), [('one', '1'), ('eleven', '11')]) == (
        '|        | a\\|b |\n| ------ | ---: |\n| one    |    1 |\n| eleven |   11 |'
    )
    with pytest.raises(ValueError, match='other than 2 cells'):
        text.markdown_table(('', 'a'), [('one',)])


@pytest.mark.parametrize(
    ('value', 'expected'),
    [(12.345, '12.3 s'), (1.5, '1.50 s'), (0.5, '500 ms'), (0.0021, '2.10 ms'), (1234.5, '1234 s')],
)
def test_seconds(value: float, expected: str) -> None:
    assert text.seconds(timing.spread([value])).startswith(f'{expected} [')


def test_machine_is_named_and_its_load_chooses_the_clock(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PARTS, 'data', lambda settings: iter(()))
    for load, clock in ((0.5, 'wall'), (7.0, 'cpu')):
        monkeypatch.setattr(machine.os, 'getloadavg', lambda load=load: (load, 0.0, 0.0))
        assert main(['--part', 'data', '--device', 'cpu', '--threads', '1']) == 0
        text = capsys.readouterr().out
        assert ('The machine is loaded' in text) == (clock == 'cpu')
        assert (f'Ratios are of {clock} time' in text) == (clock == 'cpu')
        assert f'torch {torch.__version__}' in text
        assert f'load average before the start: {load}' in text
    found = machine.examine(CPU)
    assert found.processor and found.cores >= 1 and found.threads == 1
    assert found.slug.replace('-', '').isalnum()


def test_rivals_have_the_same_weights_and_compute_the_same() -> None:
    image = networks.image_of(16, CPU)
    outputs = {}
    for who in (Contender(PUBLISHED), Contender(OURS), Contender(OURS, 'bf16'), Contender(SWINIR)):
        outputs[who] = networks.forward_of(networks.build('tiny', who), who, CPU)(image).float()
        assert outputs[who].shape == (1, 3, 64, 64)
    published, ours, converted, swinir = outputs.values()
    assert (ours - published).abs().max() < 1e-5
    assert 1e-5 < (converted - published).abs().max() < 0.05
    assert (swinir - published).abs().max() > 1e-3
    with pytest.raises(Exception, match="no network 'HAT-XL'.*HAT-S"):
        networks.build('HAT-XL', Contender(OURS))


def test_work_is_counted_by_the_published_code() -> None:
    assert limits.forward_flops('HAT-S', OURS, 64) == pytest.approx(2 * 54.6e9, rel=1e-3)
    assert limits.forward_flops('HAT-S', OURS, 256) == 16 * limits.forward_flops('HAT-S', OURS, 64)


def test_distance_to_the_limit(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products at 1 and 2 TFLOP/s; the contender takes 3 s for 2 TFLOP, which is three times the limit."""
    work = limits.product_flops(torch.device('cpu'))
    times = dict(zip(work, (1e-12, 0.5e-12), strict=True))

    def products(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], None]]:
        return {
            f'{name}, fp32': clock.work(seconds * work[name], seconds * work[name]) for name, seconds in times.items()
        }

    monkeypatch.setattr(limits, 'products', products)
    entries = [
        Entry(Contender(PUBLISHED), clock.work(9.0, 6.0), 2e12, 0.0),
        Entry(Contender(OURS), clock.work(3.0, 3.0), 2e12, 1e-7),
    ]
    section = compare('t', {'part': 'inference'}, entries, Settings(CPU, 1, 'wall', plan=ONCE))
    ours = section.records[-1]
    assert ours['times_the_limit'] == pytest.approx(3.0)
    assert ours['ratio']['wall']['median'] == pytest.approx(3.0)
    assert ours['ratio']['cpu']['median'] == pytest.approx(2.0)
    assert section.rows[-1][:3] == ('ours fp32', '3.00 [3.00, 3.00]', '2.00 (cpu)')


KNOWN_MEMORY = """
import torch
from hat_plugin.compare import peak

def passing():
    for _ in range(2):
        torch.ones(8_000_000)
    torch.ones(8_000_000).add(1)

def keeping():
    passing()
    first = torch.ones(8_000_000)
    kept.extend([first, first.add(1)])

kept = []
torch.set_num_threads(1)
torch.ones(8).add(1)
for work in (keeping, passing):
    print('BYTES', peak.peak_bytes(work, torch.device('cpu')))
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_peak_of_known_memory(repository: Path) -> None:
    """In a process that did nothing else: 64 MB that live at once, not the 96 MB that are made."""
    done = subprocess.run([sys.executable, '-c', KNOWN_MEMORY], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept, passing = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith('BYTES'))
    # Linux counts resident pages (anonymous, file, shared) in batches of max(32, 2 * cores) on each core; the memory
    # before and the peak are each read without what stands in those batches.
    cores = os.cpu_count() or 1
    uncounted = 2 * 3 * max(32, 2 * cores) * cores * os.sysconf('SC_PAGESIZE')
    for found in (kept, passing):
        assert 64e6 - uncounted <= found < 72e6 + uncounted


def test_process_of_its_own() -> None:
    """A forward pass, a training step, a picture that does not fit, and an error that comes back with its text."""
    task = Task('tiny', Contender(OURS), 32, seconds=0.01)
    forward, training = probe.run(task), probe.run(replace(task, trains=True, seconds=0.0))
    assert forward and training and forward.estimate and training.estimate
    assert 0.3 * forward.estimate < forward.bytes < 30e6
    assert training.bytes > forward.bytes
    assert forward.seconds('cpu') > 0 and forward.seconds('wall') > 0 and training.sample is None
    assert probe.run(replace(task, side=2**20)) is None
    with pytest.raises(RuntimeError, match="no network 'HAT-XL'"):
        probe.run(replace(task, network='HAT-XL'))


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_killed_benchmark_leaves_no_measurement_behind() -> None:
    code = (
        'from benchmarks.probe import *\n'
        "if __name__ == '__main__':\n"
        "    run(Task('tiny', Contender(OURS), 16, seconds=600.0))"
    )
    with subprocess.Popen([sys.executable, '-c', code], cwd=REPOSITORY, start_new_session=True) as process:
        _await(lambda: len(_running(process.pid)) == 4)  # with the fork server, its tracker and the measurement
        process.kill()
    _await(lambda: not _running(process.pid))


def _running(session: int) -> list[str]:
    """The processes of a session but for those that have ended."""
    found = []
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            state, _, _, sid = path.read_text().rpartition(')')[2].split()[:4]
        except OSError:  # gone meanwhile
            continue
        if int(sid) == session and state != 'Z':
            found.append(path.parent.name)
    return found


def _await(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, 'it did not come about in two minutes'
        time.sleep(0.1)


def test_growth_does_not_try_what_cannot_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def run(task: Task) -> Finding:
        tried.append(task.side)
        return Finding(task.side**2 * 1000, None, Sample(1.0, 1.0))

    monkeypatch.setattr(probe, 'run', run)
    monkeypatch.setattr(growth, 'available_bytes', lambda: 100**2 * 1000)
    settings = Settings(CPU, 1, 'wall', networks=('tiny',), growth_sizes=(64, 90, 128), few=True)
    (section,) = growth.run(settings)
    assert tried == [64, 90, 64, 90]
    assert section.rows[-1][1] == 'does not fit'
    (alone,) = growth.run(replace(settings, codes=(OURS,), few=False))
    assert len(alone.rows) == 3 and alone.rows[0][1].startswith('1.00 s')


def test_summary_puts_time_and_memory_side_by_side() -> None:
    case = {'network': 'HAT', 'side': 64, 'contender': 'ours fp32'}
    ratio = {'cpu': {'median': 2.5}, 'wall': {'median': 9.0}}
    records = [
        {**case, 'part': 'inference', 'ratio': ratio},
        {**case, 'part': 'memory', 'bytes': 10, 'base_bytes': 40},
        {**case, 'part': 'memory', 'side': 128, 'bytes': None, 'base_bytes': 40},
        {**case, 'part': 'training', 'ratio': ratio},
        {**case, 'part': 'inference', 'contender': 'published fp32', 'ratio': ratio},
    ]
    section = summary.summarise(records, 'cpu')
    assert section is not None
    assert section.columns[1:] == ('64x64', 'training step')
    assert section.notes[0].startswith('To ours fp32, by CPU time')  # the first of these
    assert section.rows == [('HAT fp32', '2.50 / 4.0', '2.50 / -')]
    assert summary.summarise([{'part': 'data'}], 'cpu') is None


def test_quick_run_of_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = tmp_path / 'numbers.json'
    where = ['--save', '--results', str(tmp_path / 'results'), '--json', str(numbers)]
    assert main(['--quick', '--device', 'cpu', '--threads', '1', *where]) == 0
    text = capsys.readouterr().out
    for heading in ('Inference: tiny', 'Training step: tiny', 'Memory: tiny', 'Growth: tiny', 'Data:', 'Summary'):
        assert f'## {heading}' in text
    read = json.loads(numbers.read_text())
    assert {record['part'] for record in read['records']} == {*PARTS, 'training memory'}
    differences = {(r['part'], r['contender']): r['difference'] for r in read['records'] if 'difference' in r}
    assert differences['inference', 'ours fp32'] < 1e-5
    assert differences['training', 'ours fp32'] < 1e-4
    assert differences['inference', 'SwinIR fp32'] is None
    (saved,) = (tmp_path / 'results').glob('*.md')
    assert saved.name.startswith(read['machine']['date'])
    assert saved.read_text().index('## Summary') < saved.read_text().index('## Inference')
    (drawn,) = (tmp_path / 'results').glob('*_growth.png')
    assert drawn.stat().st_size > 10_000 and f']({drawn.name})' in saved.read_text()


@pytest.mark.gpu
def test_quick_run_on_cuda(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['--quick', '--device', 'cuda', '--part', 'inference', 'training', 'memory', 'growth']) == 0
    assert f'Accelerator: {torch.cuda.get_device_name()}' in capsys.readouterr().out


def test_a_step_as_published_trainings_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ['--quick', '--device', 'cpu', '--part', 'training', '--codes', 'published', 'ours']
    assert main([*arguments, '--precisions', 'fp32', '--drop-path', '0.9']) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(('## Training', '| ours fp32'))]
    assert rows[0].endswith(', drop path 0.9') and rows[1].rstrip(' |').endswith(' -')  # they draw for themselves
    net = networks.build('tiny', Contender(OURS), 0.9)
    assert max(getattr(module, 'drop_prob', 0.0) for module in net.modules()) == 0.9
    with pytest.raises(SystemExit):
        main([*arguments, '--drop-path', '1'])


def test_results_of_one_day_do_not_overwrite_each_other(tmp_path: Path) -> None:
    for _ in range(2):
        report.ResultFile(tmp_path, '2026-01-31_cpu').add('text')
    assert sorted(file.name for file in tmp_path.iterdir()) == ['2026-01-31_cpu.md', '2026-01-31_cpu_2.md']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--device', 'tpu'], '--device tpu'),
        (['--json', 'nowhere/x.json'], 'no folder nowhere'),
        (['--images', 'nowhere'], '--images nowhere: no such folder'),
    ],
)
def test_mistakes_are_named_before_anything_is_measured(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(['--quick', *arguments]) == 2
    assert message in capsys.readouterr().err


def test_no_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    assert main(['--quick', '--save', '--results', str(tmp_path / 'results')]) == 2
    assert 'pip install matplotlib' in capsys.readouterr().err
    assert not (tmp_path / 'results').exists()


@pytest.mark.parametrize('trains', [True, False])
@pytest.mark.parametrize('name', ['HAB, shifted', 'OCAB'])
def test_one_attention_by_each_backend(name: str, trains: bool) -> None:
    plan = Plan(rounds=1, most=1, budget=0.0, sample=0.0)
    table = attention.compare(name, (1, 16, 32), torch.float32, torch.device('cpu'), trains=trains, plan=plan)
    assert [line.split('|')[1].strip() for line in table.splitlines()[2:]] == ['reference', 'sdpa', 'recompute', 'cpp']
    assert attention.main(['--size', '20']) == 2
