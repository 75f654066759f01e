"""From a ``datasets:`` block to a data set, by BasicSR's registry."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from hat_plugin.data.lmdb_meta import META_INFO, check_whole
from hat_plugin.errors import DataError, HatPluginError

# BasicSR's data sets that scan folders in the file system's own order, which is another one after a copy.
_UNSORTED = ('PairedImageDataset', 'RealESRGANPairedDataset')


def build_dataset(dataset_opt: Mapping[str, Any]) -> Any:
    """Build the data set that ``type`` names: this plugin's, BasicSR's or any other registered one.

    LMDBs that were cut short are refused whoever reads them, since they would kill the process without a message; so
    are those of raw pixels for BasicSR's own data sets, which decode PNGs.

    Args:
        dataset_opt: its block of the option file, with ``phase`` and ``scale`` filled in; it is not changed.

    Raises:
        DataError: nothing of this name is registered, an LMDB was cut short, the data set is empty or its own
            constructor failed; the message has the data set's name and type.
    """
    import basicsr.data  # noqa: F401  (registers BasicSR's own data sets)
    from basicsr.utils.registry import DATASET_REGISTRY

    kind = dataset_opt.get('type')
    place = f'data set {dataset_opt.get("name", "?")} ({kind})'
    registered = sorted(name for name, _ in DATASET_REGISTRY)
    if kind not in registered and f'{kind}_basicsr' not in registered:
        raise DataError(f'{place}: no such type; registered are {", ".join(registered)}')
    for key, root in dataset_opt.items():
        if key.startswith('dataroot') and isinstance(root, str) and Path(root, 'data.mdb').is_file():
            check_whole(root)
    check_readable(dataset_opt)
    try:
        dataset = DATASET_REGISTRY.get(kind)(deepcopy(dict(dataset_opt)))
    except HatPluginError as error:
        raise DataError(f'{place}: {error}') from error
    except KeyError as error:
        raise DataError(f'{place}: the option {error} is missing') from error
    except Exception as error:  # another's constructor may raise anything; its own words tell most
        raise DataError(f'{place}: {type(error).__name__}: {error}') from error
    if len(dataset) < 1:
        raise DataError(f'{place}: is empty; check dataroot_gt, dataroot_lq and meta_info_file')
    if type(dataset).__module__.startswith('basicsr.') and type(dataset).__name__ in _UNSORTED:
        dataset.paths.sort(key=lambda entry: entry['gt_path'])
    return dataset


def check_readable(dataset_opt: Mapping[str, Any]) -> None:
    """Refuse an LMDB of raw pixels (``basicsr prepare --raw``) where the data set is one of BasicSR's.

    Raises:
        DataError: it is one; the data set that reads it is named.
    """
    import basicsr.data  # noqa: F401
    from basicsr.utils.registry import DATASET_REGISTRY

    kind = str(dataset_opt.get('type'))
    held = {name: known for name, known in DATASET_REGISTRY}  # noqa: C416  (its keys() makes dict() take it for a mapping)
    if not getattr(held.get(kind) or held.get(f'{kind}_basicsr'), '__module__', '').startswith('basicsr.'):
        return
    for key, root in dataset_opt.items():
        if not key.startswith('dataroot') or not isinstance(root, str) or not Path(root, META_INFO).is_file():
            continue
        with Path(root, META_INFO).open(encoding='utf-8', errors='replace') as lines:
            if '.raw (' in next(lines, ''):
                raise DataError(
                    f'{root}: holds raw pixels, which {kind} cannot read; write type: PairedCropDataset, or prepare it'
                    ' anew without --raw'
                )
