"""The arithmetic of an optimiser step: precision, micro-batches, clipping, and what is done where it is not finite."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from basicsr.utils import get_root_logger
from torch import Tensor, nn

from hat_plugin.engine import distributed
from hat_plugin.engine.stages import micro_batch_size
from hat_plugin.errors import TrainingError

AUTOCAST = {'bf16': torch.bfloat16, 'fp16': torch.float16}


class StepMixin:
    """What every model's ``optimize_parameters`` is put together from.

    Attributes:
        amp: 'bf16', 'fp16' or None.
        grad_clip: largest global norm of the gradients, or None.
        max_nonfinite: steps in a row that may be skipped.
        nonfinite: steps in a row that were.
        log_dict: this iteration's losses (``l_...``) and gradient norm, the same on every rank.
    """

    opt: dict[str, Any]
    device: torch.device
    lq: Tensor
    gt: Tensor | None
    amp: str | None
    grad_clip: float | None
    max_nonfinite: int
    nonfinite: int
    scaler: torch.amp.GradScaler
    log_dict: dict[str, float]

    def autocast(self) -> torch.autocast:
        """The context that the network's forward pass runs in."""
        dtype = AUTOCAST.get(self.amp or '', torch.bfloat16)
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.amp is not None)

    def micro_batches(self) -> list[tuple[Tensor, Tensor]]:
        """The batch in parts of ``batch_size_per_gpu`` (of its stage), so that a large total batch fits into memory."""
        assert self.gt is not None
        if not self.opt['train'].get('total_batch_size'):
            return [(self.lq, self.gt)]
        size = micro_batch_size(self.opt, self.lq.shape[0], distributed.current_world().size)
        return list(zip(self.lq.split(size), self.gt.split(size), strict=True))

    def apply_step(
        self,
        optimizer: torch.optim.Optimizer,
        net: nn.Module,
        losses: Mapping[str, Tensor],
        current_iter: int,
        norm_name: str = 'grad_norm',
    ) -> bool:
        """Clip the gradients, and step if they and the losses are finite; both go into `log_dict`.

        The device is waited for once: losses and norm come back together, when all gradients are there.

        Args:
            optimizer: of `net`.
            net: whose gradients are there.
            losses: this rank's, by name; those that do not begin with ``l_`` are logged alone.
            current_iter: for messages.
            norm_name: what the gradients' norm is called in `log_dict`.

        Returns:
            Whether the weights moved.
        """
        self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(net.parameters(), self.grad_clip or float('inf'), foreach=True)
        values = torch.cat([mean_over_ranks(losses), norm.detach().float().reshape(1)]).tolist()
        found = OrderedDict(zip([*losses, norm_name], values, strict=True))
        self.log_dict.update(found)
        losses_finite = all(value - value == 0 for name, value in found.items() if name.startswith('l_'))
        norm_finite = found[norm_name] - found[norm_name] == 0
        if losses_finite and norm_finite:
            self.scaler.step(optimizer)
            self.scaler.update()
            self.nonfinite = 0
            return True
        if losses_finite and self.scaler.is_enabled():  # fp16 overflow: the scaler halves its scale, by design
            self.scaler.step(optimizer)
            self.scaler.update()
            if self.scaler.get_scale() < 1:  # no scale is small enough: the gradients themselves are not finite
                self._count_nonfinite(current_iter)
            return False
        self.scaler.update()
        self._count_nonfinite(current_iter)
        return False

    def _count_nonfinite(self, current_iter: int) -> None:
        self.nonfinite += 1
        culprits = [f'{name} = {value}' for name, value in self.log_dict.items() if value - value != 0]
        message = f'iteration {current_iter}: not finite: {", ".join(culprits)}; the step was skipped'
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
