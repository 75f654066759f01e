"""The distribution hat-plugin. Settings of tools (ruff, mypy, pytest) stand in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def version() -> str:
    """``__version__`` of hat_plugin/__init__.py, read as text: importing the package needs what is installed here."""
    text = (ROOT / 'hat_plugin' / '__init__.py').read_text(encoding='utf-8')
    found = re.search(r"^__version__ = '([^']+)'$", text, re.MULTILINE)
    if found is None:
        raise RuntimeError('hat_plugin/__init__.py has no line __version__ = ...')
    return found.group(1)


def readme() -> str:
    """README.md, where it has been packed."""
    file = ROOT / 'README.md'
    return file.read_text(encoding='utf-8') if file.is_file() else ''


setup(
    name='hat-plugin',
    version=version(),
    description='HAT inside BasicSR: train, test and restore images on current PyTorch',
    long_description=readme(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    # options/ is a folder of the checkout's top level; in a wheel it becomes hat_plugin/options (hat_plugin.resources).
    packages=[*find_packages(include=['hat_plugin', 'hat_plugin.*']), 'hat_plugin.options'],
    package_dir={'hat_plugin.options': 'options'},
    package_data={
        'hat_plugin.options': ['*.yml'],
        'hat_plugin.kernels': ['*.cpp', '*.hpp'],
        'hat_plugin.compare': ['templates/*.html'],
    },
    entry_points={'console_scripts': ['basicsr = hat_plugin.cli:main']},
    # BasicSR can be built by pip on Python 3.12 and before (slowly); hat_plugin/install_basicsr.py installs it on any
    # Python in seconds. From 3.13 on that script is the only way, and naming basicsr would break `pip install`.
    # tensorboard comes with basicsr, as tb-nightly or, by the script, as tensorboard: the two overwrite each other.
    # Lower bounds: at exactly these versions together, with Python 3.11 and torch 2.13, the tests of options,
    # optimisers, registry and doctor were run; most others with a few bounds lower still (timm 1.0.3, pydantic 2.5).
    # Not run: torch 2.5, the first with torch.OutOfMemoryError, and its companion torchvision 0.20.
    install_requires=[
        "basicsr>=1.4.2; python_version < '3.13'",
        'jinja2>=3.1',
        'lmdb>=1.4.1',
        'matplotlib>=3.8',
        'numpy>=1.26',
        'opencv-python>=4.8',
        'pillow>=10.1',
        'pydantic>=2.10',
        'pyyaml>=6.0.1',
        'safetensors>=0.4.1',
        'scikit-image>=0.22',
        'scipy>=1.11',
        "setuptools; python_version >= '3.12'",  # for distutils, which BasicSR imports
        'timm>=1.0.12',
        'torch>=2.5',
        'torchvision>=0.20',
        'tqdm>=4.65',
    ],
    extras_require={
        # PNGs read in two fifths of the time (hat_plugin/data/png_rows.py). Wheels for CPython 3.10 to 3.13 on Linux,
        # macOS and Windows; their licences are PSF-2.0 and MIT. Others go without and read by OpenCV.
        'fast': ['isal>=1.6', 'pyspng>=0.1.4'],
        # `basicsr export`; torch's exporter is written in onnxscript.
        'onnx': ['onnx>=1.17', 'onnxruntime>=1.20', 'onnxscript>=0.3'],
        # Learned distances: LPIPS as loss and metric; DISTS and NIQE as metrics (pyiqa brings many packages).
        'lpips': ['lpips>=0.1.4'],
        'pyiqa': ['pyiqa>=0.1.10'],
        # triton: its interpreter runs our kernels without a GPU. Tried: 3.2, 3.3 and 3.6 with NumPy 2.2 (with NumPy 2.4
        # their interpreters fail), 3.7 and 3.9 with NumPy 2.4. PyTorch for CUDA brings its own.
        'tests': [
            'lpips>=0.1.4',
            'onnx>=1.17',
            'onnxruntime>=1.20',
            'onnxscript>=0.3',
            'pytest>=8',
            'pytest-xdist>=3.6',
            'pytorch-msssim>=1.0',
            'spandrel>=0.4',
            'spandrel-extra-arches>=0.2',  # Restormer's code, not for commerce: an oracle alone
            "triton>=3.2; platform_system == 'Linux'",
        ],
        'tools': ['mypy>=1.11', 'pre-commit>=3', 'ruff>=0.6'],
    },
    classifiers=[
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Image Processing',
    ],
    zip_safe=False,
)
