"""Pictures in, pictures out: one as an array, or many as files."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hat_plugin.data.images import from_float_tensor, to_float_tensor
from hat_plugin.engine.memory import is_out_of_memory
from hat_plugin.engine.progress import progress
from hat_plugin.engine.tiles import DEFAULT_OVERLAP, tiled_forward
from hat_plugin.errors import DataError, HatPluginError
from hat_plugin.restore.images import fitting, keeps_16_bits, read_picture, write_image
from hat_plugin.restore.jobs import Existing, Job, check_outputs
from hat_plugin.restore.network import Network

logger = logging.getLogger(__name__)

_LUMA = (0.299, 0.587, 0.114)  # BT.601


@dataclass(frozen=True)
class Settings:
    """How pictures are put through the network.

    Args:
        tile: side of a tile in input pixels, 'auto' (whole if the memory suffices) or None (whole).
        overlap: input pixels that neighbouring tiles share.
        self_ensemble: average over the eight flips and turns of the picture; eight times the work.
    """

    tile: int | Literal['auto'] | None = 'auto'
    overlap: int = DEFAULT_OVERLAP
    self_ensemble: bool = False


@dataclass
class Summary:
    """What became of the pictures.

    Args:
        written: files written.
        skipped: outputs that were there already.
        failures: (input, reason) of those that could not be restored.
    """

    written: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failures: list[tuple[Path, str]] = field(default_factory=list)


def restore_image(
    network: Network, image: np.ndarray, settings: Settings | None = None, *, show_progress: bool = False
) -> np.ndarray:
    """Restore one picture.

    A gray picture goes through a colour network as three equal channels, and the result is taken back to luma
    (BT.601); a colour picture goes through a gray network channel by channel. Transparency is enlarged by the network
    as a gray picture of its own, and kept as it is where the network does not enlarge.

    Args:
        network: from `load_network`.
        image: (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA; uint8, uint16, or float32 in [0, 1].
        settings: tiles and self-ensemble; default: `Settings()`.
        show_progress: a bar over the tiles.

    Returns:
        The restored picture, scale times as high and wide, with the channels and type of `image`; clamped to its range.

    Raises:
        DataError: another shape or type, or the network put out NaN or infinity.
        torch.OutOfMemoryError, MemoryError, RuntimeError: memory does not suffice for the smallest tile.
    """
    settings = settings or Settings()
    if image.ndim not in (2, 3) or image.size == 0 or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise DataError(f'a picture of shape {image.shape} is not (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)')
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise DataError(f'a picture of {image.dtype} is not uint8, uint16 or float32 in [0, 1]')
    planes = to_float_tensor(image)[None]
    restored = _restore_planes(network, planes[:, :3], settings, show_progress)
    if planes.shape[1] == 4:
        alpha = _restore_alpha(network, planes[:, 3:], settings)
        restored = torch.cat([restored, alpha], dim=1)
    if not bool(torch.isfinite(restored).all()):
        in_fp32 = f'its weights are damaged, or their training diverged ({network.source}); take others'
        remedy = in_fp32 if network.net.precision == 'fp32' else 'give --precision fp32'
        raise DataError(f'the network put out NaN or infinity, and no picture is made of it: {remedy}')
    if image.dtype == np.float32:
        result = np.ascontiguousarray(restored[0].clamp(0, 1).permute(1, 2, 0).numpy())
    else:
        result = from_float_tensor(restored, image.dtype.type)
    return result[..., 0] if image.ndim == 2 else result


def _restore_alpha(network: Network, alpha: Tensor, settings: Settings) -> Tensor:
    """Transparency (1, 1, H, W), enlarged."""
    scale = network.found.scale
    if scale == 1:
        return alpha
    if bool((alpha == alpha[0, 0, 0, 0]).all()):
        return alpha.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return _restore_planes(network, alpha, settings, False)


def _restore_planes(network: Network, planes: Tensor, settings: Settings, show_progress: bool) -> Tensor:
    """(1, C, H, W), C 1 or 3, through a network for 1 or 3 channels: (1, C, H * scale, W * scale), float32."""
    channels, wanted = planes.shape[1], network.found.channels
    if wanted not in (1, 3):
        raise DataError(f'the network takes {wanted} channels; only gray and RGB pictures are restored')
    if channels == wanted:
        return _ensemble(network, planes, settings, show_progress)
    if channels == 1:
        colour = _ensemble(network, planes.expand(-1, 3, -1, -1), settings, show_progress)
        return (colour * torch.tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return _ensemble(network, planes.transpose(0, 1), settings, show_progress).transpose(0, 1)


def _ensemble(network: Network, image: Tensor, settings: Settings, show_progress: bool) -> Tensor:
    """The network's output, or its mean over the eight flips and turns."""

    def forward(view: Tensor) -> Tensor:
        return tiled_forward(
            network.net,
            view,
            scale=network.found.scale,
            tile=settings.tile,
            overlap=settings.overlap,
            multiple=network.found.window,
            progress=show_progress,
            device=network.device,
        )

    if not settings.self_ensemble:
        return forward(image)
    total: Any = 0
    for turn in range(8):
        flipped = image.flip(-1) if turn >= 4 else image
        output = forward(torch.rot90(flipped, turn % 4, (-2, -1)))
        output = torch.rot90(output, -(turn % 4), (-2, -1))
        total = total + (output.flip(-1) if turn >= 4 else output)
    return total / 8


def restore_files(
    network: Network,
    jobs: Sequence[Job],
    settings: Settings | None = None,
    *,
    existing: Existing = 'refuse',
) -> Summary:
    """Restore files, one after the other, with a progress bar.

    A picture that cannot be read, coded or held in memory is named in the summary, and the others go on.

    Args:
        network: from `load_network`.
        jobs: from `plan_jobs`.
        settings: tiles and self-ensemble.
        existing: what to do where an output is there already: refuse the whole run before it starts, write it anew, or
            leave it as it is.

    Raises:
        DataError: outputs exist, and `existing` is 'refuse'; nothing was written.
        HatPluginError: the output folder cannot be made or written to, or the disk is full; what was written so far is
            whole.
    """
    check_outputs(jobs, existing)
    summary = Summary()
    for job in progress(jobs, description='restoring', disable=len(jobs) == 1):
        if existing == 'skip' and job.target.exists():
            summary.skipped.append(job.target)
            continue
        try:
            _restore_file(network, job, settings, show_progress=len(jobs) == 1)
        except DataError as error:
            text = str(error)
            summary.failures.append((job.source, text.removeprefix(f'{job.source}: ')))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = 'does not fit into memory, even in the smallest tiles; free some, or give --precision bf16'
            summary.failures.append((job.source, reason))
        else:
            summary.written.append(job.target)
    return summary


def _restore_file(network: Network, job: Job, settings: Settings | None, show_progress: bool) -> None:
    """Read, restore and write one picture."""
    image = fitting(read_picture(job.source), job.target)  # before the work, not after it
    if image.dtype == np.uint16 and not keeps_16_bits(job.target.suffix):
        logger.warning('%s has 16 bits; %s holds 8. Give --ext png to keep them', job.source, job.target)
    restored = restore_image(network, image, settings, show_progress=show_progress)
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        write_image(job.target, restored)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = 'the disk is full' if full else error.strerror or str(error)
        raise HatPluginError(f'{job.target}: cannot be written: {reason}; what was written before is whole') from error
