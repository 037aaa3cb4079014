"""WEIGHT: search each group's range for the least error.

    outputs:   min_r  || x_g (w_g - Q(w_g; r lo, r hi))^T ||^2     over sampled inputs x
    weights:   min_r  sum_j |w_j - Q(w_j; r lo, r hi)|^p           (arXiv 2406.17343's released code: p = 2.4)

A tighter range rounds the many small weights more finely and clips the few large ones. Those carry the signal in a trained
DiT, and their clipping errors add up coherently over correlated inputs: the weight error alone is a bad guide.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from dither.calibrate import RowSample
from dither.errors import BadRecipe
from dither.numerics import dynamic_grid, from_codes, grid, grouped, int_range, to_codes
from dither.spec import PER_TENSOR, Int
from dither.stages.base import Job, Phase
from dither.stages.known import check_some

__all__ = ["Clip", "search_range"]

MOST_STEPS = 1000

Loss: TypeAlias = Callable[[Tensor], Tensor]
"""From the weight error (N, G, g) to each group's loss (N, G)."""


@dataclass(frozen=True)
class Clip:
    """Range search for integer formats; leaves the grids for the stage that rounds.

    Args:
        steps: candidates, from the full range down.
        smallest: the tightest range, as a fraction of the full one.
        outputs: judge by the layer's output on calibration inputs; otherwise by the weights, without data.
        power: p above, for the weights.
        rows: input tokens kept for each layer.
    """

    tag: ClassVar[str] = "clip"
    phase: ClassVar[Phase] = Phase.WEIGHT
    paper: ClassVar[str] = "2406.17343"
    steps: int = 20
    smallest: float = 0.6
    outputs: bool = True
    power: float = 2.4
    rows: int = 1024

    def run(self, job: Job) -> None:
        """Fill ``job.grids``."""
        self._check()
        formats = {n: s.weight for n, s in job.specs.items() if isinstance(s.weight, Int)}
        check_some(self.tag, "integers", formats, job.specs)
        samples = {n: RowSample(self.rows, seed=job.seed) for n in formats}
        if self.outputs and formats:
            job.observe("sampling inputs", {n: (p,) for n, p in samples.items()})
        for i, (name, fmt) in enumerate(formats.items()):
            w = job.dense(name).float()
            loss = _output_loss(samples[name].value.to(w.device), fmt) if self.outputs else _weight_loss(self.power)
            job.grids[name] = search_range(w, fmt, torch.linspace(1.0, self.smallest, self.steps).tolist(), loss)
            job.progress("searching ranges", i + 1, len(formats))

    def _check(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS:
            raise BadRecipe(f"clip.steps {self.steps}: must be 1 to {MOST_STEPS}")
        if not 0 < self.smallest <= 1:
            raise BadRecipe(f"clip.smallest {self.smallest}: must lie in (0, 1]")
        if not 0 < self.power < math.inf:
            raise BadRecipe(f"clip.power {self.power}: must be positive and finite")
        if self.rows < 1:
            raise BadRecipe(f"clip.rows {self.rows}: must be at least 1")


def search_range(w: Tensor, fmt: Int, ratios: list[float], loss: Loss) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point of the best shrunken range of each group of w (N, K); shapes as ``numerics.grid`` gives."""
    lo, hi = int_range(w, fmt)
    if fmt.symmetric and fmt.bits == 1:  # {-s, +s}: the full "range" is the mean magnitude
        hi = dynamic_grid(w, fmt)[0]
        lo = -hi
    scales, zeros, losses = [], [], []
    for ratio in ratios:
        scale, zero = grid(lo * ratio, hi * ratio, fmt)
        gap = loss(grouped(from_codes(to_codes(w, scale, zero, fmt), scale, zero, fmt) - w, fmt.group))  # (N, G)
        losses.append(gap.sum().reshape(1, 1) if fmt.group == PER_TENSOR else gap)
        scales.append(scale)
        zeros.append(zero)
    best = torch.stack(losses).argmin(0, keepdim=True)  # (1, N, G)
    scale = torch.stack(scales).gather(0, best)[0]
    if zeros[0] is None:
        return scale, None
    return scale, torch.stack([z for z in zeros if z is not None]).gather(0, best)[0]


def _output_loss(x: Tensor, fmt: Int) -> Loss:
    """Squared error that each group's weight error causes in the output, on tokens x (n, K)."""
    groups = grouped(x, fmt.group).transpose(0, 1)  # (G, n, g)
    return lambda gap: torch.einsum("ogk,gnk->ogn", gap, groups).square().sum(-1)


def _weight_loss(power: float) -> Loss:
    return lambda gap: gap.abs().pow(power).sum(-1)
