"""From a section of an option file to lines that say what is wrong with it, where, and what to do."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Place = tuple[str | int, ...]


def at(place: Place) -> str:
    """A place as BasicSR's users write it: ``train: optim_g: lr``."""
    return ': '.join(str(part) for part in place)


def section_of(opt: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A section, or an empty one where something else stands there; another line tells of that."""
    value = opt.get(key)
    return value if isinstance(value, Mapping) else {}


def shown(value: Any, limit: int = 60) -> str:
    """A value for an error line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + '...'


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word that `word` most likely meant."""
    matches = difflib.get_close_matches(word, sorted(known), n=1, cutoff=cutoff)
    if matches:
        return matches[0]
    folded = {name.lower().replace('-', '').replace('_', ''): name for name in known}
    return folded.get(word.lower().replace('-', '').replace('_', ''))


def is_misspelling(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` all but equals; a longer or shorter form of it (``depth``, ``depths``) is no slip."""
    match = nearest(word, known, cutoff=0.8)
    if match is None or match.startswith(word) or word.startswith(match):
        return None
    return match


def unknown_line(place: Place, known: Iterable[str], what: str = 'option') -> str:
    """The line for a key that nobody reads."""
    names = sorted(known)
    match = nearest(str(place[-1]), names)
    if match:
        return f"{at(place)}: unknown {what}; did you mean '{match}'?"
    remedy = f'known here: {", ".join(names)}' if 0 < len(names) <= 24 else 'remove it'
    return f'{at(place)}: unknown {what}; {remedy}'


def unregistered_line(place: Place, name: Any, known: Iterable[str], what: str, *, own: bool = True) -> str:
    """The line for a type that nobody has.

    Args:
        place: where it stands.
        name: the type.
        known: the types that there are.
        what: how to call them.
        own: whether users register types of their own.
    """
    names = sorted(known)
    match = nearest(str(name), names)
    remedy = f"did you mean '{match}'? " if match else ''
    hint = '. One of your own must be registered (its module imported) before the options are read' if own else ''
    return f'{at(place)}: {shown(name)} is no known {what}; {remedy}known: {", ".join(names)}{hint}'


def section_problems(
    schema: type[BaseModel],
    section: Mapping[str, Any],
    place: Place = (),
    *,
    lenient: bool = False,
    remedies: Mapping[str, str] | None = None,
    hidden: Collection[str] = (),
) -> list[str]:
    """Check one section's keys and types.

    Args:
        schema: its model.
        section: its content.
        place: where it stands.
        lenient: keys that the schema does not know pass unless they look like a slip for one that it knows (sections of
            models that others wrote).
        remedies: key that people mistakenly write -> the key that they mean, where spelling alone does not tell.

        hidden: keys that the schema knows, but that are no remedy.

    Returns:
        One line a problem.
    """
    unknown = _Unknown(lenient, remedies or {}, hidden)
    try:
        schema.model_validate(dict(section))
    except ValidationError as errors:
        lines = [_line(schema, error, place, unknown) for error in errors.errors()]
        return list(dict.fromkeys(line for line in lines if line))
    return []


@dataclass(frozen=True)
class _Unknown:
    """What is said of keys that a section does not know; see `section_problems`."""

    lenient: bool
    remedies: Mapping[str, str]
    hidden: Collection[str]

    def line(self, where: Place, key: str, schema: type[BaseModel]) -> str | None:
        known = [name for name in schema.model_fields if name not in self.hidden]
        if key in self.remedies:
            return f"{at(where)}: unknown option; did you mean '{self.remedies[key]}'?"
        if self.lenient and is_misspelling(key, known) is None:
            return None
        return unknown_line(where, known)


def _line(schema: type[BaseModel], error: ErrorDetails, place: Place, unknown: _Unknown) -> str | None:
    schema, depth = _innermost(schema, error['loc'])
    # A union's error carries names of its branches after the key; they say nothing to a user.
    below = (part for part in error['loc'][depth:] if isinstance(part, int) or not _is_branch(part, schema))
    where = (*place, *error['loc'][:depth], *below)
    key = str(error['loc'][depth]) if error['loc'][depth:] else ''
    if error['type'] == 'extra_forbidden' and len(error['loc']) == depth + 1:
        return unknown.line(where, key, schema) if depth == 0 else unknown_line(where, schema.model_fields)
    if error['type'] == 'missing':
        field = schema.model_fields.get(key)
        meaning = f' ({field.description})' if field is not None and field.description else ''
        return f'{at(where)}: missing{meaning}; add it'
    if error['type'] in ('dict_type', 'model_type'):
        return f'{at(where)}: {shown(error["input"])} stands where a section of `key: value` lines is wanted'
    message = error['msg'].removeprefix('Value error, ')
    return f'{at(where)}: {shown(error["input"])}: {message[:1].lower()}{message[1:]}'


def _innermost(schema: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[type[BaseModel], int]:
    """The section within a section that an error is of, and how deep it lies."""
    for depth, part in enumerate(loc[:-1]):
        field = schema.model_fields.get(str(part))
        kinds = (field.annotation, *get_args(field.annotation)) if field is not None else ()
        inner = [kind for kind in kinds if inspect.isclass(kind) and not get_args(kind) and issubclass(kind, BaseModel)]
        if not inner:
            return schema, depth
        schema = inner[0]
    return schema, max(0, len(loc) - 1)


def _is_branch(part: str, schema: type[BaseModel]) -> bool:
    return part not in schema.model_fields and ('[' in part or part in ('int', 'float', 'str', 'bool', 'list'))
