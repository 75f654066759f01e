"""Training runs as users see them: folders, logs, resumes after every kind of end, one rank and two."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import training

from hat_plugin.cli import main
from hat_plugin.engine.options import load_options
from hat_plugin.errors import OptionsError
from hat_plugin.models import states


@pytest.fixture
def here(tmp_path, photos, monkeypatch) -> Path:
    """A working directory with data."""
    training.write_photos(tmp_path, {name: photos[name] for name in photos})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def log() -> Iterator[Callable[[], str]]:
    """All that BasicSR's logger said so far (it passes nothing on to pytest's own capture)."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger('basicsr').addHandler(handler)
    yield stream.getvalue
    logging.getLogger('basicsr').removeHandler(handler)


def train(here: Path, *arguments: str, **changes) -> Path:
    """Train in this process and give the run's folder."""
    options = training.write_options(here / 'options.yml', **changes)
    assert main(['train', '-opt', str(options), *arguments]) == 0
    return here / 'experiments' / changes.get('name', 'tiny')


def undisturbed(here: Path, **changes) -> dict[str, torch.Tensor]:
    """What an uninterrupted run ends in."""
    return training.networks(train(here, name='undisturbed', **changes))


def state(run: Path, iteration: int) -> dict:
    return torch.load(run / 'training_states' / f'{iteration}.state', weights_only=True)


def test_a_run_has_basicsrs_folders_log_and_tags(here):
    run = train(here, logger__use_tb_logger=True, val__save_img=True)
    assert {path.name for path in (run / 'models').iterdir()} == {
        'net_g_4.pth', 'net_g_8.pth', 'net_g_12.pth', 'net_g_latest.pth',
    }  # fmt: skip
    assert {path.name for path in (run / 'training_states').iterdir()} == {'4.state', '8.state', '12.state'}
    assert (run / 'options.yml').read_text().startswith('# GENERATE TIME')
    log = next(run.glob('train_tiny_*.log')).read_text()
    assert '[tiny..][epoch:  0, iter:       1, lr:(6.667e-04,)]' in log
    assert 'l_pix:' in log
    assert 'End of training' in log
    assert log.count('Validation held_out') == 3  # at 5, 10 and, once, at the end
    pictures = sorted(path.name for path in run.glob('visualization/*/*.png'))
    assert pictures[0].endswith('_10.png')
    assert len(pictures) == 6

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(here / 'tb_logger' / 'tiny')).Reload()
    assert {'losses/l_pix', 'metrics/held_out/psnr'} <= set(events.Tags()['scalars'])
    assert [event.step for event in events.Scalars('metrics/held_out/psnr')] == [5, 10, 12]


def test_a_second_run_of_the_name_moves_the_first_aside(here):
    first = training.networks(train(here, train__total_iter=2))
    train(here, train__total_iter=2)
    archived = list((here / 'experiments').glob('tiny_archived_*'))
    assert len(archived) == 1
    assert training.same(training.networks(archived[0]), first)


@pytest.mark.parametrize(
    'changes',
    [
        {'train__optim_g__type': 'Adamm'},
        {'network_g__window_size': 3, 'network_g__overlap_ratio': 0.5},
        {'datasets__train__dataroot_gt': 'data/absent'},
        {'path__pretrain_network_g': 'absent.pth'},
        {'path__resume_state': 'absent.state'},
        {'name': '../elsewhere'},
    ],
)
def test_a_failed_start_leaves_the_disk_as_it_was(here, changes, capsys):
    run = train(here, train__total_iter=2)
    before = sorted(here.rglob('*'))
    options = training.write_options(here / 'options.yml', **changes)
    assert main(['train', '-opt', str(options)]) == 2
    assert str(next(iter(changes.values()))) in capsys.readouterr().err
    assert sorted(here.rglob('*')) == before
    assert run.is_dir()


@pytest.mark.parametrize(('workers', 'workers_later'), [(0, 0), (2, 0)])
def test_kill_9_at_a_random_moment_then_auto_resume_ends_in_identical_weights(here, workers, workers_later):
    changes = {'train__total_iter': 60, 'logger__save_checkpoint_freq': 3, 'train__scheduler__milestones': [20, 40]}
    expected = undisturbed(here, **changes)
    options = training.write_options(here / 'killed.yml', **changes, datasets__train__num_worker_per_gpu=workers)
    run = here / 'experiments' / 'tiny'
    process = training.start(['-m', 'hat_plugin.train', '-opt', str(options)], here)
    begin = time.time()
    while not (run / 'training_states' / '6.state').exists() and process.poll() is None and time.time() - begin < 60:
        time.sleep(0.01)
    time.sleep(random.random() * 0.15)
    process.send_signal(signal.SIGKILL)
    training.finish(process)
    assert (run / 'training_states' / '6.state').exists()
    assert not (run / 'models' / 'net_g_latest.pth').exists(), 'it ended before it was killed'
    training.write_options(options, **changes, datasets__train__num_worker_per_gpu=workers_later)
    assert main(['train', '-opt', str(options), '--auto_resume']) == 0
    assert training.same(training.networks(run), expected)
    best = state(run, 60)['best_metric_results']
    assert best == state(here / 'experiments' / 'undisturbed', 60)['best_metric_results']
    assert best['held_out']['psnr']['iter'] > 0


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_first(here, number):
    expected = undisturbed(here, train__total_iter=40, datasets__train__num_worker_per_gpu=1)
    changes = {'train__total_iter': 40, 'logger__save_checkpoint_freq': 1000, 'datasets__train__num_worker_per_gpu': 1}
    options = training.write_options(here / 'options.yml', **changes)
    process = training.start(['-m', 'hat_plugin.train', '-opt', str(options)], here)
    assert process.stdout is not None
    for line in process.stdout:
        if 'iter:       3,' in line:
            os.killpg(process.pid, number)  # a terminal's Ctrl-C and Slurm's signals reach the workers too
            break
    code, output = training.finish(process)
    assert code == 128 + number, output
    states = list((here / 'experiments/tiny/training_states').iterdir())
    assert len(states) == 1
    assert 3 <= int(states[0].stem) < 40
    assert main(['train', '-opt', str(options), '--auto_resume']) == 0
    assert training.same(training.networks(here / 'experiments/tiny'), expected)


def test_a_signal_breaks_a_validation_off_and_the_resumed_run_makes_up_for_it(here, monkeypatch, log):
    expected = undisturbed(here)
    from hat_plugin.models import validation

    measure = validation.calculate_metric

    def measure_and_signal(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return measure(*arguments)

    monkeypatch.setattr(validation, 'calculate_metric', measure_and_signal)
    options = training.write_options(here / 'options.yml')
    assert main(['train', '-opt', str(options)]) == 128 + signal.SIGTERM
    run = here / 'experiments' / 'tiny'
    assert (run / 'training_states' / '5.state').exists()
    assert 'broken off' in log()
    monkeypatch.undo()
    monkeypatch.chdir(here)
    train(here, '--auto_resume')
    assert training.same(training.networks(run), expected)
    best = {name: state(here / 'experiments' / name, 12)['best_metric_results'] for name in ('tiny', 'undisturbed')}
    assert best['tiny'] == best['undisturbed']


@pytest.mark.parametrize(('folder', 'number', 'done'), [('gt', 4, 2), ('val_gt', 1, 5)])
def test_a_picture_that_cannot_be_read_costs_no_iteration(here, capsys, folder, number, done):
    broken = sorted((here / 'data' / folder).iterdir())[number]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    changes = {'datasets__train__use_shuffle': False, 'logger__save_checkpoint_freq': 1000}
    options = training.write_options(here / 'options.yml', **changes)
    assert main(['train', '-opt', str(options)]) == 2
    assert broken.name in capsys.readouterr().err
    run = here / 'experiments' / 'tiny'
    assert [path.name for path in (run / 'training_states').iterdir()] == [f'{done}.state']
    assert broken.name in next(run.glob('train_tiny_*.log')).read_text()
    broken.write_bytes(whole)
    train(here, '--auto_resume', **changes)
    assert training.same(training.networks(run), undisturbed(here, **changes))


def test_broken_and_foreign_states_are_skipped_for_the_newest_good_one(here, log):
    expected = undisturbed(here)
    run = train(here)
    (run / 'models' / 'net_g_latest.pth').unlink()
    newest = run / 'training_states' / '12.state'
    newest.write_bytes(newest.read_bytes()[:-3000])
    (run / 'models' / 'net_g_8.pth').write_bytes(b'')
    (run / 'training_states' / 'notes.state').write_text('not ours')
    torch.save({'epoch': 1}, run / 'training_states' / '999.state')
    train(here, '--auto_resume')
    text = log()
    assert '999.state cannot be resumed from' in text
    assert '12.state cannot be resumed from' in text
    assert 'net_g_8.pth' in text
    assert 'iter: 4.' in text
    assert training.same(training.networks(run), expected)


def test_when_no_state_is_usable_training_does_not_silently_begin_anew(here, capsys):
    run = train(here, train__total_iter=4)
    (run / 'training_states' / '4.state').write_bytes(b'PK')
    options = here / 'options.yml'
    assert main(['train', '-opt', str(options), '--auto_resume']) == 2
    assert 'none of the 1 training states' in capsys.readouterr().err


def test_a_finished_run_is_not_run_again(here, log):
    run = train(here)
    before = {path: path.stat().st_mtime_ns for path in run.rglob('*')}
    train(here, '--auto_resume')
    assert 'Training is complete' in log()
    assert {path: path.stat().st_mtime_ns for path in run.rglob('*')} == before


def test_a_run_killed_before_its_last_file_writes_it_when_resumed(here):
    run = train(here)
    latest = training.networks(run)
    (run / 'models' / 'net_g_latest.pth').unlink()
    train(here, '--auto_resume')
    assert training.same(training.networks(run), latest)


def test_a_resumed_run_follows_the_option_file(here):
    train(here, train__total_iter=4, train__warmup_iter=-1)
    run = train(
        here, '--auto_resume', train__total_iter=8, train__warmup_iter=-1, train__optim_g__lr=5e-4,
        train__scheduler__milestones=[1000],
    )  # fmt: skip
    assert state(run, 8)['optimizers'][0]['param_groups'][0]['lr'] == 5e-4
    assert state(run, 8)['optimizers'][0]['state'][0]['step'] == 8


def test_a_resumed_run_may_measure_more(here, log):
    train(here, train__total_iter=8)
    more = {'ssim': {'type': 'calculate_ssim', 'crop_border': 2, 'test_y_channel': True}}
    run = train(here, '--auto_resume', train__total_iter=10, val__metrics=training.OPTIONS['val']['metrics'] | more)
    assert '# ssim:' in log()
    assert state(run, 10)['best_metric_results']['held_out'].keys() == {'psnr'}  # saved before the first of them
    assert state(run, 10)['best_metric_results']['held_out']['psnr']['iter'] == 5


def test_a_run_may_start_from_the_option_file_that_an_earlier_one_kept(here):
    first = train(here, train__total_iter=2)
    assert main(['train', '-opt', str(first / 'options.yml')]) == 0
    assert (first / 'options.yml').is_file()
    assert len(list((here / 'experiments').glob('tiny_archived_*/options.yml'))) == 1


def test_what_a_killed_writer_left_is_removed(here):
    run = train(here, train__total_iter=2)
    for place in ('models/.net_g_3.pth.0a1b2c3d.tmp', 'training_states/.3.state.0a1b2c3d.tmp'):
        (run / place).write_bytes(b'half')
    train(here, '--auto_resume', train__total_iter=3)
    assert not list(run.rglob('*.tmp'))


def test_an_epoch_is_as_long_as_the_order_of_its_samples(here, log):
    train(here, train__total_iter=5, datasets__train__dataset_enlarge_ratio=0.5)  # of 10 pictures, 2 a step
    assert '[epoch:  2, iter:       5' in log()


def test_explicit_resume_from_another_runs_state(here):
    expected = undisturbed(here)
    source = train(here, name='source', train__total_iter=8)
    run = train(here, path__resume_state=str(source / 'training_states/8.state'))
    assert training.same(training.networks(run), expected)


def test_going_back_to_an_earlier_state_leaves_the_later_ones_aside(here, log):
    run = train(here)
    folder = run / 'training_states'
    train(here, path__resume_state=str(folder / '4.state'), train__total_iter=5, logger__save_checkpoint_freq=1)
    assert 'has 2 later states, up to 12.state' in log()
    (aside,) = run.glob('after_4_*')
    found = {path.name for path in aside.glob('*/*')}
    assert found == {'8.state', '12.state', 'net_g_8.pth', 'net_g_12.pth', 'net_g_latest.pth'}
    train(here, '--auto_resume', train__total_iter=6, logger__save_checkpoint_freq=1)
    assert 'iter: 5.' in log()
    assert {path.name for path in folder.glob('*.state')} == {'4.state', '5.state', '6.state'}
    train(here, path__resume_state=str(aside / 'training_states/8.state'), name='other')  # from what was left
    assert 'iter: 8.' in log()


def test_a_longer_run_killed_at_its_end_is_not_taken_for_complete(here, monkeypatch, log):
    run = train(here, train__total_iter=4)
    save = states._write

    def fails(model, epoch, current_iter, *others):
        if current_iter == -1:
            raise KeyboardInterrupt
        save(model, epoch, current_iter, *others)

    monkeypatch.setattr(states, '_write', fails)
    options = training.write_options(here / 'options.yml', train__total_iter=8)
    assert main(['train', '-opt', str(options), '--auto_resume']) == 130
    assert (run / 'training_states' / '8.state').exists()
    assert training.same(training.networks(run), training.networks(run, '4'))  # still that of the shorter run
    monkeypatch.undo()
    monkeypatch.chdir(here)
    train(here, '--auto_resume', train__total_iter=8)
    assert 'Training is complete' not in log()
    assert training.same(training.networks(run), training.networks(run, '8'))


def test_the_state_that_was_just_written_is_kept_whatever_strangers_lie_there(here):
    run = train(here, train__total_iter=4)
    for number in (998, 999):
        (run / 'training_states' / f'{number}.state').write_bytes(b'not ours')
    train(here, '--auto_resume', train__total_iter=8, logger__keep_checkpoints=1)
    assert (run / 'training_states' / '8.state').exists() and (run / 'models' / 'net_g_8.pth').exists()


@pytest.mark.parametrize('reason', ['corrupt', 'small'])
def test_a_first_picture_that_is_to_be_skipped_is_no_reason_not_to_start(here, reason):
    first, changes = min((here / 'data' / 'gt').iterdir()), {'datasets__train__on_corrupt': 'skip'}
    if reason == 'corrupt':
        first.write_bytes(first.read_bytes()[:100])
    else:
        changes = {'datasets__train__small_images': 'skip', 'datasets__train__type': 'PairedCropDataset'}
        for folder, side in (('gt', 8), ('lq', 4)):
            cv2.imwrite(str(here / 'data' / folder / first.name), np.zeros((side, side, 3), np.uint8))
    train(here, train__total_iter=2, **changes)


FULL_DISK = """
import resource, signal, sys
from hat_plugin.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import hat_plugin.models.states as states
write, count = states._write, 0
def limited(*arguments):
    global count
    count += 1
    if count == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    write(*arguments)
states._write = limited
sys.exit(main(['train', '-opt', 'options.yml']))
"""


def test_a_full_disk_stops_the_run_with_an_error_and_the_last_checkpoint_is_whole(here):
    expected = undisturbed(here)
    training.write_options(here / 'options.yml')
    code, output = training.finish(training.start(['-c', FULL_DISK], here))
    assert code == 2, output
    assert 'net_g_8.pth: could not be written' in output
    run = here / 'experiments' / 'tiny'
    assert sorted(path.name for path in run.glob('*/*') if path.is_file()) == ['4.state', 'net_g_4.pth']
    train(here, '--auto_resume')
    assert training.same(training.networks(run), expected)


def test_keep_checkpoints(here):
    run = train(here, logger__keep_checkpoints=2)
    assert {path.name for path in (run / 'training_states').iterdir()} == {'8.state', '12.state'}
    assert {path.name for path in (run / 'models').iterdir()} == {'net_g_8.pth', 'net_g_12.pth', 'net_g_latest.pth'}


def test_a_run_that_ended_between_its_save_and_its_validation_validates_when_resumed(here, log):
    run = train(here, train__total_iter=4)
    saved = torch.load(run / 'training_states/4.state', weights_only=True)
    saved['progress']['validated'] = -1
    torch.save(saved, run / 'training_states/4.state')
    train(here, '--auto_resume', train__total_iter=5, val__val_freq=4)
    said = log()
    assert said.index('Resuming') < said.rindex('Validation held_out', 0, said.rindex('iter:       5'))


def test_validation_at_the_start(here):
    run = train(here, val__at_start=True, train__total_iter=1)
    log = next(run.glob('train_tiny_*.log')).read_text()
    assert log.index('Validation held_out') < log.index('iter:       1')


def test_force_yml_changes_the_run(here):
    run = train(here, '--force_yml', 'train:total_iter=2', 'train:optim_g:lr=1e-4')
    assert state(run, 2)['optimizers'][0]['param_groups'][0]['initial_lr'] == 1e-4


def test_a_signal_in_the_last_validation_is_made_up_for_too(here, monkeypatch, log):
    from hat_plugin.models import validation

    expected = undisturbed(here)
    measure = validation.calculate_metric

    def measure_and_signal(*arguments):
        if (here / 'experiments/tiny/training_states/12.state').exists():
            signal.raise_signal(signal.SIGTERM)
        return measure(*arguments)

    monkeypatch.setattr(validation, 'calculate_metric', measure_and_signal)
    options = training.write_options(here / 'options.yml')
    assert main(['train', '-opt', str(options)]) == 128 + signal.SIGTERM
    run = here / 'experiments' / 'tiny'
    assert not (run / 'models' / 'net_g_latest.pth').exists()
    monkeypatch.undo()
    monkeypatch.chdir(here)
    before = log().count('Best:')
    train(here, '--auto_resume')
    assert log().count('Best:') == before + 1
    assert training.same(training.networks(run), expected)


def test_pictures_that_do_not_fit_are_found_before_the_last_run_is_moved_aside(here, capsys):
    run = train(here)
    before = sorted(here.rglob('*'))
    swapped = {'datasets__train__dataroot_gt': 'data/lq', 'datasets__train__dataroot_lq': 'data/gt'}
    options = training.write_options(here / 'options.yml', **swapped)
    assert main(['train', '-opt', str(options)]) == 2
    assert 'astronaut' in capsys.readouterr().err
    assert sorted(here.rglob('*')) == before
    assert (run / 'models' / 'net_g_latest.pth').exists()


def test_two_runs_of_one_name_do_not_mix(here, capsys):
    endless = {'train__total_iter': 10000, 'val__val_freq': 10000, 'datasets__train__num_worker_per_gpu': 2}
    options = training.write_options(here / 'options.yml', **endless)
    process = training.start(['-m', 'hat_plugin.train', '-opt', str(options)], here)
    assert process.stdout is not None
    next(line for line in process.stdout if 'iter:       1,' in line)
    for more in ([], ['--auto_resume']):
        assert main(['train', '-opt', str(options), *more]) == 2
        assert f'process {process.pid} trains under this name' in capsys.readouterr().err
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    train(here)  # a killed run holds nothing, though its workers may live on for seconds
    training.finish(process)
    names = [path.name.partition('_archived_')[0] for path in (here / 'experiments').iterdir() if path.is_dir()]
    assert names == ['tiny', 'tiny']


def test_states_that_are_damaged_or_of_another_program_are_passed_over(here, log):
    expected = undisturbed(here)
    run = train(here)
    (run / 'models' / 'net_g_latest.pth').unlink()
    states = run / 'training_states'
    good = state(run, 12)
    torch.save({**good, 'iter': 12}, states / '90.state')  # another iteration's
    torch.save({**good, 'optimizers': None, 'iter': 80}, states / '80.state')
    (run / 'models' / 'net_g_80.pth').write_bytes((run / 'models' / 'net_g_12.pth').read_bytes())
    moments = {**good['optimizers'][0], 'state': {key: {**value, 'exp_avg': value['exp_avg'][..., :1]}
               for key, value in good['optimizers'][0]['state'].items()}}  # fmt: skip
    torch.save({**good, 'optimizers': [moments], 'iter': 70}, states / '70.state')
    (run / 'models' / 'net_g_70.pth').write_bytes((run / 'models' / 'net_g_12.pth').read_bytes())
    (states / '²³.state').write_bytes(b'')
    weights = run / 'models' / 'net_g_12.pth'
    content = bytearray(weights.read_bytes())
    place = content.index(state_bytes(training.networks(run, '12')['params.conv_first.weight']))
    content[place + 5] ^= 1
    weights.write_bytes(content)
    train(here, '--auto_resume')
    text = log()
    for number, reason in (
        (90, 'holds iteration 12'),
        (80, 'not a training state'),
        (70, 'exp_avg of'),
        (12, 'checksum'),
    ):
        line = next(line for line in text.splitlines() if f'{number}.state cannot be resumed from' in line)
        assert reason in line
    assert 'iter: 8.' in text
    assert training.same(training.networks(run), expected)


def state_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


def test_a_state_that_is_named_is_the_start_where_a_run_has_none_of_its_own(here, log):
    train(here, name='first', train__total_iter=4)
    start = {'path__resume_state': 'experiments/first/training_states/4.state'}
    expected = undisturbed(here)
    run = train(here, '--auto_resume', **start)
    assert 'Resuming training from epoch' in log()
    assert training.same(training.networks(run), expected)


def test_a_metric_without_reference_is_taken_of_pictures_without_ground_truth(here, log, photos):
    (here / 'data/large').mkdir()
    cv2.imwrite(str(here / 'data/large/coffee.png'), photos.small('coffee', 120, 120))
    single = {
        'name': 'alone',
        'type': 'SingleImageDataset',
        'dataroot_lq': 'data/large',
        'io_backend': {'type': 'disk'},
    }
    metrics = {'niqe': {'type': 'calculate_niqe', 'crop_border': 0, 'better': 'lower'}}
    train(here, datasets__val=single, val__metrics={**training.OPTIONS['val']['metrics'], **metrics},
          train__total_iter=1, val__val_freq=1)  # fmt: skip
    text = log()
    assert '# niqe:' in text and '# psnr:' not in text


def test_validation_and_test_in_bf16(here, log):
    run = train(here, val__precision='bf16', train__total_iter=2, val__val_freq=2)
    assert 'computed in bf16' in log()
    weights = training.networks(run)
    assert {value.dtype for name, value in weights.items() if 'weight' in name} == {torch.float32}
    options = training.write_options(
        here / 'test.yml',
        datasets={'test_1': training.OPTIONS['datasets']['val']},
        path={'pretrain_network_g': str(run / 'models/net_g_latest.pth')},
        val={'metrics': training.OPTIONS['val']['metrics']},
        published={'source': 'a paper', 'figures': {'held_out': {'psnr': 30.5}}},
    )
    scores = {}
    for precision in ('fp32', 'bf16'):
        assert main(['test', '-opt', str(options), '--precision', precision]) == 0
        report = next((here / 'results').glob('tiny/metrics.json'))
        scores[precision] = json.loads(report.read_text())['datasets']['held_out']['mean']['psnr']
    assert scores['fp32'] != scores['bf16']
    assert abs(scores['fp32'] - scores['bf16']) < 0.05
    table = next((here / 'results').glob('tiny/*.log')).read_text().split('data set ')[1].splitlines()
    assert table[0].split()[:2] == ['psnr', 'published']
    assert table[1].split()[0] == 'held_out' and table[1].split()[2] == '30.5'
    assert table[-1] == 'published: a paper'
    assert json.loads(report.read_text())['published']['source'] == 'a paper'


def test_published_figures_do_nothing_in_a_training(here):
    options = training.write_options(
        here / 'x.yml', published={'source': 'a paper', 'figures': {'held_out': {'psnr': 1}}}
    )
    with pytest.raises(OptionsError, match='published: has no effect on a training; put it into the test file'):
        load_options(options, root_path=here, is_train=True)
