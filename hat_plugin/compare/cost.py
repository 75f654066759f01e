"""What each network costs: parameters, products, and, taking turns on this machine, time and memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any

import torch
from basicsr.utils import get_root_logger
from torch import Tensor

from hat_plugin.compare.measuring import scale_of
from hat_plugin.compare.peak import keep_freed_blocks, peak_bytes
from hat_plugin.compare.protocol import Comparison
from hat_plugin.compare.timing import Plan, Spread, alternate, spread
from hat_plugin.engine.macs import Macs, count_macs
from hat_plugin.engine.networks import build, input_channels
from hat_plugin.engine.options import Options, registered
from hat_plugin.engine.workers import end_with_parent
from hat_plugin.models.inference import convert, precision_of, restore_batch
from hat_plugin.models.states import device_of

BUDGET = 60.0  # seconds for rounds beyond those asked for


@dataclass(frozen=True)
class Cost:
    """Of one network, for one picture of `side_of`.

    Attributes:
        parameters: their number.
        macs: multiply-adds; None: not countable.
        seconds: of a forward pass in the comparison's precision; None: not timed.
        bytes: the peak of memory above the weights; None: not measured, or more than there was.
    """

    parameters: int
    macs: Macs | None = None
    seconds: Spread | None = None
    bytes: int | None = None


def side_of(scale: int) -> int:
    """Side of the square input that costs are told for, in pixels: what papers count with."""
    return 64 if scale > 1 else 256


def costs(comparison: Comparison, rounds: int) -> dict[str, Cost]:
    """Count, and measure in turns.

    Args:
        comparison: whose networks.
        rounds: of the time; 0: neither time nor memory is measured.

    Returns:
        Label -> cost.
    """
    opts = {contender.label: comparison.prepared(contender) for contender in comparison.contenders}
    counted = {label: _counted(opt) for label, opt in opts.items()}
    if not rounds:
        return counted
    get_root_logger().info(f'timing {len(opts)} networks in turns, {rounds} rounds or more')
    device = device_of(next(iter(opts.values())))
    peaks = {label: _peak(opt, device) for label, opt in opts.items()}
    calls = {label: _forward(opt) for label, opt in opts.items()}
    keep_freed_blocks(True)
    plan = Plan(rounds=rounds, most=5 * rounds, budget=BUDGET if rounds > 1 else 0.0)
    samples = alternate(calls, device, plan)
    return {
        label: replace(cost, seconds=spread([sample.wall for sample in samples[label]]), bytes=peaks[label])
        for label, cost in counted.items()
    }


def _counted(opt: Options) -> Cost:
    net = build(opt['network_g'])
    side = side_of(scale_of(opt))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    try:
        return Cost(parameters, count_macs(net, (1, input_channels(net, opt['network_g']), side, side)))
    except Exception:  # a network that asks for a tensor's values
        return Cost(parameters)


def _peak(opt: Options, device: torch.device) -> int | None:
    """Peak of a pass above the weights; on a CPU in a process of its own, where nothing has been freed before."""
    if device.type == 'cuda':
        return peak_bytes(_forward(opt), device)
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        try:
            return pool.submit(_peak_here, opt, torch.get_num_threads()).result()
        except BrokenProcessPool:  # killed: memory is out
            return None


def _peak_here(opt: Options, threads: int) -> int:
    from hat_plugin.registry import require_registered

    require_registered()
    torch.set_num_threads(threads)
    return peak_bytes(_forward(opt), torch.device('cpu'))


def _forward(opt: Options) -> Callable[[], Tensor]:
    """A pass of a square input, warmed up; random weights take the time that trained ones take."""
    device = device_of(opt)
    arguments = {key: value for key, value in opt['network_g'].items() if key != 'type'}
    architecture: Any = registered('ARCH_REGISTRY', opt['network_g']['type'])
    torch.manual_seed(0)
    net = convert(architecture(**arguments).to(device).eval(), precision_of(opt))
    side = side_of(scale_of(opt))
    image = torch.rand(1, input_channels(net, opt['network_g']), side, side, device=device)
    whole = {**opt, 'tile': {'tile_size': side, 'tile_pad': 0}}
    restore_batch(net, image[..., :16, :16], whole)  # libraries load, thread pools start
    return lambda: restore_batch(net, image, whole)[0]
