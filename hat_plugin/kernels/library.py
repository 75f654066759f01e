"""The compiled kernels: where they lie, and their C interface.

They are compiled by `hat_plugin.kernels.build`, once a machine, into a folder of the user's own. The file's name has
the content of the source, the compiler's flags and the processor in it, so that an update or another machine with the
same home folder never meets a library that is not its own. The version of torch does not matter: the interface is
plain C.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import stat
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCES = tuple(Path(__file__).with_name(f'{name}.cpp') for name in ('window_attention', 'products', 'tile_products'))
HEADERS = tuple(
    Path(__file__).with_name(f'{name}.hpp')
    for name in (
        *('memory', 'vectors', 'gelu', 'windows', 'tiles', 'gradient_tokens', 'window_gradient', 'tile_gradient'),
        *('attend', 'tile_weights', 'tile_product', 'tile_convolution', 'tile_block'),
        *('tile_sums', 'tile_linear_gradient', 'tile_feed_forward_gradient', 'tile_convolution_gradient'),
        *('product', 'feed_forward_gradient', 'winograd', 'winograd_gradient'),
    )
)
FLAGS = (
    *('-std=c++17', '-O3', '-march=native', '-ffp-contract=fast', '-fno-math-errno'),
    *('-fopenmp', '-fPIC', '-Wno-psabi'),
)
# Compiles without AMX: should the kernels for it fail their check on a machine, the others are left.
WITHOUT_TILES = '-DHAT_WITHOUT_TILES'
BF16_WAYS = {0: 'widened to fp32', 1: 'AVX512_BF16', 2: 'AMX'}  # `Way` of window_attention.cpp

_THREE = ctypes.c_int64 * 3
_FOUR = ctypes.c_int64 * 4
_POINTERS = ('q', 'k', 'v', 'bias', 'mask', 'out', 'softmax')
_STRIDES = ('q_stride', 'k_stride', 'v_stride', 'out_stride')
_NUMBERS = (
    *('batch', 'heads', 'width', 'height_q', 'width_q', 'height_k', 'width_k', 'rows', 'columns'),
    *('window_height', 'window_width', 'key_height', 'key_width', 'margin', 'shift', 'mask_mode'),
    *('half', 'half_bias', 'threads'),
)


class WindowAttentionArguments(ctypes.Structure):
    """The struct WindowAttention of windows.hpp, field by field; what they mean is said there."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, _FOUR) for name in _STRIDES),
        *((name, ctypes.c_int64) for name in _NUMBERS),
        ('scale', ctypes.c_double),
    )


class WindowGradientArguments(ctypes.Structure):
    """The struct WindowGradient of gradient_tokens.hpp."""

    _fields_ = (
        ('forward', WindowAttentionArguments),
        *((name, ctypes.c_void_p) for name in ('grad', 'dq', 'dk', 'dv')),
        *((name, _FOUR) for name in ('grad_stride', 'dq_stride', 'dk_stride', 'dv_stride')),
        ('dbias', ctypes.c_void_p),
        ('parts', ctypes.c_int64),
    )


class ProductArguments(ctypes.Structure):
    """The struct Product of product.hpp."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ('x', 'weight', 'bias', 'norm_weight', 'norm_bias', 'add', 'scaled', 'factor', 'out')
        ),
        *((name, _THREE) for name in ('x_stride', 'weight_stride')),
        *(
            (name, ctypes.c_int64)
            for name in ('batch', 'height', 'width', 'inputs', 'outputs', 'taps', 'gelu', 'threads')
        ),
        ('eps', ctypes.c_double),
    )


class FeedForwardGradientArguments(ctypes.Structure):
    """The struct FeedForwardGradient of feed_forward_gradient.hpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ('x', 'grad', 'up', 'up_bias', 'down')),
        *((name, ctypes.c_void_p) for name in ('dx', 'dup', 'dup_bias', 'ddown', 'ddown_bias')),
        *((name, ctypes.c_int64) for name in ('pixels', 'channels', 'hidden', 'threads')),
        ('eps', ctypes.c_double),
    )


class TileProductArguments(ctypes.Structure):
    """The struct TileProduct of tile_weights.hpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ('x', 'weight', 'bias', 'norm_weight', 'norm_bias')),
        *((name, ctypes.c_void_p) for name in ('add', 'scaled', 'factor', 'out', 'normed', 'means')),
        *((name, ctypes.c_int64) for name in ('pixels', 'image', 'width', 'inputs', 'outputs', 'taps')),
        *((name, ctypes.c_int64) for name in ('gelu', 'turned', 'half_x', 'half_out', 'threads')),
        ('eps', ctypes.c_double),
    )


class WindowBlockArguments(ctypes.Structure):
    """The struct WindowBlock of tile_block.hpp."""

    _fields_ = (
        ('attention', WindowAttentionArguments),
        *((name, TileProductArguments) for name in ('queries', 'projection', 'up', 'down')),
        *((name, ctypes.c_void_p) for name in ('branch', 'factor')),
    )


class TileLinearGradientArguments(ctypes.Structure):
    """The struct TileLinearGradient of tile_linear_gradient.hpp."""

    _fields_ = (
        *((name, TileProductArguments) for name in ('layer', 'back')),
        *((name, ctypes.c_void_p) for name in ('d_weight', 'd_bias', 'd_norm_weight', 'd_norm_bias')),
        *((name, ctypes.c_void_p) for name in ('d_scaled', 'd_factor')),
    )


class TileFeedForwardGradientArguments(ctypes.Structure):
    """The struct TileFeedForwardGradient of tile_feed_forward_gradient.hpp."""

    _fields_ = (
        *((name, TileProductArguments) for name in ('up', 'from_down', 'from_up')),
        *((name, ctypes.c_void_p) for name in ('d_up', 'd_up_bias', 'd_down', 'd_down_bias')),
        *((name, ctypes.c_void_p) for name in ('d_norm_weight', 'd_norm_bias')),
    )


class TileConvolutionGradientArguments(ctypes.Structure):
    """The struct TileConvolutionGradient of tile_convolution_gradient.hpp."""

    _fields_ = (
        ('layer', TileProductArguments),
        *((name, ctypes.c_void_p) for name in ('grad', 'd_weight', 'd_bias')),
    )


class ConvolutionGradientArguments(ctypes.Structure):
    """The struct ConvolutionGradient of winograd_gradient.hpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ('x', 'grad', 'out')),
        *((name, _THREE) for name in ('x_stride', 'out_stride')),
        *((name, ctypes.c_int64) for name in ('batch', 'height', 'width', 'inputs', 'outputs', 'threads')),
    )


def strides(batch: int, row: int, column: int, head: int) -> ctypes.Array[ctypes.c_int64]:
    """A tensor's strides in elements, as the struct holds them."""
    return _FOUR(batch, row, column, head)


def three(*numbers: int) -> ctypes.Array[ctypes.c_int64]:
    """Three strides in elements, as the structs of products hold them."""
    return _THREE(*numbers)


def cache_folder() -> Path:
    """Where compiled kernels lie: HAT_KERNEL_CACHE, else hat_plugin/kernels in XDG_CACHE_HOME or ``~/.cache``."""
    named = os.environ.get('HAT_KERNEL_CACHE')
    if named:
        return Path(named).absolute()  # what has no slash would be looked for elsewhere
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache').absolute() / 'hat_plugin' / 'kernels'


def library_path() -> Path:
    """The file that holds the kernels for this source, these flags and this processor, built or not."""
    sources = [path.read_bytes() for path in (*SOURCES, *HEADERS, Path(__file__))]  # this file has the structs
    content = b'\0'.join([*sources, ' '.join(FLAGS).encode(), _processor().encode()])
    return cache_folder() / f'kernels-{hashlib.sha256(content).hexdigest()[:20]}.so'


def has_amx() -> bool:
    """Whether the processor multiplies bf16 by matrix units."""
    return 'amx_bf16' in _processor().split()


def _processor() -> str:
    """What instructions compiled for this machine may use."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:
        lines = [platform.processor()]
    return platform.machine() + ''.join(next((line for line in lines if line.startswith(('flags', 'Features'))), ''))


def private(path: Path) -> bool:
    """Whether nobody but this user (or root) can have written what is there: what is loaded runs as this user."""
    found = path.stat()
    return found.st_uid in (os.geteuid(), 0) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@functools.lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """The kernels, or None where they have not been built; says why once. Nothing is compiled here."""
    try:
        path = library_path()
        if not path.is_file():
            logger.info('no C++ kernels (%s): `python -m hat_plugin.kernels.build` compiles it', path)
            return None
        if not (private(path.parent) and private(path)):
            logger.warning('not loading %s: others than its owner may write there; chmod go-w its folder and it', path)
            return None
        return open_library(path)
    except (OSError, RuntimeError, AttributeError) as error:  # no home folder, a damaged file, no libgomp
        logger.warning('the C++ kernels cannot be loaded (%s): torch computes in their place', error)
        return None


def require() -> ctypes.CDLL:
    """The kernels of this machine.

    Raises:
        RuntimeError: they have not been built; the message has the command.
    """
    library = load()
    if library is None:
        raise RuntimeError('the C++ kernels are not there: `python -m hat_plugin.kernels.build`')
    return library


def open_library(path: Path) -> ctypes.CDLL:
    """Load a file and declare its functions.

    OpenMP is left unresolved in it, so that it takes the one that torch has loaded: two would be two pools of threads.

    Raises:
        OSError: it is no library for this machine, or torch came without OpenMP.
    """
    library = ctypes.CDLL(str(path))
    library.hat_window_attention.argtypes = [ctypes.POINTER(WindowAttentionArguments)]
    library.hat_window_attention_gradient.argtypes = [ctypes.POINTER(WindowGradientArguments)]
    library.hat_product.argtypes = [ctypes.POINTER(ProductArguments)] * 2
    library.hat_tile_product.argtypes = [ctypes.POINTER(TileProductArguments)] * 2
    library.hat_window_block.argtypes = [ctypes.POINTER(WindowBlockArguments)]
    library.hat_convolution_gradient.argtypes = [ctypes.POINTER(ConvolutionGradientArguments)]
    library.hat_feed_forward_gradient.argtypes = [ctypes.POINTER(FeedForwardGradientArguments)]
    library.hat_tile_convolution_gradient.argtypes = [ctypes.POINTER(TileConvolutionGradientArguments)]
    library.hat_tile_linear_gradient.argtypes = [ctypes.POINTER(TileLinearGradientArguments)]
    library.hat_tile_feed_forward_gradient.argtypes = [ctypes.POINTER(TileFeedForwardGradientArguments)]
    library.hat_gather_bias.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 5]
    library.hat_bf16_way.argtypes = [ctypes.c_int]
    library.hat_vector_bits.argtypes = []
    for name in (
        *('hat_window_attention', 'hat_window_attention_gradient', 'hat_gather_bias', 'hat_bf16_way', 'hat_product'),
        *('hat_tile_product', 'hat_window_block', 'hat_convolution_gradient', 'hat_feed_forward_gradient'),
        *('hat_tile_linear_gradient', 'hat_tile_feed_forward_gradient', 'hat_tile_convolution_gradient'),
        'hat_vector_bits',
    ):
        getattr(library, name).restype = ctypes.c_int
    return library
