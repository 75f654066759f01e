"""The demonstration's photographs: all colour photographs of scikit-image's wheel but two, each on one side only.

Training and held-out photographs never meet: the two views of the motorcycle are both for training, and so is the
rocket, whose lattice towers teach edges. Left out are ``color.png``, which is no photograph, and ``retina.jpg``, which
is large and has next to no detail.
"""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

from hat_plugin.engine.files import atomic_file
from hat_plugin.errors import DataError


@dataclass(frozen=True)
class HeldOut:
    """A photograph to compare on.

    Attributes:
        file: its name in scikit-image's data folder.
        top, left: corner of the part that the picture shows, in pixels of the photograph.
    """

    file: str
    top: int
    left: int

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return Path(self.file).stem


TRAINING = ('hubble_deep_field.jpg', 'ihc.png', 'motorcycle_left.png', 'motorcycle_right.png', 'rocket.jpg')
HELD_OUT = (HeldOut('astronaut.png', 60, 170), HeldOut('chelsea.png', 80, 108), HeldOut('coffee.png', 208, 300))


def photo_folder() -> Path:
    """Where scikit-image keeps its photographs; nothing of it is imported.

    Raises:
        DataError: scikit-image is not installed.
    """
    found = importlib.util.find_spec('skimage')
    if found is None or found.origin is None:
        raise DataError('scikit-image, whose photographs the demo uses, is not installed: pip install scikit-image')
    return Path(found.origin).parent / 'data'


def copy_photos(target: Path) -> None:
    """Lay the photographs out as ``train/`` and ``held_out/`` below `target`; what is there already stays.

    Raises:
        DataError: a photograph is missing in the installed scikit-image.
    """
    source = photo_folder()
    sides = {'train': TRAINING, 'held_out': tuple(photo.file for photo in HELD_OUT)}
    for side, files in sides.items():
        (target / side).mkdir(parents=True, exist_ok=True)
        for file in files:
            if not (source / file).is_file():
                raise DataError(f'{source / file} is missing: pip install --force-reinstall "scikit-image>=0.22"')
            if not (target / side / file).exists():
                with atomic_file(target / side / file) as aside:
                    shutil.copyfile(source / file, aside)
