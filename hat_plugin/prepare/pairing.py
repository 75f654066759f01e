"""Which degraded picture belongs to which ground truth, and which scenes are held out for testing."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hat_plugin.data.images import IMAGE_SUFFIXES, list_images
from hat_plugin.data.lmdb_io import key_of
from hat_plugin.errors import DataError
from hat_plugin.prepare.plan import Picture


@dataclass(frozen=True)
class Side:
    """Where one half of the pairs lies.

    Attributes:
        folder: searched with its subfolders.
        pattern: of the names relative to the folder; `*` stands for any characters, `/` too. What the stars stand for
            is what the two pictures of a pair have in common. A pattern without a picture's ending fits any of them.
    """

    folder: Path
    pattern: str = '*'

    def __str__(self) -> str:
        return f'{self.folder} ({self.pattern})'


def find_pairs(lq: Side, gt: Side) -> dict[str, Picture]:
    """The pairs of two sides, by their common name, in sorted order.

    Returns:
        What the stars of both patterns stand for, joined with `/` -> the picture, `lr` holding its degraded one.

    Raises:
        DataError: a picture has no partner or two, no picture fits a pattern, or two pairs would get the same name.
    """
    if lq == gt:
        raise DataError(f'{lq}: every picture would be its own ground truth; give two folders, or two patterns')
    if lq.pattern.count('*') != gt.pattern.count('*') or '*' not in lq.pattern:
        raise DataError(f'{lq.pattern!r} and {gt.pattern!r}: both patterns need a *, and as many of them')
    inputs, truths = _matching(lq), _matching(gt)
    for side, have, other, need in ((lq, inputs, gt, truths), (gt, truths, lq, inputs)):
        alone = [name for name in have if name not in need]
        if alone:
            raise DataError(
                f'{have[alone[0]]}: has no partner in {other} ({len(alone)} of {len(have)} in {side} have none); '
                f'unpack both again, or correct the patterns'
            )
    pairs: dict[str, Picture] = {}
    names: dict[str, str] = {}
    for name in sorted(truths):
        stem = key_of(name.replace('/', '_'))
        if stem in names:
            raise DataError(f'{gt.folder}: {names[stem]} and {name} would both be called {stem}; rename one of them')
        names[stem] = name
        pairs[name] = Picture(stem, truths[name], {1: inputs[name]})
    return pairs


def scenes_of(names: Iterable[str], expression: str) -> dict[str, str]:
    """The scene of each pair: what the expression's first group finds in its name, or all that it finds.

    Raises:
        DataError: it is no regular expression, or does not occur in a name.
    """
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise DataError(f'--scene {expression!r} is no regular expression: {error}') from error
    scenes = {}
    for name in names:
        match = compiled.search(name)
        scene = match and match.group(1 if compiled.groups else 0)
        if not scene:
            raise DataError(f'--scene {expression!r} finds no scene in the name {name!r}; correct it')
        scenes[name] = scene
    return scenes


def hold_out(scenes: Iterable[str], named: Iterable[str], share: float) -> list[str]:
    """The scenes that are kept for testing, sorted: those that are named, or a share of all.

    Which ones a share takes is decided by the checksums of their names: by chance, and the same on every machine.

    Raises:
        DataError: a named scene is not there, or none would be left for training.
    """
    there = set(scenes)
    unknown = sorted(set(named) - there)
    if unknown:
        shown = ', '.join(sorted(there)[:20])
        raise DataError(f'--hold-out: no scene {unknown[0]!r} among the {len(there)} scenes {shown}; see --scene')
    by_chance = sorted(there, key=lambda scene: hashlib.sha256(scene.encode()).hexdigest())
    held = set(named) or set(by_chance[: max(1, round(share * len(there)))] if share else [])
    if held == there:
        raise DataError(f'all {len(there)} scenes would be held out and none be left for training; hold out fewer')
    return sorted(held)


def _matching(side: Side) -> dict[str, Path]:
    """What the stars stand for -> the picture."""
    expression = re.compile('(.*)'.join(re.escape(part) for part in side.pattern.split('*')))
    whole = side.pattern.lower().endswith(IMAGE_SUFFIXES)
    found: dict[str, Path] = {}
    present = list_images(side.folder)
    for name in present:
        match = expression.fullmatch(name if whole else os.path.splitext(name)[0])
        if match is None:
            continue
        common = '/'.join(match.groups())
        if common in found:
            raise DataError(f'{side.folder / name} and {found[common]} have the same name; remove one of them')
        found[common] = side.folder / name
    if not found:
        raise DataError(
            f'{side.folder}: none of {len(present)} pictures fits {side.pattern!r}; the first is {present[0]!r}'
        )
    return found
