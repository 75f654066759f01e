"""From an image to the pixels that a transformer works on: padding, normalisation, absolute positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad an image at its right and bottom: mirrored, or with its last pixels where a side is too short to mirror.

    Args:
        x: (B, C, H, W).
        multiple: of which the result's sides are multiples.

    Returns:
        (B, C, H', W').
    """
    height, width = x.shape[2:]
    if torch.compiler.is_compiling() and multiple > 1:  # one graph for all sizes
        rows = _mirrored(height, (height + multiple - 1) // multiple * multiple, x.device)
        columns = _mirrored(width, (width + multiple - 1) // multiple * multiple, x.device)
        return x.index_select(2, rows).index_select(3, columns)
    down, right = -height % multiple, -width % multiple
    if right:
        x = F.pad(x, (0, right, 0, 0), mode='reflect' if right < width else 'replicate')
    if down:
        x = F.pad(x, (0, 0, 0, down), mode='reflect' if down < height else 'replicate')
    return x


def _mirrored(length: int, padded: int, device: torch.device) -> Tensor:
    """Which of `length` pixels each of `padded` ones is, as `pad_to_multiple` pads, with no branch on a size."""
    place = torch.arange(padded, device=device)
    mirrored = torch.where(place < length, place, 2 * (length - 1) - place)
    return torch.where(mirrored[-1:] >= 0, mirrored, place.clamp(max=length - 1))


class PixelEmbed(nn.Module):
    """Normalise each pixel's channels; the place of published patch embeddings, whose weights it takes.

    Args:
        dim: number of channels.
        norm_layer: makes the normalisation, or None for none.
    """

    def __init__(self, dim: int, norm_layer: Callable[[int], nn.Module] | None) -> None:
        super().__init__()
        self.norm = norm_layer(dim) if norm_layer is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        return self.norm(x)


def token_grid(img_size: int | Sequence[int], patch_size: int | Sequence[int]) -> tuple[int, int]:
    """Rows and columns of an absolute position embedding, counted as in the published code.

    Args:
        img_size: side of the training patch in pixels; int or (height, width).
        patch_size: side of a token in pixels; int or (height, width).

    Raises:
        ValueError: the image holds no token.
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    down, right = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    if min(down, right) < 1 or height < down or width < right:
        raise ValueError(
            f'img_size {img_size} holds no patch of patch_size {patch_size}: '
            'give the published img_size 64 and patch_size 1, or leave both out'
        )
    return height // down, width // right


def position_embedding(grid: tuple[int, int], dim: int) -> nn.Parameter:
    """A learnable embedding of each token of a grid: (1, tokens, dim)."""
    embedding = nn.Parameter(torch.zeros(1, grid[0] * grid[1], dim))
    nn.init.trunc_normal_(embedding, std=0.02)
    return embedding


def positions_at(embedding: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """An absolute position embedding at a size, resized bicubically where it is not the grid's.

    Args:
        embedding: (1, tokens, C).
        grid: rows and columns of its tokens.
        size: height and width in pixels.

    Returns:
        (1, height, width, C).
    """
    positions = embedding.unflatten(1, grid)
    if grid == size:
        return positions
    return F.interpolate(positions.permute(0, 3, 1, 2), size, mode='bicubic').permute(0, 2, 3, 1)
