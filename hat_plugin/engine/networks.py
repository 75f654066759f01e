"""Networks as options name them, for those who look at one without training it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from hat_plugin.engine.schema.classes import registered
from hat_plugin.engine.schema.values import INPUT_CHANNELS
from hat_plugin.errors import HatPluginError


def build(options: Mapping[str, Any]) -> nn.Module:
    """A network without storage (meta device), or on the CPU where its constructor asks for values.

    Raises:
        HatPluginError: its constructor refuses the arguments.
    """
    arguments = {key: value for key, value in deepcopy(dict(options)).items() if key != 'type'}
    network: Any = registered('ARCH_REGISTRY', options['type'])
    try:
        with torch.device('meta'):
            net = network(**deepcopy(arguments))
    except Exception:
        try:
            net = network(**arguments)
        except Exception as error:  # what another's constructor raises is its own affair
            raise HatPluginError(f'{options["type"]} cannot be built: {error}') from error
    return net


def input_channels(net: nn.Module, options: Mapping[str, Any]) -> int:
    """Channels of the input, by the names that networks give them; 3 where they give none."""
    for name in INPUT_CHANNELS:
        value = options.get(name, getattr(net, name, None))
        if value is None and name in inspect.signature(type(net)).parameters:
            value = inspect.signature(type(net)).parameters[name].default
        if isinstance(value, int):
            return value
    return 3
