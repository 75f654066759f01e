"""Metrics: their arguments, what validation reads beside them, and a trial of ours on a small pair of pictures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from hat_plugin.engine.schema.classes import class_problems, of_registry, trial
from hat_plugin.engine.schema.report import Place, at, shown, unknown_line

METRIC = of_registry('METRIC_REGISTRY', 'metric', given=('img', 'img2'), also=('better', 'use_image'))
# NAFNet's calculate_ssim has it, and it is true by default there.
SSIM_3D = "has no effect on BasicSR's calculate_ssim, which is per channel; write type: calculate_ssim_3d"


def metric_problems(metrics: Any, place: Place) -> list[str]:
    """Check ``val: metrics:``, a section of named metrics."""
    if not isinstance(metrics, Mapping):
        return [f'{at(place)}: {shown(metrics)} stands where a section of named metrics is wanted']
    return [line for name, section in metrics.items() for line in _one_problems(section, (*place, name))]


def _one_problems(section: Any, place: Place) -> list[str]:
    problems = class_problems(METRIC, section, place)
    if not isinstance(section, Mapping):
        return problems
    problems += _validation_problems(section, place)
    target = METRIC.find(section.get('type'))
    if target is None:
        return problems
    arguments = METRIC.arguments(section)
    problems += _swallowed(target, arguments, place)
    if not problems and target.__module__.startswith('hat_plugin.'):
        return trial(lambda: _try_metric(target, arguments), place)
    return problems


def _validation_problems(section: Mapping[str, Any], place: Place) -> list[str]:
    problems = []
    if section.get('better', 'higher') not in ['higher', 'lower']:
        better = shown(section['better'])
        problems.append(f"{at((*place, 'better'))}: {better}: 'higher' or 'lower' is wanted")
    border = section.get('crop_border', 0)
    if isinstance(border, bool) or not isinstance(border, int) or border < 0:
        problems.append(f'{at((*place, "crop_border"))}: {shown(border)}: a number of pixels is wanted, 0 or more')
    if not isinstance(section.get('use_image', True), bool):
        problems.append(f'{at((*place, "use_image"))}: {shown(section["use_image"])}: true or false is wanted')
    return problems


def _swallowed(target: Callable[..., Any], arguments: Mapping[str, Any], place: Place) -> list[str]:
    """BasicSR's metrics take any argument, and do nothing with those that they do not know."""
    if not target.__module__.startswith('basicsr.'):
        return []
    parameters = inspect.signature(target).parameters.values()
    known = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD} - {
        'img',
        'img2',
    }
    return [
        f'{at((*place, key))}: {SSIM_3D}'
        if key == 'ssim3d'
        else unknown_line((*place, key), known, f'argument of {target.__name__}')
        for key in arguments
        if key not in known
    ]


def _try_metric(target: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    import numpy as np

    side = 192 + 2 * arguments.get('crop_border', 0)
    pictures = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    if arguments.get('input_order') == 'CHW':
        pictures = pictures.transpose(0, 3, 1, 2)
    parameters = inspect.signature(target).parameters
    names = [name for name in ('img', 'img2') if name in parameters]
    # Not on a GPU: which one is this process's is settled after the options are read.
    elsewhere = {'device': 'cpu'} if 'device' in parameters else {}
    target(**dict(zip(names, pictures, strict=False)), **{**elsewhere, **arguments})
