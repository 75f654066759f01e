"""What is measured, and how long."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.networks import CODES, PRECISIONS, Contender
from hat_plugin.compare.timing import Plan


@dataclass(frozen=True)
class Settings:
    """One run of the benchmark.

    Attributes:
        device: where networks compute.
        threads: of torch, inside an operation.
        clock: 'wall' or 'cpu': what ratios are of.
        networks: of `networks.NETWORKS`.
        sizes: sides of the LR image at inference, in pixels.
        growth_sizes: the same, for cost as size grows, of the first network.
        training_side: side of an LR training patch.
        batches: training batches: of the step that is timed, and of the one whose memory is measured.
        drop_path: rate of stochastic depth in the step that is timed.
        precisions: of `networks.PRECISIONS`: contenders in others are left out.
        codes: whose contenders are measured.
        plan: rounds and seconds.
        images: folder of pictures for the data part; None for scikit-image's photographs.
        ground_truths: how many pictures, and their side; a training patch is half of it or 256, if that is less.
        samples: training samples a round.
        compiled: measure time through torch.compile as well.
        few: memory of the first and the last contender alone; each takes a process.
        plot: where the growth part draws; None: nowhere.
    """

    device: torch.device
    threads: int
    clock: str
    networks: tuple[str, ...] = ('HAT-S', 'HAT')
    sizes: tuple[int, ...] = (64, 128, 256)
    growth_sizes: tuple[int, ...] = (64, 128, 192, 256, 384, 512)
    training_side: int = 64
    batches: tuple[int, int] = (1, 2)
    drop_path: float = 0.0
    precisions: tuple[str, ...] = tuple(PRECISIONS)
    codes: tuple[str, ...] = CODES
    plan: Plan = field(default_factory=Plan)
    images: Path | None = None
    ground_truths: tuple[int, int] = (48, 480)
    samples: int = 200
    compiled: bool = False
    few: bool = False
    plot: Path | None = None

    def timed(self, contenders: Sequence[Contender]) -> list[Contender]:
        """Those whose time is measured."""
        here = self.device.type == 'cuda'
        known = [who for who in contenders if who.precision in self.precisions and who.code in self.codes]
        return [who for who in known if here or not who.graphs]

    def weighed(self, contenders: Sequence[Contender]) -> list[Contender]:
        """Those whose memory is measured."""
        kept = [who for who in self.timed(contenders) if not who.graphs]
        return [kept[0], kept[-1]] if self.few else kept


def say(message: str) -> None:
    """Tell the one who waits; the tables alone go to standard output."""
    print(message, file=sys.stderr, flush=True)
