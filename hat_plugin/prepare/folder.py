"""Any folder of pictures as a training set of one's own."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from hat_plugin.data.images import check_folder
from hat_plugin.errors import DataError
from hat_plugin.prepare.build import Report
from hat_plugin.prepare.options import add_training_arguments, build_training_set
from hat_plugin.prepare.sources import plain_pictures, read_list


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `basicsr prepare folder`."""
    parser.add_argument('source', type=Path, help='folder of high-resolution pictures; subfolders are searched')
    parser.add_argument('--name', help="the data set's name (the folder's)")
    parser.add_argument('--list', type=Path, metavar='FILE', help='take only what this meta_info file names')
    add_training_arguments(parser, lr='bicubic')


def run(args: argparse.Namespace) -> list[Report]:
    """Prepare a folder."""
    check_folder(args.source)
    name = set_name(args.name or args.source.resolve().name)
    target = (args.output / name).resolve()
    if target.is_relative_to(args.source.resolve()):
        raise DataError(
            f'{args.source}: the prepared data would lie among the pictures ({target}) and be taken for some of them '
            f'the next time; move the pictures into a subfolder, or choose another -o or --name'
        )
    if args.lr == 'published':
        raise DataError('prepare folder: there are no published low-resolution files of a folder; use --lr bicubic')
    names = read_list(args.list, args.source) if args.list else None
    pictures, renamed = plain_pictures(args.source, names)
    source = {'hr': str(args.source), **({'list': str(args.list)} if args.list else {}), 'renamed': renamed}
    return [build_training_set(name, pictures, source, args)]


def set_name(name: str) -> str:
    """A data set's name, which becomes a folder's.

    Raises:
        DataError: it is not one plain word.
    """
    if not re.fullmatch(r'[A-Za-z0-9_][A-Za-z0-9_\-]*', name):
        raise DataError(f'{name!r} cannot name a data set: letters, digits, _ and - only; give another with --name')
    return name
