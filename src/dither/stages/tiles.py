"""Rounding a weight tile by tile to trellis codes, each error passed on to the columns that come later (block LDLQ).

    min over W' in the format of   tr (W - W') H (W - W')^T

    H^-1 = U^T U, U upper triangular        for blocks B of columns, from the first:
        W'_B = nearest path(W_B)        E = (W_B - W'_B) U_BB^-1        W_R -= E U_BR  for the columns R that follow

as QuIP# (arXiv 2402.04396) and QTIP (2406.11235) do it; with blocks of one column it is GPTQ, see ``columns``. Inside a block
the search knows nothing of H. Afterwards each row takes the scale that serves it best under H.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dither.numerics import decode, pack_trellis, trellis_bits, trellis_from_bits
from dither.numerics.integer import divisor
from dither.spec import Trellis
from dither.stages.columns import Factor

__all__ = ["Tiled", "round_tiles"]


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


def round_tiles(w: Tensor, h: Tensor, fmt: Trellis, how: Callable[[Tensor], Factor]) -> tuple[Tiled, Factor]:
    """Codes of a weight for a Hessian.

    Args:
        w: (N, K) float32, finite; tiles divide it.
        h: (K, K).
        fmt: of the codes.
        how: factors H.
    """
    found, c = how(h), fmt.columns
    scale = w.square().mean(1, keepdim=True).sqrt()  # (N, 1)
    unit = divisor(scale)
    rest, bits, values = w.clone(), [], torch.empty_like(w)
    for start in range(0, w.shape[1], c):
        here = slice(start, start + c)
        strip = trellis_bits(rest[:, here] / unit, fmt)  # (S, T)
        values[:, here] = trellis_from_bits(strip, fmt, (len(w), c)) * scale
        root = found.u[here, here]
        e = torch.linalg.solve_triangular(root, rest[:, here] - values[:, here], upper=True, left=False)
        rest[:, start + c :].addmm_(e, found.u[here, start + c :], alpha=-1)
        bits.append(strip)
    left = values @ h
    best = (left * w).sum(1, keepdim=True) / (left * values).sum(1, keepdim=True)
    fitted = scale * torch.where(torch.isfinite(best), best, 1.0).clamp(min=0)
    tensors = pack_trellis(torch.stack(bits, 1).flatten(0, 1), fitted, fmt, w.shape)
    stored = decode(tensors, fmt, w.shape)
    gap = w - stored
    return Tiled(tensors, stored, float((gap @ h).mul_(gap).sum())), found
