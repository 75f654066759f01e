"""``basicsr export -w WEIGHTS -o net.onnx``: a trained network as ONNX, for pictures of any size.

The file is written only after ONNX Runtime has restored pictures of several sizes as PyTorch does.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hat_plugin.engine.files import atomic_file
from hat_plugin.errors import HatPluginError
from hat_plugin.kernels.products import products_by
from hat_plugin.layers.attention import attention_backend
from hat_plugin.restore.network import Network, load_network

TOLERANCE = 1e-4  # of [0, 1]; fp32 differs by less than a hundredth of it
PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')


class Comparison(NamedTuple):
    """One size at which two programs were compared.

    Attributes:
        shape: of the picture, (B, C, H, W).
        difference: the largest between their results, which are near [0, 1].
    """

    shape: tuple[int, int, int, int]
    difference: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the arguments of ``basicsr export``."""
    add = parser.add_argument
    add('-w', '--weights', required=True, help='trained weights, .pth or .safetensors')
    add('-o', '--output', required=True, type=Path, help='the file to write, .onnx')
    add('--opt', help='build the network of this option file (default: as the shapes of the weights show it)')
    add('--scale', type=int, help='the enlargement expected of the network')
    add('--size', type=_size, metavar='HxW', help='for one picture of this size alone (default: any number, any size)')
    add('--overwrite', action='store_true', help='write the output anew if it exists')


def run(args: argparse.Namespace) -> int:
    """Export and compare; 0 if the results agree.

    Raises:
        HatPluginError: packages are missing, weights or output are wrong, the network has no graph for any size, or
            results differ. No file is written then.
    """
    target: Path = args.output
    if target.suffix != '.onnx':
        raise HatPluginError(f'{target}: the output is to be named .onnx')
    if target.exists() and not args.overwrite:
        raise HatPluginError(f'{target} exists; give --overwrite to write it anew')
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise HatPluginError(f'{", ".join(missing)}: not installed; pip install {" ".join(PACKAGES)}')
    network = load_network(args.weights, opt=args.opt, scale=args.scale, device='cpu')
    print(network.describe())
    print('writing its graph and comparing it: minutes for a large network', flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as aside:
        export(network, aside, args.size)
        differences = compare(network, aside, args.size)
        for shape, difference in differences:
            print(f'  {"x".join(map(str, shape))}: ONNX Runtime differs by {difference:.1e} at most')
        if not all(found.difference <= TOLERANCE for found in differences):  # also where one is not a number
            other = (
                'give --size HxW, for one size alone'
                if args.size is None
                else 'the exporter made another network of it'
            )
            raise HatPluginError(f'{target} is not written: results differ by more than {TOLERANCE:g}; {other}')
    sizes = 'pictures of any number and size' if args.size is None else f'a picture of {args.size[0]}x{args.size[1]}'
    print(f'written: {target}, {target.stat().st_size / 1e6:.1f} MB, for {sizes}: RGB or gray, (B, C, H, W) in [0, 1]')
    return 0


def export(network: Network, path: Path, size: tuple[int, int] | None = None) -> None:
    """Write a network as ONNX, padding and cropping included; input ``image``, output ``restored``.

    Args:
        network: in fp32 on the CPU.
        path: the file.
        size: (H, W) of the only picture that it is for; None: pictures of any number and size.

    Raises:
        HatPluginError: the network cannot be written; the message has the reason.
    """
    net, channels = network.net, network.found.channels
    auto = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    example = torch.rand(_example(network) if size is None else (1, channels, *size))
    with _as_operators(), torch.no_grad():
        try:
            program = torch.export.export(net, (example,), dynamic_shapes=None if size else (auto,), strict=False)
        except Exception as error:  # whatever a network does that has no graph
            raise HatPluginError(_no_graph(network, size, error)) from error
        fixed = [length for length in _input_of(program).shape if isinstance(length, int)]
        if size is None and len(fixed) > 1:
            raise HatPluginError(_no_graph(network, size, None))
        names: Any = None if size else ({0: 'batch', 2: 'height', 3: 'width'},)
        written = torch.onnx.export(
            program,
            input_names=['image'],
            output_names=['restored'],
            dynamic_shapes=names,
            dynamo=True,
            verbose=False,
        )
    assert written is not None
    found = network.found
    facts = {'architecture': found.architecture, 'scale': found.scale, 'channels': channels, 'range': '0 to 1'}
    written.model.metadata_props.update({key: str(value) for key, value in facts.items()})
    written.save(str(path), external_data=False)


def compare(network: Network, path: Path, size: tuple[int, int] | None = None) -> list[Comparison]:
    """What ONNX Runtime makes of a file beside what PyTorch does, for noise of several sizes.

    Args:
        network: what was exported.
        path: the file.
        size: as in `export`.
    """
    import onnxruntime

    channels, window = network.found.channels, max(network.found.window, 8)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4  # what fails is in the result
    session = onnxruntime.InferenceSession(path.read_bytes(), quiet, providers=['CPUExecutionProvider'])
    # One window, several, and one row and one column of them; no side a multiple but in the first.
    sizes = [(window, window), (3 * window + 1, 2 * window - 3), (5, 3 * window - 1), (2 * window + 3, window - 1)]
    sizes = sizes if size is None else [size]
    shapes = [(1, channels, *sides) for sides in sizes]
    shapes += [] if size else [_example(network)]
    found = []
    for shape in shapes:
        image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            ours: Tensor = network.net(image)
        difference = math.inf
        with contextlib.suppress(Exception):  # ONNX Runtime's own: the graph fails with such a picture
            theirs = torch.from_numpy(session.run(None, {'image': image.numpy()})[0])
            difference = float((ours - theirs).abs().max()) if theirs.shape == ours.shape else math.inf
        found.append(Comparison(shape, difference))
    return found


def _example(network: Network) -> tuple[int, int, int, int]:
    """Two pictures of several windows, no multiples, no two sides alike: a graph shall not take them for constants."""
    window = max(network.found.window, 8)
    return 2, network.found.channels, 2 * window + window // 2 + 1, 3 * window - 1


def _input_of(program: torch.export.ExportedProgram) -> Tensor:
    name = program.graph_signature.user_inputs[0]
    value: Tensor = next(node.meta['val'] for node in program.graph.nodes if node.name == name)
    return value


def _no_graph(network: Network, size: tuple[int, int] | None, error: Exception | None) -> str:
    kind = network.found.architecture
    reason = f' ({str(error).strip().splitlines()[0][:160]})' if error and str(error).strip() else ''
    if size is None:
        return f'{kind} computes with the size of its pictures as numbers{reason}: give --size HxW, for one size alone'
    return f'{kind} cannot be written for {size[0]}x{size[1]}{reason}'


@contextlib.contextmanager
def _as_operators() -> Iterator[None]:
    """Let attention and products be torch's operators, which ONNX has, and keep the exporter's asides to itself."""
    with attention_backend('sdpa'), products_by('torch'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split('x')
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f'{text!r} is no HxW in pixels, as 64x96')
    return int(sides[0]), int(sides[1])
