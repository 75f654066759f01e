"""What the options name and the disk does not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hat_plugin.engine.schema.report import Place, at, section_of, shown
from hat_plugin.engine.schema.values import NO_FOLDER

Problems = list[str]


def missing_files(opt: Mapping[str, Any], *, is_train: bool) -> Problems:
    """Folders, meta_info files, weights and states that the options name and the disk does not have."""
    problems: Problems = []
    for key, section in section_of(opt, 'datasets').items():
        if isinstance(section, Mapping):
            problems += _missing_data(section, ('datasets', key))
    for key, value in section_of(opt, 'path').items():
        wanted = str(key).startswith('pretrain_network') or (key == 'resume_state' and is_train)
        if wanted and isinstance(value, str) and not Path(value).expanduser().is_file():
            remedy = 'correct the path, or write ~ to start from random weights'
            if key == 'resume_state':
                remedy = 'correct the path, or write ~ and use --auto_resume'
            elif not is_train:
                remedy = 'download or train it, or correct the path'
            problems.append(f'path: {key}: {value}: no such file; {remedy}')
    return problems


def _missing_data(section: Mapping[str, Any], place: Place) -> Problems:
    problems = []
    for key, value in section.items():
        is_folder, is_file = str(key).startswith('dataroot'), str(key).startswith('meta_info')
        exists: Callable[[Path], bool] = Path.is_file if is_file else Path.exists
        for name in value if isinstance(value, list) else [value]:
            named = (is_folder or is_file) and isinstance(name, str) and name != NO_FOLDER
            if named and not exists(Path(name).expanduser()):
                what = 'file' if is_file else 'folder'
                other = 'correct the path' if place[-1] == 'train' else 'correct the path, or leave this set out'
                beside = _beside_data(section, name) if is_file else None
                remedy = f'prepare it (`basicsr prepare --help`, datasets/README.md), or {other}'
                if beside is not None:
                    remedy = f'there is {beside}; write that'
                problems.append(f'{at((*place, key))}: {shown(name)[1:-1]}: no such {what}; {remedy}')
    return problems


def _beside_data(section: Mapping[str, Any], name: str) -> Path | None:
    """A file of the same name that lies beside the ground truth, where `basicsr prepare` writes its lists."""
    root = section.get('dataroot_gt')
    beside = Path(root).with_name(Path(name).name) if isinstance(root, str) and Path(root).name else None
    return beside if beside is not None and beside.expanduser().is_file() else None
