"""Writes the option files above it that differ in a few numbers only: ``python options/generate``.

Change the recipes, tasks or texts here, run it, and commit the YAMLs with it; a test sees to it that they agree. Files
that `generated` does not list are written by hand.
"""

from __future__ import annotations

from pathlib import Path

import real_world
import restoration
import super_resolution

OPTIONS = Path(__file__).resolve().parent.parent


def generated() -> dict[str, str]:
    """Every generated file: name -> text."""
    runs = {**super_resolution.files(), **restoration.files(), **real_world.files()}
    return {f'{run}.yml': text for run, text in runs.items()}


if __name__ == '__main__':
    for file_name, text in generated().items():
        (OPTIONS / file_name).write_text(text, encoding='utf-8')
