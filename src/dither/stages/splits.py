"""Where the two regions of probabilities meet (TQ-DiT, arXiv 2502.04056; PTQ4ViT, 2111.12293): of least squared error.

    split = top 2^-i, i in 0..19        min over i of  sum (A - A')^2        A: sampled probabilities of a time group

The published top is 1. Most rows of a softmax never come near it; the largest probability that was seen makes the upper
region's steps as fine as they can be.
"""

import torch
from torch import Tensor

from dither.numerics import Table, act_quantize, split_table
from dither.probes import RowsByTime
from dither.spec import TwoRegion

__all__ = ["SPLITS", "best_split", "best_splits", "split_tables"]

SPLITS = 20
"""Candidates of a split, each half the one before."""


def best_splits(probe: RowsByTime, tops: Tensor, grid: TwoRegion) -> Table:
    """The steps (R, 1) of least squared error on the sampled values of each time group.

    Args:
        probe: of the probabilities; a time group that no call fell into takes the samples of all others.
        tops: ends of the upper regions, (R,).
        grid: unsigned.
    """
    everything = [v for part in probe.parts for v in part.parts]
    parts = [torch.cat(part.parts or everything) for part in probe.parts]
    found = [best_split(part, end, grid) for part, end in zip(parts, tops, strict=True)]
    return {key: torch.stack([table[key] for table in found]).reshape(-1, 1) for key in found[0]}


def split_tables(top: Tensor, grid: TwoRegion) -> list[Table]:
    """The steps of every candidate, for an upper end () of the upper region."""
    return [split_table(top, top * 0.5**i, grid) for i in range(SPLITS)]


def best_split(x: Tensor, top: Tensor, grid: TwoRegion) -> Table:
    """The steps (1,) of least squared error on values x of any shape, for an upper end () of the upper region."""
    x = x.reshape(1, -1)
    tables = split_tables(top.reshape(1).to(x.device), grid)
    losses = torch.stack([(act_quantize(x, grid, t) - x).double().square().sum() for t in tables])
    return tables[int(losses.argmin())]
