"""The test pipeline: a trained network on the test sets of an option file, metrics in a table, pictures saved.

``basicsr test -opt X.yml`` and ``python -m hat_plugin.test -opt X.yml`` come here; with ``--launcher pytorch`` the
ranks share the pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from hat_plugin.engine import distributed, run_folder
from hat_plugin.engine.files import write_text_atomic
from hat_plugin.engine.logging import RunLogger
from hat_plugin.engine.options import inert_options, load_options
from hat_plugin.models.validation import describe_metric
from hat_plugin.train import join


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """BasicSR's flags."""
    parser.add_argument('-opt', '--opt', required=True, metavar='YAML', help='the option file')
    parser.add_argument(
        '--launcher', choices=('none', 'pytorch', 'slurm'), default='none', help='how ranks are started'
    )
    parser.add_argument('--debug', action='store_true', help='put debug_ before the name')
    parser.add_argument(
        '--precision',
        choices=('fp32', 'bf16', 'fp16'),
        help='bf16: faster where there are instructions for it; fp16: on a GPU',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by old launchers')
    parser.add_argument(
        '--force_yml', nargs='+', default=[], metavar='KEY=VALUE', help='change options: path:pretrain_network_g=X.pth'
    )


def run(args: argparse.Namespace) -> int:
    """Test as the arguments say and return 0."""
    changes = [*args.force_yml, *([f'val:precision={args.precision}'] if args.precision else [])]
    opt = load_options(args.opt, root_path=Path.cwd(), is_train=False, force_yml=changes, debug=args.debug)
    try:
        world = join(args, opt)
        run_logger = RunLogger(world.is_main)
        try:
            _test(args, opt, world, run_logger)
        finally:
            run_logger.close()
    finally:
        distributed.finish()
    return 0


def _test(args: argparse.Namespace, opt: dict[str, Any], world: distributed.World, run_logger: RunLogger) -> None:
    from basicsr.models import build_model
    from basicsr.utils import get_env_info
    from basicsr.utils.options import dict2str

    from hat_plugin.data.build import build_dataset
    from hat_plugin.data.loader import build_val_loader

    logger = run_logger.logger
    logger.info(get_env_info())
    logger.info(dict2str(opt))
    for line in inert_options(opt, is_train=False):
        logger.info(line)
    loaders = []
    for _, options in sorted(opt['datasets'].items()):
        dataset = build_dataset(options)
        logger.info(f'Number of test images in {options["name"]}: {len(dataset)}')
        loaders.append(build_val_loader(dataset, options, rank=world.rank, world_size=world.size))
    model = build_model(opt)
    if world.is_main:
        run_folder.create_results(opt, args.opt)
        run_logger.open_file(Path(opt['path']['log']) / f'test_{opt["name"]}_{time.strftime("%Y%m%d_%H%M%S")}.log')
    distributed.from_main(None)  # the folder stands before any rank writes a picture into it
    results: dict[str, Any] = {}
    for loader in loaders:
        name = str(loader.dataset.opt['name'])  # type: ignore[attr-defined]
        logger.info(f'Testing {name}...')
        model.validation(loader, opt['name'], None, (opt.get('val') or {}).get('save_img', False))
        if model.metric_results:
            results[name] = {'mean': model.metric_results, 'images': dict(model.image_results)}
    if world.is_main and results:
        metrics = opt['val']['metrics']
        logger.info('\n' + results_table(results, opt['val'], opt.get('published')))
        protocol = {name: describe_metric(options, opt['val']) for name, options in metrics.items()}
        report = {'name': opt['name'], 'protocol': protocol, 'datasets': results}
        report |= {'published': opt['published']} if opt.get('published') else {}
        write_text_atomic(Path(opt['path']['results_root']) / 'metrics.json', json.dumps(report, indent=2) + '\n')


def results_table(results: dict[str, Any], val: dict[str, Any], published: dict[str, Any] | None = None) -> str:
    """Means as a table of plain text, a line a data set, with the protocol below.

    Args:
        results: data set -> ``mean`` -> metric -> figure.
        val: the options that figures were taken by.
        published: the file's section of that name; a metric of which it has figures is followed by them.
    """
    metrics, known = val['metrics'], (published or {}).get('figures', {})
    columns = []
    for name in metrics:
        columns.append([name, *(f'{row["mean"][name]:.4f}' for row in results.values())])
        theirs = [known.get(dataset, {}).get(name) for dataset in results]
        if any(figure is not None for figure in theirs):
            columns.append(['published', *('-' if figure is None else str(figure) for figure in theirs)])
    widths = [max(9, *map(len, column)) for column in columns]
    names = ['data set', *results]
    lines = [
        '  '.join(
            [name.ljust(max(map(len, names))), *(cell.rjust(size) for cell, size in zip(row, widths, strict=True))]
        )
        for name, row in zip(names, zip(*columns, strict=True), strict=True)
    ]
    lines += [f'{name}: {describe_metric(options, val)}' for name, options in metrics.items()]
    if published:
        lines.append(f'published: {published["source"]}')
    return '\n'.join(lines)


if __name__ == '__main__':
    from hat_plugin.cli import main

    sys.exit(main(['test', *sys.argv[1:]]))
