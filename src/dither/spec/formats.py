"""How numbers are stored: formats of weights, and how an input is quantized."""

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from dither.errors import BadFormat

__all__ = ["PER_ROW", "PER_TENSOR", "Act", "Codebook", "Format", "Int", "Nested"]

PER_ROW = 0
"""Group value: one scale for each row (an output channel of a weight, a token of an activation)."""
PER_TENSOR = -1
"""Group value: one scale for the whole tensor."""


@dataclass(frozen=True)
class Int:
    """Uniform integers of 1 to 8 bits.

    Symmetric: ``w = s q``, ``q`` in ``[-2^(b-1), 2^(b-1) - 1]`` (``b = 1``: ``q`` in ``{-1, +1}``), two's complement.
    Asymmetric: ``w = s (q - z)`` with ``q, z`` in ``[0, 2^b - 1]``; the range always contains 0, so 0 is exact.

    Args:
        bits: width of a code.
        symmetric: no zero point.
        group: how many neighbours along the input channels share a scale; ``PER_ROW`` or ``PER_TENSOR``.
    """

    kind: ClassVar[str] = "int"
    bits: int
    symmetric: bool = True
    group: int = PER_ROW

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise BadFormat(f"int format of {self.bits} bits: the width must be 1 to 8")
        if self.group < PER_TENSOR:
            raise BadFormat(
                f"group size {self.group}: must be positive, {PER_ROW} (per row) or {PER_TENSOR} (per tensor)"
            )

    def __str__(self) -> str:
        grain = {PER_ROW: "per row", PER_TENSOR: "per tensor"}.get(self.group, f"group {self.group}")
        return f"int{self.bits} {'sym' if self.symmetric else 'asym'} {grain}"


@dataclass(frozen=True)
class Codebook:
    """Vector quantization: ``dim`` neighbouring input channels are one of ``size`` codewords (arXiv 2408.17131).

    Args:
        dim: length of a sub-vector; must divide the input width.
        size: codewords of the layer's codebook; a code takes ``ceil(log2 size)`` bits.
        row_scale: each output row also has a scale of its own.
    """

    kind: ClassVar[str] = "codebook"
    dim: int
    size: int
    row_scale: bool = False

    def __post_init__(self) -> None:
        if self.dim < 1 or not 2 <= self.size <= 65536:
            raise BadFormat(
                f"codebook of {self.size} words of length {self.dim}: need length >= 1 and 2 to 65536 words"
            )

    @property
    def bits(self) -> int:
        """Width of one code."""
        return (self.size - 1).bit_length()

    def __str__(self) -> str:
        return f"codebook {self.size}x{self.dim}{' row-scaled' if self.row_scale else ''}"


@dataclass(frozen=True)
class Nested:
    """The high bits of wider integers: the same stored tensors as ``whole``, read at fewer bits.

    With ``d = whole.bits - bits``, a code ``q`` stands for the one in the middle of its ``2^d`` neighbours:

        q' = ((q >> d) << d) | (1 << (d - 1))

    Args:
        whole: the format that is stored.
        bits: how many high bits of each code are read; fewer than are stored.
    """

    kind: ClassVar[str] = "nested"
    whole: Int
    bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits < self.whole.bits:
            raise BadFormat(f"{self.bits} of {self.whole.bits} bits: a nested format reads at least 1, and not all")

    def __str__(self) -> str:
        return f"{self.bits} of {self.whole}"


Format: TypeAlias = Int | Nested | Codebook
"""How a weight or an activation is stored. A new format is one class here and one file in ``numerics``."""


@dataclass(frozen=True)
class Act:
    """How a linear's input or output is quantized. ``grid.group`` runs along the channels: per token, token group or tensor.

    Args:
        grid: the format of the codes.
        static: ranges come from calibration and are stored; otherwise they are found anew for each input.
        rows: how many rows the stored table has: 1, or one for each time group (and CFG branch) of the plan's clock.
    """

    kind: ClassVar[str] = "act"
    grid: Int
    static: bool = False
    rows: int = 1

    def __str__(self) -> str:
        grain = {PER_ROW: "per token", PER_TENSOR: "per tensor"}.get(
            self.grid.group, f"per token, group {self.grid.group}"
        )
        if self.static:
            grain = {PER_ROW: "per tensor", PER_TENSOR: "per tensor"}.get(self.grid.group, f"group {self.grid.group}")
        when = ("static" if self.rows == 1 else f"static x{self.rows}") if self.static else "dynamic"
        return f"int{self.grid.bits} {'sym' if self.grid.symmetric else 'asym'} {grain} {when}"
