"""Local attribution maps of every network for the same window of a picture, drawn for the report."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from hat_plugin.compare import panels
from hat_plugin.compare.attribution import attribute
from hat_plugin.compare.gallery import Wanted
from hat_plugin.compare.measuring import Findings, baseline, find_picture, pictures_of, scale_of
from hat_plugin.compare.protocol import Comparison, Contender
from hat_plugin.engine.progress import progress
from hat_plugin.errors import DataError
from hat_plugin.layers.embedding import pad_to_multiple
from hat_plugin.models.inference import padding_of
from hat_plugin.restore.images import write_image

FOLDER = 'attribution'
INPUT_SIDE = 64  # of the part of the input that is looked at: memory and time grow with it
SHOWN = 4  # times as large as the input


@dataclass(frozen=True)
class Panel:
    """A drawing under the words of `caption`; `file` is relative to the report."""

    file: str
    caption: str


@dataclass(frozen=True)
class MappedPart:
    """A window of a picture, and what each network used for it.

    Attributes:
        title: where it lies.
        panels: the input with the window marked, then each network's map over it.
        diffusion: label -> diffusion index, 0 to 100.
    """

    title: str
    panels: tuple[Panel, ...]
    diffusion: dict[str, float]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {'window': self.title, 'diffusion': self.diffusion}


def window_of(scale: int) -> int:
    """Side of the window in output pixels: 16 where networks enlarge, as in the paper; 8 at the size of the input."""
    return 16 if scale > 1 else 8


def find(comparison: Comparison, findings: Findings, wanted: list[Wanted]) -> list[MappedInput]:
    """What the networks will be given.

    Raises:
        DataError: no test set has such a picture, or the window does not lie inside of it.
    """
    opt = comparison.prepared(comparison.contenders[0])
    sets = {str(options['name']): options for options in opt['datasets'].values()}
    found = []
    for each in wanted:
        dataset, picture = find_picture(findings, each.name, '--attribution')
        number = list(next(iter(findings[dataset].values())).pictures).index(picture)
        batch = next(itertools.islice(pictures_of(sets[dataset]), number, None))
        found.append(_part(batch['lq'], f'{dataset}/{picture}', each, scale_of(opt)))
    return found


def map_all(comparison: Comparison, folder: Path, found: list[MappedInput]) -> list[MappedPart]:
    """Draw the maps, in fp32."""
    if not found:
        return []
    scale = scale_of(comparison.contenders[0].test)
    diffusion: list[dict[str, float]] = [{} for _ in found]
    drawn: list[list[Panel]] = [[_marked(folder, number, part, scale)] for number, part in enumerate(found)]
    for contender in progress(comparison.contenders, description='attribution maps', unit='network'):
        forward = _network(comparison, contender)
        for number, part in enumerate(found):
            result = attribute(forward, part.image, part.top, part.left, window_of(scale))
            diffusion[number][contender.label] = result.diffusion
            file = f'{FOLDER}/{number}_{contender.label}.png'
            write_image(folder / file, _heat(part, result.map))
            drawn[number].append(Panel(file, f'{contender.label}, diffusion index {result.diffusion:.2f}'))
    return [
        MappedPart(*each) for each in zip([part.title for part in found], map(tuple, drawn), diffusion, strict=True)
    ]


@dataclass(frozen=True)
class MappedInput:
    """A part of an input, (1, C, h, w), and where in its output the window begins; `title` says so in words."""

    title: str
    image: Tensor
    top: int
    left: int


def _part(image: Tensor, name: str, wanted: Wanted, scale: int) -> MappedInput:
    """The surroundings of the window: `INPUT_SIDE` pixels, or what the picture has."""
    window, corner = window_of(scale), []
    sides = image.shape[-2:]
    top, left = wanted.corner or (side * scale // 2 for side in sides)
    for position, side in zip((top, left), sides, strict=True):
        if position + window >= side * scale:
            raise DataError(
                f'--attribution {name}:{top},{left}: a window of {window} pixels there does not lie inside the '
                f'picture, {sides[1] * scale}x{sides[0] * scale} pixels; choose another place'
            )
        middle = (position + window // 2) // scale
        corner.append(max(0, min(middle - INPUT_SIDE // 2, side - INPUT_SIDE)))
    row, column = corner
    title = f'{name}, window of {window} pixels at row {top}, column {left}'
    part = image[..., row : row + INPUT_SIDE, column : column + INPUT_SIDE]
    return MappedInput(title, part, top - row * scale, left - column * scale)


def _network(comparison: Comparison, contender: Contender) -> Callable[[Tensor], Tensor]:
    from basicsr.models import build_model

    opt = comparison.prepared(contender)
    opt['val']['precision'] = 'fp32'
    model = build_model(opt)
    net = model.evaluation_network().eval()
    multiple, scale = padding_of(net, opt), scale_of(opt)

    def forward(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        output: Tensor = net(pad_to_multiple(image.to(model.device), multiple))
        return output[..., : height * scale, : width * scale].to(image.device)

    return forward


def _marked(folder: Path, number: int, part: MappedInput, scale: int) -> Panel:
    """The input with the window in red."""
    (folder / FOLDER).mkdir(exist_ok=True)
    picture = Image.fromarray(_large(part))
    factor = SHOWN / scale
    box = [part.left, part.top, part.left + window_of(scale), part.top + window_of(scale)]
    ImageDraw.Draw(picture).rectangle([round(value * factor) for value in box], outline=(255, 0, 0), width=2)
    file = f'{FOLDER}/{number}_{baseline(1)}.png'
    write_image(folder / file, np.asarray(picture))
    return Panel(file, 'input, and the window of the output')


def _large(part: MappedInput) -> np.ndarray:
    """(h, w, 3), RGB, uint8, each pixel a square."""
    return panels.rgb(part.image).repeat(SHOWN, axis=0).repeat(SHOWN, axis=1)


def _heat(part: MappedInput, values: np.ndarray) -> np.ndarray:
    """A map over its input: gray where nothing is used, red where most is."""
    gray = _large(part).mean(2, keepdims=True).repeat(3, axis=2)
    strength = np.sqrt(values).repeat(SHOWN, axis=0).repeat(SHOWN, axis=1)[..., None]  # small parts are to be seen
    colours = cv2.applyColorMap((strength[..., 0] * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    share = np.clip(strength * 1.5, 0, 0.85)
    return np.ascontiguousarray((gray * (1 - share) + colours * share).astype(np.uint8))
