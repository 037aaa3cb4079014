"""Errors of one output passed on to others, by what the denoiser's answer makes of them together (YAQA, arXiv 2505.22988).

    min over W' in the format of   tr G (W - W') H (W - W')^T      G = E g g^T, g: gradient by the layer's output

the Kronecker form of the curvature. With G^-1 = U^T U, U upper triangular, blocks B of rows are rounded one after the other,
each by itself as H asks for; what it gets wrong goes to the rows R that follow:

    W_R -= U_BR^T U_BB^-T (W_B - W'_B)

"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Part", "round_by_outputs"]


@dataclass(frozen=True)
class Part:
    """Some rounded rows of a weight.

    Args:
        tensors: as stored; each has these rows as its first axis.
        values: (n, K) float32, what they stand for.
    """

    tensors: Mapping[str, Tensor]
    values: Tensor


RoundRows: TypeAlias = Callable[[Tensor], Part]


def round_by_outputs(w: Tensor, u: Tensor, rows: int, round_rows: RoundRows) -> Part:
    """Round a weight from its first output to its last.

    Args:
        w: (N, K) float32.
        u: (N, N), G^-1 = u^T u.
        rows: how many outputs are rounded at a time; between them nothing is passed on.
        round_rows: rounds rows (n, K) by themselves.
    """
    rest, parts = w.clone(), list[Part]()
    for start in range(0, len(w), rows):
        here, later = slice(start, start + rows), slice(start + rows, len(w))
        parts.append(round_rows(rest[here]))
        gap = rest[here] - parts[-1].values
        e = torch.linalg.solve_triangular(u[here, here].T, gap, upper=False)
        rest[later].addmm_(u[here, later].T, e, alpha=-1)
    stored = {key: torch.cat([part.tensors[key] for part in parts]) for key in parts[0].tensors}
    return Part(stored, torch.cat([part.values for part in parts]))
