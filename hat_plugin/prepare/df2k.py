"""DF2K: DIV2K and Flickr2K as one training set, as SwinIR and HAT are trained on."""

from __future__ import annotations

import argparse
from pathlib import Path

from hat_plugin.errors import DataError
from hat_plugin.prepare import div2k, flickr2k
from hat_plugin.prepare.build import Report
from hat_plugin.prepare.options import add_training_arguments, build_training_set


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `basicsr prepare df2k`."""
    parser.add_argument(
        'source', type=Path, nargs='+', help='one or more folders in which DIV2K_train_HR and Flickr2K_HR lie'
    )
    parser.add_argument('--allow-partial', action='store_true', help='go on with other than 800 + 2650 pictures')
    add_training_arguments(parser)


def run(args: argparse.Namespace) -> list[Report]:
    """Prepare DF2K."""
    parts = [div2k.find(args), flickr2k.find(args)]
    for scale in sorted(set(args.scale)):
        published = {any(scale in picture.lr for picture in pictures) for pictures, _ in parts}
        if len(published) > 1:
            raise DataError(
                f'DF2K: published x{scale} files are there for one of DIV2K and Flickr2K only; unpack the others too, '
                f'or make all of them with --lr bicubic'
            )
    stems = [picture.stem for pictures, _ in parts for picture in pictures]
    if len(set(stems)) < len(stems):
        raise DataError('DF2K: a picture of DIV2K and one of Flickr2K have the same name; unpack both archives again')
    pictures = [picture for found, _ in parts for picture in found]
    return [build_training_set('DF2K', pictures, {'DIV2K': parts[0][1], 'Flickr2K': parts[1][1]}, args)]
