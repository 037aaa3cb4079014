"""ALLOCATE: one format for all linears, another for the modulation linears.

The adaLN linears see one row per sample: memory-bound, a third of a DiT's weights, and cheap to keep exact in their input.
They are weight-only by default. Layers that the family keeps in full precision (embedders, the last projection) stay so.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from dither.errors import BadFormat, BadRecipe
from dither.numerics import fitting
from dither.spec import Act, Codebook, Float8, Format, Int, LinearSpec, Trellis
from dither.stages.base import Job, Phase
from dither.stages.channels import equal_edges
from dither.stages.incoherence import named

__all__ = ["Assign"]

MOST_GROUPS = 1000
LEAST_GROUP = 16
VECTORS_PER_WORD = 4


@dataclass(frozen=True)
class Assign:
    """Uniform allocation.

    Args:
        weight: format of every weight; ``None`` leaves weights in full precision.
        act: of every input, or None.
        adaln: format of modulation weights, whose inputs stay full precision; ``None`` leaves them alone.
        exclude: regular expression; layers whose name it finds stay in full precision. It must find one.
        time_groups: equal parts of the noise level that static activation tables tell apart.
        branches: 2 gives unconditional rows static tables of their own.
        fit: where a group size does not divide a layer's width, take the largest one below it that does, of tiles as many
            rows and columns as divide its weight, and of a codebook no more words than a weight can fill; otherwise it is
            an error.
    """

    tag: ClassVar[str] = "assign"
    phase: ClassVar[Phase] = Phase.ALLOCATE
    paper: ClassVar[str] = ""
    weight: Format | None = None
    act: Act | None = None
    adaln: Format | None = None
    exclude: str = ""
    time_groups: int = 1
    branches: int = 1
    fit: bool = False

    def run(self, job: Job) -> None:
        """Write ``job.specs``."""
        excluded = named("assign.exclude", self.exclude, list(job.layers)) if self.exclude else set()
        if not 1 <= self.time_groups <= MOST_GROUPS:
            raise BadRecipe(f"assign.time_groups {self.time_groups}: must be 1 to {MOST_GROUPS}")
        if self.branches not in (1, 2):
            raise BadRecipe(f"assign.branches {self.branches}: must be 1 or 2 (conditional, unconditional)")
        if self.time_groups * self.branches > 1:
            job.set_clock(equal_edges(self.time_groups), self.branches)
        rows = self.time_groups * self.branches
        table = None if self.act is None else replace(self.act, rows=rows if self.act.static else 1)
        for layer in job.layers.values():
            if layer.keep or layer.name in excluded:
                continue
            weight, act = (self.adaln, None) if layer.kind == "adaln" else (self.weight, table)
            if self.fit:
                weight, act = _fitted(layer.name, job.dense(layer.name).shape, weight, act)
            if weight is not None or act is not None:
                job.promise(layer.name, replace(job.specs.get(layer.name, LinearSpec()), weight=weight, act=act))


def _fitted(
    name: str, shape: Sequence[int], weight: Format | None, act: Act | None
) -> tuple[Format | None, Act | None]:
    """The same with group sizes and tiles that divide the weight (N, K); BadRecipe where only tiny ones do, which cost more
    than they hold."""
    rows, width = shape
    if isinstance(weight, Trellis):
        weight = _tiled(name, rows, width, weight)
    if isinstance(weight, Codebook):
        weight = _clamped(rows, width, weight)
    asked = weight.group if isinstance(weight, Int | Float8) else 0, 0 if act is None else act.grid.group
    if isinstance(weight, Int | Float8):
        weight = fitting(weight, width)
    act = None if act is None else replace(act, grid=fitting(act.grid, width))
    for grid, had in ((weight, asked[0]), (None if act is None else act.grid, asked[1])):
        if isinstance(grid, Int | Float8) and 0 < grid.group < min(LEAST_GROUP, had, width):
            raise BadRecipe(
                f"assign.fit: of the {width} input channels of layer '{name}' no group of at least {LEAST_GROUP} is a "
                "divisor: exclude it, or give assign.weight.group 0"
            )
    return weight, act


def _clamped(rows: int, width: int, fmt: Codebook) -> Codebook:
    """With at most a word for every four sub-vectors, and a power of two of them where that binds (as VQ4DiT's release)."""
    most = max(rows * width // fmt.dim // VECTORS_PER_WORD, 2)
    return fmt if fmt.size <= most else replace(fmt, size=1 << most.bit_length() - 1)


def _tiled(name: str, rows: int, width: int, fmt: Trellis) -> Trellis:
    """With tiles that divide a weight; BadRecipe where the largest of these hold no window."""
    high, wide = math.gcd(rows, fmt.rows), math.gcd(width, fmt.columns)
    try:
        return replace(fmt, rows=high, columns=wide)
    except BadFormat:  # they hold no window
        raise BadRecipe(
            f"assign.fit: the largest tiles that divide the weight {rows} x {width} of layer '{name}' are {high} x {wide}, "
            f"too small for {fmt}: exclude it"
        ) from None
