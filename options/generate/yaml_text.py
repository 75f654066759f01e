"""Options as YAML that reads like the published files: sections apart, lists in a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def option_file(header: str, opt: Mapping[str, Any]) -> str:
    """A whole file.

    Args:
        header: lines of comment, without their marks.
        opt: the options; a blank line stands before each section.
    """
    comment = [f'# {line}'.rstrip() for line in header.splitlines()]
    body: list[str] = []
    for key, value in opt.items():
        body += ['', *lines(key, value, 0)] if isinstance(value, Mapping) else lines(key, value, 0)
    return '\n'.join([*comment, '', *body, ''])


def lines(key: str, value: Any, depth: int) -> list[str]:
    """A key and what stands under it; data sets are set apart by blank lines."""
    if not isinstance(value, Mapping):
        return [f'{"  " * depth}{key}: {scalar(value)}']
    inner = [lines(name, part, depth + 1) for name, part in value.items()]
    if key == 'datasets':
        inner = [part if number == 0 else ['', *part] for number, part in enumerate(inner)]
    return [f'{"  " * depth}{key}:', *(line for part in inner for line in part)]


def scalar(value: Any) -> str:
    """A value as YAML 1.1 reads it back."""
    if value is None:
        return '~'
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).strip()
    return text.removesuffix('...').strip()
