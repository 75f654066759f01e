"""The folders of a run, laid out as BasicSR lays them out: experiments/<name>, tb_logger/<name>, results/<name>."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from basicsr.utils import get_root_logger

from hat_plugin.engine import distributed
from hat_plugin.engine.checkpoint import numbered_states
from hat_plugin.engine.files import remove_leftovers, write_text_atomic
from hat_plugin.errors import HatPluginError


@contextmanager
def held(opt: dict[str, Any], is_main: bool) -> Iterator[None]:
    """Keep a second run of the same name out while one is at work. A killed process, its workers alive, holds nothing.

    Collective; rank 0 holds ``experiments/.<name>.lock``. Where the file system knows no locks there is none.

    Raises:
        HatPluginError: another process trains under this name, or the folder cannot be made.
    """
    experiment = Path(opt['path']['experiments_root'])
    lock, failure = None, ''
    if is_main:
        try:
            experiment.parent.mkdir(parents=True, exist_ok=True)
            lock = open(experiment.with_name(f'.{experiment.name}.lock'), 'a+')  # noqa: SIM115 (closed below)
            failure = _lock(lock, experiment)
        except OSError as error:
            failure = f'{experiment}: the folder of the run cannot be made ({error})'
    try:
        failure = distributed.from_main(failure)
        if failure:
            raise HatPluginError(failure)
        yield
    finally:
        if lock is not None:
            lock.close()


def _lock(lock: Any, experiment: Path) -> str:
    """Take the lock and leave this process's number in it; what is said where another one has it."""
    try:
        import fcntl

        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, no worker inherits it
    except (BlockingIOError, PermissionError):
        lock.seek(0)
        return (
            f'{experiment}: process {lock.read().strip() or "of another machine"} trains under this name; wait for it, '
            'stop it, or change name: in the option file'
        )
    except (ImportError, OSError):  # no POSIX; a network file system without locks
        return ''
    lock.truncate(0)
    lock.write(f'{os.getpid()}\n')
    lock.flush()
    return ''


def create(opt: dict[str, Any], option_file: str, *, resumed: int) -> None:
    """Make a training run's folders and keep the option file in them.

    A run of the same name from before is moved aside to ``<name>_archived_<time>`` unless it is resumed; of a run that
    goes back to an earlier state the later ones are, so that --auto_resume does not go on from them. Called once
    everything else is known to be good, so that a failed start moves nothing.

    Args:
        opt: the run's options.
        option_file: is kept in the folder.
        resumed: the iteration that the run goes on from; 0 for a new run.

    Raises:
        HatPluginError: the folders cannot be made.
    """
    experiment = Path(opt['path']['experiments_root'])
    try:
        text = _annotated(option_file)  # first: the file may lie in the folder that is moved aside
        if not resumed:
            _archive(experiment)
            if _wants_tensorboard(opt):
                _archive(_tensorboard_folder(opt))
        for key in ('models', 'training_states', 'visualization'):
            Path(opt['path'][key]).mkdir(parents=True, exist_ok=True)
        for key in ('models', 'training_states'):
            remove_leftovers(opt['path'][key])
        if not opt['auto_resume']:
            _set_aside_after(resumed, opt)
        write_text_atomic(experiment / Path(option_file).name, text)
    except OSError as error:
        raise HatPluginError(f'{experiment}: the folder of the run cannot be made ({error})') from error


def is_complete(opt: dict[str, Any], iteration: int) -> bool:
    """Whether the last file of a run is there, which is written after the state, and is not of a shorter run before."""
    last = Path(opt['path']['models']) / 'net_g_latest.pth'
    state = Path(opt['path']['training_states']) / f'{iteration}.state'
    if not last.exists() or not state.exists():
        return last.exists()
    return last.stat().st_mtime_ns >= state.stat().st_mtime_ns


def create_results(opt: dict[str, Any], option_file: str) -> None:
    """Make a test run's folder; results of the same name from before are moved aside.

    Raises:
        HatPluginError: the folder cannot be made.
    """
    results = Path(opt['path']['results_root'])
    try:
        text = _annotated(option_file)
        _archive(results)
        Path(opt['path']['visualization']).mkdir(parents=True)
        write_text_atomic(results / Path(option_file).name, text)
    except OSError as error:
        raise HatPluginError(f'{results}: the folder of the results cannot be made ({error})') from error


def _archive(folder: Path) -> None:
    if not folder.exists():
        return
    target = _unused(folder.with_name(f'{folder.name}_archived_{time.strftime("%Y%m%d_%H%M%S")}'))
    get_root_logger().info(f'{folder} is there from an earlier run; it is moved to {target.name}')
    shutil.move(folder, target)


def _set_aside_after(iteration: int, opt: dict[str, Any]) -> None:
    """Move later states, and their networks, to a folder from which they can be resumed."""
    states, models = (Path(opt['path'][key]) for key in ('training_states', 'models'))
    later = {str(number): path for number, path in numbered_states(states) if number > iteration}
    if not later:
        return
    experiment = Path(opt['path']['experiments_root'])
    folder = _unused(experiment / f'after_{iteration}_{time.strftime("%Y%m%d_%H%M%S")}')
    get_root_logger().warning(
        f'{experiment} has {len(later)} later states, up to {max(later, key=int)}.state, of a course that this run '
        f'leaves; they are moved to {folder.name}'
    )
    networks = [path for path in models.glob('*.pth') if path.stem.rpartition('_')[2] in (*later, 'latest')]
    for place, paths in ((folder / states.name, later.values()), (folder / models.name, networks)):
        place.mkdir(parents=True)
        for path in paths:
            path.rename(place / path.name)


def _unused(path: Path) -> Path:
    """The path, or one like it that is not there: a second one in the same second."""
    target, number = path, 1
    while target.exists():
        number += 1
        target = path.with_name(f'{path.name}_{number}')
    return target


def _annotated(option_file: str) -> str:
    """The option file's text, under the time and the command as BasicSR notes them."""
    head = f'# GENERATE TIME: {time.asctime()}\n# CMD:\n# {" ".join(sys.argv)}\n\n'
    return head + Path(option_file).read_text(encoding='utf-8')


def _wants_tensorboard(opt: dict[str, Any]) -> bool:
    return bool(opt['logger'].get('use_tb_logger')) and 'debug' not in opt['name']


def _tensorboard_folder(opt: dict[str, Any]) -> Path:
    return Path(opt['root_path']) / 'tb_logger' / opt['name']


def open_loggers(opt: dict[str, Any]) -> Any:
    """TensorBoard's writer where the options ask for it (None otherwise), and Weights & Biases, which mirrors it."""
    from basicsr.utils import init_tb_logger, init_wandb_logger

    if not _wants_tensorboard(opt):
        return None
    if (opt['logger'].get('wandb') or {}).get('project'):
        init_wandb_logger(opt)
    return init_tb_logger(log_dir=str(_tensorboard_folder(opt)))
