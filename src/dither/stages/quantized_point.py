"""The denoiser at the quantized point, for a while: every layer as promised, rounded to nearest; and its error there.

    L = ||eps^ - eps||^2,    eps in full precision

Static ranges go from the least to the greatest value. Gradients pass straight through whatever rounds an input. What
attentions are promised to round is not rounded.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from dither.errors import BadValue
from dither.nn import QLinear
from dither.numerics import range_table
from dither.spec import LinearSpec
from dither.stages.base import Job
from dither.stages.building import filled
from dither.stages.scale_search import group_ranges
from dither.stages.watching import Piece

__all__ = ["SquaredError", "twins"]

UNMOVED = 1e-10
"""Squared error as a share of the answers' energy that rounding of float32 alone explains."""


class SquaredError:
    """||eps^ - eps||^2, with eps of a pass before.

    Args:
        stage: for messages.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.answers: dict[tuple[int, int], Tensor] = {}
        self.energy = self.error = 0.0

    def remember(self, piece: Piece, y: Tensor) -> list[Tensor]:
        """Keep what full precision answers, (B, ...); there is nothing to take a gradient of."""
        self.answers[piece.index, piece.part.start] = y.detach().cpu()
        self.energy += float(y.detach().double().square().sum())
        return []

    def losses(self, piece: Piece, y: Tensor) -> list[Tensor]:
        """The error of a piece; samples do not meet, so each has the gradient of its own."""
        loss = (y - self.answers[piece.index, piece.part.start].to(y.device)).square().sum()
        self.error += float(loss.detach())
        return [loss]

    def check(self) -> None:
        """BadValue where quantization moved nothing, so that there is no gradient."""
        if not self.error > UNMOVED * self.energy:
            raise BadValue(
                f"{self.stage}.quantized: the quantized denoiser answers as full precision does (squared error "
                f"{self.error:.2g} of {self.energy:.2g}), so that its error has no gradient: set it to false"
            )


def twins(job: Job, ranges: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, QLinear]:
    """An imitation of every layer that is promised something and not finished.

    Args:
        job: after ``assign``.
        ranges: of the input channels by clock row, (R, K) each, of every layer with a static table.
    """
    return {name: _twin(job, name, spec, ranges) for name, spec in job.specs.items() if name not in job.done}


def _twin(job: Job, name: str, spec: LinearSpec, ranges: Mapping[str, tuple[Tensor, Tensor]]) -> QLinear:
    if spec.act is None or not spec.act.static:
        return job.imitation(name, spec.weight, spec.act)
    table = range_table(*group_ranges(spec.act, *ranges[name]), spec.act.grid)
    plain = job.imitation(name, spec.weight, None)
    tensors = {**dict(plain.named_buffers()), **{f"act_{key}": tensor for key, tensor in table.items()}}
    return filled(name, plain, replace(plain.spec, act=spec.act), tensors, job.clock, plain.bias)
