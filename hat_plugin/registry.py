"""What BasicSR gets from this plugin: one explicit table a registry, and who holds each name.

Our modules carry no decorators and no folder is scanned: a name is registered because it stands in `TABLES`, and for
no other reason. BasicSR knows no plugins, so whoever runs it imports ``hat_plugin`` first; that import calls
`try_register`.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from dataclasses import dataclass
from typing import Any

from hat_plugin import compat
from hat_plugin.errors import HatPluginError

# BasicSR's registry -> name in option files -> where it lives. The name is the class's own name.
TABLES: dict[str, dict[str, str]] = {
    'ARCH_REGISTRY': {
        'HAT': 'hat_plugin.archs.hat_arch:HAT',
        'HATUNet': 'hat_plugin.archs.hat_unet_arch:HATUNet',
        'NAFNet': 'hat_plugin.archs.nafnet_arch:NAFNet',
        'NAFNetLocal': 'hat_plugin.archs.nafnet_arch:NAFNetLocal',
        'Restormer': 'hat_plugin.archs.restormer_arch:Restormer',
    },
    'MODEL_REGISTRY': {
        'RestorationModel': 'hat_plugin.models.restoration_model:RestorationModel',
        'HATModel': 'hat_plugin.models.hat_model:HATModel',
        'ImageCleanModel': 'hat_plugin.models.image_clean_model:ImageCleanModel',
        'ImageRestorationModel': 'hat_plugin.models.image_restoration_model:ImageRestorationModel',
        'RealHATMSEModel': 'hat_plugin.models.realhat_model:RealHATMSEModel',
        'RealHATGANModel': 'hat_plugin.models.realhat_model:RealHATGANModel',
    },
    'DATASET_REGISTRY': {
        'PairedCropDataset': 'hat_plugin.data.paired_crop_dataset:PairedCropDataset',
        'Dataset_PairedImage': 'hat_plugin.data.restormer_paired_dataset:Dataset_PairedImage',
        'ImageNetPairedDataset': 'hat_plugin.data.imagenet_paired_dataset:ImageNetPairedDataset',
        'FolderDataset': 'hat_plugin.data.folder_dataset:FolderDataset',
        'RealESRGANDataset': 'hat_plugin.data.realesrgan_dataset:RealESRGANDataset',
        'GaussianDenoisingDataset': 'hat_plugin.data.gaussian_denoising_dataset:GaussianDenoisingDataset',
        'Dataset_GaussianDenoising': 'hat_plugin.data.restormer_denoising_dataset:Dataset_GaussianDenoising',
        'JPEGDataset': 'hat_plugin.data.jpeg_dataset:JPEGDataset',
    },
    'LOSS_REGISTRY': {
        'PSNRLoss': 'hat_plugin.losses.psnr_loss:PSNRLoss',
        'SSIMLoss': 'hat_plugin.losses.ssim_loss:SSIMLoss',
        'MSSSIMLoss': 'hat_plugin.losses.ssim_loss:MSSSIMLoss',
        'FFTLoss': 'hat_plugin.losses.fft_loss:FFTLoss',
        'FocalFrequencyLoss': 'hat_plugin.losses.focal_frequency_loss:FocalFrequencyLoss',
        'EdgeLoss': 'hat_plugin.losses.edge_loss:EdgeLoss',
        'GradientWeightedLoss': 'hat_plugin.losses.gradient_weighted_loss:GradientWeightedLoss',
        'LPIPSLoss': 'hat_plugin.losses.lpips_loss:LPIPSLoss',
    },
    'METRIC_REGISTRY': {
        'calculate_ssim_3d': 'hat_plugin.metrics.ssim_3d:calculate_ssim_3d',
        'calculate_psnrb': 'hat_plugin.metrics.psnrb:calculate_psnrb',
        'calculate_lpips': 'hat_plugin.metrics.learned:calculate_lpips',
        'calculate_dists': 'hat_plugin.metrics.learned:calculate_dists',
        'calculate_niqe_pyiqa': 'hat_plugin.metrics.learned:calculate_niqe_pyiqa',
    },
}

_failure: Exception | None = None


@dataclass(frozen=True)
class Holder:
    """Who holds a name that this plugin wants.

    Attributes:
        registry: BasicSR's registry, ``ARCH_REGISTRY`` say.
        name: the name in option files.
        wanted: our object, as ``module:attribute``.
        held_by: the object under that name, as ``module:attribute``, or None where nobody holds it.
        file: the holder's source file, or None.
        ours: whether the holder is our object.
    """

    registry: str
    name: str
    wanted: str
    held_by: str | None
    file: str | None
    ours: bool


def register() -> None:
    """Make the names in `TABLES` known to BasicSR. Calling it again does nothing.

    All objects are resolved before the first is registered: if this raises, the registry is unchanged. A name that
    another package holds is left alone, with a RuntimeWarning that says who holds it.

    Raises:
        ImportError, RuntimeError, OSError, ...: whatever importing torch, torchvision, basicsr or one of our modules
            raises; `try_register` keeps it for `require_registered`.
    """
    global _failure
    compat.apply()
    registries = _registries()
    found = {(kind, name): _resolve(name, place) for kind, table in TABLES.items() for name, place in table.items()}
    for (kind, name), obj in found.items():
        held = _held(registries[kind], name)
        if held is None:
            registries[kind].register(obj)
        elif not _is_ours(held, TABLES[kind][name]):
            warnings.warn(
                f'{kind}: {name!r} is held by {_place(held)} ({_file(held)}); the {name} of hat_plugin is not '
                'registered. Import hat_plugin before the other package, or remove one of the two.',
                RuntimeWarning,
                stacklevel=2,
            )
    _failure = None


def try_register() -> None:
    """`register`, for the import of the package: a failure is kept and warned about, not raised.

    So ``import hat_plugin`` works where torch or basicsr does not, and ``basicsr doctor`` can say why.
    """
    global _failure
    try:
        register()
    except Exception as error:  # an import may raise anything; require_registered() raises it again
        _failure = error
        warnings.warn(
            f'hat_plugin could not register with BasicSR ({type(error).__name__}: {_first_line(error)}). '
            'Run `basicsr doctor` (or `python -m hat_plugin.cli doctor`) for the remedy.',
            RuntimeWarning,
            stacklevel=3,
        )


def require_registered() -> None:
    """Make sure that `register` succeeded.

    Raises:
        HatPluginError: if it did not; the cause is named and chained.
    """
    if _failure is not None:
        raise HatPluginError(
            f'BasicSR does not work here ({type(_failure).__name__}: {_first_line(_failure)}); '
            '`basicsr doctor` says what is wrong and what to do'
        ) from _failure


def failure() -> Exception | None:
    """What kept `try_register` from registering, or None."""
    return _failure


def holders() -> list[Holder]:
    """Each name of `TABLES` and who holds it now.

    Raises:
        ImportError, RuntimeError, ...: if basicsr cannot be imported.
    """
    registries = _registries()
    listed = []
    for registry, table in TABLES.items():
        for name, wanted in table.items():
            held = _held(registries[registry], name)
            if held is None:
                listed.append(Holder(registry, name, wanted, None, None, ours=False))
            else:
                listed.append(Holder(registry, name, wanted, _place(held), _file(held), _is_ours(held, wanted)))
    return listed


def _registries() -> dict[str, Any]:
    """BasicSR's registries by name. ``import basicsr`` fills them with BasicSR's own objects first."""
    importlib.import_module('basicsr')
    module = importlib.import_module('basicsr.utils.registry')
    return {name: getattr(module, name) for name in TABLES}


def _resolve(name: str, place: str) -> Any:
    module_name, attribute = place.split(':')
    obj = getattr(importlib.import_module(module_name), attribute)
    if obj.__name__ != name:
        raise HatPluginError(f'{place} is called {obj.__name__!r}, but stands as {name!r} in the tables')
    return obj


def _held(registry: Any, name: str) -> Any:
    """The object under exactly this name; BasicSR's get() would fall back to '<name>_basicsr'."""
    return registry.get(name) if name in registry else None


def _is_ours(held: Any, wanted: str) -> bool:
    return _place(held) == wanted


def _place(obj: Any) -> str:
    return f'{obj.__module__}:{obj.__qualname__}'


def _file(obj: Any) -> str | None:
    try:
        return inspect.getsourcefile(obj)
    except (TypeError, OSError):
        return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or 'no message').splitlines()[0]
