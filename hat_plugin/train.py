"""The training pipeline, from an option file to ``net_g_latest.pth``.

``basicsr train -opt X.yml``, ``python -m hat_plugin.train -opt X.yml`` and ``torchrun --nproc_per_node=8 -m
hat_plugin.train -opt X.yml --launcher pytorch`` all come here. Nothing on the disk changes before the options, the data
sets, the networks and the checkpoint to resume from have been found good.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hat_plugin.data.training import TrainingData
from hat_plugin.engine import distributed, run_folder
from hat_plugin.engine.logging import RunLogger
from hat_plugin.engine.options import inert_options, load_options
from hat_plugin.engine.resume import Progress, resume
from hat_plugin.engine.signals import StopRequest
from hat_plugin.errors import DataError, TrainingError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """BasicSR's flags, spelt as BasicSR and torch.distributed.launch spell them."""
    parser.add_argument('-opt', '--opt', required=True, metavar='YAML', help='the option file')
    parser.add_argument(
        '--launcher', choices=('none', 'pytorch', 'slurm'), default='none', help='how ranks are started'
    )
    parser.add_argument('--auto_resume', action='store_true', help="go on from the run's newest good checkpoint")
    parser.add_argument('--debug', action='store_true', help='validate and save every 8 iterations, log each')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by old launchers')
    parser.add_argument(
        '--force_yml', nargs='+', default=[], metavar='KEY=VALUE', help='change options: train:optim_g:lr=1e-4'
    )


def run(args: argparse.Namespace) -> int:
    """Train as the arguments say; the exit code is 0, or 128 + the signal that stopped the run."""
    opt = _options(args)
    try:
        return _run_in(join(args, opt), args, opt)
    finally:
        distributed.finish()


def run_in(world: distributed.World, args: argparse.Namespace) -> int:
    """`run` as one of the ranks that have met already, and stay together afterwards."""
    opt = _options(args)
    note_world(opt, world)
    return _run_in(world, args, opt)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    opt = load_options(args.opt, root_path=Path.cwd(), is_train=True, force_yml=args.force_yml, debug=args.debug)
    return {**opt, 'auto_resume': args.auto_resume}


def _run_in(world: distributed.World, args: argparse.Namespace, opt: dict[str, Any]) -> int:
    logger = RunLogger(world.is_main)
    try:
        return _train(args, opt, world, logger)
    finally:
        logger.close()


def join(args: argparse.Namespace, opt: dict[str, Any]) -> distributed.World:
    """Meet the other ranks, and note them in the options."""
    settings = opt.get('dist_params') or {}
    backend = 'gloo' if opt['num_gpu'] == 0 else settings.get('backend')
    world = distributed.initialise(
        args.launcher, backend=backend, port=settings.get('port'), local_rank=args.local_rank
    )
    note_world(opt, world)
    return world


def note_world(opt: dict[str, Any], world: distributed.World) -> None:
    """Put into a run's options what BasicSR's classes look up there of the ranks."""
    opt.update(root_path=str(Path.cwd()), dist=world.distributed, rank=world.rank, world_size=world.size)


# -- the story of a run ----------------------------------------------------------------------------------------------


def _train(args: argparse.Namespace, opt: dict[str, Any], world: distributed.World, run_logger: RunLogger) -> int:
    from basicsr.models import build_model
    from basicsr.utils import get_env_info, set_random_seed
    from basicsr.utils.options import dict2str

    logger = run_logger.logger
    logger.info(get_env_info())
    logger.info(dict2str(opt))
    for line in inert_options(opt, is_train=True):
        logger.info(line)

    fresh_seed = opt.get('manual_seed') is None
    seed = distributed.from_main(random.randint(1, 10000) if fresh_seed else opt['manual_seed'])
    set_random_seed(seed + world.rank)
    torch.backends.cudnn.benchmark = True

    data = TrainingData.build(opt, world)
    model = build_model(opt)
    progress = resume(model, opt, data.stages, logger)
    if progress.seed is None or not fresh_seed:
        progress.seed = seed
    opt['manual_seed'] = progress.seed
    total_iter = int(opt['train']['total_iter'])
    if progress.iteration >= total_iter and distributed.from_main(run_folder.is_complete(opt, progress.iteration)):
        logger.info(f'Training is complete: the checkpoint is of iteration {progress.iteration:,} of {total_iter:,}.')
        return 0

    data.probe()
    with run_folder.held(opt, world.is_main):
        return _run(args, opt, world, run_logger, model, data, progress)


def _run(
    args: argparse.Namespace,
    opt: dict[str, Any],
    world: distributed.World,
    run_logger: RunLogger,
    model: Any,
    data: TrainingData,
    progress: Progress,
) -> int:
    """All is known to be good: make the folders and train."""
    distributed.gather_objects(None)  # every rank has read what it starts from, before rank 0 moves an old run aside
    if world.is_main:
        run_folder.create(opt, args.opt, resumed=progress.iteration)
        run_logger.open_file(Path(opt['path']['log']) / f'train_{opt["name"]}_{time.strftime("%Y%m%d_%H%M%S")}.log')
    distributed.from_main(None)  # the folder stands before any rank writes a picture into it
    tb_logger = run_folder.open_loggers(opt) if world.is_main else None
    data.log(run_logger.logger, opt, int(opt['train']['total_iter']))
    try:
        with StopRequest() as stop:
            return Training(model, data, progress, opt, stop, tb_logger).run()
    finally:
        if tb_logger:
            tb_logger.close()


class Training:
    """The training loop, and what is done along it.

    Ranks stay together: whatever ends a run (a signal, a picture that cannot be read, a loss that is not finite) is
    made known to all of them before any leaves, and all save first.

    Args:
        model: built, and resumed.
        data: its training set and validation loaders.
        progress: how far it is; written to.
        opt: the run's options.
        stop: set by signals.
        tb_logger: TensorBoard's writer or None.
    """

    def __init__(
        self, model: Any, data: TrainingData, progress: Progress, opt: dict[str, Any], stop: StopRequest, tb_logger: Any
    ) -> None:
        from basicsr.utils import AvgTimer, MessageLogger, get_root_logger

        self.model, self.data, self.progress, self.stop, self.tb_logger = model, data, progress, stop, tb_logger
        self.logger = get_root_logger()
        self.total_iter, self.warmup = int(opt['train']['total_iter']), opt['train'].get('warmup_iter', -1)
        self.print_freq = int(opt['logger']['print_freq'])
        self.save_freq = int(opt['logger']['save_checkpoint_freq'])
        self.val_opt = opt.get('val') or {}
        self.val_freq = int(self.val_opt.get('val_freq') or 0)
        self.saved = progress.iteration
        self.data_timer, self.iter_timer = AvgTimer(), AvgTimer()
        self.message_logger = MessageLogger(opt, progress.iteration + 1, tb_logger)
        self.message_logger.max_iters = self.total_iter + 1  # it takes one too many off: an ETA of minus a day
        model.should_stop = lambda: stop.number is not None

    def run(self) -> int:
        """Train to the last iteration; 0, or 128 + the signal that stopped the run."""
        progress, begin = self.progress, time.time()
        # A state is saved before the validation of its iteration; a run that ended in between makes up for it here.
        begins = progress.iteration == 0
        if self.val_opt.get('at_start') if begins else self._validation_is_due():
            self.validate()
        self.logger.info(f'Start training from epoch: {self.data.epoch(progress)}, iter: {progress.iteration}')
        for batch, error in self._batches():
            if distributed.any_rank(error is not None or self.stop.number is not None, self.model.device):
                return self._leave(error)
            self.step(batch)
            finished = progress.iteration >= self.total_iter
            if finished or progress.iteration % self.save_freq == 0:
                self.save()
            if self._validation_is_due():
                self.validate()
            if finished:
                break
            self.data_timer.start()
            self.iter_timer.start()
        elapsed = datetime.timedelta(seconds=int(time.time() - begin))
        self.logger.info(f'End of training. Time consumed: {elapsed}; {progress.samples:,} samples seen.')
        if self.val_opt and progress.validated != progress.iteration:
            self.validate()
        # Last of all: where net_g_latest.pth is, nothing is left to do, and a resumed run looks for it.
        if distributed.any_rank(self.stop.number is not None, self.model.device):
            return self._leave(None)
        self.logger.info('Save the latest model.')
        self.model.save(-1, -1)
        return 0

    def step(self, batch: dict[str, Any]) -> None:
        """One iteration: learning rate, losses, gradients, weights, and a line in the log every `print_freq`."""
        model, progress = self.model, self.progress
        self.data_timer.record()
        progress.iteration += 1
        progress.samples += self.data.stages.at(progress.iteration).batch
        model.update_learning_rate(progress.iteration, warmup_iter=self.warmup)
        model.feed_data(batch)
        with self._saved_before_errors():
            model.optimize_parameters(progress.iteration)
        self.iter_timer.record()
        if progress.iteration % self.print_freq == 0:
            self.message_logger(
                {
                    'epoch': self.data.epoch(progress),
                    'iter': progress.iteration,
                    'lrs': model.get_current_learning_rate(),
                    'time': self.iter_timer.get_avg_time(),
                    'data_time': self.data_timer.get_avg_time(),
                    **model.get_current_log(),
                }
            )

    def validate(self) -> None:
        """Validate on every set; a signal breaks it off, and the resumed run does it again."""
        with self._saved_before_errors():
            for loader in self.data.val_loaders:
                save_img = self.val_opt.get('save_img', False)
                self.model.validation(loader, self.progress.iteration, self.tb_logger, save_img)
                if not self.model.validation_complete:
                    return
        self.progress.validated = self.progress.iteration

    def save(self) -> None:
        """Write a checkpoint of this iteration, once."""
        with self._saved_before_errors():
            self.model.settle()  # may say that this step was one skipped too many
        if self.saved != self.progress.iteration:
            self.logger.info('Saving models and training states.')
            self.model.save(self.data.epoch(self.progress), self.progress.iteration, self.progress.state())
            self.saved = self.progress.iteration

    def _validation_is_due(self) -> bool:
        iteration = self.progress.iteration
        return bool(self.val_freq) and iteration % self.val_freq == 0 and self.progress.validated != iteration

    def _batches(self) -> Iterator[tuple[dict[str, Any], DataError | None]]:
        """This rank's batches; the last may be an error in a batch's place."""
        if self.progress.iteration >= self.total_iter:
            return
        try:
            for batch in self.data.batches(self.progress):
                yield batch, None
        except DataError as error:
            yield {}, error

    def _leave(self, error: DataError | None) -> int:
        self.save()
        if error is not None:
            self.logger.error(str(error))
            raise error
        if self.stop.number is None:
            raise TrainingError('another rank met an error and said which; this one saved and stopped with it')
        self.logger.info(
            f'Stopped by a signal at iteration {self.progress.iteration:,}; --auto_resume goes on from there.'
        )
        return self.stop.exit_code

    @contextlib.contextmanager
    def _saved_before_errors(self) -> Iterator[None]:
        """An error that all ranks raise together costs no iteration."""
        try:
            yield
        except (DataError, TrainingError) as error:
            self.logger.error(str(error))
            self.save()
            raise


if __name__ == '__main__':
    from hat_plugin.cli import main

    sys.exit(main(['train', *sys.argv[1:]]))
