"""The networks compared: ours, the rivals', and how each is run in each precision."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import torch
from basicsr.archs.swinir_arch import SwinIR
from spandrel.architectures.HAT import HAT as PublishedHAT
from torch import Tensor, nn

from hat_plugin.archs.hat_arch import HAT
from hat_plugin.engine.cuda_graphs import CudaGraphs
from hat_plugin.engine.options import read_yaml
from hat_plugin.errors import HatPluginError
from hat_plugin.layers.precision import prepare_for_inference
from hat_plugin.resources import option_file

CODES = OURS, PUBLISHED, SWINIR = 'ours', 'published', 'SwinIR'
# How we name a way to run -> what `prepare_for_inference` calls it; None: autocast over fp32 weights.
PRECISIONS = {'fp32': 'fp32', 'bf16 autocast': None, 'bf16': 'bf16', 'bf16 mixed': 'mixed'}
# `--quick`: everything that the full networks have, once.
TINY: dict[str, Any] = {
    'in_chans': 3,
    'window_size': 8,
    'depths': [2],
    'embed_dim': 24,
    'num_heads': [2],
    'mlp_ratio': 2,
    'upscale': 4,
    'upsampler': 'pixelshuffle',
    'resi_connection': '1conv',
}
TINY_HAT = {'compress_ratio': 3, 'squeeze_factor': 6, 'conv_scale': 0.01, 'overlap_ratio': 0.5}
NETWORKS = ('HAT-S', 'HAT', 'HAT-L', 'tiny')
BLOCKS = ('HAB', 'OCAB')  # classes of ours and the published code that are compiled one by one on a GPU


@dataclass(frozen=True)
class Contender:
    """Who computes, and how.

    Attributes:
        code: OURS, PUBLISHED (spandrel's HAT) or SWINIR (BasicSR's).
        precision: one of PRECISIONS. The rivals have fp32 and autocast alone.
        checkpoint: recompute activations in the backward pass.
        compiled: through torch.compile, for one size; on a GPU block by block, which compiles faster.
        graphs: the training pass by CUDA graphs.
    """

    code: str
    precision: str = 'fp32'
    checkpoint: bool = False
    compiled: bool = False
    graphs: bool = False

    def __str__(self) -> str:
        more = {', checkpointed': self.checkpoint, ', compiled': self.compiled, ', CUDA graphs': self.graphs}
        return f'{self.code} {self.precision}' + ''.join(word for word, holds in more.items() if holds)

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""
        return torch.float32 if self.precision == 'fp32' else torch.bfloat16


@cache
def _published_arguments(label: str) -> dict[str, Any]:
    return dict(read_yaml(option_file(f'test_{label}_SRx4.yml'))['network_g'])


def arguments_of(network: str, code: str) -> dict[str, Any]:
    """Constructor arguments, of the option files for x4, without stochastic depth.

    Args:
        network: one of NETWORKS.
        code: OURS and PUBLISHED take the same; SWINIR is a network of its own, whatever `network` but for 'tiny'.

    Raises:
        HatPluginError: no such network.
    """
    if network not in NETWORKS:
        raise HatPluginError(f'no network {network!r} to measure; there are {", ".join(NETWORKS)}')
    if network == 'tiny':
        chosen = TINY if code == SWINIR else {**TINY, **TINY_HAT}
    else:
        chosen = _published_arguments('SwinIR' if code == SWINIR else network)
    return {**{key: value for key, value in chosen.items() if key != 'type'}, 'drop_path_rate': 0.0}


def build(network: str, contender: Contender, drop_path: float = 0.0) -> nn.Module:
    """A network with random weights, the same for OURS and PUBLISHED, on the CPU, in evaluation mode.

    Args:
        network: one of NETWORKS.
        contender: whose code it is.
        drop_path: rate of stochastic depth, 0.1 in published trainings; at 0 a step is repeatable.

    Raises:
        RuntimeError: the two have different parameters: there would be nothing to compare.
    """
    return copy.deepcopy(_built(network, contender.code, contender.checkpoint, drop_path))


@lru_cache(maxsize=4)
def _built(network: str, code: str, checkpoint: bool, drop_path: float) -> nn.Module:
    arguments = {**arguments_of(network, code), 'drop_path_rate': drop_path}
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='torch.meshgrid')  # the rivals' index tables
        if code == SWINIR:
            return SwinIR(**arguments).eval()
        ours = HAT(**arguments, use_checkpoint=checkpoint)
        if code == OURS:
            return ours.eval()
        published = PublishedHAT(**arguments, use_checkpoint=checkpoint)
    published.load_state_dict(ours.state_dict(), strict=True)
    return published.eval()


def autocast(contender: Contender, device: torch.device) -> AbstractContextManager[Any]:
    """The context that a forward pass of this contender runs in."""
    if contender.precision != 'bf16 autocast':
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def with_compiled(contenders: Sequence[Contender], compiled: bool) -> list[Contender]:
    """The contenders, and behind them, if asked, all but SwinIR and the checkpointed once more through the compiler."""
    more = [
        replace(who, compiled=True) for who in contenders if who.code != SWINIR and not (who.checkpoint or who.graphs)
    ]
    return [*contenders, *(more if compiled else [])]


def callable_of(net: nn.Module, contender: Contender) -> Callable[[Tensor], Tensor]:
    """The network where it is, compiled or by CUDA graphs if the contender is."""
    on_gpu = next(net.parameters()).is_cuda
    if contender.compiled and on_gpu:
        torch._dynamo.config.recompile_limit = 64  # all blocks are of one class; each size makes three graphs
        for module in net.modules():
            if type(module).__name__ in BLOCKS:
                module.compile(dynamic=False)
    elif contender.compiled:
        return torch.compile(net, dynamic=False)
    if contender.graphs and on_gpu:
        CudaGraphs(net)
    return net


def forward_of(net: nn.Module, contender: Contender, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Inference in the contender's precision: float32 image in, image out. `net` is moved and, if asked, converted."""
    precision = PRECISIONS[contender.precision]
    if contender.code == OURS and precision is not None:
        net = prepare_for_inference(net, precision)
    run = callable_of(net.to(device), contender)

    def forward(image: Tensor) -> Tensor:
        with torch.no_grad(), autocast(contender, device):
            return run(image)

    return forward


def image_of(side: int, device: torch.device, batch: int = 1) -> Tensor:
    """(batch, 3, side, side), noise in [0, 1], the same at each call."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, side, side, generator=generator).to(device)
