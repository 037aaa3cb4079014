"""Rounding a weight to trellis codes or words, each error passed on to the columns that come later (block LDLQ).

    min over W' in the format of   tr (W - W') H (W - W')^T

    H^-1 = U^T U, U upper triangular        for blocks B of columns, from the first:
        W'_B = nearest path(W_B)        E = (W_B - W'_B) U_BB^-1        W_R -= E U_BR  for the columns R that follow

as QuIP# (arXiv 2402.04396) and QTIP (2406.11235) do it; with blocks of one column it is GPTQ, see ``columns``. Inside a block
the search knows nothing of H. Afterwards each row takes the scale that serves it best under H.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dither.numerics import (
    decode,
    gaussian_indices,
    gaussian_values,
    pack_gaussian,
    pack_trellis,
    trellis_bits,
    trellis_from_bits,
)
from dither.numerics.integer import divisor
from dither.spec import Gaussian, Trellis
from dither.stages.columns import Factor

__all__ = ["Block", "Tiled", "round_tiles"]

Block = Gaussian | Trellis
"""Formats whose codes stand for some columns of Gaussian values, times a scale of each row."""


@dataclass(frozen=True)
class Tiled:
    """A rounded weight.

    Args:
        tensors: as stored.
        values: (N, K) float32, what they stand for.
        error: the objective above, with H as it was.
    """

    tensors: dict[str, Tensor]
    values: Tensor
    error: float


@dataclass(frozen=True)
class _Coder:
    """How a format codes ``columns`` columns (N, c) of rows of variance 1.

    Args:
        columns: c.
        search: columns to codes.
        values: codes to columns.
        pack: the codes of all blocks and the deviation (N, 1) of each row, to what is stored.
    """

    columns: int
    search: Callable[[Tensor], Tensor]
    values: Callable[[Tensor], Tensor]
    pack: Callable[[Sequence[Tensor], Tensor], dict[str, Tensor]]


def _coder(fmt: Block, rows: int, width: int) -> _Coder:
    if isinstance(fmt, Gaussian):
        return _Coder(
            fmt.dim,
            partial(gaussian_indices, fmt=fmt),
            partial(gaussian_values, fmt=fmt),
            lambda found, scale: pack_gaussian(torch.cat(list(found), 1), scale, fmt),
        )
    return _Coder(
        fmt.columns,
        partial(trellis_bits, fmt=fmt),
        lambda bits: trellis_from_bits(bits, fmt, (rows, fmt.columns)),
        lambda found, scale: pack_trellis(torch.stack(list(found), 1).flatten(0, 1), scale, fmt, (rows, width)),
    )


def round_tiles(w: Tensor, h: Tensor, fmt: Block, how: Callable[[Tensor], Factor]) -> tuple[Tiled, Factor]:
    """Codes of a weight for a Hessian.

    Args:
        w: (N, K) float32, finite; tiles or words divide it.
        h: (K, K).
        fmt: of the codes.
        how: factors H.
    """
    found, coder = how(h), _coder(fmt, w.shape[0], w.shape[1])
    c = coder.columns
    scale = w.square().mean(1, keepdim=True).sqrt()  # (N, 1)
    unit = divisor(scale)
    rest, codes, values = w.clone(), list[Tensor](), torch.empty_like(w)
    for start in range(0, w.shape[1], c):
        here = slice(start, start + c)
        codes.append(coder.search(rest[:, here] / unit))
        values[:, here] = coder.values(codes[-1]) * scale
        root = found.u[here, here]
        e = torch.linalg.solve_triangular(root, rest[:, here] - values[:, here], upper=True, left=False)
        rest[:, start + c :].addmm_(e, found.u[here, start + c :], alpha=-1)
    left = values @ h
    best = (left * w).sum(1, keepdim=True) / (left * values).sum(1, keepdim=True)
    fitted = scale * torch.where(torch.isfinite(best), best, 1.0).clamp(min=0)
    tensors = coder.pack(codes, fitted)
    stored = decode(tensors, fmt, w.shape)
    gap = w - stored
    return Tiled(tensors, stored, float((gap @ h).mul_(gap).sum())), found
