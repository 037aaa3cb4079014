"""ALLOCATE: bits for each layer by what its errors do to the model's answer, under an average (an integer program).

    loss(layer, b) = D_b  kappa  sum_t |x_t|^2 sum_a g_ta^2 v_a        x: inputs, g: gradients by outputs, see ``gradients``

D_b is what codes of b bits lose on Gaussian values of variance 1, and v_a the mean square of a row: behind rotations errors
are spread evenly over inputs, and nothing need be rounded to know what rounding does. Where errors are passed on (``gptq``)
what is left of them is the spectral flatness kappa of the inputs' second moments: their geometric over their arithmetic mean
eigenvalue. The sum of all losses is least at the optimum, which HiGHS proves.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from dither.errors import BadFormat, BadRecipe
from dither.numerics import decode, encode, stored_bits
from dither.spec import Int, LinearSpec, Trellis
from dither.stages.adding_up import check_seconds
from dither.stages.base import Job, Phase
from dither.stages.effects import alike, row_weights
from dither.stages.gradients import Passes, Sample
from dither.stages.solver import Limit, choose

__all__ = ["CodeProgram"]

SOURCE = (64, 256)
"""Gaussian values that D_b is measured on."""
DAMP = 0.01
"""Share of the mean eigenvalue that is added to all, as ``gptq.damp``."""

Coded = Int | Trellis


@dataclass(frozen=True)
class CodeProgram:
    """Widths of least summed loss, of all layers that are to have integers or trellis codes.

    Args:
        widths: to choose from.
        bits: most stored bits per weight on average, scales counted; None: what ``assign`` gave.
        feedback: errors will be passed on; otherwise kappa is 1.
        calls: calibration calls that are looked at, at most.
        rows: tokens kept of each layer.
        trajectory: an error counts as much as it changes the final picture at its noise level, see ``effects``.
        seconds: that the solver may take; if they do not suffice, what it has is taken and its gap noted.
    """

    tag: ClassVar[str] = "code-program"
    phase: ClassVar[Phase] = Phase.ALLOCATE
    paper: ClassVar[str] = ""
    widths: tuple[int, ...] = (1, 2, 3, 4)
    bits: float | None = None
    feedback: bool = True
    calls: int = 16
    rows: int = 512
    trajectory: bool = False
    seconds: float = 60.0

    def run(self, job: Job) -> None:
        """Measure, solve, and promise."""
        check_seconds(self.tag, self.seconds)
        passes = Passes(self.tag, self.calls, self.rows, weigh=row_weights if self.trajectory else alike)
        passes.check()
        specs = {n: s for n, s in job.specs.items() if isinstance(s.weight, Coded) and n not in job.varied}
        if not specs:
            raise BadRecipe(f"{self.tag}: no layer is to have integers or trellis codes")
        options = {name: self._options(job, name, spec) for name, spec in specs.items()}
        limit = self._limit(job, options, specs)
        losses = job.measured(f"{self.tag}.losses", lambda: self._losses(job, passes, options))
        table = [[distortion(fmt) * losses[name] for fmt in formats] for name, formats in options.items()]
        found = choose(table, [limit], self.seconds)
        for (name, formats), index, row in zip(options.items(), found.options, table, strict=True):
            fmt = formats[index]
            job.promise(name, replace(specs[name], weight=fmt))
            facts = {"bits": fmt.bits, "loss": float(f"{row[index]:.4g}")}
            job.note(name, {self.tag: facts | ({"gap": found.gap} if found.gap else {})})

    def _options(self, job: Job, name: str, spec: LinearSpec) -> list[Coded]:
        """Formats of a layer, by width, ascending."""
        if not self.widths:
            raise BadRecipe(f"{self.tag}.widths: there are none to choose from")
        fmt = spec.weight
        assert isinstance(fmt, Coded)
        try:
            return [replace(fmt, bits=bits) for bits in sorted(set(self.widths))]
        except BadFormat as e:
            raise BadRecipe(f"{self.tag}.widths {list(self.widths)}: layer '{name}': {e}") from None

    def _limit(self, job: Job, options: Mapping[str, list[Coded]], specs: Mapping[str, LinearSpec]) -> Limit:
        """Of stored bits; BadRecipe if even the least widths take more."""
        shapes = {name: tuple(job.dense(name).shape) for name in options}
        costs = [[stored_bits(fmt, shapes[name]) for fmt in formats] for name, formats in options.items()]
        weights = sum(n * k for n, k in shapes.values())
        most = sum(stored_bits(s.weight, shapes[n]) for n, s in specs.items() if s.weight is not None)
        if self.bits is not None:
            most = int(self.bits * weights)
        if (least := sum(min(row) for row in costs)) > most:
            raise BadRecipe(
                f"{self.tag}: {most / weights:.3f} bits per weight on average cannot be kept: the least widths take "
                f"{least / weights:.3f}"
            )
        return Limit(costs, most)

    def _losses(self, job: Job, passes: Passes, options: Mapping[str, list[Coded]]) -> dict[str, float]:
        """Loss of each layer at D = 1."""
        found = {}
        samples = passes.samples(job, list(options))
        for i, name in enumerate(options):
            found[name] = _loss(samples.pop(name), job.dense(name).float().cpu(), self.feedback)
            job.progress("weighing layers", i + 1, len(options))
        return found


def _loss(sample: Sample, w: Tensor, feedback: bool) -> float:
    variance = w.square().mean(1)  # (N,)
    energy = sample.x.square().sum(1)  # (n,)
    total = float((energy * (sample.weight @ variance)).mean())
    return total * _flatness(sample.x) if feedback else total


def _flatness(x: Tensor) -> float:
    """Geometric over arithmetic mean of the damped eigenvalues of x^T x, x (n, K)."""
    h = (x.T @ x).double()
    values = torch.linalg.eigvalsh(h).clamp(min=0)
    mean = values.mean()
    if not mean > 0:
        return 1.0
    return float(((values / mean + DAMP) / (1 + DAMP)).log().mean().exp())


@cache
def distortion(fmt: Coded) -> float:
    """Mean squared error of a format on Gaussian values of variance 1, in tiles or groups of its own."""
    rows, columns = (fmt.rows, fmt.columns) if isinstance(fmt, Trellis) else (1, max(fmt.group, 1))
    shape = (-(-SOURCE[0] // rows) * rows, -(-SOURCE[1] // columns) * columns)
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return float((decode(encode(w, fmt), fmt, shape) - w).square().mean())
