"""What this process may use of the machine: processors and memory. Nothing but the standard library is needed."""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def free_bytes() -> int:
    """Bytes of memory that can still be allocated without pushing anything out.

    MemAvailable of /proc/meminfo, held to what the control groups (v1, v2) leave; where there is no /proc, half of the
    physical memory, and 4 GiB where that is not known either.
    """
    return min([_system_bytes(), *_control_group_bytes()])


def _system_bytes() -> int:
    try:
        for line in Path('/proc/meminfo').read_text(encoding='ascii').splitlines():
            if line.startswith('MemAvailable:'):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 2
    except (AttributeError, ValueError, OSError):
        return 4 * 1024**3


def _control_group_bytes(
    root: Path = Path('/sys/fs/cgroup'), membership: Path = Path('/proc/self/cgroup')
) -> list[int]:
    """What each control group above this process leaves of its memory limit; groups without a limit are left out."""
    try:
        lines = membership.read_text(encoding='utf-8').splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, place = line.split(':', 2)
        if controllers not in ('', 'memory') and 'memory' not in controllers.split(','):
            continue
        base, limit, usage = (
            (root, 'memory.max', 'memory.current')
            if not controllers
            else (root / 'memory', 'memory.limit_in_bytes', 'memory.usage_in_bytes')
        )
        group = base / place.lstrip('/')
        for folder in [group, *group.parents]:
            if folder != base and base not in folder.parents:
                break
            left += _group_left(folder, limit, usage)
    return left


def _group_left(folder: Path, limit: str, usage: str) -> list[int]:
    try:
        allowed = (folder / limit).read_text(encoding='ascii').strip()
        used = int((folder / usage).read_text(encoding='ascii'))
        statistics = (folder / 'memory.stat').read_text(encoding='ascii').splitlines()
    except (OSError, ValueError):
        return []
    if allowed == 'max' or int(allowed) >= 2**60:
        return []
    # File pages that nobody uses are given back before anything fails.
    cache = sum(int(line.split()[1]) for line in statistics if line.startswith('inactive_file '))
    return [max(0, int(allowed) - used + cache)]
