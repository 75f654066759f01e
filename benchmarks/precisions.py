"""What bf16 costs: PSNR of restored pictures in each precision, by the same weights.

    python -m benchmarks.precisions WEIGHTS GT LQ [--opt FILE]

GT and LQ are folders whose pictures have the same names, as `basicsr prepare benchmark` makes them:
datasets/Set5/GTmod4 and datasets/Set5/LRbicx4. PSNR is of Y (BT.601), uint8, border = scale; of RGB at scale 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from basicsr.metrics import calculate_psnr

from hat_plugin.compare.text import markdown_table
from hat_plugin.data.images import read_image
from hat_plugin.engine.progress import progress
from hat_plugin.errors import HatPluginError
from hat_plugin.layers.precision import prepare_for_inference
from hat_plugin.restore import load_network, restore_image
from hat_plugin.restore.network import Network

PRECISIONS = {'fp32': 'fp32', 'bf16 mixed': 'mixed', 'all bf16': 'bf16'}


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.precisions', description='PSNR of restored pictures in each precision.'
    )
    parser.add_argument('weights', type=Path, help='.pth or .safetensors')
    parser.add_argument('gt', type=Path, help='folder of the true pictures')
    parser.add_argument('lq', type=Path, help='folder of the pictures to restore, by the same names')
    parser.add_argument('--opt', type=Path, help='whose network_g it is; else as the shapes of the weights tell')
    args = parser.parse_args(argv)
    names = sorted(file.name for file in args.gt.glob('*.png'))
    missing = [name for name in names if not (args.lq / name).is_file()]
    if not names or missing:
        raise HatPluginError(f'{args.gt}: no .png' if not names else f'{args.lq / missing[0]}: missing')
    networks = {}
    for label, precision in PRECISIONS.items():
        networks[label] = load_network(args.weights, opt=args.opt, device='cpu')
        prepare_for_inference(networks[label].net, precision)
    rows = []
    for name in progress(names, description='restoring'):
        truth, low = read_image(args.gt / name), read_image(args.lq / name)
        rows.append([psnr(network, low, truth) for network in networks.values()])
    cells = [[name, *figures(row)] for name, row in zip([*names, 'mean'], [*rows, np.mean(rows, 0)], strict=True)]
    print(markdown_table(['PSNR, dB', *networks], cells))


def psnr(network: Network, low: np.ndarray, truth: np.ndarray) -> float:
    """Of a restored picture, (H, W, 3) like the true one."""
    scale = network.found.scale
    restored = restore_image(network, low)
    if restored.shape != truth.shape:
        raise HatPluginError(f'restored {restored.shape}, true {truth.shape}: pictures of another scale than {scale}')
    border = 0 if scale == 1 else scale
    return float(calculate_psnr(restored[..., ::-1], truth[..., ::-1], crop_border=border, test_y_channel=scale > 1))


def figures(row: list[float]) -> list[str]:
    """A table's cells: the first as it is, the others with how far they are from it."""
    return [f'{row[0]:.3f}', *(f'{value:.3f} ({value - row[0]:+.4f})' for value in row[1:])]


if __name__ == '__main__':
    try:
        main()
    except HatPluginError as error:
        sys.exit(str(error))
