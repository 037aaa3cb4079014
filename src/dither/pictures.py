"""Arrays of pictures: from a model's state to uint8, to one picture for the eye, to a file for other evaluators.

States of 1 or 3 channels are pictures. Others are latents of an encoder that is not here: their first three channels are
shown as red, green and blue on the fixed range [-4, 4], so that two runs stay comparable.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dither.errors import BadValue
from dither.evaluation.admfile import write_npz
from dither.evaluation.protocol import Label, Pictures

__all__ = ["PIXELS", "grid", "save_npz", "show_latents", "to_uint8"]

PIXELS = (1, 3)
"""Numbers of channels of a state that is a picture itself."""

LATENT_RANGE = 4.0
TILE = 96  # pixels; smaller pictures are enlarged in a grid
GAP = 2


def to_uint8(images: Any) -> Pictures:
    """[0, 1] to 0..255, rounded."""
    array = np.asarray(images)
    if not np.isfinite(array).all():
        raise BadValue("The pipeline produced NaN or infinite pictures.")
    pixels: Pictures = (array.clip(0, 1) * 255).round().astype(np.uint8)
    return pixels


def show_latents(latents: Tensor) -> Pictures:
    """(N, C, H, W) to uint8 (N, H, W, 3): the first three channels on [-4, 4]; missing channels are grey."""
    shown = torch.zeros(len(latents), 3, *latents.shape[2:])
    count = min(3, latents.shape[1])
    shown[:, :count] = latents[:, :count].float().cpu()
    return to_uint8((shown / (2 * LATENT_RANGE) + 0.5).permute(0, 2, 3, 1).numpy())


def grid(images: Pictures, columns: int) -> Image.Image:
    """One picture of all, row by row; small ones are enlarged without smoothing so that they can be seen.

    Args:
        images: uint8 (N, H, W, 1 or 3).
        columns: pictures a row.
    """
    if images.ndim != 4 or images.shape[0] < 1 or images.shape[3] not in PIXELS or columns < 1:
        raise BadValue(f"A grid needs pictures (N, H, W, 1 or 3) and a column, got {images.shape} and {columns}.")
    n, height, width, _ = images.shape
    factor = max(1, -(-TILE // max(height, width)))
    tiles = np.broadcast_to(images, (n, height, width, 3)).repeat(factor, axis=1).repeat(factor, axis=2)
    height, width, columns = height * factor, width * factor, min(columns, n)
    rows = -(-n // columns)
    canvas = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = (i // columns) * (height + GAP), (i % columns) * (width + GAP)
        canvas[top : top + height, left : left + width] = tile
    return Image.fromarray(canvas)


def save_npz(
    path: str | Path,
    images: Pictures,
    labels: Sequence[Label],
    seeds: Sequence[int],
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes the layout that ADM's evaluator reads: ``arr_0`` pictures (N, H, W, C), ``arr_1`` labels; and ``seeds``.

    The file appears whole or not at all, and holds no pickles.

    Args:
        path: the file.
        images: uint8 (N, H, W, C), or videos (N, F, H, W, C).
        labels, seeds: one of each.
        settings: how they were drawn, as JSON: files of different settings are not compared.
    """
    if not len(images) == len(labels) == len(seeds):
        raise BadValue(f"{len(images)} pictures, {len(labels)} labels and {len(seeds)} seeds do not go together.")
    write_npz(path, [images], len(images), images.shape[1:], labels, seeds, settings)
