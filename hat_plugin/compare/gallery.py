"""Which pictures and which parts of them to look at: those in which the networks differ most, whoever is ahead."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from hat_plugin.compare import panels
from hat_plugin.compare.measuring import TRUTH, find_picture, picture_file
from hat_plugin.compare.tables import Result
from hat_plugin.compare.text import figure
from hat_plugin.data.images import read_image
from hat_plugin.errors import DataError

SHOWN = 3  # pictures of each test set


@dataclass(frozen=True)
class Part:
    """A part of a picture, `panels.CROP` high and wide or less.

    Attributes:
        dataset, picture: where.
        top, left: its corner.
    """

    dataset: str
    picture: str
    top: int
    left: int


@dataclass(frozen=True)
class Wanted:
    """A picture that the user wants to see, and the corner of the part, where he said which."""

    name: str
    corner: tuple[int, int] | None = None


def read_wanted(text: str, flag: str) -> Wanted:
    """From ``PICTURE`` or ``PICTURE:TOP,LEFT``.

    Raises:
        DataError: it is of another form.
    """
    name, colon, place = text.partition(':')
    numbers = place.split(',')
    if not name or (colon and (len(numbers) != 2 or not all(number.isdecimal() for number in numbers))):
        raise DataError(f'{flag} {text}: write it as PICTURE:TOP,LEFT, in pixels of the restored picture')
    return Wanted(name, (int(numbers[0]), int(numbers[1])) if colon else None)


def parts(result: Result, folder: Path, wanted: list[Wanted]) -> list[Part]:
    """The parts to show.

    Args:
        result: what was found.
        folder: the comparison's, with the pictures.
        wanted: those asked for; none: chosen by rule, see `most_different` and `place_in`.

    Raises:
        DataError: no such picture.
    """
    if wanted:
        return [_part(result, folder, each) for each in wanted]
    chosen = []
    for dataset, scores in result.findings.items():
        names = list(scores[result.baseline].pictures)[:SHOWN]
        for picture in most_different(result, dataset) if result.measured(dataset) else names:
            chosen.append(Part(dataset, picture, *place_in(load(result, folder, dataset, picture))))
    return chosen


def _part(result: Result, folder: Path, wanted: Wanted) -> Part:
    dataset, picture = find_picture(result.findings, wanted.name, '--show')
    images = load(result, folder, dataset, picture)
    if wanted.corner is None:
        return Part(dataset, picture, *place_in(images))
    return Part(dataset, picture, *panels.corner(next(iter(images.values())), *wanted.corner, 1))


def load(result: Result, folder: Path, dataset: str, picture: str) -> dict[str, np.ndarray]:
    """Who -> the picture, (H, W, 3), RGB, uint8: baseline, networks in order, truth where there is one."""
    files = {who: picture_file(folder, dataset, picture, who) for who in [result.baseline, *result.labels, TRUTH]}
    return {who: read_image(file) for who, file in files.items() if file.is_file()}


def most_different(result: Result, dataset: str, count: int = SHOWN) -> list[str]:
    """The pictures of a test set on whose first metric the networks lie farthest apart; of one network the first."""
    metric = result.measured(dataset)[0]
    names = list(result.findings[dataset][result.baseline].pictures)
    figures = np.stack([result.findings[dataset][label].values(metric) for label in result.labels])
    order = np.argsort(figures.min(0) - figures.max(0), kind='stable')
    return [names[index] for index in order[:count]]


def place_in(images: dict[str, np.ndarray]) -> tuple[int, int]:
    """The corner of the part in which what the networks made differs most, in squared error where there is a truth."""
    truth = images.get(TRUTH)
    made = [image.astype(np.float32) for who, image in list(images.items())[1:] if who != TRUTH]
    if truth is not None:
        made = [(image - truth.astype(np.float32)) ** 2 for image in made]
    apart = (np.max(made, 0) - np.min(made, 0)).mean(2) if len(made) > 1 else made[0].mean(2)
    height, width = (min(side, limit) for side, limit in zip(panels.CROP, apart.shape, strict=True))
    means = cv2.boxFilter(apart, -1, (width, height), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    inside = means[: apart.shape[0] - height + 1, : apart.shape[1] - width + 1]
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(row), int(column)


def draw(result: Result, folder: Path, shown: list[Part], file: Path) -> None:
    """Write a figure as papers have them: a row for each part, by everybody."""
    rows = []
    for part in shown:
        images = load(result, folder, part.dataset, part.picture)
        whole = images[TRUTH] if TRUTH in images else images[result.baseline]
        row = [panels.Panel(Path(part.picture).name, part.dataset, panels.overview(whole, part.top, part.left))]
        for who, image in images.items():
            row.append(panels.Panel(who, note(result, part, who), panels.crop(image, part.top, part.left)))
        rows.append(row)
    if len({len(row) for row in rows}) > 1:  # a set without a truth beside others
        longest = max(rows, key=len)
        rows = [
            [*row, *(panels.Panel('', '', np.full_like(panel.image, 255)) for panel in longest[len(row) :])]
            for row in rows
        ]
    panels.draw(file, result.comparison.name, rows)


def note(result: Result, part: Part, who: str) -> str:
    """What the picture reached by the first metric."""
    measured = result.measured(part.dataset)
    scores = result.findings[part.dataset].get(who)
    if scores is None or not measured:
        return ''
    return f'{measured[0]} {figure(scores.pictures[part.picture][measured[0]])}'
