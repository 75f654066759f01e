"""ImageNet for pre-training: a list of the pictures that can be used, and an LMDB if wanted.

`ImageNetPairedDataset` makes the low-resolution images while it reads, so that nothing else is needed.
"""

from __future__ import annotations

import argparse
import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hat_plugin.data.images import list_images
from hat_plugin.data.lmdb_io import LmdbWriter
from hat_plugin.engine.files import folder_lock, remove_leftovers
from hat_plugin.engine.workers import worker_pool
from hat_plugin.errors import DataError
from hat_plugin.prepare import layout
from hat_plugin.prepare.build import Report
from hat_plugin.prepare.examine import Journal, examine
from hat_plugin.prepare.manifest import (
    check_room,
    is_whole_lmdb,
    publish,
    read_manifest,
    recover,
    versions,
)
from hat_plugin.prepare.options import run_options
from hat_plugin.prepare.pixels import stamp
from hat_plugin.prepare.plan import Output, digest
from hat_plugin.prepare.verify import check_output

COUNT = 1_281_167
_LIST = Path(layout.IMAGENET_MAP).name
_LMDB = Path(layout.IMAGENET_LMDB).name
_JOURNAL = '.imagenet.journal'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `basicsr prepare imagenet`."""
    parser.add_argument('source', type=Path, help='the folder train/ with n01440764/n01440764_18.JPEG and so on')
    parser.add_argument('--lmdb', action='store_true', help='also pack the published JPEGs into one LMDB, unchanged')
    parser.add_argument('--allow-partial', action='store_true', help=f'go on with other than {COUNT} pictures')


def run(args: argparse.Namespace) -> list[Report]:
    """List (and pack) ImageNet. Unlike elsewhere bad pictures are left out unasked: the list is there for that."""
    names = list_images(args.source)
    if len(names) != COUNT and not args.allow_partial:
        raise DataError(
            f'{args.source}: {len(names)} pictures, published are {COUNT}; unpack it again, or go on with what is '
            f'there with --allow-partial'
        )
    folder = args.output / Path(layout.IMAGENET_MAP).parent.name
    with folder_lock(folder):
        recover(folder)
        remove_leftovers(folder)
        manifest = read_manifest(folder)
        stamps = {name: stamp(args.source / name) for name in names}
        job = _job(args, stamps)
        report = Report(folder, manifest=manifest)
        if args.overwrite:  # nothing that was found before is believed
            (folder / _JOURNAL).unlink(missing_ok=True)
            shutil.rmtree(folder / f'.{_LMDB}.part', ignore_errors=True)
        elif manifest.get('job') == job and _is_there(folder, args):
            report.found += list(manifest['outputs'])
            report.bad += manifest.get('bad', [])
            return [report]
        elif (folder / _LMDB).exists() and args.lmdb:
            raise DataError(
                f'{folder / _LMDB} is there already, made from other pictures (or copies of them), or damaged; remove '
                f'it, or replace it with --overwrite'
            )
        if args.lmdb and not args.no_room_check:
            check_room(folder, sum(size for _, size, _ in stamps.values()))
        _prepare(args, names, job, report)
    return [report]


def _is_there(folder: Path, args: argparse.Namespace) -> bool:
    return (folder / _LIST).is_file() and (not args.lmdb or is_whole_lmdb(folder / _LMDB))


def _job(args: argparse.Namespace, stamps: dict[str, tuple[str, int, int]]) -> str:
    return json.dumps({'source': str(args.source.resolve()), 'lmdb': args.lmdb, 'pictures': digest(stamps)})


def _prepare(args: argparse.Namespace, names: list[str], job: str, report: Report) -> None:
    folder = report.folder
    entries: dict[str, dict[str, Any]] = {}
    lines = []
    with worker_pool(args.workers) as mapper, ExitStack() as stack:
        writer = LmdbWriter(folder / _LMDB, compress_level=0, job=job, overwrite=True) if args.lmdb else None
        if writer is not None:
            stack.callback(writer.close)
        journal = stack.enter_context(Journal(folder / _JOURNAL, job))
        for found in examine(args.source, names, mapper, journal, writer):
            if found.error:
                report.bad.append(found.error)
            else:
                lines.append(f'{found.name} ({",".join(map(str, found.shape))})')
        if not lines:
            raise DataError(f'{args.source}: none of the {len(names)} pictures can be used; first: {report.bad[0]}')
        if writer is not None:
            checked = check_output(writer.seal(), Output(_LMDB, 1, 'lmdb'), mapper)
            entries[_LMDB] = {'bytes': checked.bytes, 'content_sha256': checked.content}
    entries[_LIST] = {'bytes': sum(len(line) + 1 for line in lines)}
    _finish(args, lines, entries, job, report)
    (folder / _JOURNAL).unlink(missing_ok=True)


def _finish(
    args: argparse.Namespace, lines: list[str], entries: dict[str, dict[str, Any]], job: str, report: Report
) -> None:
    for entry in entries.values():
        entry.update(count=len(lines), kernel='')
    report.manifest = {
        'name': 'ImageNet',
        'source': {'hr': str(args.source)},
        'job': job,
        'arguments': list(run_options(args).arguments),
        'versions': versions(),
        'bad': report.bad,
        'outputs': entries,
    }
    text = ''.join(f'{line}\n' for line in lines)
    publish(report.folder, report.manifest, [name for name in entries if name != _LIST], {_LIST: text})
    report.made += list(entries)
