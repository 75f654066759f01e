"""A figure as papers have them: the same part of a picture by several networks, side by side under its words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hat_plugin.engine.files import atomic_file
from hat_plugin.models.validation import as_picture

CROP = (96, 120)  # height and width shown of a photograph, in its pixels
ZOOM = 3
_GAP, _MARGIN, _LINE = 12, 20, 44
_INK, _FAINT, _PAPER, _FRAME = (25, 25, 25), (95, 95, 95), (255, 255, 255), (255, 210, 0)


@dataclass(frozen=True)
class Panel:
    """One image under its words.

    Attributes:
        title: first line.
        note: second line.
        image: (H, W, 3), RGB, uint8.
    """

    title: str
    note: str
    image: np.ndarray


def rgb(batch: Tensor) -> np.ndarray:
    """(1, C, H, W) in [0, 1] as it is shown and saved: (H, W, 3), uint8; gray three times."""
    image = as_picture(batch, use_image=True)
    return np.ascontiguousarray(np.stack([image] * 3, -1) if image.ndim == 2 else image[..., ::-1])


def corner(image: np.ndarray, top: int, left: int, scale: int) -> tuple[int, int]:
    """Where the part that is shown begins in a photograph (H, W, 3): inside it, at a whole pixel of low resolution."""
    wanted = zip((top, left), image.shape, CROP, strict=False)
    row, column = (max(0, min(start, side - length)) // scale * scale for start, side, length in wanted)
    return row, column


def crop(image: np.ndarray, top: int, left: int, scale: int = 1) -> np.ndarray:
    """The part that is shown, `ZOOM` times as large, each pixel a square: nothing is smoothed.

    Args:
        image: (H, W, 3), RGB, uint8; 1/scale of the photograph's size.
        top, left: from `corner`.
        scale: what the image lacks of the photograph's size.

    Returns:
        (CROP[0] * ZOOM, CROP[1] * ZOOM, 3), or less where the photograph is smaller.
    """
    height, width = (side // scale for side in CROP)
    top, left = top // scale, left // scale
    part = image[top : top + height, left : left + width]
    return part.repeat(ZOOM * scale, axis=0).repeat(ZOOM * scale, axis=1)


def overview(image: np.ndarray, top: int, left: int) -> np.ndarray:
    """The whole photograph at the height of the parts, with a frame around the part that is shown."""
    height = CROP[0] * ZOOM
    factor = height / image.shape[0]
    whole = Image.fromarray(image).resize((round(image.shape[1] * factor), height), Image.Resampling.LANCZOS)
    corners = (left, top, left + CROP[1], top + CROP[0])
    box = [min(round(value * factor), limit - 1) for value, limit in zip(corners, whole.size * 2, strict=True)]
    ImageDraw.Draw(whole).rectangle(box, outline=_FRAME, width=3)
    return np.asarray(whole)


def draw(path: Path, title: str, rows: list[list[Panel]]) -> None:
    """Write the picture, one row a photograph.

    Args:
        path: a PNG file.
        title: a line over all rows.
        rows: the same number of panels each; columns are as wide as their widest panel.
    """
    columns = [max(row[number].image.shape[1] for row in rows) for number in range(len(rows[0]))]
    heights = [max(panel.image.shape[0] for panel in row) for row in rows]
    width = 2 * _MARGIN + sum(columns) + _GAP * (len(columns) - 1)
    height = 2 * _MARGIN + _LINE + sum(side + _LINE + _GAP for side in heights)
    sheet = Image.new('RGB', (width, height), _PAPER)
    pen, big, small = ImageDraw.Draw(sheet), ImageFont.load_default(22), ImageFont.load_default(16)
    pen.text((_MARGIN, _MARGIN), title, fill=_INK, font=big)
    top = _MARGIN + _LINE
    for row, row_height in zip(rows, heights, strict=True):
        left = _MARGIN
        for panel, column in zip(row, columns, strict=True):
            pen.text((left, top), panel.title, fill=_INK, font=small)
            pen.text((left, top + 19), panel.note, fill=_FAINT, font=small)
            sheet.paste(Image.fromarray(panel.image), (left, top + _LINE))
            left += column + _GAP
        top += _LINE + row_height + _GAP
    with atomic_file(path) as aside:
        sheet.save(aside, format='PNG', optimize=True)
