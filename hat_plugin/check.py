"""``basicsr check``: an option file, its networks, weights and data, without training.

Exit code 0: all is well; 1: the options are right, but data is bad; 2: the options are wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hat_plugin.arguments import whole_number
from hat_plugin.engine.machine import cores
from hat_plugin.engine.networks import build, input_channels
from hat_plugin.engine.options import (
    Options,
    apply_force_yml,
    check_options,
    notes,
    prepare_options,
    read_yaml,
)
from hat_plugin.engine.schema.data import option_of
from hat_plugin.engine.stages import largest_stage
from hat_plugin.errors import CheckpointError, HatPluginError, OptionsError

PICTURE = 256
SHOWN = 50
GIB = 1024**3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument('-opt', '--opt', required=True, metavar='YAML', help='the option file')
    parser.add_argument(
        '--no-data', action='store_true', help='leave out all that needs the images and weights on this disk'
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        '--train', action='store_true', help='check it as training options (default: as its sections say)'
    )
    kind.add_argument('--test', action='store_true', help='check it as test options')
    parser.add_argument(
        '--force_yml', nargs='+', default=[], metavar='KEY=VALUE', help='change options first: train:total_iter=1000'
    )
    parser.add_argument(
        '--workers', type=whole_number(0), default=cores(), help='processes that read images; 0: this one alone'
    )


def run(args: argparse.Namespace) -> int:
    """Check as the arguments say; print a report."""
    from hat_plugin.registry import require_registered

    require_registered()
    raw = apply_force_yml(read_yaml(args.opt), args.force_yml)
    if 'networks' in raw:
        return _check_comparison(args)
    is_train = args.train or (not args.test and raw.get('train') is not None)
    problems: list[str] = []
    try:
        check_options(raw, args.opt, is_train=is_train, need_data=not args.no_data)
    except OptionsError as error:
        problems = error.problems
    problems += _refused_networks(raw, problems)
    if problems:
        raise OptionsError(args.opt, problems)
    opt = prepare_options(raw, root_path=Path.cwd(), is_train=is_train)
    print(
        f'{args.opt}: the {"training" if is_train else "test"} options are right ({opt["model_type"]}, {opt["name"]})'
    )
    for note in notes(raw, is_train=is_train):
        print(f'  note: {note}')
    problems = list(_report_networks(opt, with_weights=not args.no_data))
    if problems:
        raise OptionsError(args.opt, problems)
    if args.no_data:
        print('  data: not looked at (--no-data)')
        return 0
    return _report_data(opt, args.workers)


def _check_comparison(args: argparse.Namespace) -> int:
    """A comparison file: each network, and the data once."""
    from hat_plugin.compare.reading import read_comparison

    comparison = read_comparison([args.opt], args.force_yml, trains=True, need_data=not args.no_data)
    trainings = sum(run.train is not None for run in comparison.runs)
    told = f'{len(comparison.contenders)} networks, {trainings} trainings'
    print(f'{args.opt}: the options are right ({comparison.name}, {told})')
    problems: list[str] = []
    sets: Options = {}
    for contender in comparison.contenders:
        for raw, is_train in ((contender.train, True), (contender.test, False)):
            if raw is None:
                continue
            opt = prepare_options(raw, root_path=Path.cwd(), is_train=is_train)
            sets |= opt['datasets']
            if is_train or contender.train is None:
                print(f'  {contender.label}:')
                found = _report_networks(opt, with_weights=not args.no_data and contender.weights.is_file())
                problems += [f'networks: {contender.label}: {problem}' for problem in found]
    if problems:
        raise OptionsError(args.opt, problems)
    if args.no_data:
        print('  data: not looked at (--no-data)')
        return 0
    return _report_data({**comparison.prepared(comparison.contenders[0]), 'datasets': sets}, args.workers)


# -- networks --------------------------------------------------------------------------------------------------------


def _network_sections(opt: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in opt if str(key).startswith('network_') and isinstance(opt[key], Mapping))


def _refused_networks(raw: Mapping[str, Any], problems: list[str]) -> list[str]:
    """What constructors refuse, of networks whose sections have no other problem."""
    refused = []
    for key in _network_sections(raw):
        if not any(problem.startswith(f'{key}:') for problem in problems):
            try:
                build(raw[key])
            except HatPluginError as error:
                refused.append(f'{key}: {error}')
    return refused


def _report_networks(opt: Options, *, with_weights: bool) -> Iterator[str]:
    """Print each network's facts; yield what is wrong."""
    for key in _network_sections(opt):
        net = build(opt[key])
        trained = sum(parameter.numel() for parameter in net.parameters())
        print(f'  {key}: {opt[key]["type"]}, {trained:,} parameters')
        if key == 'network_g':
            _report_cost(net, opt)
        if with_weights:
            yield from _weights_problems(net, key.removeprefix('network_'), opt)


def _report_cost(net: nn.Module, opt: Options) -> None:
    """MACs and memory of the generator; networks of other than one picture are left out."""
    from hat_plugin.engine.macs import count_macs

    channels = input_channels(net, opt['network_g'])
    train = opt['datasets'].get('train') or {}
    batch, gt_size = largest_stage(train) if opt['is_train'] else (1, None)
    scale = int(opt.get('scale') or 1)
    side = int(gt_size) // scale if gt_size else PICTURE if scale == 1 else 64  # what papers count with
    try:
        macs = count_macs(net, (1, channels, side, side))
        print(f'    MACs for a {side}x{side} input of {channels} channels: {macs}')
        _report_memory(net, opt, (batch, channels, side, side))
    except Exception as error:  # a network that asks for values, or takes several inputs
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        print(f'    MACs and memory: not counted ({reason})')


def _report_memory(net: nn.Module, opt: Options, batch_shape: tuple[int, int, int, int]) -> None:
    import torch

    from hat_plugin.engine.memory import available_bytes, estimate_forward_bytes, estimate_training_bytes

    device = 'cuda' if opt['num_gpu'] and torch.cuda.is_available() else 'cpu'
    free = available_bytes(device)
    wanted = []
    if opt['is_train']:
        amp = opt['train'].get('amp')
        ema = bool(opt['train'].get('ema_decay'))
        batch, _, side, _ = batch_shape
        label = f'a training step of {batch} x {side}x{side}{f" in {amp}" if amp else ""}'
        remedy = (
            'lower batch_size_per_gpu (total_batch_size keeps the batch), network_g: use_checkpoint: true, amp: bf16'
        )
        wanted.append((label, estimate_training_bytes(net, batch_shape, amp, ema=ema), remedy))
    weights = sum(tensor.nbytes for tensor in [*net.parameters(), *net.buffers()])
    picture = estimate_forward_bytes(net, (1, batch_shape[1], PICTURE, PICTURE)) + weights
    remedy = 'larger pictures are restored in tiles'
    wanted.append((f'a {PICTURE}x{PICTURE} picture', picture, remedy))
    for label, size, advice in wanted:
        verdict = '' if size <= free else f' -- TOO MUCH: {advice}'
        print(f'    memory of {label}: about {size / GIB:.1f} GiB, {free / GIB:.1f} GiB free on {device}{verdict}')


def _weights_problems(net: nn.Module, label: str, opt: Options) -> Iterator[str]:
    """Whether the weights that training or testing starts from fit."""
    from hat_plugin.engine.checkpoint import load_into, load_weights

    path = opt['path'].get(f'pretrain_network_{label}')
    if not path:
        if label == 'g' and not opt['is_train']:
            print('    weights: none are named (path: pretrain_network_g), so that random ones are tested')
        return
    try:
        weights = load_weights(path, opt['path'].get(f'param_key_{label}', 'params'))
        left_out = load_into(net.to_empty(device='cpu'), weights, strict=opt['path'].get(f'strict_load_{label}', True))
    except CheckpointError as error:
        yield f'path: pretrain_network_{label}: {error}'
        return
    print(
        f'    weights {path} [{weights.key or "bare"}]: fit' + (f', but for {len(left_out)} entries' * bool(left_out))
    )


# -- data ------------------------------------------------------------------------------------------------------------


def _report_data(opt: Options, workers: int) -> int:
    """Read every picture; 1 if any is bad."""
    from hat_plugin.check_data import Checks, check_dataset

    bad = 0
    for key, section in opt['datasets'].items():
        training = section['phase'] == 'train'
        patch = 0 if option_of(section, 'small_images') in ('pad', 'skip') else int(section.get('gt_size') or 0)
        checks = Checks(int(opt.get('scale') or 1), patch if training else 0, exact=training)
        report = check_dataset(section, checks, workers=workers)
        state = 'all good' if not report.problems else f'{len(report.problems)} BAD'
        print(f'  data {key} ({section["name"]}): {report.images:,} images read, {report.pairs:,} pairs, {state}')
        for problem in report.problems[:SHOWN]:
            print(f'    - {problem}')
        if len(report.problems) > SHOWN:
            print(f'    ... and {len(report.problems) - SHOWN} more')
        bad += len(report.problems)
    return 1 if bad else 0
