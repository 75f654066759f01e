"""What ``basicsr doctor`` looks at. Each probe is guarded: the doctor is for those on whose machine nothing imports."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from hat_plugin import __version__, registry
from hat_plugin.engine.machine import cores, free_bytes
from hat_plugin.kernels.library import library_path

GIB = 1024**3
TORCH_REMEDY = 'pip install torch torchvision (https://pytorch.org/get-started has the line for your GPU)'
# module -> distribution. What can be missing by itself and has a remedy of its own comes first.
PACKAGES = {
    'torch': 'torch',
    'torchvision': 'torchvision',
    'basicsr': 'basicsr',
    'numpy': 'numpy',
    'cv2': 'opencv-python',
    'lmdb': 'lmdb',
    'yaml': 'pyyaml',
    'pydantic': 'pydantic',
    'safetensors': 'safetensors',
    'skimage': 'scikit-image',
    'scipy': 'scipy',
    'tensorboard': 'tensorboard',
    'timm': 'timm',
    'tqdm': 'tqdm',
}
MISSING_REMEDIES = {
    'torch': TORCH_REMEDY,
    'torchvision': TORCH_REMEDY,
    'basicsr': 'python -m hat_plugin.install_basicsr',
}
# A text in an import's error -> what cures it.
IMPORT_REMEDIES = {
    "No module named 'distutils'": 'pip install setuptools (BasicSR imports distutils, which Python 3.12 removed)',
    'libGL.so': 'apt-get install libgl1 libglib2.0-0, or put opencv-python-headless in the place of opencv-python',
    'libgthread': 'apt-get install libglib2.0-0, or put opencv-python-headless in the place of opencv-python',
    'compiled using NumPy 1': 'pip install --upgrade the package that the message names: it was built for NumPy 1',
    'torchvision::': f'torch and torchvision do not fit each other: {TORCH_REMEDY}',
}
# Two distributions that write the same files: whichever was installed last wins, and removing one breaks the other.
RIVALS = {'opencv-python': 'opencv-python-headless', 'tensorboard': 'tb-nightly'}


@dataclass(frozen=True)
class Problem:
    """Something found wrong. `fatal`: training cannot run."""

    what: str
    remedy: str
    fatal: bool


@dataclass
class Report:
    """Rows (name, value, detail) by section, and the problems found on the way."""

    sections: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def row(self, section: str, name: str, value: str, detail: str = '') -> None:
        """Add a line to a section."""
        self.sections.setdefault(section, []).append((name, value, detail))

    def problem(self, what: str, remedy: str, *, fatal: bool) -> None:
        """Add a finding."""
        self.problems.append(Problem(what, remedy, fatal))

    @property
    def can_train(self) -> bool:
        """Whether nothing fatal was found."""
        return not any(problem.fatal for problem in self.problems)


def examine() -> Report:
    """Look at everything; never raises."""
    report = Report()
    probes: tuple[Callable[[Report], None], ...] = (versions, copies, machine, devices, registered, proof)
    for probe in probes:
        try:
            probe(report)
        except Exception as error:  # a probe that fails is a finding, and the others go on
            report.problem(
                f'the look at {probe.__name__} failed: {_text(error)}',
                'report it with the output of `basicsr doctor --json`',
                fatal=probe in (registered, proof),
            )
    return report


def versions(report: Report) -> None:
    """What is installed, and whether it imports."""
    report.row('Versions', 'python', platform.python_version(), sys.executable)
    report.row('Versions', 'hat_plugin', __version__, str(Path(__file__).parent))
    missing: list[str] = []
    for module_name, distribution in PACKAGES.items():
        version = _installed(distribution) or _installed(RIVALS.get(distribution, distribution))
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            report.row('Versions', module_name, version or 'missing', 'does not import' if version else '')
            if version is None and module_name not in MISSING_REMEDIES:
                missing.append(distribution)
            else:
                _import_problem(report, module_name, distribution, error, is_missing=version is None)
        else:
            report.row('Versions', module_name, _version(module, version), _whereabouts(module))
    basicsr = _installed('basicsr')
    if basicsr and tuple(int(digits) for digits in re.findall(r'\d+', basicsr)[:3]) < (1, 4, 2):
        report.problem(f'basicsr {basicsr} is older than 1.4.2', MISSING_REMEDIES['basicsr'], fatal=False)
    if missing:
        report.problem(f'not installed: {", ".join(missing)}', f'pip install {" ".join(missing)}', fatal=True)
    for one, other in RIVALS.items():
        if _installed(one) and _installed(other):
            report.problem(
                f'{one} and {other} are both installed and overwrite each other, file by file',
                f'pip uninstall -y {one} {other} && pip install {one}',
                fatal=False,
            )


def _import_problem(report: Report, name: str, distribution: str, error: Exception, *, is_missing: bool) -> None:
    if is_missing:
        report.problem(f'{name} is not installed', MISSING_REMEDIES[name], fatal=True)
        return
    # For torchvision and basicsr the first failure, when the plugin was imported, tells more than the next ones.
    causes = [str(error), str(registry.failure()) if name in ('torchvision', 'basicsr') else '']
    remedy = next((cure for sign, cure in IMPORT_REMEDIES.items() if any(sign in cause for cause in causes)), None)
    if remedy is None and isinstance(error, ModuleNotFoundError):
        remedy = f'install what it names: see the other problems, or pip install {error.name}'
    remedy = remedy or f'pip install --force-reinstall --no-deps {distribution}'
    report.problem(f'{name} cannot be imported: {_text(error)}', remedy, fatal=True)


def copies(report: Report) -> None:
    """A second basicsr wins over the installed one as soon as it stands earlier on the path."""
    found = []
    for entry in dict.fromkeys([os.getcwd(), *(entry or os.getcwd() for entry in sys.path)]):
        file = Path(entry, 'basicsr', '__init__.py')
        if file.is_file() and file.resolve() not in found:
            found.append(file.resolve())
    if len(found) > 1:
        used = getattr(sys.modules.get('basicsr'), '__file__', None) or found[0]
        report.problem(
            f'{len(found)} copies of basicsr: {", ".join(str(file.parent) for file in found)}; '
            f'here {Path(used).parent} is used, and another working directory may change that',
            'keep one: rename the folder, or `pip uninstall basicsr` if the folder is the one you work on',
            fatal=False,
        )
    script, folder = shutil.which('basicsr'), Path(sys.executable).parent
    if script and (folder / 'basicsr').is_file() and Path(script).parent.resolve() != folder.resolve():
        report.problem(f'`basicsr` is {script}, of another environment', f'use {folder}/basicsr', fatal=False)


def machine(report: Report) -> None:
    """Cores, memory, disk, compiler."""
    count = cores()
    report.row('Machine', 'system', f'{platform.system()} {platform.machine()}', platform.release())
    report.row('Machine', 'CPU', f'{count} core{"s" * (count > 1)}', _cpu_abilities())
    report.row('Machine', 'memory', f'{free_bytes() / GIB:.1f} GiB free', 'to this process')
    folder = os.getcwd()
    free = shutil.disk_usage(folder).free / GIB
    report.row('Machine', 'disk', f'{free:.1f} GiB free', f'in {folder}')
    if free < 2:
        report.problem(f'{free:.1f} GiB are free on the disk of {folder}', 'make room for checkpoints', fatal=False)
    if not os.access(folder, os.W_OK):
        report.problem(f'{folder} is read-only, and runs go to ./experiments', 'train in another folder', fatal=False)
    compiler = next((path for name in ('c++', 'g++', 'clang++') if (path := shutil.which(name))), None)
    report.row('Machine', 'C++ compiler', compiler or 'none', '' if compiler else 'train.compile, kernels need one')
    kernel = library_path()
    remedy = 'optional, for speed on the CPU: python -m hat_plugin.kernels.build'
    report.row('Machine', 'C++ kernels', *((str(kernel), '') if kernel.is_file() else ('not built', remedy)))
    missing = [name for name in ('isal', 'pyspng') if _installed(name) is None]
    remedy = f'optional, for training from PNG: pip install {" ".join(missing)}'
    report.row('Machine', 'fast PNG', 'OpenCV alone' if missing else 'isal, pyspng', remedy if missing else '')


def _cpu_abilities() -> str:
    """Which short instructions for matrices there are, as torch sees them."""
    torch = sys.modules.get('torch')
    if torch is None or platform.machine() not in ('x86_64', 'AMD64'):
        return ''
    checks = {'AVX2': 'avx2', 'AVX-512': 'avx512', 'AVX-512 bf16': 'avx512_bf16', 'AMX': 'amx_tile'}
    have = [name for name, key in checks.items() if getattr(torch.cpu, f'_is_{key}_supported', bool)()]
    fast = 'AVX-512 bf16' in have or 'AMX' in have
    return ', '.join(have) + ('; bf16 is native' if fast else '; bf16 is emulated and slow')


def devices(report: Report) -> None:
    """The GPUs that torch sees, or why it sees none."""
    torch = sys.modules.get('torch')
    if torch is None:
        return
    if not torch.cuda.is_available():
        built = torch.version.cuda or getattr(torch.version, 'hip', None)
        report.row('Machine', 'CUDA', 'none', f'torch is built for {f"CUDA or HIP {built}" if built else "the CPU"}')
        if Path('/dev/nvidia0').exists():
            hidden = 'see `nvidia-smi`: its driver is too old for this torch, or CUDA_VISIBLE_DEVICES hides it'
            what = f'an NVIDIA GPU is there, and torch {torch.__version__} does not see it'
            report.problem(what, hidden if built else TORCH_REMEDY, fatal=False)
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        bf16 = 'bf16' if (gpu.major, gpu.minor) >= (8, 0) else 'no bf16: train.amp: fp16'
        detail = f'{gpu.total_memory / GIB:.0f} GiB, sm_{gpu.major}{gpu.minor}, {bf16}'
        report.row('Machine', f'CUDA {index}', gpu.name, detail)


def registered(report: Report) -> None:
    """Who holds the names that this plugin gives to BasicSR."""
    failure = registry.failure()
    if failure is not None:
        report.row('Registered', 'nothing', _text(failure))
        if report.can_train:  # else the cause is listed already
            report.problem(f'the plugin could not register: {_text(failure)}', 'reinstall hat-plugin', fatal=True)
        return
    for holder in registry.holders():
        kind = holder.registry.removesuffix('_REGISTRY').lower()
        holds = 'hat_plugin' if holder.ours else holder.held_by or 'nobody'
        report.row('Registered', f'{kind} {holder.name}', holds, holder.file or '')
        if holder.held_by is None:
            report.problem(f'{kind} {holder.name} is not registered', 'reinstall hat-plugin', fatal=True)
        elif not holder.ours:
            report.problem(
                f'{kind} {holder.name} is held by {holder.held_by} ({holder.file}), not by hat_plugin',
                'import hat_plugin before that package, or remove its registration',
                fatal=False,
            )


def proof(report: Report) -> None:
    """A tiny HAT, fetched from BasicSR's registry, goes forward and backward."""
    if registry.failure() is not None:
        return
    import torch
    from basicsr.utils.registry import ARCH_REGISTRY

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    sizes = {'window_size': 4, 'embed_dim': 8, 'depths': (1,), 'num_heads': (2,)}
    start = time.perf_counter()
    net = ARCH_REGISTRY.get('HAT')(upscale=2, upsampler='pixelshuffle', compress_ratio=2, squeeze_factor=2, **sizes)
    output = net.to(device)(torch.rand(1, 3, 9, 10, device=device))
    output.mean().backward()
    if output.shape != (1, 3, 18, 20) or not bool(torch.isfinite(output).all()):
        raise RuntimeError(f'a tiny HAT made {tuple(output.shape)} of (1, 3, 9, 10), or values that are not finite')
    report.row('Proof', 'tiny HAT x2', f'forward and backward in {time.perf_counter() - start:.2f} s', f'on {device}')


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version(module: ModuleType, installed: str | None) -> str:
    """What the module says of itself; it is the one that runs, whatever the metadata beside it say."""
    own = getattr(module, '__version__', None)
    return str(own if isinstance(own, str) else installed or 'unknown')


def _whereabouts(module: ModuleType) -> str:
    """The module's folder, where that is news: for basicsr always, for others outside this Python's site-packages."""
    folder = Path(getattr(module, '__file__', None) or '.').parent
    usual = {Path(sysconfig.get_path(kind)) for kind in ('purelib', 'platlib')}
    return str(folder) if module.__name__ == 'basicsr' or folder.parent not in usual else ''


def _text(error: BaseException) -> str:
    message = str(error).strip().splitlines()
    return f'{type(error).__name__}: {message[0]}' if message else type(error).__name__
