"""Inference: ours against the published code and SwinIR, by network and size."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from benchmarks.comparison import Entry, compare
from benchmarks.limits import forward_flops
from benchmarks.networks import OURS, PUBLISHED, SWINIR, Contender, build, forward_of, image_of, with_compiled
from benchmarks.report import Section
from benchmarks.settings import Settings, say

CONTENDERS = (
    Contender(PUBLISHED),
    Contender(PUBLISHED, 'bf16 autocast'),
    Contender(SWINIR),
    Contender(OURS),
    Contender(OURS, 'bf16 autocast'),
    Contender(OURS, 'bf16 mixed'),
    Contender(OURS, 'bf16'),
)


def run(settings: Settings) -> Iterator[Section]:
    """A table for each network and size."""
    contenders = with_compiled(settings.timed(CONTENDERS), settings.compiled)
    for network in settings.networks:
        runners = {who: forward_of(build(network, who), who, settings.device) for who in contenders}
        for side in settings.sizes:
            say(f'inference: {network}, {side}x{side}')
            image = image_of(side, settings.device)
            expected: Tensor | None = None
            entries = []
            for who, forward in runners.items():
                found = forward(image).float()
                difference = None
                if who.code != SWINIR:
                    expected = found if expected is None else expected
                    difference = float((found - expected).abs().max())
                entries.append(Entry(who, partial(forward, image), forward_flops(network, who.code, side), difference))
            title = f'Inference: {network} x4, LR {side}x{side}'
            yield compare(title, {'part': 'inference', 'network': network, 'side': side}, entries, settings)
