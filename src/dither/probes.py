"""Probes: statistics of a layer's inputs that stream by, so that no activation is ever stored.

Tables have one row for each row of the model's clock, or a single one for all times.
"""

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["AbsMax", "GroupRange", "MinMax", "MovingRange", "Probe", "RowSample", "RowsByTime", "seen_ranges"]


class Probe(Protocol):
    """A streaming statistic of one layer's input."""

    def update(self, x: Tensor, rows: Tensor) -> None:
        """Take in one call's input x (B, ..., K); ``rows`` (B,) int64 is each sample's clock row."""


class AbsMax:
    """Largest magnitude of each channel, for each clock row: ``value`` (R, K) float32."""

    def __init__(self, channels: int, rows: int = 1) -> None:
        self.value = torch.zeros(rows, channels)

    def update(self, x: Tensor, rows: Tensor) -> None:
        """Take in one call's input."""
        peak = _per_sample(x, rows).abs().amax(1)  # (B, K)
        index = _fold_rows(rows, self.value.shape[0])[:, None].expand_as(peak)
        self.value = self.value.to(x.device).scatter_reduce(0, index, peak, "amax")


class MinMax:
    """Smallest and largest value of each channel, for each clock row: ``lo``, ``hi`` (R, K) float32."""

    def __init__(self, channels: int, rows: int = 1) -> None:
        self.lo = torch.full((rows, channels), torch.inf)
        self.hi = torch.full((rows, channels), -torch.inf)

    def update(self, x: Tensor, rows: Tensor) -> None:
        """Take in one call's input."""
        samples = _per_sample(x, rows)  # (B, n, K)
        index = _fold_rows(rows, self.lo.shape[0])[:, None].expand(-1, samples.shape[2])
        self.lo = self.lo.to(x.device).scatter_reduce(0, index, samples.amin(1), "amin")
        self.hi = self.hi.to(x.device).scatter_reduce(0, index, samples.amax(1), "amax")


class GroupRange:
    """Smallest and largest value of each channel group, for each clock row: ``lo``, ``hi`` (R, G) float32.

    Rows that no call falls into stay at plus and minus infinity.

    Args:
        groups: G, how many groups of neighbouring channels; must divide their number.
        rows: R.
    """

    def __init__(self, groups: int, rows: int = 1) -> None:
        self.inner = MinMax(groups, rows)

    @property
    def lo(self) -> Tensor:
        """(R, G)."""
        return self.inner.lo

    @property
    def hi(self) -> Tensor:
        """(R, G)."""
        return self.inner.hi

    def update(self, x: Tensor, rows: Tensor) -> None:
        """Take in one call's input."""
        samples, groups = _per_sample(x, rows), self.inner.lo.shape[1]  # (B, n, K)
        split = samples.reshape(len(samples), samples.shape[1], groups, -1).transpose(2, 3)  # (B, n, g, G)
        self.inner.update(split.reshape(len(samples), -1, groups), rows)


class MovingRange:
    """Moving averages of what each call's range is in each channel group, for each clock row: ``lo``, ``hi`` (R, G) float32.

        lo <- m lo + (1 - m) min over this call's values        hi <- m hi + (1 - m) max over this call's values

    The first call that falls into a row sets it; rows that no call falls into stay at plus and minus infinity.

    Args:
        groups: G, how many groups of neighbouring channels; must divide their number.
        rows: R.
        momentum: m, in [0, 1).
    """

    def __init__(self, groups: int, rows: int, momentum: float) -> None:
        self.lo = torch.full((rows, groups), torch.inf)
        self.hi = torch.full((rows, groups), -torch.inf)
        self.momentum = momentum

    def update(self, x: Tensor, rows: Tensor) -> None:
        """Take in one call's input."""
        now = GroupRange(self.lo.shape[1], self.lo.shape[0])
        now.update(x, rows)
        self.lo, self.hi = self._moved(self.lo, now.lo), self._moved(self.hi, now.hi)

    def _moved(self, old: Tensor, new: Tensor) -> Tensor:
        old = old.to(new.device)
        moved = self.momentum * old + (1 - self.momentum) * new
        return torch.where(torch.isfinite(new), torch.where(torch.isfinite(old), moved, new), old)


def seen_ranges(lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """Ranges (R, G) in which every row that no call fell into, where they are infinite, has the range of all the others."""
    seen = torch.isfinite(lo).all(1)
    return torch.where(seen[:, None], lo, lo[seen].amin(0)), torch.where(seen[:, None], hi, hi[seen].amax(0))


class RowSample:
    """A few input rows of every call, as whole tokens: ``value`` (n, K) float32; memory is bounded by ``limit`` rows.

    Each call gives an equal share, drawn by a seeded generator; when full, a random half is dropped and shares halve.
    """

    def __init__(self, limit: int = 2048, share: int = 64, seed: int = 0) -> None:
        self.limit, self.share = limit, share
        self.generator = torch.Generator().manual_seed(seed)
        self.parts: list[Tensor] = []

    def update(self, x: Tensor, rows: Tensor) -> None:
        """Take in one call's input."""
        flat = x.detach().reshape(-1, x.shape[-1])
        pick = torch.randperm(flat.shape[0], generator=self.generator)[: self.share]
        self.parts.append(flat[pick.to(flat.device)].float().cpu())
        if sum(len(p) for p in self.parts) > self.limit:
            everything = torch.cat(self.parts)
            keep = torch.randperm(len(everything), generator=self.generator)[: max(1, self.limit // 2)].sort().values
            self.parts, self.share = [everything[keep]], max(1, self.share // 2)

    @property
    def value(self) -> Tensor:
        """The rows kept so far, (n, K)."""
        return torch.cat(self.parts)


class RowsByTime:
    """Some input rows for each clock row, in a ``RowSample`` of its own: ``parts``, one or R.

    Args:
        count: R; with 1 all calls share one.
        limit: rows kept in each.
        seed: of the draws.
    """

    def __init__(self, count: int, limit: int, seed: int = 0) -> None:
        self.parts = [RowSample(limit, seed=seed) for _ in range(count)]

    def update(self, x: Tensor, rows: Tensor) -> None:
        """Take in one call's input."""
        samples, index = _per_sample(x, rows), _fold_rows(rows, len(self.parts))
        for row in sorted(set(index.tolist())):
            self.parts[row].update(samples[index == row], rows)


def _per_sample(x: Tensor, rows: Tensor) -> Tensor:
    """x as (B, n, K) float32, with B the clock's batch: a layer may fold frames or heads into its batch.

    An input whose batch is no multiple of B, such as one embedding for all samples, belongs to every sample.
    """
    x, batch = x.detach().float(), rows.shape[0]
    if x.ndim == 1 or x.shape[0] % batch:
        return x.reshape(1, -1, x.shape[-1]).expand(batch, -1, -1)
    return x.reshape(batch, -1, x.shape[-1])


def _fold_rows(rows: Tensor, count: int) -> Tensor:
    """Clock rows as indices of a table of ``count`` rows; a table of one row takes them all."""
    return torch.zeros_like(rows) if count == 1 else rows
