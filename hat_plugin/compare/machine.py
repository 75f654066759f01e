"""What a measurement ran on: without it a number says nothing."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from hat_plugin import __version__
from hat_plugin.kernels.operands import rounds_to_tf32
from hat_plugin.kernels.window_attention import available

# Instruction sets that decide how fast matrix products are.
FLAGS = ('avx2', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'avx512_fp16', 'amx_bf16', 'amx_tile', 'asimd', 'sve', 'bf16')


@dataclass(frozen=True)
class Machine:
    """The machine and how it is used.

    Attributes:
        processor: the CPU's name.
        cores: that this process may use.
        flags: those of `FLAGS` that it has; empty where they cannot be read.
        threads: torch's threads inside an operation.
        load: average of the last minute before the first measurement, in processes; None where it is not known.
        accelerator: the CUDA device's name and memory; '' on a CPU.
        versions: of Python, torch, CUDA and this plugin, and whether its C++ kernel is there.
        date: YYYY-MM-DD, local.
    """

    processor: str
    cores: int
    flags: tuple[str, ...]
    threads: int
    load: float | None
    accelerator: str
    versions: str
    date: str

    @property
    def loaded(self) -> bool:
        """Whether others compute here: processor time is then the fairer clock."""
        return self.load is not None and self.load > self.threads

    @property
    def multiplies_bf16(self) -> bool:
        """Whether bf16 products are done by instructions made for them; without, they take minutes, not seconds."""
        return bool(self.accelerator) or bool({'avx512_bf16', 'amx_bf16', 'bf16'} & set(self.flags))

    @property
    def slug(self) -> str:
        """A name for files, of letters, digits and dashes."""
        name = self.accelerator.split(',')[0] or f'{self.processor}-{self.cores}-cores-{self.threads}-threads'
        return re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')

    def lines(self) -> list[str]:
        """As a markdown list."""
        load = 'unknown' if self.load is None else f'{self.load:.1f}'
        return [
            *([f'- Accelerator: {self.accelerator}'] if self.accelerator else []),
            f'- Processor: {self.processor}, {self.cores} cores, {" ".join(self.flags) or "instruction sets unknown"}',
            f'- Threads: {self.threads}; load average before the start: {load}',
            f'- {self.versions}; {self.date}',
        ]


def examine(device: torch.device) -> Machine:
    """Look at the machine; call it before measuring, for the load, and after the number of threads is set."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1,
        flags=_flags(),
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0] if hasattr(os, 'getloadavg') else None,
        accelerator=_accelerator(device),
        versions=_versions(),
        date=datetime.date.today().isoformat(),
    )


def _cpuinfo(field: str) -> str:
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace')
    except OSError:
        return ''
    found = re.search(rf'^{field}\s*:\s*(.+)$', text, re.MULTILINE)
    return found.group(1).strip() if found else ''


def _processor() -> str:
    return _cpuinfo('model name') or platform.processor() or platform.machine()


def _flags() -> tuple[str, ...]:
    present = set((_cpuinfo('flags') or _cpuinfo('Features')).split())
    return tuple(flag for flag in FLAGS if flag in present)


def _accelerator(device: torch.device) -> str:
    if device.type != 'cuda':
        return ''
    properties = torch.cuda.get_device_properties(device)
    products = 'on' if rounds_to_tf32(torch.backends.cuda.matmul) else 'off'
    convolutions = 'on' if rounds_to_tf32(torch.backends.cudnn) else 'off'
    tf32 = f'TF32 {products} in products, {convolutions} in convolutions'
    return f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {tf32}'


def _versions() -> str:
    cuda = f', CUDA {torch.version.cuda}' if torch.version.cuda else ''
    return (
        f'Python {platform.python_version()}, torch {torch.__version__}{cuda}, hat_plugin {__version__}{_commit()}, '
        f'{platform.system()} {platform.machine()}, C++ kernels {"built" if available() else "not built"}'
    )


def _commit() -> str:
    """The checkout's commit, '-dirty' where files differ from it."""
    command = ['git', 'describe', '--always', '--dirty', '--exclude=*']
    where, quiet = Path(__file__).resolve().parents[2], {**os.environ, 'GIT_OPTIONAL_LOCKS': '0'}
    if not (where / 'setup.py').is_file():  # installed: the commit of whatever it lies in would be another's
        return ''
    try:
        done = subprocess.run(command, cwd=where, env=quiet, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ''
    return f' ({done.stdout.strip()})' if done.returncode == 0 and done.stdout.strip() else ''
