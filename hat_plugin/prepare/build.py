"""The one way from a plan to prepared data, for all data sets."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hat_plugin.data.lmdb_writer import LmdbWriter
from hat_plugin.engine.files import folder_lock, remove_leftovers
from hat_plugin.engine.progress import progress
from hat_plugin.engine.workers import Mapper, worker_pool
from hat_plugin.errors import DataError
from hat_plugin.prepare.cutting import CutResult, cut_picture, first_key
from hat_plugin.prepare.folder_writer import FolderWriter
from hat_plugin.prepare.manifest import (
    check_room,
    is_current,
    publish,
    read_manifest,
    recover,
    versions,
)
from hat_plugin.prepare.plan import Output, Plan, digest
from hat_plugin.prepare.preflight import bytes_needed, check_sizes, check_sources_stay
from hat_plugin.prepare.verify import Checked, check_output

Writer = LmdbWriter | FolderWriter


@dataclass(frozen=True)
class RunOptions:
    """How the work is done; nothing here changes what is written.

    Attributes:
        workers: processes.
        overwrite: replace outputs that are there, however they were made.
        skip_bad: leave out pictures that cannot be used, instead of refusing.
        room_check: estimate the space needed before beginning.
        arguments: the command, for the manifest.
    """

    workers: int = 1
    overwrite: bool = False
    skip_bad: bool = False
    room_check: bool = True
    arguments: tuple[str, ...] = ()


@dataclass
class Report:
    """What was done: output names made and found made, pictures that were left out (too small) or bad."""

    folder: Path
    made: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)


def build(plan: Plan, options: RunOptions) -> Report:
    """Prepare a data set: cut, write aside, verify, rename, note in the manifest.

    Outputs that are there already and were made from the same pictures in the same way are left alone, unless they are
    to be overwritten. What a killed run left beside is gone on with; of it, pictures that have changed are done again.

    Raises:
        DataError: an output of another origin is in the way; pictures are bad (the others are done and kept beside);
            the disk does not hold it; another run is at work in the folder.
    """
    if not plan.pictures:
        raise DataError(f'{plan.name}: there are no pictures to prepare')
    with folder_lock(plan.folder), ExitStack() as stack:
        recover(plan.folder)
        remove_leftovers(plan.folder)
        manifest = read_manifest(plan.folder)
        sources = {output.name: plan.sources(output) for output in plan.outputs}
        jobs = {output.name: f'{plan.settings(output)} {digest(sources[output.name])}' for output in plan.outputs}
        report = Report(plan.folder, manifest=manifest)
        wanted = _wanted(plan, jobs, manifest, options, report)
        if not wanted:
            report.left_out += manifest.get('left_out', [])
            report.bad += manifest.get('bad', [])
            return report
        check_sources_stay(plan, wanted)
        sizes = check_sizes(plan, wanted, skip_bad=options.skip_bad)
        if options.room_check:
            check_room(plan.folder, bytes_needed(plan, wanted, sizes))
        mapper = stack.enter_context(worker_pool(options.workers))
        writers = {output.name: _writer(plan, output, sources[output.name]) for output in wanted}
        for writer in writers.values():
            stack.callback(writer.close)
        _cut_all(plan, wanted, writers, sources, mapper, report)
        if report.bad and not options.skip_bad:
            raise DataError(_bad_pictures(report.bad, len(plan.pictures)))
        checked = {output.name: check_output(writers[output.name].seal(), output, mapper) for output in wanted}
        _finish(plan, wanted, jobs, checked, options, report)
    return report


def _wanted(
    plan: Plan, jobs: dict[str, str], manifest: dict[str, Any], options: RunOptions, report: Report
) -> tuple[Output, ...]:
    wanted, in_the_way = [], []
    for output in plan.outputs:
        if not options.overwrite and is_current(plan.folder, manifest, output.name, jobs[output.name]):
            report.found.append(output.name)
        else:
            wanted.append(output)
            if (plan.folder / output.name).exists() and not options.overwrite:
                in_the_way.append(output.name)
    if in_the_way:
        raise DataError(
            f'{plan.folder}: already there: {", ".join(in_the_way)}; made from other pictures (or copies of them) or '
            f'in another way, or damaged. Remove it, or replace it with --overwrite'
        )
    return tuple(wanted)


def _writer(plan: Plan, output: Output, sources: dict[str, str]) -> Writer:
    # What is under the name was looked at before: what may be overwritten here, may.
    path, job, known = plan.folder / output.name, plan.settings(output), set(sources.values())
    if output.storage == 'disk':
        return FolderWriter(path, job=job, sources=known, overwrite=True)
    level = output.compress_level
    return LmdbWriter(path, output.kind, compress_level=level, job=job, sources=known, overwrite=True)


def _cut_all(
    plan: Plan,
    wanted: tuple[Output, ...],
    writers: dict[str, Writer],
    sources: dict[str, dict[str, str]],
    mapper: Mapper,
    report: Report,
) -> None:
    done = {name: writer.done for name, writer in writers.items()}
    tasks = []
    for picture in plan.pictures:
        key = first_key(picture.stem, plan.cut)
        missing = tuple(output for output in wanted if key not in done[output.name])
        if missing:
            tasks.append((picture, plan.cut, missing))
    finished = len(plan.pictures) - len(tasks)
    with progress(total=len(plan.pictures), initial=finished, description=plan.name, unit='picture') as bar:
        result: CutResult
        for (picture, _, _), result in zip(tasks, mapper(cut_picture, tasks), strict=True):
            for name, images in result.images.items():
                writers[name].put_all(images, sources[name][picture.stem])
            report.left_out += [result.left_out] if result.left_out else []
            report.bad += [result.error] if result.error else []
            bar.update()
    for writer in writers.values():
        if isinstance(writer, LmdbWriter):
            writer.commit()
    if not any(writer.done for writer in writers.values()):
        fault = next(iter([*report.bad, *report.left_out]), '')
        raise DataError(f'{plan.name}: none of the {len(plan.pictures)} pictures can be used; the first: {fault}')


def _bad_pictures(bad: list[str], total: int) -> str:
    shown = [*bad[:20], *([f'... and {len(bad) - 20} more'] if len(bad) > 20 else [])]
    lines = '\n'.join(f'  - {line}' for line in shown)
    return (
        f'{len(bad)} of {total} pictures are bad; the others are done and kept. Replace the bad ones and run the same '
        f'again, or leave them out with --skip-bad:\n{lines}'
    )


def _finish(
    plan: Plan,
    wanted: tuple[Output, ...],
    jobs: dict[str, str],
    checked: dict[str, Checked],
    options: RunOptions,
    report: Report,
) -> None:
    entries = {output.name: _entry(plan, output, jobs[output.name], checked[output.name]) for output in wanted}
    kept = {name: report.manifest['outputs'][name] for name in report.found}
    for (first, one), (second, other) in itertools.pairwise({**kept, **entries}.items()):
        if one['layout_sha256'] != other['layout_sha256']:
            raise DataError(
                f'{plan.folder}: {first} and {second} do not hold the same images in matching sizes; prepare both '
                f'again with --overwrite'
            )
    others = {name: entry for name, entry in report.manifest['outputs'].items() if name not in entries}
    report.manifest = {
        **report.manifest,
        'name': plan.name,
        'source': plan.source,
        'arguments': list(options.arguments),
        'versions': versions(),
        'left_out': report.left_out,
        'bad': report.bad,
        'outputs': {**others, **entries},
    }
    publish(plan.folder, report.manifest, list(entries), _lists(plan, wanted, checked))
    report.made += list(entries)


def _entry(plan: Plan, output: Output, job: str, checked: Checked) -> dict[str, Any]:
    sides = list(checked.shapes.values())
    return {
        'count': len(sides),
        'pictures': len(plan.pictures),
        'bytes': checked.bytes,
        'scale': output.scale,
        'storage': output.storage,
        'kernel': plan.origin(output),
        'mod_crop': plan.cut.modulus,
        'sub_image': {'size': plan.cut.size, 'step': plan.cut.step} if plan.cut.size else None,
        'smallest': [min(side[axis] for side in sides) for axis in (0, 1)],
        'largest': [max(side[axis] for side in sides) for axis in (0, 1)],
        'channels': sorted({side[2] for side in sides}),
        'dtypes': checked.dtypes,
        'content_sha256': checked.content,
        'layout_sha256': checked.layout,
        'job': job,
    }


def _lists(plan: Plan, wanted: tuple[Output, ...], checked: dict[str, Checked]) -> dict[str, str]:
    """The meta_info file beside the outputs, where the plan has one: `0001_s001.png (480,480,3)` a line."""
    for output in wanted:
        if output.role == 'gt' and plan.list_name:
            shapes = checked[output.name].shapes.items()
            return {plan.list_name: ''.join(f'{key}.png ({h},{w},{c})\n' for key, (h, w, c) in shapes)}
    return {}
