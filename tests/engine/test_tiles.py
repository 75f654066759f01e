"""Tiles against the whole picture, and what happens when memory runs out."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hat_plugin.engine.memory import is_out_of_memory
from hat_plugin.engine.tiles import blend_weights, tile_grid, tiled_forward


def local_net(scale: int, depth: int = 2) -> nn.Module:
    """Convolutions that see `depth` + 1 pixels to each side."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1)]
    for _ in range(depth - 1):
        layers += [nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)]
    layers += [nn.ReLU(), nn.Conv2d(8, 3 * scale * scale, 3, padding=1), nn.PixelShuffle(scale)]
    return nn.Sequential(*layers).eval().requires_grad_(False)


class MeanOffset(nn.Module):
    """Adds each tile's own mean: what a global network does, and so the worst case for seams."""

    def forward(self, image: Tensor) -> Tensor:
        return image + image.mean()


class RunsOut(nn.Module):
    """Raises when it is given more than `limit` pixels in a row, and counts its calls."""

    def __init__(self, limit: int, error: Exception) -> None:
        super().__init__()
        self.limit, self.error, self.widths = limit, error, []

    def forward(self, image: Tensor) -> Tensor:
        self.widths.append(image.shape[-1])
        if image.shape[-1] > self.limit:
            raise self.error
        return image * 2


def photo_tensor(photo: np.ndarray) -> Tensor:
    return torch.from_numpy(photo.transpose(2, 0, 1).copy()).float().div(255)[None]


@pytest.mark.parametrize('size', [(1, 1), (1, 200), (200, 1), (15, 33), (64, 64), (65, 64), (97, 131), (160, 33)])
@pytest.mark.parametrize('scale', [1, 2, 3])
def test_a_local_network_gives_the_same_picture_in_tiles(size: tuple[int, int], scale: int) -> None:
    net, image = local_net(scale), torch.rand(1, 3, *size)
    whole = net(image)
    for tile, overlap, multiple in [(64, 32, 16), (32, 16, 8), (48, 12, 1), (42, 14, 7), (40, 32, 8)]:
        tiled = tiled_forward(net, image, scale=scale, tile=tile, overlap=overlap, multiple=multiple)
        torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-6)


def test_the_guarantee_holds_up_to_a_quarter_of_the_overlap() -> None:
    image = torch.rand(1, 3, 40, 150)
    for depth in (3, 7):  # sees 4 and 8 pixels
        net = local_net(1, depth)
        tiled = tiled_forward(net, image, scale=1, tile=64, overlap=4 * (depth + 1), multiple=4)
        torch.testing.assert_close(tiled, net(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize('multiple', [1, 7, 8, 16])
@pytest.mark.parametrize('length', [1, 33, 64, 65, 79, 80, 100, 257, 1000])
def test_tiles_cover_the_side_on_the_window_grid(length: int, multiple: int) -> None:
    for tile in (20, 64, 100):
        for overlap in (0, 10, 32):
            grid = tile_grid(tile, overlap, multiple)
            spans = grid.spans(length)
            assert spans[0][0] == 0 and spans[-1][1] == length
            assert all(start % multiple == 0 and 0 < stop - start <= grid.tile for start, stop in spans)
            assert all(later[0] <= earlier[1] - grid.overlap for earlier, later in pairwise(spans))
            assert all(stop - start > grid.tile - multiple for start, stop in spans) or len(spans) == 1
            assert len(set(spans)) == len(spans)


@pytest.mark.parametrize('length', [33, 65, 100, 257])
@pytest.mark.parametrize('overlap', [0, 8, 32])
def test_weights_add_up_to_one_and_are_one_at_the_border(length: int, overlap: int) -> None:
    for scale in (1, 3):
        spans = tile_grid(64, overlap, 8).spans(length)
        weights = blend_weights(spans, scale)
        total = torch.zeros(length * scale)
        for (start, stop), weight in zip(spans, weights, strict=True):
            assert weight.min() >= 0
            total[start * scale : stop * scale] += weight
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)
        assert weights[0][0] == 1 and weights[-1][-1] == 1


def test_sizes_are_snapped_to_the_window() -> None:
    assert tile_grid(100, 20, 16) == tile_grid(112, 32, 16)
    assert tile_grid(5, 5, 16).tile == 32
    assert tile_grid(64, 64, 16).overlap == 32
    with pytest.raises(ValueError, match='tile is 0'):
        tile_grid(0, 8, 8)
    with pytest.raises(ValueError, match='overlap is -1'):
        tile_grid(64, -1, 8)


def test_no_seam_where_tiles_disagree(photos) -> None:
    image = photo_tensor(photos.small('coffee', 96, 256))
    whole = MeanOffset()(image)
    tiled = tiled_forward(MeanOffset(), image, scale=1, tile=96, overlap=32, multiple=16)
    hard = tiled_forward(MeanOffset(), image, scale=1, tile=96, overlap=0, multiple=16)
    step_whole = whole[..., 1:] - whole[..., :-1]
    blended = ((tiled[..., 1:] - tiled[..., :-1]) - step_whole).abs().max()
    cut = ((hard[..., 1:] - hard[..., :-1]) - step_whole).abs().max()
    assert cut > 0.02, 'the tiles do not disagree, so this shows nothing'
    assert blended < cut / 8


def test_output_is_float32_on_the_cpu_and_free_of_gradients() -> None:
    net = nn.Conv2d(3, 3, 3, padding=1)
    image = torch.rand(1, 3, 70, 70, dtype=torch.bfloat16)
    output = tiled_forward(net.bfloat16(), image, scale=1, tile=32, overlap=8, multiple=8)
    assert output.dtype == torch.float32 and not output.requires_grad and output.device.type == 'cpu'


@pytest.mark.parametrize(
    'error',
    [
        torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB'),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you ..."
        ),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_tile_and_starts_again(error: Exception, caplog) -> None:
    net, image = RunsOut(70, error), torch.rand(1, 3, 64, 256)
    with caplog.at_level(logging.WARNING, logger='hat_plugin.engine.tiles'):
        output = tiled_forward(net, image, scale=1, overlap=16, multiple=16)
    torch.testing.assert_close(output, image * 2)
    assert net.widths[:2] == [256, 128] and set(net.widths[2:]) == {64}
    assert [record.args[:2] for record in caplog.records] == [(256, 128), (128, 64)]


def test_a_failure_in_the_middle_leaves_nothing_of_the_first_pass() -> None:
    class FailsOnce(nn.Module):
        calls = 0

        def forward(self, image: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 3:
                raise torch.OutOfMemoryError('injected')
            return image + (100 if self.calls < 3 else 0)

    image = torch.rand(1, 3, 64, 300)
    torch.testing.assert_close(tiled_forward(FailsOnce(), image, scale=1, tile=128, multiple=16), image)


def test_out_of_memory_at_the_smallest_tile_is_raised() -> None:
    net = RunsOut(4, torch.OutOfMemoryError('injected'))
    with pytest.raises(torch.OutOfMemoryError, match='injected'):
        tiled_forward(net, torch.rand(1, 3, 64, 256), scale=1, multiple=16)
    assert min(net.widths) == 32


def test_another_error_comes_through_at_once() -> None:
    net = RunsOut(70, RuntimeError('a fault of the network'))
    with pytest.raises(RuntimeError, match='a fault of the network'):
        tiled_forward(net, torch.rand(1, 3, 64, 256), scale=1)
    assert len(net.widths) == 1


def test_a_wrong_scale_is_named() -> None:
    with pytest.raises(ValueError, match='scale 2 wants'):
        tiled_forward(local_net(3), torch.rand(1, 3, 40, 40), scale=2)
    with pytest.raises(ValueError, match='scale is 0'):
        tiled_forward(local_net(3), torch.rand(1, 3, 40, 40), scale=0)
    with pytest.raises(ValueError, match='shape'):
        tiled_forward(local_net(3), torch.rand(3, 40, 40), scale=3)


def test_auto_takes_tiles_when_memory_is_short(monkeypatch, caplog) -> None:
    sizes = []
    net, image = local_net(2), torch.rand(1, 3, 128, 256)
    net.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    assert tiled_forward(net, image, scale=2, tile='auto').shape == (1, 3, 256, 512)
    assert sizes[-1] == (128, 256)
    from hat_plugin.engine import memory

    monkeypatch.setattr(memory, 'available_bytes', lambda device: 8_000_000)
    sizes.clear()
    with caplog.at_level(logging.INFO, logger='hat_plugin.engine.tiles'):
        tiled = tiled_forward(net, image, scale=2, tile='auto')
    assert max(sizes) < (128, 256) and 'in tiles of' in caplog.text
    torch.testing.assert_close(tiled, net(image), rtol=0, atol=1e-6)


@pytest.mark.skipif(sys.platform != 'linux', reason='limits its own address space')
def test_a_real_failure_of_the_cpu_allocator_is_survived(tmp_path: Path, repository: Path) -> None:
    script = tmp_path / 'limited.py'
    script.write_text(
        'import resource, torch\n'
        'from hat_plugin.engine.tiles import tiled_forward\n'
        'torch.set_num_threads(1)\n'
        'net = torch.nn.Sequential(torch.nn.Conv2d(3, 256, 1), torch.nn.ReLU(), torch.nn.Conv2d(256, 3, 1)).eval()\n'
        'image = torch.rand(1, 3, 512, 1024)\n'
        'small = net(image[..., :100, :100])\n'
        'used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()\n'
        'resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20, -1))\n'
        'output = tiled_forward(net, image, scale=1, overlap=16, multiple=8)\n'
        'assert torch.allclose(output[..., :100, :100], small, atol=1e-5)\n'
        'print("whole")\n'
    )
    environment = {**os.environ, 'PYTHONPATH': str(repository)}
    command = [sys.executable, '-W', 'ignore', script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout.strip() == 'whole', done.stderr
    assert 'out of memory with tiles of 1024 pixels' in done.stderr and "can't allocate memory" in done.stderr


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(RuntimeError('std::bad_alloc'))
    assert is_out_of_memory(RuntimeError('no memory left for the attention of (1, 64, 64, 180): give smaller tiles'))
    assert is_out_of_memory(RuntimeError('could not create a primitive descriptor for the convolution forward'))
    assert is_out_of_memory(RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate'))
    assert not is_out_of_memory(RuntimeError('mat1 and mat2 shapes cannot be multiplied'))
    assert not is_out_of_memory(ValueError('DefaultCPUAllocator'))
