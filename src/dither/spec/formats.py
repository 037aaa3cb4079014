"""How numbers are stored: formats of weights, and how an activation is quantized."""

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from dither.errors import BadFormat

__all__ = [
    "PER_ROW",
    "PER_TENSOR",
    "Act",
    "Codebook",
    "Float8",
    "Format",
    "Gaussian",
    "Grid",
    "Int",
    "Log2",
    "Nested",
    "Trellis",
    "TwoRegion",
]

PER_ROW = 0
"""Group value: one scale for each row (an output channel of a weight, a token of an activation)."""
PER_TENSOR = -1
"""Group value: one scale for the whole tensor."""


def _check_group(group: int) -> None:
    if group < PER_TENSOR:
        raise BadFormat(f"group size {group}: must be positive, {PER_ROW} (per row) or {PER_TENSOR} (per tensor)")


def _grain(group: int) -> str:
    return {PER_ROW: "per row", PER_TENSOR: "per tensor"}.get(group, f"group {group}")


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
        _check_group(self.group)

    def __str__(self) -> str:
        return f"int{self.bits} {'sym' if self.symmetric else 'asym'} {_grain(self.group)}"


@dataclass(frozen=True)
class Float8:
    """Floating-point numbers of 8 bits, E4M3 without infinities (arXiv 2209.05433; ``float8_e4m3fn``), times a scale.

    ``w = s q``: one sign bit, four of the exponent, three of the mantissa. q reaches from 2^-9 to 448 in magnitude, or is 0;
    steps grow with it, so that what is at least ``2^-6 s`` moves by no more than 1/16 of itself.

    Args:
        group: how many neighbours along the input channels share a scale; ``PER_ROW`` or ``PER_TENSOR``.
    """

    kind: ClassVar[str] = "float8"
    bits: ClassVar[int] = 8
    group: int = PER_ROW

    def __post_init__(self) -> None:
        _check_group(self.group)

    def __str__(self) -> str:
        return f"float8 {_grain(self.group)}"


@dataclass(frozen=True)
class Codebook:
    """Vector quantization: ``dim`` neighbouring input channels are one of ``size`` codewords (arXiv 2408.17131).

    Args:
        dim: length of a sub-vector; must divide the input width.
        size: codewords of the layer's codebook; a code takes ``ceil(log2 size)`` bits.
        row_scale: each output row also has a scale of its own.
        half: codewords are stored in float16, half as large.
    """

    kind: ClassVar[str] = "codebook"
    dim: int
    size: int
    row_scale: bool = False
    half: bool = False

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
        rest = (" row-scaled" if self.row_scale else "") + (" half" if self.half else "")
        return f"codebook {self.size}x{self.dim}{rest}"


@dataclass(frozen=True)
class Gaussian:
    """Vector quantization by words that no layer stores: those of a Gaussian source, times a scale of each row.

    Args:
        dim: length of a sub-vector; must divide the input width.
        size: words, a power of two; a code takes ``log2 size`` bits. ``numerics.gaussian`` has some pairs of both.
    """

    kind: ClassVar[str] = "gaussian"
    dim: int
    size: int

    def __post_init__(self) -> None:
        if self.dim < 1 or not 2 <= self.size <= 65536 or self.size & (self.size - 1):
            raise BadFormat(
                f"gaussian codebook of {self.size} words of length {self.dim}: need length >= 1 and a power of two from 2 to "
                "65536 words"
            )

    @property
    def bits(self) -> int:
        """Width of one code."""
        return (self.size - 1).bit_length()

    def __str__(self) -> str:
        return f"gaussian {self.size}x{self.dim}"


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


@dataclass(frozen=True)
class Trellis:
    """Trellis-coded weights (QTIP, arXiv 2406.11235): overlapping windows of a stream of bits name Gaussian values.

    A tile of rows and columns is one stream of ``bits`` new bits for each weight. A weight's value is that of the window of
    ``states`` bits that ends with its own; the stream is a ring. So values have the choice of a codebook of 2^states, and
    take ``bits`` each. They are small integers, times a scale of each row.

    Args:
        bits: new bits for each weight, 1 to 4.
        states: bits of the window, at most 16.
        rows: of a tile; must divide the output width.
        columns: of a tile; must divide the input width.
    """

    kind: ClassVar[str] = "trellis"
    bits: int
    states: int = 12
    rows: int = 16
    columns: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 4:
            raise BadFormat(f"trellis of {self.bits} bits: the width must be 1 to 4")
        if not self.bits < self.states <= 16:
            raise BadFormat(
                f"trellis of {self.bits} bits with windows of {self.states}: need more than {self.bits}, up to 16"
            )
        if self.rows < 1 or self.columns < 1 or self.rows * self.columns * self.bits < self.states:
            raise BadFormat(
                f"trellis: tiles of {self.rows} x {self.columns} weights hold no window of {self.states} bits"
            )

    @property
    def length(self) -> int:
        """Weights of a tile."""
        return self.rows * self.columns

    def __str__(self) -> str:
        return f"trellis{self.bits} L{self.states} {self.rows}x{self.columns}"


@dataclass(frozen=True)
class TwoRegion:
    """Two regions of steps of their own (TQ-DiT's MRQ, arXiv 2502.04056; PTQ4ViT, 2111.12293): values that crowd near zero.

    One bit of a code says the region, b - 1 bits the value; with ``Q = 2^(b-1)`` and steps s (lower) and u (upper):

        signed       [-Q s, 0) and [0, (Q - 1) u]               after GELU: the region is the sign
        unsigned     [0, (Q - 1) s] and ((Q - 1) s, (Q - 1) u]  after softmax: small and large probabilities

    The regions share no value, where those of both releases overlap and bias everything.

    Args:
        bits: width of a code, the region's included.
        signed: negative and positive values; otherwise small and large ones, none of them negative.
        shift: the upper step is the lower one times a power of two, so that two partial sums of codes merge by a shift.
        group: how many neighbours along the channels share both steps; ``PER_ROW`` or ``PER_TENSOR``.
    """

    kind: ClassVar[str] = "two-region"
    bits: int
    signed: bool = False
    shift: bool = False
    group: int = PER_ROW

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise BadFormat(f"two regions in {self.bits} bits: the width must be 2 to 8")
        if self.signed and self.shift:
            raise BadFormat("two-region: negative and positive values have no power of two between their steps")
        _check_group(self.group)

    def __str__(self) -> str:
        return f"two-region{self.bits} {'signed' if self.signed else 'shift' if self.shift else 'unsigned'}"


@dataclass(frozen=True)
class Log2:
    """Powers of two below a top: ``x' = s 2^-q``, q in [0, 2^b - 2]; the last code is 0 (RepQ-ViT, TCAQ-DM: softmax).

    Args:
        bits: width of a code.
        group: how many neighbours along the channels share a top; ``PER_ROW`` or ``PER_TENSOR``.
    """

    kind: ClassVar[str] = "log2"
    bits: int
    group: int = PER_ROW

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise BadFormat(f"log2 format of {self.bits} bits: the width must be 1 to 8")
        _check_group(self.group)

    def __str__(self) -> str:
        return f"log2-{self.bits}"


Format: TypeAlias = Int | Float8 | Nested | Codebook | Gaussian | Trellis
"""How a weight is stored. A new format is one class here and one file in ``numerics``."""
Grid: TypeAlias = Int | Float8 | TwoRegion | Log2
"""The codes of an activation. A new one is one class here, one file in ``numerics`` and one line in ``numerics.acts``."""


@dataclass(frozen=True)
class Act:
    """How an activation is quantized. ``grid.group`` runs along the channels: per token, token group or tensor.

    Args:
        grid: the format of the codes.
        static: ranges come from calibration and are stored; otherwise they are found anew for each input.
        rows: how many rows the stored table has: 1, or one for each time group (and CFG branch) of the plan's clock.
    """

    kind: ClassVar[str] = "act"
    grid: Grid
    static: bool = False
    rows: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.grid, TwoRegion) and not self.grid.signed and not self.static:
            raise BadFormat(f"{self.grid} ranges must be static: where the regions meet is searched in calibration")

    def __str__(self) -> str:
        grain = {PER_ROW: "per token", PER_TENSOR: "per tensor"}.get(
            self.grid.group, f"per token, group {self.grid.group}"
        )
        if self.static:
            grain = {PER_ROW: "per tensor", PER_TENSOR: "per tensor"}.get(self.grid.group, f"group {self.grid.group}")
        when = ("static" if self.rows == 1 else f"static x{self.rows}") if self.static else "dynamic"
        if isinstance(self.grid, Int):
            return f"int{self.grid.bits} {'sym' if self.grid.symmetric else 'asym'} {grain} {when}"
        return f"{'float8' if isinstance(self.grid, Float8) else self.grid} {grain} {when}"
