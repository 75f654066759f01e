"""The arithmetic of an optimiser step: precision, micro-batches, clipping, and what is done where it is not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from basicsr.utils import get_root_logger
from torch import Tensor, nn

from hat_plugin.engine import distributed
from hat_plugin.engine.stages import micro_batch_size
from hat_plugin.errors import TrainingError

AUTOCAST = {'bf16': torch.bfloat16, 'fp16': torch.float16}


@dataclass(frozen=True)
class Found:
    """A step's losses and gradient norm, as numbers."""

    by_name: dict[str, float]
    losses_finite: bool
    norm_finite: bool


@dataclass
class Outcome:
    """What a step came to, perhaps still on its way from the device.

    Attributes:
        by_design: not finite, but no fault: fp16's scaler was looking for its scale.
    """

    host: Tensor
    ready: torch.cuda.Event | None
    names: tuple[str, ...]
    norm_name: str
    iteration: int
    log: dict[str, float]
    then: Callable[[], None] | None
    by_design: bool = False

    @classmethod
    def of(
        cls,
        values: Tensor,
        names: tuple[str, ...],
        norm_name: str,
        iteration: int,
        log: dict[str, float],
        then: Callable[[], None] | None,
    ) -> Outcome:
        """Send the values, (len(names),), off to the host."""
        ready = None
        host = values.to('cpu', non_blocking=True)  # from CUDA into pinned memory
        if values.is_cuda:
            ready = torch.cuda.Event()
            ready.record()
        return cls(host, ready, names, norm_name, iteration, log, then)

    def values(self) -> Found:
        """The numbers, waited for where they are not there yet."""
        if self.ready is not None:
            self.ready.synchronize()
        found = dict(zip(self.names, self.host.tolist(), strict=True))
        losses_finite = all(isfinite(value) for name, value in found.items() if name.startswith('l_'))
        return Found(found, losses_finite, isfinite(found[self.norm_name]))


def skips_on_the_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step_if_finite` can be used: torch's fused optimisers know what GradScaler tells them."""
    fused = all(group.get('fused') for group in optimizer.param_groups)
    return fused and getattr(optimizer, '_step_supports_amp_scaling', False)


def step_if_finite(optimizer: torch.optim.Optimizer, values: Tensor) -> None:
    """A step where all values are finite, else none, moments and step counts included; the host learns neither."""
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = 1 - values.isfinite().all().float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]


class StepMixin:
    """What every model's ``optimize_parameters`` is put together from.

    Attributes:
        amp: 'bf16', 'fp16' or None.
        grad_clip: largest global norm of the gradients, or None.
        max_nonfinite: steps in a row that may be skipped.
        nonfinite: steps in a row that were.
        reads_later: whether the host goes on before the device has finished a step; on CUDA it does.
        log_dict: this iteration's losses (``l_...``) and gradient norm, the same on every rank; there once the step is
            settled, for which `get_current_log` sees.
    """

    opt: dict[str, Any]
    device: torch.device
    net_g: nn.Module
    lq: Tensor
    gt: Tensor | None
    amp: str | None
    grad_clip: float | None
    max_nonfinite: int
    nonfinite: int
    reads_later: bool
    scaler: torch.amp.GradScaler
    log_dict: dict[str, float]
    _outcome: Outcome | None = None

    def init_step(self) -> None:
        """What the options under ``train`` say of a step."""
        train_opt = self.opt['train']
        self.amp = train_opt.get('amp')
        self.grad_clip = train_opt.get('grad_clip')
        self.max_nonfinite = train_opt.get('max_nonfinite', 10)
        self.nonfinite = 0
        self.reads_later = self.device.type == 'cuda'
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == 'fp16')

    def autocast(self) -> torch.autocast:
        """The context that the network's forward pass runs in."""
        dtype = AUTOCAST.get(self.amp or '', torch.bfloat16)
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.amp is not None)

    def micro_batches(self) -> list[tuple[Tensor, Tensor]]:
        """The batch in parts of ``batch_size_per_gpu`` (of its stage), so that a large total batch fits into memory."""
        assert self.gt is not None
        if not self.opt['train'].get('total_batch_size'):
            return [(self.lq, self.gt)]
        devices = len(self.net_g.device_ids) if isinstance(self.net_g, nn.DataParallel) else 1
        size = devices * micro_batch_size(self.opt, self.lq.shape[0], distributed.current_world().size)
        return list(zip(self.lq.split(size), self.gt.split(size), strict=True))

    def apply_step(
        self,
        optimizer: torch.optim.Optimizer,
        net: nn.Module,
        losses: Mapping[str, Tensor],
        current_iter: int,
        norm_name: str = 'grad_norm',
        then: Callable[[], None] | None = None,
    ) -> None:
        """Clip the gradients, and step if they and the losses are finite; `settle` puts both into `log_dict`.

        A fused optimiser skips the step on the device where a value is not finite. Where `reads_later`, nothing is
        waited for then: what was found is read with the next step, when it has long been there. Any other optimiser,
        and fp16's scaler, must be told, and the device is waited for once.

        Args:
            optimizer: of `net`.
            net: whose gradients are there.
            losses: this rank's, by name; those that do not begin with ``l_`` are logged alone.
            current_iter: for messages.
            norm_name: what the gradients' norm is called in `log_dict`.
            then: what to do if the weights moved; before the next step at the latest.

        Raises:
            TrainingError: of this step or the one before, as `settle` has it.
        """
        self.settle()
        self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(net.parameters(), self.grad_clip or float('inf'), foreach=True)
        values = torch.cat([mean_over_ranks(losses), norm.detach().float().reshape(1)])
        names = (*losses, norm_name)
        skips_itself = not self.scaler.is_enabled() and skips_on_the_device(optimizer)
        if skips_itself:
            decisive = [index for index, name in enumerate(names) if name.startswith('l_') or name == norm_name]
            checked = torch.stack([values[index] for index in decisive])  # a list as index would wait for the GPU
            step_if_finite(optimizer, checked)
        self._outcome = Outcome.of(values, names, norm_name, current_iter, self.log_dict, then)
        if not skips_itself:
            self._step_as_told(optimizer, self._outcome)
        if not (skips_itself and self.reads_later):
            self.settle()

    def _step_as_told(self, optimizer: torch.optim.Optimizer, outcome: Outcome) -> None:
        """Step where the values allow it, and let fp16's scaler learn from them."""
        found = outcome.values()
        if found.losses_finite and (found.norm_finite or self.scaler.is_enabled()):
            self.scaler.step(optimizer)  # fp16: not where a gradient overflowed
        self.scaler.update()
        if found.losses_finite and not found.norm_finite and self.scaler.is_enabled():
            # The scaler halves its scale, by design; but where no scale is small enough, the gradients are at fault.
            outcome.by_design = self.scaler.get_scale() >= 1

    def settle(self) -> None:
        """Read what the last step found: into `log_dict`, and whether it was skipped.

        Raises:
            TrainingError: more than `max_nonfinite` steps in a row were not finite; the value at fault is named.
        """
        outcome, self._outcome = self._outcome, None
        if outcome is None:
            return
        found = outcome.values()
        outcome.log.update(found.by_name)
        if found.losses_finite and found.norm_finite:
            self.nonfinite = 0
            if outcome.then is not None:
                outcome.then()
        elif not outcome.by_design:
            self._count_nonfinite(outcome.iteration, outcome.log)

    def get_current_log(self) -> dict[str, float]:
        """`log_dict` of the last iteration; BasicSR's name for it."""
        self.settle()
        return self.log_dict

    def _count_nonfinite(self, iteration: int, log: Mapping[str, float]) -> None:
        self.nonfinite += 1
        culprits = [f'{name} = {value}' for name, value in log.items() if not isfinite(value)]
        message = f'iteration {iteration}: not finite: {", ".join(culprits)}; the step was skipped'
        get_root_logger().warning(f'{message} ({self.nonfinite} in a row, {self.max_nonfinite} allowed)')
        if self.nonfinite > self.max_nonfinite:
            raise TrainingError(
                f'{message}, as were {self.nonfinite - 1} before it. The weights are those of the last finite step.'
                ' Lower train: optim_g: lr, set train: grad_clip, use amp: bf16 in the place of fp16, or look for'
                ' broken pictures with `basicsr check`.'
            )


def mean_over_ranks(losses: Mapping[str, Tensor]) -> Tensor:
    """The mean of each loss over the ranks, the same on each rank (BasicSR has it on rank 0 alone); (len(losses),)."""
    stacked = torch.stack([value.detach().float().mean() for value in losses.values()])
    world = distributed.current_world()
    if world.distributed:
        torch.distributed.all_reduce(stacked)
        stacked /= world.size
    return stacked
