"""manifest.json: what was prepared, from what, how, and the checksums to tell it by."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from hat_plugin import __version__
from hat_plugin.data.aside import replace_folder, restore_folder
from hat_plugin.data.lmdb_meta import META_INFO, check_whole
from hat_plugin.engine.files import sync_directory, write_text_atomic
from hat_plugin.errors import DataError
from hat_plugin.prepare.layout import MANIFEST

_PENDING = f'.{MANIFEST}.pending'


def read_manifest(folder: Path) -> dict[str, Any]:
    """The folder's manifest; empty where there is none.

    Raises:
        DataError: it is no JSON object.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return {'outputs': {}}
    except (OSError, ValueError) as error:
        raise DataError(f'{path}: cannot be read ({error}); remove it and prepare the data again') from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get('outputs'), dict):
        raise DataError(f'{path}: no manifest of basicsr prepare; remove it and prepare the data again')
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a folder's manifest as a whole."""
    write_text_atomic(folder / MANIFEST, _as_text(manifest))


def publish(folder: Path, manifest: dict[str, Any], names: list[str], texts: dict[str, str]) -> None:
    """Bring sealed outputs under their names, all of them even if this process is killed in between.

    The manifest is written aside first; `recover` finishes from it.

    Args:
        folder: the data set's folder.
        manifest: the manifest to be.
        names: of the outputs, each lying sealed as ``.NAME.part``.
        texts: text files that go with them, by name.
    """
    pending = {'names': names, 'texts': texts, 'manifest': manifest}
    write_text_atomic(folder / _PENDING, json.dumps(pending))
    recover(folder)


def recover(folder: Path) -> None:
    """Finish a `publish` that was killed.

    Raises:
        DataError: the disk does not take it.
    """
    path = folder / _PENDING
    try:
        if not path.exists():
            return
        pending = json.loads(path.read_text(encoding='utf-8'))
        for name in pending['names']:
            aside, target = folder / f'.{name}.part', folder / name
            if aside.exists():
                replace_folder(aside, target, overwrite=True)
            else:
                restore_folder(target)
        for name, text in pending['texts'].items():
            write_text_atomic(folder / name, text)
        write_manifest(folder, pending['manifest'])
        path.unlink()
        sync_directory(folder)
    except OSError as error:
        raise DataError(f'{folder}: writing failed ({error}); make room on it, then run the same again') from error


def is_current(folder: Path, manifest: dict[str, Any], name: str, job: str) -> bool:
    """Whether an output is there, whole, and what `job` describes."""
    entry = manifest['outputs'].get(name)
    path = folder / name
    if entry is None or entry.get('job') != job or not path.is_dir():
        return False
    if path.suffix != '.lmdb':
        return sum(1 for item in os.scandir(path) if item.name.endswith('.png')) == entry['count']
    return is_whole_lmdb(path)


def is_whole_lmdb(path: Path) -> bool:
    """Whether an LMDB of images is there and was not cut short; its images are not looked at."""
    try:
        check_whole(path)
    except DataError:
        return False
    return (path / META_INFO).is_file()


def versions() -> dict[str, str]:
    """Versions of all that decides the bytes that are written."""
    packages = ('numpy', 'scipy', 'opencv-python', 'opencv-python-headless', 'lmdb', 'pillow')
    installed = {package: _version(package) for package in packages}
    found = {name: version for name, version in installed.items() if version}
    return {'hat_plugin': __version__, 'python': sys.version.split()[0], **found}


def check_room(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        needed: bytes, estimated.

    Raises:
        DataError: less is free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f'{folder}: about {_size(needed)} are needed, {_size(free)} are free; make room, choose another place with '
            f'-o, or begin all the same with --no-room-check'
        )


def _size(count: int) -> str:
    return f'{count / 1e9:.1f} GB' if count >= 1e9 else f'{count / 1e6:.1f} MB'


def _as_text(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=2, ensure_ascii=False) + '\n'


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ''
