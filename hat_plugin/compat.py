"""The one place that touches other people's modules, so that BasicSR 1.4.2 imports on today's PyTorch.

Two things are mended, each only where it is broken: torchvision's missing operator schemas, and the torchvision module
that BasicSR imports one function from. Nothing else is patched, and nothing where it works already.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

_SCHEMA = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
_kept: list[Any] = []  # a torch library's definitions live as long as the object


def apply() -> None:
    """Make ``import torchvision`` and ``import basicsr`` work. Does nothing where they work already.

    It may be called again, and before, after or without an ``import torchvision``, a failed one included.

    Raises:
        ImportError: torch or torchvision is not installed.
        RuntimeError, OSError: torchvision fails to import for another reason than the one known here.
    """
    _import_torchvision()
    _stand_in_for_functional_tensor()


def _import_torchvision() -> None:
    """Import torchvision, with its operator schemas defined by us where its compiled part cannot load.

    The compiled operators cannot load beside a torch of another build (a CPU torch beside the CUDA torchvision of the
    package index); its Python side then describes ``torchvision::nms``, which nobody defined, and fails. A schema is
    enough: BasicSR never calls the operator.
    """
    try:
        importlib.import_module('torchvision')
    except RuntimeError as error:
        if 'torchvision::nms does not exist' not in str(error):
            raise
        _define_schemas()
        _forget('torchvision')  # what the failed import left behind
        importlib.import_module('torchvision')


def _define_schemas() -> None:
    import torch

    library = torch.library.Library('torchvision', 'FRAGMENT')
    for operator in ('nms', 'qnms'):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(operator + _SCHEMA)
    _kept.append(library)


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if name == package or name.startswith(f'{package}.')]:
        del sys.modules[name]


def _stand_in_for_functional_tensor() -> None:
    """torchvision 0.17 removed ``transforms.functional_tensor``; BasicSR's degradations import one function from it."""
    name = 'torchvision.transforms.functional_tensor'
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    functional = importlib.import_module('torchvision.transforms.functional')
    module = types.ModuleType(name, 'Stand-in by hat_plugin.compat for the module that torchvision 0.17 removed.')
    module.rgb_to_grayscale = functional.rgb_to_grayscale  # type: ignore[attr-defined]
    sys.modules[name] = module
