"""The training step: forward, L1 loss, backward, Adam; ours against the published code and SwinIR."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.comparison import Entry, compare
from benchmarks.limits import forward_flops
from benchmarks.networks import (
    OURS,
    PUBLISHED,
    SWINIR,
    Contender,
    autocast,
    build,
    callable_of,
    image_of,
    with_compiled,
)
from benchmarks.report import Section
from benchmarks.settings import Settings, say
from hat_plugin.engine.optimizers import build_optimizer

CONTENDERS = (
    Contender(PUBLISHED),
    Contender(PUBLISHED, 'bf16 autocast'),
    Contender(SWINIR),
    Contender(OURS),
    Contender(OURS, checkpoint=True),
    Contender(OURS, 'bf16 autocast'),
    Contender(OURS, graphs=True),
    Contender(OURS, 'bf16 autocast', graphs=True),
)
ADAM: dict[str, Any] = {'lr': 1e-4, 'betas': (0.9, 0.99)}  # published


class Step:
    """A network in training: each has the optimiser that its own pipeline would make of the published option file."""

    def __init__(
        self, network: str, contender: Contender, device: torch.device, side: int, batch: int, drop_path: float = 0.0
    ) -> None:
        self.contender, self.device = contender, device
        self.net = build(network, contender, drop_path).to(device).train()
        self.run = callable_of(self.net, contender)
        if contender.code == OURS:
            self.optimizer = build_optimizer(self.net.parameters(), {'type': 'Adam', **ADAM})
        else:
            self.optimizer = torch.optim.Adam(self.net.parameters(), **ADAM)
        self.lq = image_of(side, device, batch)
        self.gt = image_of(4 * side, device, batch)

    def backward(self) -> None:
        """Gradients of the loss, in place of those of the last step."""
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.contender, self.device):
            output = self.run(self.lq)
        (output.float() - self.gt).abs().mean().backward()

    def gradient(self) -> Tensor:
        """All gradients in one row, on the CPU, by parameter's name."""
        parameters = sorted(self.net.named_parameters())
        return torch.cat([value.grad.flatten().cpu() for _, value in parameters if value.grad is not None])

    def __call__(self) -> None:
        """One step."""
        self.backward()
        self.optimizer.step()


def run(settings: Settings) -> Iterator[Section]:
    """A table for each network."""
    side, batch = settings.training_side, settings.batches[0]
    for network in settings.networks:
        say(f'training: {network}, batch {batch}, {side}x{side}')
        entries = []
        expected: Tensor | None = None
        for who in with_compiled(settings.timed(CONTENDERS), settings.compiled):
            step = Step(network, who, settings.device, side, batch, settings.drop_path)
            difference = None
            if who.code != SWINIR and not settings.drop_path:  # at the weights that they all start from
                step.backward()
                found = step.gradient()
                expected = found if expected is None else expected
                difference = float((found - expected).norm() / expected.norm())
            flops = 3 * batch * forward_flops(network, who.code, side)  # backward: for the input, and for the weights
            entries.append(Entry(who, step, flops, difference))
        title = f'Training step: {network} x4, batch {batch}, LR {side}x{side}'
        title += f', drop path {settings.drop_path:g}' if settings.drop_path else ''
        case = {'part': 'training', 'network': network, 'side': side, 'batch': batch, 'drop_path': settings.drop_path}
        yield compare(title, case, entries, settings)
