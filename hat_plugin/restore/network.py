"""From a weights file to a network that takes a picture of any size."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hat_plugin.engine.checkpoint import Weights, load_into, load_weights
from hat_plugin.errors import CheckpointError, HatPluginError, OptionsError
from hat_plugin.models.inference import AnySize, Precision, check_precision, convert
from hat_plugin.restore.detect import ARCHITECTURES, detect
from hat_plugin.restore.readers.shapes import Detected


@dataclass(frozen=True)
class Network:
    """A network ready to restore.

    Args:
        net: in evaluation mode, on `device`.
        found: architecture, arguments, scale, channels, window.
        device: where it computes.
        source: the weights' file and entry, for messages.
    """

    net: AnySize
    found: Detected
    device: torch.device
    source: str

    def describe(self) -> str:
        """One line: what was built, from what, and what was assumed."""
        found = self.found
        kind = f'x{found.scale}' if found.scale > 1 else 'same size'
        assumed = ''
        if found.assumed:
            usual = ', '.join(found.assumed)
            assumed = f'; not visible in the weights, so as published or by default: {usual}; else give --opt X.yml'
        count = sum(parameter.numel() for parameter in self.net.parameters())
        depths = f', depths {list(found.arguments["depths"])}' if 'depths' in found.arguments else ''
        return (
            f'{found.architecture} {kind}{depths}, {count:,} parameters, {self.net.precision} on {self.device}, '
            f'from {self.source}{assumed}'
        )


def load_network(
    weights: str | os.PathLike[str],
    *,
    opt: str | os.PathLike[str] | None = None,
    scale: int | None = None,
    device: str = 'auto',
    precision: Precision = 'fp32',
) -> Network:
    """Build the network that a weights file belongs to, and load it.

    Args:
        weights: .pth or .safetensors; EMA weights are taken where there are some.
        opt: option file whose ``network_g`` is built; None: the network is found by the shapes of the weights
            (architectures: `hat_plugin.restore.detect.ARCHITECTURES`).
        scale: the enlargement expected; where the weights cannot show it, this decides.
        device: 'auto' (CUDA where there is some), 'cpu', 'cuda' or 'cuda:N'.
        precision: 'fp32', 'bf16', or on a GPU 'fp16'.

    Raises:
        CheckpointError: the file is unreadable or unsafe, is of no known architecture, or does not fit.
        OptionsError: the option file is wrong.
        HatPluginError: no such device or precision.
    """
    place = pick_device(device)
    check_precision(precision, place)
    loaded = load_weights(weights)
    if opt is None:
        found = detect(loaded.state_dict, str(weights), scale)
        net = _build_detected(found, str(weights))
    else:
        found, net = _build_from_options(Path(opt), scale)
    load_into(net, _with_constants(net, loaded))
    known = ARCHITECTURES.get(found.architecture)
    pads = hasattr(net, 'size_multiple') or (known is not None and known.pads)
    convert(net, precision)
    ready = AnySize(net, 1 if pads else found.window, found.scale, precision)
    ready.eval().requires_grad_(False).to(place)
    return Network(ready, found, place, f'{weights}' + (f' ({loaded.key})' if loaded.key else ''))


def pick_device(device: str) -> torch.device:
    """'auto', 'cpu', 'cuda' or 'cuda:N' to a device that is there.

    Raises:
        HatPluginError: another name, or a CUDA device that is not there.
    """
    if device == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise HatPluginError(f'device {device!r} is not auto, cpu, cuda or cuda:N') from error
    if place.type not in ('cpu', 'cuda'):
        raise HatPluginError(f'device {device!r} is not auto, cpu, cuda or cuda:N')
    if place.type == 'cuda' and (place.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise HatPluginError(f'device {device!r}: torch sees {count} CUDA devices; give --device cpu')
    return place


def _build_detected(found: Detected, source: str) -> nn.Module:
    module_name, attribute = ARCHITECTURES[found.architecture].target.split(':')
    constructor = getattr(importlib.import_module(module_name), attribute)
    try:
        net: nn.Module = constructor(**found.arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise CheckpointError(
            f'{source}: {found.architecture} cannot be built as its weights show it ({error}); give --opt X.yml'
        ) from error
    return net


def _build_from_options(path: Path, scale: int | None) -> tuple[Detected, nn.Module]:
    """The network of an option file; of the rest only ``scale`` is looked at."""
    from basicsr.utils.registry import ARCH_REGISTRY

    from hat_plugin.engine.options import read_yaml
    from hat_plugin.engine.schema.values import INPUT_CHANNELS
    from hat_plugin.registry import require_registered

    require_registered()
    options = read_yaml(path)
    section = options.get('network_g')
    if not isinstance(section, dict) or not isinstance(section.get('type'), str):
        raise OptionsError(str(path), ['network_g: is missing or has no type; name an option file with the network'])
    arguments: dict[str, Any] = {key: value for key, value in section.items() if key != 'type'}
    name = section['type']
    if name not in ARCH_REGISTRY:
        known = ', '.join(sorted(name for name, _ in ARCH_REGISTRY))
        raise OptionsError(str(path), [f'network_g: type: {name!r} is not registered; there are {known}'])
    try:
        net: nn.Module = ARCH_REGISTRY.get(name)(**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise OptionsError(str(path), [f'network_g: {name} cannot be built: {error}']) from error
    channels = _first_of(arguments, INPUT_CHANNELS, 3)
    upscale = _first_of(arguments, ('upscale', 'scale'), options.get('scale') or 1)
    if scale is not None and scale != upscale:
        raise OptionsError(str(path), [f'network_g: enlarges {upscale} times, not {scale}; leave out --scale'])
    window = int(getattr(net, 'size_multiple', arguments.get('window_size') or 1))
    return Detected(name, arguments, upscale, channels, window), net


def _first_of(arguments: dict[str, Any], names: tuple[str, ...], default: int) -> int:
    return int(next((arguments[name] for name in names if name in arguments), default))


def _with_constants(net: nn.Module, weights: Weights) -> Weights:
    """Fill in buffers that the file lacks: what is no parameter follows from the arguments, but for learned statistics.

    SwinIR's masks for the size of the training crop are taken from the network whatever the file has; another size has
    masks of its own anyway.
    """
    learned = {name for name, _ in net.named_parameters()}
    state = dict(weights.state_dict)
    for key, value in net.state_dict().items():
        if key.endswith(('.running_mean', '.running_var')):
            continue
        if key not in learned and (key not in state or key.endswith('.attn_mask')):
            state[key] = value
    return replace(weights, state_dict=state)
