"""Weights files and training states: written whole or not at all, read without running what they hold.

A weights file is BasicSR's: ``{'params': state_dict, 'params_ema': state_dict}``. Files of others are understood too: a
bare state dict, one under ``state_dict``, ``model`` or ``net_g``, ``module.`` prefixes, safetensors.
"""

from __future__ import annotations

import errno
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from hat_plugin.engine.files import atomic_file
from hat_plugin.errors import CheckpointError

# Where state dicts are found, best first: EMA weights are what papers report.
WEIGHT_KEYS = ('params_ema', 'params', 'state_dict', 'model_state_dict', 'model', 'net_g', 'net', 'generator')
_PREFIXES = ('module.', '_orig_mod.')  # left by DataParallel and torch.compile


@dataclass(frozen=True)
class Weights:
    """A state dict on the CPU, and where it was found.

    Attributes:
        state_dict: parameter name -> tensor.
        key: the entry of the file that it was under; None for a bare state dict.
        path: the file.
        available: all entries of the file that hold a state dict.
    """

    state_dict: dict[str, Tensor]
    key: str | None
    path: Path
    available: tuple[str, ...] = ()


def read_torch_file(path: str | os.PathLike[str]) -> Any:
    """Unpickle a torch file onto the CPU; only tensors and plain Python values are let in.

    Raises:
        CheckpointError: the file is missing, empty, truncated, or holds code or objects of other classes.
    """
    file = Path(path)
    _check_file(file)
    if file.stat().st_size == 0:
        raise CheckpointError(f'{file}: the file is empty (0 bytes), the leftover of a failed write; delete it')
    with file.open('rb') as stream:
        start = stream.read(16)
    if not start.startswith((b'PK', b'\x80')) and not zipfile.is_zipfile(file) and not tarfile.is_tarfile(file):
        raise CheckpointError(
            f'{file}: not a PyTorch file (it begins with {start!r}). A web page or a git-lfs pointer may have been'
            ' downloaded in its place; download it again'
        )
    try:
        return torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError ... for a broken file
        if 'Unsupported' in str(error) or 'weights_only' in str(error):
            raise CheckpointError(
                f'{file}: refused, because it holds more than tensors and plain values and loading it could run code'
                f' ({_first_line(error)}). Ask its author for a plain state dict or a .safetensors file.'
            ) from error
        raise CheckpointError(
            f'{file}: not a whole PyTorch file ({_first_line(error)}); it may be truncated'
        ) from error


def check_whole(path: str | os.PathLike[str]) -> None:
    """Hold a torch file against the checksums in it, which torch itself does not look at.

    Raises:
        CheckpointError: a bit is not what it was when the file was written.
    """
    file = Path(path)
    if not zipfile.is_zipfile(file):  # of an old torch, or missing, or cut short: reading it will tell
        return
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(f'{file}: damaged ({_first_line(error)})') from error
    if damaged is not None:
        raise CheckpointError(f'{file}: damaged: the checksum of {damaged} in it is wrong')


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise CheckpointError(f'{file}: {"is a folder; name a file in it" if file.is_dir() else "no such file"}')


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def load_weights(path: str | os.PathLike[str], param_key: str | None = None) -> Weights:
    """Read the state dict of a weights file (.pth, .pt, .ckpt or .safetensors).

    Args:
        path: the file.
        param_key: the entry wanted. Where it is absent, the best of `WEIGHT_KEYS` that is there is taken; see
            ``Weights.key`` for which.

    Raises:
        CheckpointError: unreadable, unsafe, or no state dict inside.
    """
    file = Path(path)
    if file.suffix == '.safetensors':
        return Weights(_strip(_read_safetensors(file)), None, file)
    content = read_torch_file(file)
    if _is_state_dict(content):
        return Weights(_strip(content), None, file)
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{file}: holds a {type(content).__name__}, where a dict of tensors was expected')
    available = tuple(key for key, value in content.items() if isinstance(key, str) and _is_state_dict(value))
    order = [key for key in (param_key, *WEIGHT_KEYS) if key in available] or list(available)
    if not order:
        raise CheckpointError(f'{file}: no network weights under its keys {list(content)[:8]}')
    return Weights(_strip(content[order[0]]), order[0], file, available)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_file(file)
    try:
        return load_file(file, device='cpu')
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f'{file}: not a whole safetensors file ({_first_line(error)})') from error


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())
    )


def _strip(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stripped = {}
    for key, tensor in state_dict.items():
        while key.startswith(_PREFIXES):
            key = key[key.index('.') + 1 :]
        stripped[key] = tensor
    return stripped


def load_into(net: nn.Module, weights: Weights, *, strict: bool = True) -> list[str]:
    """Load weights into a network.

    Args:
        net: the network, without DDP around it.
        weights: from `load_weights`.
        strict: every key must be on both sides with the same shape. Otherwise what fits is loaded and the rest left.

    Returns:
        One line for each key that was left out (never any if strict).

    Raises:
        CheckpointError: strict and something differs, or nothing fits at all; the network is unchanged.
    """
    ours, theirs = net.state_dict(), weights.state_dict
    differing = [key for key in ours if key in theirs and ours[key].shape != theirs[key].shape]
    missing = [key for key in ours if key not in theirs]
    unexpected = [key for key in theirs if key not in ours]
    problems = [
        *(
            f'{key}: {tuple(theirs[key].shape)} in the file, {tuple(ours[key].shape)} in the network'
            for key in differing
        ),
        *(f'{key}: not in the file' for key in missing),
        *(f'{key}: not in the network' for key in unexpected),
    ]
    fitting = {key: tensor for key, tensor in theirs.items() if key in ours and key not in differing}
    name = type(net).__name__
    if (strict and problems) or not fitting:
        shown = [f'  - {line}' for line in problems[:12]]
        if len(problems) > len(shown):
            shown.append(f'  ... and {len(problems) - len(shown)} more')
        remedy = (
            f'{len(fitting)} of {len(ours)} entries fit. Check the network options (scale, depths, embed_dim,'
            ' window_size); to load only what fits, set path: strict_load_g: false'
        )
        raise CheckpointError('\n'.join([f'{weights.path} does not fit {name}:', *shown, remedy]))
    net.load_state_dict(fitting, strict=False)
    return problems


def save_torch_file(path: str | os.PathLike[str], content: Any) -> None:
    """``torch.save`` through `atomic_file`.

    Raises:
        CheckpointError: the disk is full or not writable; a file of that name from before is whole.
    """
    try:
        with atomic_file(path) as aside:
            torch.save(content, aside)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a failed write into a RuntimeError
        full = getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or _no_room(path, content)
        reason = 'the disk is full' if full else _first_line(error)
        raise CheckpointError(
            f'{path}: could not be written ({reason}). Free some space or set logger: keep_checkpoints; the checkpoints'
            ' written before are whole, and --auto_resume goes on from the last of them.'
        ) from error


def _no_room(path: str | os.PathLike[str], content: Any) -> bool:
    """Whether less is free than the tensors of `content` take."""
    needed = sum(leaf.nbytes for leaf in tree_iter(content) if isinstance(leaf, Tensor))
    return shutil.disk_usage(Path(path).parent).free < needed


def cpu_state_dict(net: nn.Module) -> dict[str, Tensor]:
    """The state dict, detached, on the CPU, contiguous."""
    return {key: tensor.detach().to('cpu').contiguous() for key, tensor in net.state_dict().items()}


def numbered_states(folder: str | os.PathLike[str]) -> Iterator[tuple[int, Path]]:
    """The ``<iteration>.state`` files of a folder, newest iteration first; other names are passed over."""
    directory = Path(folder)
    found = [
        (int(file.stem), file) for file in directory.glob('*.state') if file.stem.isascii() and file.stem.isdecimal()
    ]
    yield from sorted(found, reverse=True)
