"""Optimisers and learning-rate schedules by name, and a schedule that means what the option file says."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer, lr_scheduler

from hat_plugin.engine.schedules import CosineAnnealingRestartCyclicLR
from hat_plugin.errors import HatPluginError


def build_optimizer(params: Iterable[Parameter] | list[dict[str, Any]], options: dict[str, Any]) -> Optimizer:
    """Make an optimiser.

    Args:
        params: parameters or parameter groups.
        options: ``type`` is a class of torch.optim (``Adam``, ``AdamW``, ...) or a name of timm's
            ``create_optimizer_v2`` (``lamb``, ``adan``, ``lion``, ...); the rest are its arguments. torch's are fused,
            one pass over all weights, where they can be and neither ``fused`` nor ``foreach`` says otherwise.

    Raises:
        HatPluginError: no such optimiser, or arguments that it does not take.
    """
    arguments = {key: value for key, value in options.items() if key != 'type'}
    name = options['type']
    optimizer_class = torch_optimizers().get(name)
    listed: list[Any] = list(params)
    try:
        if optimizer_class is not None:
            return _fused(optimizer_class, listed, arguments) or optimizer_class(listed, **arguments)
        from timm.optim import create_optimizer_v2, list_optimizers

        if name.lower() in list_optimizers():
            return create_optimizer_v2(listed, opt=name.lower(), **arguments)
    except (TypeError, ValueError) as error:
        raise HatPluginError(f'optimiser {name} cannot be built with {arguments}: {error}') from error
    raise HatPluginError(
        f'unknown optimiser {name!r}; torch has {", ".join(sorted(torch_optimizers()))};'
        ' for more see timm.optim.list_optimizers()'
    )


# What says how an optimiser computes; a fused one cannot be any of the others as well.
_IMPLEMENTATIONS = ('fused', 'foreach', 'capturable', 'differentiable')


def _fused(kind: type[Optimizer], params: list[Any], arguments: dict[str, Any]) -> Optimizer | None:
    """The fused one, or None where there is none, these weights cannot have it, or the arguments say otherwise."""
    if 'fused' not in inspect.signature(kind).parameters or any(name in arguments for name in _IMPLEMENTATIONS):
        return None
    weights = [weight for group in params for weight in (group['params'] if isinstance(group, dict) else [group])]
    devices = ('cpu',) if kind is torch.optim.Adagrad else ('cpu', 'cuda')
    if not all(weight.is_floating_point() and weight.device.type in devices for weight in weights):
        return None
    return kind(params, **arguments, fused=True)  # type: ignore[call-arg]  # has just been looked for


def torch_optimizers() -> dict[str, type[Optimizer]]:
    """torch.optim's classes by name."""
    return {
        name: value
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, Optimizer) and value is not Optimizer
    }


def torch_schedulers() -> dict[str, type[lr_scheduler.LRScheduler]]:
    """torch.optim.lr_scheduler's classes that need nothing but an optimiser and plain arguments, by name."""
    others = ('LRScheduler', 'LambdaLR', 'MultiplicativeLR', 'ReduceLROnPlateau', 'SequentialLR', 'ChainedScheduler')
    return {
        name: value
        for name, value in vars(lr_scheduler).items()
        if inspect.isclass(value) and issubclass(value, lr_scheduler.LRScheduler) and name not in others
    }


def known_schedulers() -> dict[str, type]:
    """BasicSR's, Restormer's and NAFNet's schedulers under the names of their option files, and torch's."""
    from basicsr.models import lr_scheduler as basicsr_schedulers

    return {
        **torch_schedulers(),
        'MultiStepLR': basicsr_schedulers.MultiStepRestartLR,
        'MultiStepRestartLR': basicsr_schedulers.MultiStepRestartLR,
        'CosineAnnealingRestartLR': basicsr_schedulers.CosineAnnealingRestartLR,
        'CosineAnnealingRestartCyclicLR': CosineAnnealingRestartCyclicLR,  # Restormer's
        'TrueCosineAnnealingLR': lr_scheduler.CosineAnnealingLR,  # NAFNet's name for it
    }


def scheduler_class(name: str) -> type:
    """The scheduler of a name in an option file.

    Raises:
        HatPluginError: there is none of that name.
    """
    known = known_schedulers()
    if name not in known:
        raise HatPluginError(f'unknown scheduler {name!r}; known are {", ".join(sorted(known))}')
    return known[name]


class LearningRate:
    """The learning rate of iteration i, from the option file alone: schedule times linear warm-up.

    BasicSR lets the warm-up write into the rates that its schedulers then read and multiply, and restores them from the
    training state on resume. Here the schedule keeps rates of its own, and a resumed run computes them anew, so that
    what the option file says now holds.

    Args:
        optimizer: its groups' ``lr`` are the nominal rates.
        options: ``type`` and the scheduler's arguments.
    """

    def __init__(self, optimizer: Optimizer, options: dict[str, Any]) -> None:
        self.optimizer = optimizer
        self._options = deepcopy(options)
        self._nominal = [float(group['lr']) for group in optimizer.param_groups]
        self._restart()

    def _restart(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._nominal, strict=True):
            group['lr'] = rate
            group['initial_lr'] = rate
        arguments = {key: value for key, value in deepcopy(self._options).items() if key != 'type'}
        self._scheduler = scheduler_class(self._options['type'])(self.optimizer, **arguments)
        self._scheduled = [group['lr'] for group in self.optimizer.param_groups]
        self._iteration = 1

    def set(self, iteration: int, warmup: int = -1) -> None:
        """Write the rates of an iteration (counted from 1) into the optimiser.

        Args:
            iteration: any iteration; stepping to the next is cheap, a jump walks the schedule.
            warmup: iterations over which the rate rises linearly to what the schedule has; -1 for none.
        """
        if iteration < self._iteration:
            self._restart()
        for group, rate in zip(self.optimizer.param_groups, self._scheduled, strict=True):
            group['lr'] = rate
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.*lr_scheduler.step.*')  # a jump steps without the optimiser
            while self._iteration < iteration:
                self._scheduler.step()
                self._iteration += 1
        self._scheduled = [group['lr'] for group in self.optimizer.param_groups]
        if iteration < warmup:
            for group, rate in zip(self.optimizer.param_groups, self._scheduled, strict=True):
                group['lr'] = rate * iteration / warmup

    def state_dict(self) -> dict[str, Any]:
        """What BasicSR's training states have; written for its readers, not read back here."""
        return {
            key: value
            for key, value in self._scheduler.state_dict().items()
            if isinstance(value, (int, float, list, tuple, str, bool)) or value is None
        }


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Restore moments and step counts, but keep the hyper-parameters (lr, betas, weight decay) of the option file.

    So with how it computes: a state of an optimiser that was not fused goes on fused, and the other way round.
    """
    groups = [{key: value for key, value in group.items() if key != 'params'} for group in optimizer.param_groups]
    ways = [{name: group[name] for name in _IMPLEMENTATIONS if name in group} for group in groups]
    if len(ways) == len(state['param_groups']):  # else torch refuses it
        both = zip(state['param_groups'], ways, strict=True)
        state = {**state, 'param_groups': [{**saved, **way} for saved, way in both]}  # decides where steps are counted
    try:
        optimizer.load_state_dict(state)
        for parameter, kept in optimizer.state.items():
            for name, value in kept.items():
                if torch.is_tensor(value) and value.ndim and value.shape != parameter.shape:
                    raise ValueError(f'{name} of {tuple(value.shape)} for a weight of {tuple(parameter.shape)}')
    finally:  # an older state may be tried after one that does not fit
        for group, ours in zip(optimizer.param_groups, groups, strict=True):
            group.update(ours)
