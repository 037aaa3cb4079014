"""Which kernel runs a linear: a table of (name, when, prepare, run), the first that fits wins.

Every kernel computes what ``reference`` defines, ``y = act(x) decode(weight)^T + bias``, from the same stored tensors.
``real`` kernels do the arithmetic that the format promises; the reference simulates it in floating point, says so, and is
never timed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dither.errors import DitherError
from dither.spec import Grid, Int, LinearSpec, TwoRegion

__all__ = ["KERNELS", "Inputs", "Kernel", "Shape", "choose", "is_simulated", "named", "rows_of", "takes"]

Shape: TypeAlias = tuple[int, int]
"""(N, K): outputs, inputs."""


@dataclass(frozen=True)
class Inputs:
    """What one call of a kernel sees.

    Args:
        x: (..., K), any floating dtype, already scaled and rotated.
        spec: of the linear.
        shape: (N, K).
        weight: stored tensors of the weight format.
        table: static activation ranges by name, see ``numerics.acts``, that broadcast against (..., G); None when dynamic or
            in full precision.
        bias: (N,) or None.
        prepared: what ``Kernel.prepare`` made of the stored tensors.
        branch: a low-rank branch that is added in the same call, A (R, K) and B (N, R) in the dtype of x; see ``fusion``.
    """

    x: Tensor
    spec: LinearSpec
    shape: Shape
    weight: Mapping[str, Tensor]
    table: Mapping[str, Tensor] | None
    bias: Tensor | None
    prepared: Mapping[str, Tensor]
    branch: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Kernel:
    """One row of the table.

    Args:
        name: as reports show it.
        real: the arithmetic is really low-bit (or, for weight-only formats, really what the format says).
        when: whether it can run this spec, shape and device.
        prepare: runtime constants from the stored tensors, made once and cached by the layer.
        run: (..., K) to (..., N) in the dtype of x.
    """

    name: str
    real: bool
    when: Callable[[LinearSpec, Shape, torch.device], bool]
    prepare: Callable[[LinearSpec, Shape, Mapping[str, Tensor]], dict[str, Tensor]]
    run: Callable[[Inputs], Tensor]

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a row of the table, also in another process, is that row."""
        if any(self is kernel for kernel in KERNELS):
            return named, (self.name,)
        return Kernel, (self.name, self.real, self.when, self.prepare, self.run)


KERNELS: list[Kernel] = []
"""In order of preference; filled by ``dither.kernels``, the reference last."""


def choose(spec: LinearSpec, shape: Shape, device: torch.device) -> Kernel:
    """The first kernel of the table that can run this linear."""
    return next(k for k in KERNELS if k.when(spec, shape, device))


def named(name: str) -> Kernel:
    """The kernel of this name; raises DitherError listing the names."""
    for kernel in KERNELS:
        if kernel.name == name:
            return kernel
    raise DitherError(f"unknown kernel '{name}'; known are {', '.join(k.name for k in KERNELS)}")


def is_simulated(spec: LinearSpec, kernel: Kernel) -> bool:
    """Whether quantized activations are only imitated in floating point."""
    return spec.act is not None and not kernel.real


def rows_of(t: Tensor, x: Tensor) -> Tensor:
    """Ranges that broadcast against (..., G) as (M, G), M rows of x, or as the one row (1, G) that serves all."""
    count = t.shape[-1]
    return t.reshape(1, count) if t.numel() == count else t.expand(*x.shape[:-1], count).reshape(-1, count)


def takes(grid: Grid) -> bool:
    """Whether codes of inputs on this grid are small integers in place, which kernels of int8 multiply."""
    if isinstance(grid, TwoRegion):
        return grid.signed
    return isinstance(grid, Int) and not (grid.symmetric and grid.bits == 1)  # those of {-1, +1} are not in place
