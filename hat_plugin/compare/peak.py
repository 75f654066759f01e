"""How much memory a piece of work takes at its peak, above what is held before."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import torch


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """How far the memory in use rises while `work` runs, in bytes.

    On CUDA of torch's allocator. On Linux of the resident pages, where freed blocks go back to the system at once: the
    network's need is measured, not the C library's habit. Elsewhere by how much the process's own record of its peak
    rises, which is too low where it was high before.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    keep_freed_blocks(False)
    if _reset_peak():
        before = _status('VmRSS')
        work()
        return max(0, _status('VmHWM') - before)
    before = _recorded_peak()
    work()
    return _recorded_peak() - before


def keep_freed_blocks(keep: bool) -> None:
    """Whether glibc keeps large blocks that are freed, as it learns to in a long run, or hands them back at once."""
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    with contextlib.suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL('libc.so.6')
        library.mallopt(mmap_threshold, (32 << 20) if keep else (128 << 10))
        library.mallopt(trim_threshold, (64 << 20) if keep else (128 << 10))
        library.malloc_trim(0)


def _reset_peak() -> bool:
    try:
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    for line in Path('/proc/self/status').read_text(encoding='ascii', errors='replace').splitlines():
        if line.startswith(f'{name}:'):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f'/proc/self/status has no {name}')


def _recorded_peak() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024
