"""`basicsr prepare`: one subcommand a data set."""

from __future__ import annotations

import argparse

from hat_plugin.prepare import (
    benchmark,
    denoise,
    df2k,
    div2k,
    flickr2k,
    folder,
    gopro,
    imagenet,
    pairs,
    sidd,
    sidd_submission,
)
from hat_plugin.prepare.options import add_run_arguments, report_lines

SETS = {
    'div2k': (div2k, 'DIV2K: 800 training pictures'),
    'flickr2k': (flickr2k, 'Flickr2K: 2650 training pictures'),
    'df2k': (df2k, 'DIV2K and Flickr2K as one training set: the published recipe'),
    'imagenet': (imagenet, 'ImageNet for pre-training: lists the pictures that can be used'),
    'benchmark': (benchmark, 'Set5, Set14, BSD100, Urban100, Manga109, or a test set of your own'),
    'folder': (folder, 'any folder of pictures as a training set'),
    'sidd': (sidd, "SIDD: real noise, 320 training pairs, validation blocks, the benchmark's blocks"),
    'gopro': (gopro, 'GoPro: motion blur, 2103 training and 1111 test pairs'),
    'pairs': (pairs, 'any two folders of pictures that belong together'),
    'denoise': (denoise, 'DIV2K, Flickr2K, BSD and WED: clean pictures to be made noisy in training'),
}

SUBMISSION = 'sidd-submission'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `basicsr prepare`."""
    subparsers = parser.add_subparsers(dest='set', metavar='set', required=True)
    for name, (module, text) in SETS.items():
        subparser = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        module.add_arguments(subparser)
        add_run_arguments(subparser)
    text = "from restored blocks of SIDD's benchmark to the file that is handed in"
    sidd_submission.add_arguments(subparsers.add_parser(SUBMISSION, help=text, description=text, allow_abbrev=False))


def run(args: argparse.Namespace) -> int:
    """Prepare a data set and say what lies where; 0 when done. Raises DataError."""
    if args.set == SUBMISSION:
        print(f'{sidd_submission.run(args)}: made')
        return 0
    reports = SETS[args.set][0].run(args)
    for report in reports:
        print('\n'.join(report_lines(report)))
    if args.set == 'benchmark':
        print('\n'.join(['', *benchmark.table(reports)]))
    return 0
