"""Test sets: ground truth cropped to the scale, low-resolution images, and the bicubic figures to compare with."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hat_plugin.engine.files import folder_lock
from hat_plugin.errors import DataError
from hat_plugin.prepare import layout
from hat_plugin.prepare.benchmark_sources import SETS, benchmark_pictures, find_sets
from hat_plugin.prepare.build import Report, build
from hat_plugin.prepare.folder import set_name
from hat_plugin.prepare.manifest import read_manifest, write_manifest
from hat_plugin.prepare.options import add_picture_arguments, run_options
from hat_plugin.prepare.plan import Cut, Output, Plan, lr_kernel
from hat_plugin.prepare.scoring import PROTOCOL, bicubic_scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `basicsr prepare benchmark`."""
    parser.add_argument('source', type=Path, help='folder in which Set5, Set14 ... lie, or one such folder')
    parser.add_argument('--sets', nargs='+', metavar='SET', help=f'which of them (all found of {", ".join(SETS)})')
    parser.add_argument('--name', help="the set's name, where the source is one folder of pictures")
    parser.add_argument('--allow-partial', action='store_true', help='go on with other than the published counts')
    add_picture_arguments(parser, lr='bicubic')


def run(args: argparse.Namespace) -> list[Report]:
    """Prepare test sets, one after the other."""
    if args.name and args.sets:
        raise DataError('prepare benchmark: --name is for a source that is one set, --sets for one of several')
    return [_prepare(name, folder, args) for name, folder in find_sets(args.source, args.sets, args.name).items()]


def table(reports: list[Report]) -> list[str]:
    """The bicubic figures of the prepared sets, as a Markdown table with its protocol."""
    lines = [f'Bicubic, {PROTOCOL}:', '', '| set | images | scale | PSNR | SSIM |', '| --- | --- | --- | --- | --- |']
    for report in reports:
        for scale, score in report.manifest.get('bicubic', {}).items():
            figures = f'{score["psnr"]:.2f} | {score["ssim"]:.4f}'
            lines.append(f'| {report.manifest["name"]} | {score["count"]} | x{scale} | {figures} |')
    return lines


def _prepare(name: str, folder: Path, args: argparse.Namespace) -> Report:
    target = args.output / layout.BENCHMARKS.get(name, set_name(name))
    total = Report(target)
    for scale in sorted(set(args.scale)):
        pictures, source = benchmark_pictures(
            name, folder, scale, lr=args.lr, count=0 if args.allow_partial else SETS.get(name, 0)
        )
        published = any(scale in picture.lr for picture in pictures)
        outputs = (
            Output(layout.benchmark_gt_name(scale), 1, 'disk', args.compress_level),
            Output(layout.benchmark_lr_name(scale), scale, 'disk', args.compress_level, 'lq'),
        )
        cut = Cut(scale, drop_alpha=args.drop_alpha)
        plan = Plan(name, target, tuple(pictures), cut, outputs, {scale: lr_kernel(published)}, source)
        report = build(plan, run_options(args))
        _score(target, scale, args.workers, fresh=bool(report.made))
        for field in ('made', 'found', 'left_out', 'bad'):
            said = getattr(total, field)
            said.extend(line for line in getattr(report, field) if line not in said)
    total.manifest = read_manifest(target)
    scores = total.manifest.get('bicubic', {})
    total.manifest['bicubic'] = {str(scale): scores[str(scale)] for scale in sorted(set(args.scale))}
    return total


def _score(folder: Path, scale: int, workers: int, *, fresh: bool) -> None:
    """Measure bicubic on a prepared set and note it in the manifest, unless it stands there already."""
    manifest = read_manifest(folder)
    scores: dict[str, Any] = manifest.setdefault('bicubic', {})
    if str(scale) in scores and not fresh:
        return
    gt, lr = (folder / name for name in (layout.benchmark_gt_name(scale), layout.benchmark_lr_name(scale)))
    scores[str(scale)] = {**bicubic_scores(gt, lr, scale, workers), 'protocol': PROTOCOL}
    with folder_lock(folder):
        write_manifest(folder, manifest)
