"""Arguments held against the classes that will receive them: networks, losses, metrics, optimisers, schedules."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

from hat_plugin.engine.schema.report import (
    Place,
    at,
    is_misspelling,
    shown,
    unknown_line,
    unregistered_line,
)
from hat_plugin.errors import HatPluginError


def registered(registry: str, name: Any) -> Any | None:
    """The class of that name in one of BasicSR's registries, or None.

    Args:
        registry: ``ARCH_REGISTRY`` say.
        name: what stands after ``type:``. BasicSR also finds its own under ``<name>_basicsr``.
    """
    if not isinstance(name, str):
        return None
    known = dict(_entries(registry))
    return known.get(name, known.get(f'{name}_basicsr'))


def registered_names(registry: str) -> list[str]:
    """The names that may stand after ``type:``."""
    return sorted(name.removesuffix('_basicsr') for name, _ in _entries(registry))


def _entries(registry: str) -> Iterable[tuple[str, Any]]:
    return iter(getattr(importlib.import_module('basicsr.utils.registry'), registry))


@dataclass(frozen=True)
class Kind:
    """Classes of which a section names one by ``type:``, beside its arguments.

    Attributes:
        what: how an error calls one.
        meaning: what is missing where there is no ``type:``.
        find: the class of a name, or None.
        names: all names.
        given: parameters that the caller fills in itself.
        also: keys that are read before the class sees them.
        open: whether users add classes of their own.
    """

    what: str
    meaning: str
    find: Callable[[Any], Callable[..., Any] | None]
    names: Callable[[], Iterable[str]]
    given: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    open: bool = True

    def arguments(self, section: Mapping[Any, Any]) -> dict[Any, Any]:
        """What the class is called with."""
        return {key: value for key, value in section.items() if key != 'type' and key not in self.also}


def of_registry(
    registry: str, what: str, *, example: str = '', given: tuple[str, ...] = (), also: tuple[str, ...] = ()
) -> Kind:
    """The classes of one of BasicSR's registries."""
    return Kind(
        what,
        f'a registered {what}' + (f', {example} say' if example else ''),
        lambda name: registered(registry, name),
        lambda: registered_names(registry),
        given=given,
        also=also,
    )


def find_class(kind: Kind, section: Any, place: Place) -> tuple[Callable[..., Any] | None, list[str]]:
    """The class that a section names; where it names none, the line that says so."""
    if not isinstance(section, Mapping):
        return None, [f'{at(place)}: {shown(section)} stands where a section with `type:` and its arguments is wanted']
    if 'type' not in section:
        return None, [f'{at((*place, "type"))}: missing ({kind.meaning}); add it']
    target = kind.find(section['type'])
    if target is None:
        names = kind.names()
        return None, [unregistered_line((*place, 'type'), section['type'], names, kind.what, own=kind.open)]
    return target, []


def class_problems(kind: Kind, section: Any, place: Place) -> list[str]:
    """Check ``{type: Name, argument: value, ...}`` against the class of that name."""
    target, problems = find_class(kind, section, place)
    if target is None:
        return problems
    return argument_problems(target, kind.arguments(section), place, given=kind.given)


def argument_problems(
    target: Callable[..., Any], arguments: Mapping[Any, Any], place: Place, *, given: Iterable[str] = ()
) -> list[str]:
    """Check keyword arguments against a signature: unknown, missing, text where the default is a number or a switch.

    A class that takes ``**kwargs`` takes any name, except a slip for one of its own parameters.
    """
    try:
        parameters = dict(inspect.signature(target).parameters)
    except (TypeError, ValueError):  # a builtin without a signature
        return []
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {
        name: p
        for name, p in parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in given
    }
    problems = []
    for key, value in arguments.items():
        if key in named:
            problems += _default_mismatch(named[key], value, (*place, key))
        elif not open_ended or is_misspelling(str(key), named):
            problems.append(unknown_line((*place, key), named, f'argument of {target.__name__}'))
    problems += [
        f'{at((*place, name))}: missing, {target.__name__} needs it; add it'
        for name, p in named.items()
        if p.default is p.empty and name not in arguments
    ]
    return problems


def _default_mismatch(parameter: inspect.Parameter, value: Any, place: Place) -> list[str]:
    default = parameter.default
    if isinstance(default, bool) and isinstance(value, str):
        return [f'{at(place)}: {shown(value)}: true or false is wanted, without quotes']
    if isinstance(default, int | float) and not isinstance(default, bool) and isinstance(value, str):
        if isinstance(parameter.annotation, str) and 'str' in parameter.annotation:
            return []
        if parameter.annotation is parameter.empty or parameter.annotation in (int, float, 'int', 'float'):
            return [f'{at(place)}: {shown(value)}: a number is wanted (default: {default})']
    return []


def optimizer_problems(section: Any, place: Place) -> list[str]:
    """Check ``optim_g`` or ``optim_d``."""
    target, problems = find_class(OPTIMISER, section, place)
    if target is None:
        return problems
    arguments = OPTIMISER.arguments(section)
    problems = argument_problems(target, arguments, place, given=OPTIMISER.given)
    problems += [] if 'lr' in section else [f'{at((*place, "lr"))}: missing (the learning rate); add it']
    for key in ('lr', 'weight_decay', 'eps'):
        value = section.get(key)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9):
            continue
        problems = [line for line in problems if not line.startswith(f'{at((*place, key))}:')]
        hint = '; remove the quotes' if isinstance(value, str) else ''
        problems.append(f'{at((*place, key))}: {shown(value)}: a number of at least 0 is wanted{hint}')
    return problems or trial(lambda: _try_step(target, arguments), place)


def scheduler_problems(section: Any, place: Place) -> list[str]:
    """Check ``train: scheduler:``."""
    target, problems = find_class(SCHEDULE, section, place)
    if target is None:
        return problems
    arguments = SCHEDULE.arguments(section)
    problems = argument_problems(target, arguments, place, given=SCHEDULE.given)
    milestones = section.get('milestones', [])
    if not isinstance(milestones, list) or not all(_is_iteration(step) for step in milestones):
        problems.append(f'{at((*place, "milestones"))}: {shown(milestones)}: a list of iterations is wanted')
    return problems or trial(lambda: target(_optimizer(), **deepcopy(arguments)), place)


def _is_iteration(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value < 1e12 and value == int(value)


def _find_optimizer(name: Any) -> Callable[..., Any] | None:
    """An optimiser by the name of its class in torch.optim, or by its name in timm."""
    from hat_plugin.engine.optimizers import torch_optimizers

    if not isinstance(name, str) or name in torch_optimizers():
        return torch_optimizers().get(str(name))
    try:
        from timm.optim import get_optimizer_class, list_optimizers
    except ImportError:
        return None
    if name.lower() not in list_optimizers():
        return None
    return cast(Callable[..., Any], get_optimizer_class(name.lower(), bind_defaults=False))


def _optimizer_names() -> list[str]:
    from hat_plugin.engine.optimizers import torch_optimizers

    try:
        from timm.optim import list_optimizers
    except ImportError:
        return sorted(torch_optimizers())
    return sorted([*torch_optimizers(), *list_optimizers()])


def _find_schedule(name: Any) -> Callable[..., Any] | None:
    from hat_plugin.engine.optimizers import scheduler_class

    try:
        return scheduler_class(str(name))
    except HatPluginError:
        return None


def _schedule_names() -> Iterable[str]:
    from hat_plugin.engine.optimizers import known_schedulers

    return known_schedulers()


NETWORK = of_registry('ARCH_REGISTRY', 'network')
OPTIMISER = Kind(
    'optimiser', 'an optimiser, Adam say', _find_optimizer, _optimizer_names, given=('params',), open=False
)
SCHEDULE = Kind(
    'schedule', 'a schedule, MultiStepLR say', _find_schedule, _schedule_names, given=('optimizer',), open=False
)

# What raises where values are wrong, or where something that they need is missing.
REFUSALS: tuple[type[Exception], ...] = (HatPluginError, TypeError, ValueError, LookupError, AttributeError)
REFUSALS += (ArithmeticError, AssertionError, RuntimeError)


def trial(build: Callable[[], Any], place: Place) -> list[str]:
    """Whether a class takes its values, by making one of them and using it once."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            build()
    except REFUSALS as error:
        return [f'{at(place)}: refused: {" ".join(str(error).split()) or type(error).__name__}']
    return []


def _try_step(target: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """One step, as training makes it: without a closure, gradients dense and without a graph."""
    parameter = _parameter()
    optimizer = target([parameter], **deepcopy(dict(arguments)))
    if target.__module__.split('.')[0] not in ('torch', 'timm'):  # apex's and bitsandbytes' step on CUDA alone
        return
    parameter.square().sum().backward()
    optimizer.step()


def _parameter() -> Any:
    import torch

    return torch.nn.Parameter(torch.zeros(1))


def _optimizer() -> Any:
    import torch

    return torch.optim.SGD([_parameter()], lr=0.1, momentum=0.9)
