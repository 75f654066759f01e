"""One attention of HAT by each backend, from queries, keys and values to what goes into the projection.

    python -m benchmarks.attention --size 1024 --dtype bf16
    python -m benchmarks.attention --size 64 --batch 4 --dtype bf16 --train

What was measured ahead is what HAT_ATTENTION=auto takes (`hat_plugin.layers.attention.best_backend`).
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import torch
from torch import Tensor

from hat_plugin.compare import machine
from hat_plugin.compare.text import markdown_table, megabytes, seconds
from hat_plugin.compare.timing import Call, Plan, alternate, cuda_peak, ratios, spread
from hat_plugin.errors import HatPluginError
from hat_plugin.kernels.triton_launch import works
from hat_plugin.layers.attention import attention_backend
from hat_plugin.layers.config import BlockConfig
from hat_plugin.layers.overlap import OCAB
from hat_plugin.layers.self_attention import WindowAttention
from hat_plugin.layers.windows import overlapping_position_index, relative_position_index, shift_masks

CHANNELS, HEADS, WINDOW, OVERLAP = 180, 6, 16, 24  # HAT's
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
BACKENDS = {'cpu': ('reference', 'sdpa', 'recompute', 'cpp'), 'cuda': ('reference', 'sdpa', 'flex', 'triton')}
PLAN = Plan(rounds=5, most=25, budget=10.0)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.attention', description=__doc__)
    parser.add_argument('--size', type=int, default=64, help='side of the LR image (default: %(default)s)')
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--dtype', choices=DTYPES, default='fp32')
    parser.add_argument('--train', action='store_true', help='backward as well, for all operands and the bias')
    parser.add_argument('--device', choices=BACKENDS, default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args(argv)
    if args.size < WINDOW or args.size % WINDOW or args.batch < 1:
        print(f'benchmarks: --size {args.size}: give a multiple of {WINDOW}, and a batch of 1 or more', file=sys.stderr)
        return 2
    device = torch.device(args.device)
    print('\n'.join(machine.examine(device).lines()))
    for name in ('HAB, shifted', 'OCAB'):
        print(f'\n## {name}: batch {args.batch}, {args.size}x{args.size}, {args.dtype}, {"training" * args.train}\n')
        print(compare(name, (args.batch, args.size, args.size), DTYPES[args.dtype], device, trains=args.train))
    return 0


def compare(
    name: str, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, *, trains: bool, plan: Plan = PLAN
) -> str:
    """A table, the plain path its first row."""
    torch.manual_seed(0)
    config = BlockConfig(dim=CHANNELS, num_heads=HEADS, window_size=WINDOW, compress_ratio=3, squeeze_factor=30,
                         conv_scale=0.01, overlap_ratio=0.5, mlp_ratio=2.0)  # fmt: skip
    qkv = torch.randn(*shape, 3 * CHANNELS).to(device, dtype).requires_grad_(trains)
    grad = torch.randn(*shape, CHANNELS).to(device, dtype)
    layer: WindowAttention | OCAB
    if name == 'OCAB':
        layer = OCAB(config).to(device)
        index = overlapping_position_index(WINDOW, OVERLAP).remainder((WINDOW + OVERLAP - 1) ** 2).to(device)
        attend = partial(layer._attended, qkv, index)
    else:
        layer = WindowAttention(CHANNELS, WINDOW, HEADS).to(device)
        index, masks = relative_position_index(WINDOW).to(device), shift_masks(WINDOW, WINDOW // 2).to(device)
        attend = partial(layer.attended_pixels, qkv, index, masks, WINDOW // 2)

    def run(backend: str) -> None:
        with attention_backend(backend), torch.set_grad_enabled(trains):
            found: Tensor = attend()
            if trains:
                torch.autograd.grad(found, (qkv, layer.relative_position_bias_table), grad)

    calls: dict[str, Call] = {backend: partial(run, backend) for backend in BACKENDS[device.type]}
    if device.type == 'cuda' and not works(device):
        del calls['triton']
    samples = alternate(calls, device, plan)
    rows = []
    for backend, call in calls.items():
        peak = megabytes(cuda_peak(call, device)) if device.type == 'cuda' else '-'
        wall = spread([sample.wall for sample in samples[backend]])
        ratio = ratios(samples['reference'], samples[backend], 'wall')
        rows.append((backend, f'{ratio:.2f}', seconds(wall), peak))
    return markdown_table(['', 'times as fast', 'time', 'peak memory'], rows)


if __name__ == '__main__':
    try:
        sys.exit(main())
    except HatPluginError as error:
        sys.exit(str(error))
