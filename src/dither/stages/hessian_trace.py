"""ALLOCATE: group sizes by the curvature of the denoiser's error, which Q-DiT compares its search with.

HAWQ-V2 (arXiv 1911.03852) takes the mean trace of a layer's Hessian H for its sensitivity. The loss here is the squared
error of the denoiser's output y against full precision's, whose Hessian there is exactly the Gauss-Newton one:

    Omega(u, g) = sum over layers    tr(H) / numel(W)  ||Q_g(W) - W||^2
    tr(H) = tr(J^T J) = E_v ||J^T v||^2 = E_v ||d(v . y) / dW||_F^2        J = dy/dW,  v of independent +-1 (Hutchinson)

For a linear with input x and gradient e of v . y by its output, d(v . y) / dW = e^T x, summed over a sample's tokens. So one
backward pass serves every layer, and only a few samples have a graph at a time.

Only weights are judged, as in HAWQ-V2: that inputs are quantized in groups too goes unseen. The sizes then solve the same
integer program as ``group-program``'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from dither.errors import BadRecipe, BadValue
from dither.stages.adding_up import check_seconds, settle_least
from dither.stages.base import Job, Phase
from dither.stages.granularity import SIZES, Limits, Unit, problem_of, resized
from dither.stages.nesting import rounded
from dither.stages.watching import Piece, answer, gradients, inputs, pieces, signs, spread, watched

__all__ = ["HessianTrace", "squared_gradients"]


@dataclass(frozen=True)
class HessianTrace:
    """Group sizes of least summed second-order error of the weights.

    Args:
        sizes: to choose from.
        bits: most stored bits per weight on average; None: what the size that ``assign`` gave takes.
        bitops: most bit operations per multiply-accumulate on average; None: what that size takes.
        calls: calibration calls that are looked at, at most, evenly spread over those that were recorded.
        probes: draws of v for each.
        seconds: that the solver may take; if they do not suffice, what it has is taken and its gap noted.
    """

    tag: ClassVar[str] = "hessian-trace"
    phase: ClassVar[Phase] = Phase.ALLOCATE
    paper: ClassVar[str] = "1911.03852"
    sizes: tuple[int, ...] = SIZES
    bits: float | None = None
    bitops: float | None = None
    calls: int = 8
    probes: int = 1
    seconds: float = 60.0

    def run(self, job: Job) -> None:
        """Measure, solve, and promise."""
        check_seconds(self.tag, self.seconds)
        for name, value in (("calls", self.calls), ("probes", self.probes)):
            if value < 1:
                raise BadRecipe(f"{self.tag}.{name} {value}: must be at least 1")
        problem = problem_of(job, self.tag, self.sizes, Limits(self.bits, self.bitops))
        chosen = spread(len(job.calls), self.calls)
        samples = sum(len(job.rows(job.calls[i])) for i in chosen)
        traces = self._traces(job, chosen, [name for unit in problem.units for name in unit.layers])
        losses = []
        for unit in problem.units:
            moved = job.measured(f"{unit.name}.rounding", partial(_rounding, job, unit))
            part = {n: traces[n] / samples / job.dense(n).numel() for n in unit.layers}
            losses.append([sum(part[n] * moved[_key(n, size)] for n in unit.layers) for size in unit.sizes])
        judge = "second-order error of the denoiser's output"
        cost = {"model_samples": samples, "gradient_samples": samples * self.probes}
        settle_least(job, self.tag, problem, losses, self.seconds, {"judge": judge, **cost})

    def _traces(self, job: Job, chosen: Sequence[int], names: Sequence[str]) -> dict[str, float]:
        """tr(H) of each layer, summed over the samples of these calls."""
        total = dict.fromkeys(names, 0.0)
        for done, index in enumerate(chosen, 1):
            make = partial(squared_gradients, job, index, names, self.probes)
            for name, value in job.measured(f"{self.tag}.{index}", make).items():
                total[name] += value
            job.progress("measuring curvature", done, len(chosen))
        return total


def _rounding(job: Job, unit: Unit) -> dict[str, float]:
    """||Q_g(W) - W||^2 of each layer and size."""
    found = {}
    for name in unit.layers:
        w = job.dense(name).float()
        for size in unit.sizes:
            fmt = resized(job.specs[name], size).weight
            assert fmt is not None
            found[_key(name, size)] = float((rounded(w, fmt) - w).double().square().sum())
    return found


def _key(name: str, size: int) -> str:
    return f"{name}.g{size}"


def squared_gradients(job: Job, index: int, names: Sequence[str], probes: int) -> dict[str, float]:
    """||d(v . y)/dW||_F^2 of each layer, summed over the samples of a recorded call: the mean over ``probes`` draws of v.

    Args:
        job: whose model is run with gradients; nothing of it is changed.
        index: of the call.
        names: of layers.
        probes: draws.

    Raises:
        BadModel: the call did not reach a layer.
        BadValue: a gradient holds NaN or infinity.
    """
    make = torch.Generator().manual_seed(job.seed * 1_000_003 + index)
    total = dict.fromkeys(names, 0.0)
    for piece in pieces(job, index):
        for name, found in _of_piece(job.model, piece, names, probes, make).items():
            total[name] += found
    return total


def _of_piece(
    model: nn.Module, piece: Piece, names: Sequence[str], probes: int, make: torch.Generator
) -> dict[str, float]:
    """``squared_gradients`` of a few samples, whose graph is in memory at once."""
    total, batch = dict.fromkeys(names, 0.0), len(piece.rows)
    with watched(model, names) as seen:
        y = answer(model, piece, seen)
        for p in range(probes):
            found = gradients((signs(y, make) * y).sum(), seen, batch, last=p + 1 == probes)
            for (name, x), (_, e) in zip(inputs(seen, batch), found, strict=True):
                total[name] += _squared(name, x, e) / probes
    return total


def _squared(name: str, x: Tensor, e: Tensor) -> float:
    """Sum over samples of ||sum over tokens of e^T x||_F^2, for x (B, T, K) and e (B, T, N)."""
    tokens, (k, n) = x.shape[1], (x.shape[2], e.shape[2])
    if tokens * (k + n) < k * n:  # the same sum over pairs of tokens, in less work
        found = float(((x @ x.mT) * (e @ e.mT)).double().sum())
    else:
        found = sum(float((b.T @ a).double().square().sum()) for a, b in zip(x, e, strict=True))
    if not abs(found) < float("inf"):
        raise BadValue(f"the gradient at layer '{name}' holds NaN or infinity")
    return found
