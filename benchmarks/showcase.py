"""A trained network beside its input and OpenCV's non-local means: a table, and a picture of some of the test's parts.

    python -m benchmarks.showcase -opt options/test_HATUNet-light_PolyU.yml -o docs/polyu.png --log TRAINING.log

Figures are means over all pictures of the file's test sets, by the file's own metrics. Non-local means gets the
strength that suits the test set best: it is chosen by looking at the truth, which the network was not given.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from basicsr.models import build_model
from basicsr.utils import img2tensor
from torch import Tensor

from benchmarks import curves
from hat_plugin.compare import panels
from hat_plugin.compare.text import markdown_table
from hat_plugin.data.build import build_dataset
from hat_plugin.data.loader import build_val_loader
from hat_plugin.data.names import picture_name
from hat_plugin.engine.options import load_options
from hat_plugin.engine.progress import progress
from hat_plugin.errors import HatPluginError
from hat_plugin.models.validation import as_picture, describe_metric, measure_all

INPUT, NETWORK, TRUTH = 'input', 'network', 'truth'
WINDOWS = (7, 21)  # sides of the patch and of the search of non-local means, as OpenCV's documentation recommends


@dataclass
class Findings:
    """What was measured on all pictures.

    Attributes:
        scores: (data set, who) -> metric -> its values, picture by picture.
        shown: name of a picture of the first data set -> who -> the picture, (H, W, 3), RGB, uint8.
    """

    scores: dict[tuple[str, str], dict[str, list[float]]] = field(default_factory=dict)
    shown: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def mean(self, data: str, who: str, metric: str) -> float:
        """Over the pictures of a data set."""
        return float(np.mean(self.scores[data, who][metric]))


def main(argv: list[str] | None = None) -> None:
    """Measure, print, draw."""
    args = arguments().parse_args(argv)
    opt = load_options(args.opt, root_path=Path.cwd(), is_train=False, force_yml=args.force_yml)
    if opt['scale'] != 1 or not all(options.get('dataroot_gt') for options in opt['datasets'].values()):
        raise HatPluginError(f'{args.opt}: input, output and truth are compared pixel by pixel; take a file of scale 1')
    findings = measured(opt, args.strengths)
    if unknown := set(args.pictures) - set(findings.shown):
        raise HatPluginError(f'--pictures {", ".join(unknown)}: not among {", ".join(findings.shown)}')
    metrics = opt['val']['metrics']
    print(table(findings, metrics))
    print('\n'.join(f'{name}: {describe_metric(each, opt["val"])}' for name, each in metrics.items()))
    panels.draw(args.output, args.title, strips(findings, args.pictures, tuple(args.place), next(iter(metrics))))
    if args.log is not None:
        curve = curves.read(args.log)
        curve.psnr += checkpoints(opt, args.checkpoints)
        curves.draw(args.output.with_stem(f'{args.output.stem}_curve'), args.title, curve)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.showcase', description=__doc__)
    add = parser.add_argument
    add('-opt', required=True, type=Path, help='a test file of a network at the size of its input')
    add('--force_yml', nargs='+', default=[], help='changes of the file, as basicsr test takes them')
    add(
        '--strengths',
        nargs='*',
        type=float,
        default=[3, 5, 7, 10, 15, 20, 25, 30],
        help='of non-local means; none: without it',
    )
    add('-o', '--output', type=Path, required=True, help='the PNG with parts of the pictures; NAME_curve.png beside it')
    add('--log', type=Path, help='log of the training, for its curve')
    add(
        '--checkpoints',
        nargs='+',
        type=int,
        default=[],
        help='iterations whose weights are measured for the curve, too',
    )
    add('--title', default='', help='above the picture')
    add('--pictures', nargs='+', default=[], help='names of those to show (the first three)')
    add('--place', nargs=2, type=int, default=(200, 200), metavar=('TOP', 'LEFT'), help='of the parts that are shown')
    return parser


def measured(opt: dict[str, Any], strengths: list[float]) -> Findings:
    """Restore every picture by everybody."""
    model, findings = build_model(opt), Findings()
    for number, options in enumerate(opt['datasets'].values()):
        loader = build_val_loader(build_dataset(options), options, rank=0, world_size=1)
        for data in progress(loader, description=options['name']):
            model.feed_data(data)
            model.test()
            pictures = {INPUT: data['lq'], **non_local_means(data['lq'], strengths), NETWORK: model.output}
            if number == 0:
                name = picture_name(data['lq_path'][0], options)
                findings.shown[name] = {who: panels.rgb(each) for who, each in {**pictures, TRUTH: data['gt']}.items()}
            for who, each in pictures.items():
                values = findings.scores.setdefault((options['name'], who), {})
                for metric, value in measure_all(each, data['gt'], opt['val']).items():
                    values.setdefault(metric, []).append(value)
    return findings


def checkpoints(opt: dict[str, Any], iterations: list[int]) -> list[tuple[int, float]]:
    """(Iteration, PSNR) of weights that lie beside those of the file, net_g_500.pth say, over all its test sets."""
    points = []
    for iteration in iterations:
        weights = Path(opt['path']['pretrain_network_g']).with_name(f'net_g_{iteration}.pth')
        found = measured({**opt, 'path': {**opt['path'], 'pretrain_network_g': str(weights)}}, [])
        psnr = next(iter(opt['val']['metrics']))
        values = [value for (_, who), rows in found.scores.items() if who == NETWORK for value in rows[psnr]]
        points.append((iteration, float(np.mean(values))))
    return points


def non_local_means(lq: Tensor, strengths: list[float]) -> dict[str, Tensor]:
    """OpenCV's filter of each strength, for 8 bits, with the same strength for colour as for brightness."""
    image = as_picture(lq, use_image=True)
    found = {}
    for strength in strengths:
        if image.ndim == 2:
            filtered = cv2.fastNlMeansDenoising(image, None, strength, *WINDOWS)[..., None]
        else:
            filtered = cv2.fastNlMeansDenoisingColored(image, None, strength, strength, *WINDOWS)
        tensor = img2tensor(filtered.astype(np.float32) / 255, bgr2rgb=True, float32=True)
        assert isinstance(tensor, Tensor)
        found[f'non-local means, h = {strength:g}'] = tensor[None]
    return found


def contenders(findings: Findings, data: str, metric: str) -> list[str]:
    """Input, the strength of non-local means that suits the data set best, network."""
    filters = [who for name, who in findings.scores if name == data and who not in (INPUT, NETWORK)]
    best = max(filters, key=lambda who: findings.mean(data, who, metric), default=None)
    return [INPUT, *([best] if best else []), NETWORK]


def table(findings: Findings, metrics: dict[str, Any]) -> str:
    """A row for each data set and contender."""
    rows = [
        [data, who, *(f'{findings.mean(data, who, metric):.4f}' for metric in metrics)]
        for data in dict.fromkeys(data for data, _ in findings.scores)
        for who in contenders(findings, data, next(iter(metrics)))
    ]
    return markdown_table(['data set', '', *metrics], rows)


def strips(findings: Findings, names: list[str], place: tuple[int, int], metric: str) -> list[list[panels.Panel]]:
    """A row for each picture: the whole, and one part of it by everybody."""
    data = next(iter(findings.scores))[0]
    order = list(findings.shown)
    rows = []
    for name in names or order[:3]:
        shown = findings.shown[name]
        top, left = panels.corner(shown[TRUTH], *place, 1)
        row = [panels.Panel(Path(name).name, '', panels.overview(shown[TRUTH], top, left))]
        for who in [*contenders(findings, data, metric), TRUTH]:
            value = findings.scores[data, who][metric][order.index(name)] if who != TRUTH else None
            note = '' if value is None else f'{value:.2f} dB'
            row.append(panels.Panel(who, note, panels.crop(shown[who], top, left)))
        rows.append(row)
    return rows


if __name__ == '__main__':
    try:
        main()
    except HatPluginError as error:
        sys.exit(f'showcase: {error}')
