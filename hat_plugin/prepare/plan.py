"""What is to be prepared, in words that all data sets share."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hat_plugin.data.bicubic import KERNEL
from hat_plugin.prepare import layout
from hat_plugin.prepare.pixels import Block, PixelSource, stamp

LR_CHOICES = ('auto', 'bicubic', 'published')


@dataclass(frozen=True)
class Picture:
    """One source picture.

    Attributes:
        stem: its name in the prepared data; sub-images get `_s001` and so on behind it.
        hr: the ground truth.
        lr: scale -> the degraded picture that is published, where there is one that shall be used: of low resolution,
            or at scale 1 noisy, blurred or rainy and as large as the ground truth.
    """

    stem: str
    hr: PixelSource
    lr: Mapping[int, PixelSource] = field(default_factory=dict)

    def files(self) -> set[Path]:
        """All files that it comes from."""
        return {source.path if isinstance(source, Block) else source for source in (self.hr, *self.lr.values())}


@dataclass(frozen=True)
class Cut:
    """How pictures become images of the prepared data.

    Attributes:
        modulus: the ground truth's sides are cropped to multiples of it (bottom and right).
        size: side of a square sub-image in pixels of the ground truth; 0 keeps pictures whole.
        step: distance of two sub-images.
        threshold: at the right and bottom a last sub-image is added, flush with the edge, if more pixels than this
            would be left over.
        smallest: pictures with a side below this, after the crop, are left out.
        drop_alpha: ignore transparency instead of refusing it.
    """

    modulus: int
    size: int = 0
    step: int = 0
    threshold: int = layout.SUB_IMAGE_THRESHOLD
    smallest: int = 0
    drop_alpha: bool = False


@dataclass(frozen=True)
class Output:
    """One folder or LMDB of the prepared data.

    Attributes:
        name: of the folder, in the data set's folder.
        scale: how many times smaller than the ground truth its images are.
        storage: 'lmdb' (PNG), 'disk' (PNG files) or 'raw' (pixels in an LMDB).
        compress_level: of PNG.
        role: 'gt' for the ground truth, 'lq' for the degraded pictures.
    """

    name: str
    scale: int
    storage: str
    compress_level: int = 1
    role: Literal['gt', 'lq'] = 'gt'

    @property
    def kind(self) -> str:
        return 'raw' if self.storage == 'raw' else 'png'


@dataclass(frozen=True)
class Plan:
    """A data set to be prepared: `pictures` are cut as `cut` says and written to each of `outputs`.

    Attributes:
        folder: where the outputs, the list and the manifest lie.
        lr_origin: scale -> what the manifest says about the degraded pictures: published, or the kernel.
        source: what the manifest says about where the pictures come from.
        list_name: of the meta_info file that lists the ground truth's images; '' for none.
    """

    name: str
    folder: Path
    pictures: tuple[Picture, ...]
    cut: Cut
    outputs: tuple[Output, ...]
    lr_origin: dict[int, str]
    source: dict[str, Any]
    list_name: str = ''

    def origin(self, output: Output) -> str:
        """Where the images of an output come from, where they are degraded; '' for the ground truth."""
        return self.lr_origin.get(output.scale, '') if output.role == 'lq' else ''

    def settings(self, output: Output) -> str:
        """What decides an output's content besides the pictures, as JSON: when it changes, all is to be done again."""
        described = {key: value for key, value in asdict(output).items() if key != 'role'}
        origin = self.origin(output) or None  # None tells the ground truth, and so the role
        return json.dumps({'cut': asdict(self.cut), 'output': described, 'lr': origin}, sort_keys=True)

    def sources(self, output: Output) -> dict[str, str]:
        """Stem -> fingerprint of the files behind its images: when it changes, that picture is to be done again."""
        found = {}
        for picture in self.pictures:
            degraded = output.role == 'lq' and output.scale in picture.lr
            files = [picture.hr, *([picture.lr[output.scale]] if degraded else [])]
            found[picture.stem] = digest([picture.stem, *(stamp(file) for file in files)])[:16]
        return found


def digest(value: object) -> str:
    """SHA-256 of what can be written as JSON, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def common_modulus(scales: tuple[int, ...] | list[int]) -> int:
    """What the ground truth's sides are cropped to: a multiple of every scale, and the same for any of x2, x3, x4."""
    return math.lcm(*layout.SCALES, *scales)


def lr_kernel(published: bool) -> str:
    """What a manifest says about the low-resolution images."""
    return 'published low-resolution files' if published else KERNEL


PUBLISHED_PAIRS = 'published pairs'
"""What a manifest says about degraded pictures that were published with their ground truth."""
