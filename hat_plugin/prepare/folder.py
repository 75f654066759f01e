"""Any folder of pictures as a training set of one's own."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from hat_plugin.data.images import check_folder
from hat_plugin.errors import DataError
from hat_plugin.prepare.build import Report
from hat_plugin.prepare.options import add_training_arguments, build_training_set
from hat_plugin.prepare.plan import Picture
from hat_plugin.prepare.sources import check_not_among, plain_pictures, read_list


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `basicsr prepare folder`."""
    parser.add_argument('source', type=Path, help='folder of high-resolution pictures; subfolders are searched')
    parser.add_argument('--name', help="the data set's name (the folder's)")
    parser.add_argument('--list', type=Path, metavar='FILE', help='take only what this meta_info file names')
    add_training_arguments(parser, lr='bicubic', alone=True)


def run(args: argparse.Namespace) -> list[Report]:
    """Prepare a folder."""
    check_folder(args.source)
    name = set_name(args.name or args.source.resolve().name)
    check_not_among(args.source, args.output / name)
    if args.lr == 'published':
        raise DataError('prepare folder: there are no published low-resolution files of a folder; use --lr bicubic')
    names = read_list(args.list, args.source) if args.list else None
    found, renamed = plain_pictures(args.source, names)
    pictures = [Picture(stem, path) for stem, path in found.items()]
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
