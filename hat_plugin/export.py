"""``basicsr export -w WEIGHTS -o net.onnx``: a trained network as ONNX, for pictures of any size.

The file is written only after ONNX Runtime has restored pictures of several sizes as PyTorch does.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hat_plugin.arguments import whole_number
from hat_plugin.engine.files import atomic_file
from hat_plugin.errors import HatPluginError
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
    add('--scale', type=whole_number(1), help='the enlargement expected of the network')
    add('--size', type=_size, metavar='HxW', help='for one picture of this size alone (default: any number, any size)')
    add('--overwrite', action='store_true', help='write the output anew if it exists')


def run(args: argparse.Namespace) -> int:
    """Export and compare; 0 if the results agree.

    Raises:
        HatPluginError: packages are missing, weights or output are wrong, the network has no graph for any size, or
            results differ. Nothing is written then.
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
    print('making its graph and comparing it: minutes for a large network', flush=True)
    content = export(network, args.size)
    differences = compare(network, content, args.size)
    for shape, difference in differences:
        print(f'  {"x".join(map(str, shape))}: ONNX Runtime differs by {difference:.1e} at most')
    if not all(found.difference <= TOLERANCE for found in differences):  # also where one is not a number
        remedy = '' if args.size else '; give --size HxW, for one size alone'
        raise HatPluginError(f'{target} is not written: results differ by more than {TOLERANCE:g}{remedy}')
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as aside:
        aside.write_bytes(content)
    sizes = 'x'.join(map(str, args.size)) + ' alone' if args.size else 'any number and size'
    print(f'written: {target}, {len(content) / 1e6:.1f} MB, for pictures of {sizes}: (B, C, H, W), float32 in [0, 1]')
    return 0


def export(network: Network, size: tuple[int, int] | None = None) -> bytes:
    """A network as ONNX, weights, padding and cropping included; input ``image``, output ``restored``.

    Args:
        network: in fp32 on the CPU.
        size: (H, W) of the only picture that it is for; None: pictures of any number and size.

    Returns:
        What belongs into the file.

    Raises:
        HatPluginError: the network has no graph for such pictures; the message has the reason.
    """
    found, auto = network.found, torch.export.Dim.AUTO
    example = torch.rand(_shapes(network, size)[-1])
    shapes: Any = None if size else ({0: auto, 2: auto, 3: auto},)
    names: Any = None if size else ({0: 'batch', 2: 'height', 3: 'width'},)
    outer = {'input_names': ['image'], 'output_names': ['restored'], 'dynamic_shapes': names}
    with attention_backend('sdpa'), torch.no_grad(), warnings.catch_warnings():  # operators that ONNX has
        warnings.simplefilter('ignore')  # the exporter's asides
        try:
            program = torch.export.export(network.net, (example,), dynamic_shapes=shapes, strict=False)
            if size is None and any(isinstance(_input_of(program).shape[axis], int) for axis in (0, 2, 3)):
                raise ValueError('it computes with the size of its pictures as numbers')
            written = torch.onnx.export(program, **outer, dynamo=True, verbose=False)
        except Exception as error:  # whatever a network does that has no graph
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            of = f'{size[0]}x{size[1]}' if size else 'any size; give --size HxW, for one size alone'
            raise HatPluginError(f'{network.source}: {found.architecture} has no graph ({reason}) for {of}') from error
    assert written is not None
    facts = {'architecture': found.architecture, 'scale': found.scale, 'channels': found.channels, 'range': '0 to 1'}
    written.model.metadata_props.update({key: str(value) for key, value in facts.items()})
    content: bytes = written.model_proto.SerializeToString()
    return content


def compare(network: Network, content: bytes, size: tuple[int, int] | None = None) -> list[Comparison]:
    """What ONNX Runtime makes of a graph beside what PyTorch does, for noise of several sizes.

    Args:
        network: what was exported.
        content: what `export` made of it.
        size: as there.
    """
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4  # what fails is in the result
    session = onnxruntime.InferenceSession(content, quiet, providers=['CPUExecutionProvider'])
    found = []
    for shape in _shapes(network, size):
        image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            ours: Tensor = network.net(image)
        difference = math.inf
        with contextlib.suppress(Exception):  # ONNX Runtime's own: the graph fails with such a picture
            theirs = torch.from_numpy(session.run(None, {'image': image.numpy()})[0])
            difference = float((ours - theirs).abs().max()) if theirs.shape == ours.shape else math.inf
        found.append(Comparison(shape, difference))
    return found


def _shapes(network: Network, size: tuple[int, int] | None) -> list[tuple[int, int, int, int]]:
    """What is compared; with the last the graph is made.

    For any size: one window, several, one row and one column of them, and two pictures; no side but the first's is a
    multiple, and in the last no two lengths are alike, lest a graph take one for a constant.
    """
    channels, window = network.found.channels, max(network.found.window, 8)
    if size is not None:
        return [(1, channels, *size)]
    sides = [(window, window), (3 * window + 1, 2 * window - 3), (5, 3 * window - 1), (2 * window + 3, window - 1)]
    shapes = [(1, channels, height, width) for height, width in sides]
    return [*shapes, (2, channels, 2 * window + window // 2 + 1, 3 * window - 1)]


def _input_of(program: torch.export.ExportedProgram) -> Tensor:
    name = program.graph_signature.user_inputs[0]
    value: Tensor = next(node.meta['val'] for node in program.graph.nodes if node.name == name)
    return value


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split('x')
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f'{text!r} is no HxW in pixels, as 64x96')
    return int(sides[0]), int(sides[1])
