"""WEIGHT: a low-rank branch takes what rounding loses most (DiTAS, arXiv 2409.07756, after LoftQ, 2310.08659).

    y = Q(x) W'^T + x A^T B^T        W ~ W' + B A,  A (r, K), B (N, r)

    repeat:   W' = round(W - B A)        B A = the best rank r of E = W - W'        at first B A = 0

Best in the sense of |E|, or of the output, tr E H E^T (``weighted``; H from calibration, in one pass). The branch reads the
input before it is quantized. What it leaves, W - B A with B and A as they are stored, becomes the layer's dense weight, and a
later stage rounds it: ``rtn`` as DiTAS does, or ``gptq``, so that columns pass on what the branch could not take.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from dither import memory
from dither.errors import BadRecipe
from dither.numerics import decode, encode
from dither.spec import Codebook, Format, Gaussian, Int, LowRank, Trellis
from dither.stages.base import Job, Phase
from dither.stages.columns import damped_root
from dither.stages.hessian import Gather, chunks
from dither.stages.incoherence import named
from dither.stages.needs import MEASURED
from dither.stages.nesting import rounded

__all__ = ["SplitLowRank"]

SHARE = 36
"""Of the narrower side, one part: DiTAS's 32 of 1152."""
MOST_ROUNDS = 1000
DAMP = 0.01
SPLIT = (Int, Codebook, Gaussian, Trellis)
"""Formats of weights that may have a branch. Each round of the alternation encodes every weight once."""


@dataclass(frozen=True)
class SplitLowRank:
    """Branches for linears whose weights are to be rounded; modulation linears have none.

    Args:
        rank: of every branch; 0: a 36th of the layer's narrower side.
        rounds: of the alternation.
        bits: of the branch, symmetric, a scale for each row of A and of B; None keeps it in full precision.
        layers: regular expression; only layers whose name it finds get a branch.
        weighted: best for the layer's output on calibration inputs; otherwise for the weight, without data.
        rows: calibration rows that a layer must have seen, where weighted.
        memory: GiB of Hessians at a time.
    """

    tag: ClassVar[str] = "low-rank"
    phase: ClassVar[Phase] = Phase.WEIGHT
    paper: ClassVar[str] = "2409.07756"
    rank: int = 0
    rounds: int = 10
    bits: int | None = 8
    layers: str = ""
    weighted: bool = False
    rows: int = 32
    memory: float = 2.0

    def run(self, job: Job) -> None:
        """Split every chosen layer; the model's function stays the same."""
        names = self._chosen(job)
        for i, (name, h) in enumerate(self._hessians(job, names)):
            self._split(job, name, h)
            job.progress("splitting off low-rank branches", i + 1, len(names))

    def _chosen(self, job: Job) -> list[str]:
        if not 0 <= self.rounds <= MOST_ROUNDS or self.rounds == 0:
            raise BadRecipe(f"low-rank.rounds {self.rounds}: must be 1 to {MOST_ROUNDS}")
        if self.bits is not None and not 2 <= self.bits <= 8:
            raise BadRecipe(f"low-rank.bits {self.bits}: must be 2 to 8, or null for full precision")
        if not self.memory > 0:
            raise BadRecipe(f"low-rank.memory {self.memory:g}: must be positive")
        wanted, layers = named("low-rank.layers", self.layers, list(job.layers)), job.layers
        found = [
            name
            for name, spec in job.specs.items()
            if name in wanted and isinstance(spec.weight, SPLIT) and layers[name].kind != "adaln"
        ]
        for name in found:
            if job.specs[name].lowrank is not None:
                raise BadRecipe(f"low-rank: layer '{name}' has a branch already: one such stage must leave it out")
            if name in job.varied or name in job.done or name in job.grids:
                raise BadRecipe(
                    f"low-rank: layer '{name}' changes over time, or an earlier stage has looked at its weight already: "
                    "put 'low-rank' before it, or leave it out"
                )
            if not 0 <= self.rank <= min(job.dense(name).shape):
                raise BadRecipe(f"low-rank.rank {self.rank}: layer '{name}' is {tuple(job.dense(name).shape)}")
        if not found:
            raise BadRecipe(
                f"low-rank.layers '{self.layers}': no such layer is to have integers or other codes as weights, modulation "
                "aside; put 'assign' before"
            )
        return found

    def _hessians(self, job: Job, names: list[str]) -> Iterator[tuple[str, Tensor | None]]:
        """Each layer with its H (K, K), if that is asked for and the branch is not kept from an interrupted run."""
        gather = Gather(self.tag, least=self.rows)
        gather.check()
        if not self.weighted:
            yield from ((name, None) for name in names)
            return

        def lacking(part: Sequence[str]) -> bool:
            return job.lacks(f"{MEASURED}{self.tag}.{name}" for name in part)

        for part, found in chunks(job, gather, names, self.memory, "measuring Hessians of branches", lacking):
            yield from ((name, found[name].h if found else None) for name in part)

    def _split(self, job: Job, name: str, h: Tensor | None) -> None:
        w, fmt = job.dense(name), job.specs[name].weight
        assert fmt is not None
        lowrank = LowRank(self.rank or max(1, min(w.shape) // SHARE), None if self.bits is None else Int(self.bits))
        kept = job.kept(f"{self.tag}.{name}", partial(_branch, w, fmt, lowrank, self.rounds, h))
        dtypes = {key: w.dtype if key.endswith("_dense") else tensor.dtype for key, tensor in kept.items()}
        tensors = {key: tensor.to(w.device, dtypes[key]) for key, tensor in kept.items()}
        rest = (w.float() - _product(tensors, lowrank, (w.shape[0], w.shape[1]))).to(w.dtype)
        job.split(name, lowrank, tensors, rest)
        memory.set_aside(w)


def _branch(w: Tensor, fmt: Format, lowrank: LowRank, rounds: int, h: Tensor | None) -> Mapping[str, Tensor]:
    """Stored tensors of the branch of a weight (N, K): of all rounds, the one that leaves least. It need not be the last."""
    w = w.float()
    root = None if h is None else damped_root(h, DAMP)[0]
    a, b = torch.zeros(0, w.shape[1], device=w.device), torch.zeros(w.shape[0], 0, device=w.device)
    kept, least = (a, b), math.inf
    left = w - rounded(w, fmt)
    for _ in range(rounds):
        a, b = best(left + b @ a, lowrank.rank, h, root)
        rest = w - b @ a
        left = rest - rounded(rest, fmt)
        if (loss := float((left * (left if h is None else left @ h)).sum())) < least:
            kept, least = (a, b), loss
    parts = {"lowrank_a": kept[0].contiguous(), "lowrank_b": kept[1].contiguous()}
    stored = {key: {"dense": x} if lowrank.weight is None else encode(x, lowrank.weight) for key, x in parts.items()}
    return {f"{key}_{kind}": tensor for key, tensors in stored.items() for kind, tensor in tensors.items()}


def best(e: Tensor, rank: int, h: Tensor | None, root: Tensor | None) -> tuple[Tensor, Tensor]:
    """A (r, K) and B (N, r) with the least |E - B A|, or tr (E - B A) H (E - B A)^T.

    By eigenvectors of the smaller of M M^T and M^T M, with M = E L and H = L L^T:

        N <= K:  U of E H E^T, B = U, A = U^T E        N > K:  V of L^T E^T E L, B = E L V, A = V^T L^-1

    Args:
        e: (N, K).
        rank: r.
        h: (K, K), or None.
        root: L, lower triangular, or None.
    """
    n, k = e.shape
    if n <= k:
        u = _largest(e @ (e.T if h is None else h @ e.T), rank)  # (N, r)
        return u.T @ e, u
    m = e if root is None else e @ root
    v = _largest(m.T @ m, rank)  # (K, r)
    b, a = m @ v, v.T
    if root is not None:
        a = torch.linalg.solve_triangular(root, a, upper=False, left=False)
    size = b.square().sum(0).sqrt().clamp(min=torch.finfo(b.dtype).tiny)  # even columns are stored best
    return a * size[:, None], b / size


def _largest(square: Tensor, rank: int) -> Tensor:
    """Eigenvectors (n, r) of the largest eigenvalues."""
    vectors: Tensor = torch.linalg.eigh((square + square.T) / 2).eigenvectors
    return vectors[:, -rank:].contiguous()


def _product(tensors: Mapping[str, Tensor], lowrank: LowRank, shape: tuple[int, int]) -> Tensor:
    """B A (N, K) as the stored tensors have it."""
    (n, k), r = shape, lowrank.rank
    a, b = (
        {key.removeprefix(head): t for key, t in tensors.items() if key.startswith(head)}
        for head in ("lowrank_a_", "lowrank_b_")
    )
    if lowrank.weight is None:
        return b["dense"].float() @ a["dense"].float()
    return decode(b, lowrank.weight, (n, r)) @ decode(a, lowrank.weight, (r, k))
