"""The figures of each network on each test set, picture by picture; what was measured before is not measured again.

Restoring and measuring are `validation`'s, so that figures are those of ``basicsr test``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.utils import get_root_logger, imwrite
from torch import Tensor

from hat_plugin import __version__
from hat_plugin.compare.protocol import Comparison, terms
from hat_plugin.data.bicubic import imresize
from hat_plugin.data.names import picture_name
from hat_plugin.engine import distributed
from hat_plugin.engine.checkpoint import load_into, load_weights
from hat_plugin.engine.distributed import World
from hat_plugin.engine.files import write_text_atomic
from hat_plugin.engine.networks import build
from hat_plugin.engine.options import Options
from hat_plugin.engine.progress import progress
from hat_plugin.errors import DataError
from hat_plugin.models.validation import as_picture, check_sizes, measure_all
from hat_plugin.train import note_world

PICTURES, SCORES = 'pictures', 'scores'
TRUTH = 'truth'
ALONE = World()


@dataclass(frozen=True)
class Scores:
    """A network's figures on a test set.

    Attributes:
        pictures: name of a picture -> metric -> value, in the set's order.
        tiled: how many of them were restored in tiles.
        repeats: those of the same network trained from other seeds.
    """

    pictures: dict[str, dict[str, float]]
    tiled: int = 0
    repeats: tuple[Scores, ...] = ()

    def values(self, metric: str) -> np.ndarray:
        """One metric of all pictures that have it, (N,); of several seeds the mean."""
        own = np.array([row[metric] for row in self.pictures.values() if metric in row])
        return np.mean([own, *(each.values(metric) for each in self.repeats)], 0) if self.repeats else own

    def by_seed(self, metric: str) -> list[float]:
        """The mean over the pictures for each seed, its own first."""
        alone = replace(self, repeats=())
        return [each.mean(metric) for each in (alone, *self.repeats)]

    def mean(self, metric: str) -> float:
        """Over the pictures; not a number where none has the metric."""
        values = self.values(metric)
        return float(values.mean()) if values.size else float('nan')


Findings = dict[str, dict[str, Scores]]
"""Test set -> who -> figures; the first is what no network made: the input, enlarged where the task is to enlarge."""


def scale_of(opt: Options) -> int:
    """How many times a comparison's networks enlarge."""
    return int(opt.get('scale') or 1)


def baseline(scale: int) -> str:
    """What the input itself is called, beside the networks: bicubic where they enlarge it, else input."""
    return 'bicubic' if scale > 1 else 'input'


def find_picture(findings: Findings, name: str, flag: str) -> tuple[str, str]:
    """The test set and the name in it of a picture that the user named, with the set's name before it or without.

    Args:
        findings: of `measure_inputs`.
        name: ``img_001``, or ``Set5/img_001`` where several sets have one.
        flag: that it was given with, for errors.

    Raises:
        DataError: no set has it, or several have.
    """
    pairs = [
        (dataset, picture) for dataset, scores in findings.items() for picture in next(iter(scores.values())).pictures
    ]
    found = [pair for pair in pairs if name in (pair[1], '/'.join(pair))]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f'{flag} {name}: {len(found)} sets have one; write {" or ".join(map("/".join, found))}')
    known = list(map('/'.join, pairs))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
    raise DataError(f'{flag} {name}: no such picture among {len(known)}; there are {", ".join(near)} ...')


def picture_file(folder: Path, dataset: str, picture: str, who: str) -> Path:
    """Where a picture of the comparison lies, 8 bits."""
    return folder / PICTURES / dataset / f'{picture}_{who}.png'


def check_weights(comparison: Comparison) -> None:
    """Refuse weights that cannot be read or do not fit their networks, before hours are spent on the others.

    Raises:
        CheckpointError: of the first such file.
    """
    for contender in comparison.runs:
        path = contender.test['path']
        weights = load_weights(contender.weights, path.get('param_key_g', 'params'))
        net = build(contender.test['network_g']).to_empty(device='cpu')
        load_into(net, weights, strict=path.get('strict_load_g', True))


def measure_inputs(comparison: Comparison, folder: Path) -> Findings:
    """Measure what the inputs of every test set reach without a network, and put them and the truths into the folder.

    Args:
        comparison: read and checked.
        folder: for pictures and figures; both are kept, and taken up by the next run of the same comparison.

    Raises:
        HatPluginError: data are bad.
    """
    findings: Findings = {}
    first = comparison.prepared(comparison.contenders[0])
    for name, options in _sets(first).items():
        who = baseline(scale_of(first))
        kept = Kept(folder, name, who, [terms(first), data_state(options)])
        findings[name] = {who: kept.read() or kept.write(_of_the_input(pictures_of(options), first, folder))}
    return findings


def measure_networks(comparison: Comparison, folder: Path, world: World, findings: Findings) -> Findings:
    """Measure every network on every test set; several ranks share the pictures, and each calls this.

    Args:
        comparison, folder: as for `measure_inputs`.
        world: of this process.
        findings: of `measure_inputs`.

    Returns:
        The same with the networks.

    Raises:
        HatPluginError: data or weights are bad.
    """
    from basicsr.models import build_model

    found = {name: dict(scores) for name, scores in findings.items()}
    sets = _sets(comparison.prepared(comparison.contenders[0]))
    data = {name: data_state(options) for name, options in sets.items()}
    for number, contender in enumerate(comparison.runs, 1):
        opt = comparison.prepared(contender)
        note_world(opt, world)
        opt['path']['visualization'] = str(folder / PICTURES)
        opt['val'].update(suffix=contender.label, pbar=True)
        network = [opt['model_type'], opt['network_g'], contender.test['path'], file_hash(contender.weights)]
        model: Any = None
        for name, options in sets.items():
            kept = Kept(folder, name, contender.label, [terms(opt), *network, data[name]])
            scores = distributed.from_main(kept.read())
            if scores is None:
                model = model or build_model(opt)
                get_root_logger().info(f'[{number}/{len(comparison.runs)}] {contender.label} on {name}')
                loader = pictures_of(options, world)
                model.validation(loader, opt['name'], None, save_img=True)
                scores = Scores(dict(model.image_results), model.tiled_images)
                if world.is_main:
                    kept.write(scores)
            found[name][contender.label] = scores
    return {name: _with_repeats(comparison, scores) for name, scores in found.items()}


def _with_repeats(comparison: Comparison, scores: dict[str, Scores]) -> dict[str, Scores]:
    """A test set's figures, those of repeats with their networks'."""
    repeats = {each.label for contender in comparison.contenders for each in contender.repeats}
    kept = {who: found for who, found in scores.items() if who not in repeats}
    for contender in comparison.contenders:
        others = tuple(scores[each.label] for each in contender.repeats)
        kept[contender.label] = replace(kept[contender.label], repeats=others)
    return kept


def _sets(opt: Options) -> dict[str, Options]:
    """Name -> options of every test set, in the order of `basicsr test`."""
    return {str(options['name']): options for _, options in sorted(opt['datasets'].items())}


def pictures_of(options: Options, world: World = ALONE) -> Any:
    """A test set's pictures one by one, as validation reads them; of several ranks this one's part."""
    from hat_plugin.data.build import build_dataset
    from hat_plugin.data.loader import build_val_loader

    return build_val_loader(build_dataset(options), options, rank=world.rank, world_size=world.size)


def _of_the_input(loader: Any, opt: Options, folder: Path) -> Scores:
    """What the input reaches by itself, and the truth beside it."""
    rows: dict[str, dict[str, float]] = {}
    name, scale = str(loader.dataset.opt['name']), scale_of(opt)
    for batch in progress(loader, description=f'{name}, {baseline(scale)}'):
        picture = picture_name(batch['lq_path'][0], loader.dataset.opt)
        enlarged, truth = enlarge(batch['lq'], scale), batch.get('gt')
        if truth is not None:
            check_sizes(enlarged, truth, f'{name}/{picture}', scale)
        pairs = {TRUTH: truth, baseline(scale): enlarged}
        for who, tensor in pairs.items():
            if tensor is not None:
                imwrite(as_picture(tensor, use_image=True), str(picture_file(folder, name, picture, who)))
        rows[picture] = measure_all(enlarged, truth, opt['val'])
    return Scores(rows)


def enlarge(lq: Tensor, scale: int) -> Tensor:
    """(1, C, H, W) by MATLAB's bicubic to (1, C, H * scale, W * scale)."""
    if scale == 1:
        return lq
    image = lq[0].permute(1, 2, 0).double().numpy()
    return torch.from_numpy(imresize(image, scale)).permute(2, 0, 1)[None].float()


# -- what was measured before ----------------------------------------------------------------------------------------


class Kept:
    """Figures on the disk, good as long as what they were taken of is the same.

    Args:
        folder: the comparison's.
        dataset, who: what they are of.
        identity: all that they depend on, of JSON's types.
    """

    def __init__(self, folder: Path, dataset: str, who: str, identity: list[Any]) -> None:
        self.path = folder / SCORES / f'{dataset}_{who}.json'
        text = json.dumps([__version__, *identity], sort_keys=True, default=str)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self._picture = partial(picture_file, folder, dataset, who=who)

    def read(self) -> Scores | None:
        """The figures; None where there are none, they are of something else, or pictures are gone."""
        try:
            content = json.loads(self.path.read_text(encoding='utf-8'))
            scores = Scores(content['pictures'], content['tiled'])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        same = content.get('fingerprint') == self.fingerprint
        there = all(self._picture(name).is_file() for name in scores.pictures)
        return scores if same and there else None

    def write(self, scores: Scores) -> Scores:
        """Keep them."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {'fingerprint': self.fingerprint, 'pictures': scores.pictures, 'tiled': scores.tiled}
        write_text_atomic(self.path, json.dumps(content, indent=1) + '\n')
        return scores


def data_state(options: Options) -> list[Any]:
    """A test set's options, and name, size and time of all its files."""
    files = []
    for root in (value for key, value in sorted(options.items()) if key.startswith(('dataroot', 'meta_info'))):
        for path in [root] if isinstance(root, str) else root or []:
            files += sorted(_stamps(path))
    return [{key: value for key, value in options.items() if key != 'phase'}, files]


def _stamps(path: str) -> Iterator[tuple[str, int, int]]:
    if os.path.isfile(path):
        yield path, os.path.getsize(path), os.stat(path).st_mtime_ns
    for folder, _, names in os.walk(path):
        for name in names:
            if name != 'lock.mdb':  # readers write to it
                state = os.stat(os.path.join(folder, name))
                yield os.path.join(folder, name), state.st_size, state.st_mtime_ns


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, 'rb') as handle:
        for block in iter(lambda: handle.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()
