"""A model's device, ranks and checkpoints: networks first, the state last, so that a state found can be resumed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from basicsr.utils import get_root_logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hat_plugin.engine import checkpoint, distributed, random_state
from hat_plugin.engine.optimizers import load_optimizer_state
from hat_plugin.errors import CheckpointError

if TYPE_CHECKING:
    from hat_plugin.models.restoration_model import RestorationModel


def device_of(opt: dict[str, Any]) -> torch.device:
    """This rank's GPU, or the CPU where there is none or ``num_gpu: 0``."""
    if opt.get('num_gpu') == 0 or not torch.cuda.is_available():
        return torch.device('cpu')
    return torch.device('cuda', torch.cuda.current_device())


def distributed_data_parallel(net: nn.Module, device: torch.device, find_unused: bool) -> DistributedDataParallel:
    """The wrapper of several ranks' training; `find_unused` where parameters may be without a gradient."""
    # static_graph=True fails where the first pass is not synchronised, as in accumulation (seen with torch 2.13).
    return DistributedDataParallel(
        net,
        device_ids=[device.index] if device.type == 'cuda' else None,
        find_unused_parameters=find_unused,
        gradient_as_bucket_view=True,
    )


@contextlib.contextmanager
def gradient_sync(net: nn.Module, wanted: bool) -> Iterator[None]:
    """Let DDP average gradients only where `wanted`: once a step, on its last micro-batch."""
    with contextlib.nullcontext() if wanted or not isinstance(net, DistributedDataParallel) else net.no_sync():
        yield


def save(model: RestorationModel, epoch: int, current_iter: int, progress: dict[str, Any]) -> None:
    """Write a checkpoint; see `RestorationModel.save`."""
    model.settle()
    generators = distributed.gather_objects(random_state.capture())
    failure: str | None = None
    if distributed.current_world().is_main:
        try:
            _write(model, epoch, current_iter, progress, generators)
        except CheckpointError as error:
            failure = str(error)
    failure = distributed.from_main(failure)
    if failure:
        raise CheckpointError(failure)


def _write(
    model: RestorationModel, epoch: int, current_iter: int, progress: dict[str, Any], generators: list[Any]
) -> None:
    models_dir = Path(model.opt['path']['models'])
    states_dir = Path(model.opt['path']['training_states'])
    suffix = 'latest' if current_iter == -1 else str(current_iter)
    for label, entries in model.checkpoint_networks().items():
        content = {key: checkpoint.cpu_state_dict(net) for key, net in entries.items()}
        checkpoint.save_torch_file(models_dir / f'{label}_{suffix}.pth', content)
    if current_iter == -1:
        return
    state = {
        'epoch': epoch,
        'iter': current_iter,
        'optimizers': [optimizer.state_dict() for optimizer in model.optimizers],
        'schedulers': [schedule.state_dict() for schedule in model.schedulers],
        'scaler': model.scaler.state_dict(),
        'best_metric_results': getattr(model, 'best_metric_results', {}),
        'rng': generators,
        'extra': model.extra_state(),
        'progress': progress,
    }
    checkpoint.save_torch_file(states_dir / f'{current_iter}.state', state)
    _prune(model, states_dir, models_dir, current_iter)


def _prune(model: RestorationModel, states_dir: Path, models_dir: Path, written: int) -> None:
    """Delete all but the newest ``logger: keep_checkpoints`` pairs; states first, so that none lacks its networks."""
    keep = model.opt.get('logger', {}).get('keep_checkpoints')
    if not keep:
        return
    for iteration, state in list(checkpoint.numbered_states(states_dir))[keep:]:
        if iteration == written:  # by a stranger's numbers it is not among the newest
            continue
        state.unlink(missing_ok=True)
        for label in model.checkpoint_networks():
            (models_dir / f'{label}_{iteration}.pth').unlink(missing_ok=True)


def resume(model: RestorationModel, state: dict[str, Any], models_dir: Path) -> None:
    """Restore a model from a training state and the networks of its iteration.

    Args:
        model: built from the option file, in training mode.
        state: of ours, or of BasicSR (which lacks random states, best metrics and the scaler's).
        models_dir: where ``net_g_<iteration>.pth`` lies.

    Raises:
        CheckpointError: networks or state do not belong to this model.
    """
    iteration = state['iter']
    for label, entries in model.checkpoint_networks().items():
        file = models_dir / f'{label}_{iteration}.pth'
        checkpoint.check_whole(file)
        for key, net in entries.items():
            weights = checkpoint.load_weights(file, key)
            if weights.key != key:
                get_root_logger().warning(f'{file} has no {key}; {weights.key} was taken in its place')
            checkpoint.load_into(net, weights)
    if len(state['optimizers']) != len(model.optimizers):
        raise CheckpointError(
            f'the training state of iteration {iteration} has {len(state["optimizers"])} optimisers, this run has'
            f' {len(model.optimizers)}; it belongs to another kind of training'
        )
    for optimizer, saved in zip(model.optimizers, state['optimizers'], strict=True):
        try:
            load_optimizer_state(optimizer, saved)
        except (ValueError, KeyError) as error:
            raise CheckpointError(f'the optimiser of iteration {iteration} does not fit this run: {error}') from error
    if state.get('scaler'):
        model.scaler.load_state_dict(state['scaler'])
    if state.get('best_metric_results'):
        model.best_metric_results = state['best_metric_results']
    model.load_extra_state(state.get('extra') or {})
    generators, world = state.get('rng') or [], distributed.current_world()
    if len(generators) == world.size:
        random_state.restore(generators[world.rank])
    elif generators:
        get_root_logger().warning(
            f'the run had {len(generators)} ranks and has {world.size} now: samples go on as they were, but random'
            ' choices inside the network (dropout, drop path) will differ'
        )
