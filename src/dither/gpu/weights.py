"""Operators on packed weights: as int8 in a scratch tensor, or multiplied as they are with a few rows.

The scratch is a tensor like any other: torch's allocator gives the same memory to the next linear, so that the int8 form of
one weight is in memory at a time.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from dither.gpu.launch import NARROW, launch, memory_for, operator, require
from dither.gpu.tiles import block

__all__ = ["FEW_REGISTERS", "INTEGERS", "MOST_ROWS", "TRELLIS", "WORDS", "Stored", "few_rows", "int8_weight"]

INTEGERS, WORDS, TRELLIS = range(3)
"""What codes are: integers themselves, indices of words, or bits of a trellis."""
MOST_ROWS = 32
"""Of ``few_rows``."""
FEW_REGISTERS = 255
"""Of a thread of ``few_rows``: all there are. Left to itself, the compiler spills some to fit more programs."""


@dataclass(frozen=True)
class Stored:
    """How a weight (N, K) is stored.

    Args:
        kind: what its codes are.
        outputs, inputs: N and K.
        bits: of a code.
        flip, sub: ``(code ^ flip) - sub`` is the integer.
        ones, turn: ``(code | ones) ^ turn`` reads high bits only; see ``numerics.nested``.
        dim: length of a word, or rows of a trellis tile.
        columns: of a trellis tile.
        states: bits of a trellis window.
        groups: of columns that have a zero point of their own.
    """

    kind: int
    outputs: int
    inputs: int
    bits: int
    flip: int = 0
    sub: int = 0
    ones: int = 0
    turn: int = 0
    dim: int = 1
    columns: int = 1
    states: int = 1
    groups: int = 1

    def numbers(self) -> list[int]:
        """As an operator takes them."""
        return list(astuple(self))

    @property
    def packed(self) -> tuple[int, int]:
        """Shape of the codes."""
        lines, each = self.outputs, self.inputs
        if self.kind == TRELLIS:
            lines, each = lines // self.dim, each * self.dim
        elif self.kind == WORDS:
            each //= self.dim
        return lines, (each * self.bits + 7) // 8

    @property
    def named(self) -> int:
        """Entries of the table of values."""
        return {INTEGERS: 0, WORDS: self.dim << self.bits, TRELLIS: 1 << self.states}[self.kind]

    def arguments(self) -> dict[str, int]:
        """What kernels are made for."""
        return {
            "KIND": self.kind, "BITS": self.bits, "FLIP": self.flip, "SUB": self.sub, "ONES": self.ones, "TURN": self.turn,
            "DIM": self.dim, "COLUMNS": self.columns, "STATES": self.states,
        }  # fmt: skip


def int8_weight(codes: Tensor, zero: Tensor | None, table: Tensor | None, stored: Sequence[int]) -> Tensor:
    """The integers (N, K) int8 of packed codes.

    Args:
        codes: uint8, as ``Stored.packed`` says.
        zero: uint8 (N, groups), subtracted; integers of up to 7 bits only, so that differences fit. None: nothing.
        table: int8, what codes name, or None.
        stored: ``Stored.numbers``.

    Raises:
        DitherError: tensors that are not what ``stored`` says.
    """
    from dither.gpu.jit.decode import decode_weight

    told = Stored(*stored)
    n, k = told.outputs, told.inputs
    what = f"decoding a weight of {n} x {k}"
    with memory_for(what, codes):
        _check(told, codes, zero, table, what)
        require(zero is None or told.bits < 8, what, "zero", zero)
        out = codes.new_empty((n, k), dtype=torch.int8)
        launch(
            decode_weight, (-(-n // 16), -(-k // 256)), codes, 4, 1,
            codes=codes.contiguous(), zero=_in_order(zero), table=_in_order(table), out=out, N=n, K=k, LINE=codes.shape[1],
            GROUP=k // told.groups, GROUPS=told.groups, **told.arguments(), ROWS=16, BLOCK=256,
        )  # fmt: skip
    return out


def few_rows(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    table: Tensor | None,
    bias: Tensor | None,
    stored: Sequence[int],
) -> Tensor:
    """(..., K) to (..., N) in the dtype of x, of at most ``MOST_ROWS`` rows.

    Args:
        x: float32, float16 or bfloat16.
        codes, table, stored: as of ``int8_weight``.
        scale: float32 (N, groups).
        zero: uint8 (N, groups) or None.
        bias: (N,) or None.

    Raises:
        DitherError: tensors that do not fit each other.
    """
    from dither.gpu.jit.few import multiply_few

    told = Stored(*stored)
    n, k = told.outputs, told.inputs
    m = x.numel() // max(x.shape[-1], 1)
    what = f"a linear of {n} x {k} and {m} rows"
    with memory_for(what, x):
        _check(told, codes, zero, table, what)
        require(x.dtype in NARROW and x.shape[-1] == k and m <= MOST_ROWS, what, "x", x)
        require(scale.dtype == torch.float32 and scale.shape == (n, told.groups), what, "scale", scale)
        require(bias is None or (bias.dtype in NARROW and bias.shape == (n,)), what, "bias", bias)
        out = x.new_empty(*x.shape[:-1], n)
        size = k // told.groups
        launch(
            multiply_few, (-(-n // 16) if m else 0,), x, 4, 3, FEW_REGISTERS,
            x=x.contiguous(), codes=codes.contiguous(), scale=scale.contiguous(), zero=_in_order(zero),
            table=_in_order(table), bias=_in_order(bias), out=out, M=m, N=n, K=k, LINE=codes.shape[1], GROUPS=told.groups,
            SIZE=size, **told.arguments(), BM=block(m), BN=16,
            BK=min(32 if told.kind == TRELLIS else 64, block(size)),  # more would not fit registers
        )  # fmt: skip
    return out


def _check(told: Stored, codes: Tensor, zero: Tensor | None, table: Tensor | None, what: str) -> None:
    require(codes.dtype == torch.uint8 and tuple(codes.shape) == told.packed, what, "codes", codes)
    shape = (told.outputs, told.groups)
    require(zero is None or (zero.dtype == torch.uint8 and tuple(zero.shape) == shape), what, "zero", zero)
    fits = told.named == 0 if table is None else table.dtype == torch.int8 and table.numel() == told.named
    require(fits, what, "table", table)


def _in_order(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _fake_weight(codes: Tensor, zero: Tensor | None, table: Tensor | None, stored: Sequence[int]) -> Tensor:
    told = Stored(*stored)
    return codes.new_empty((told.outputs, told.inputs), dtype=torch.int8)


def _fake_few(x: Tensor, *rest: object) -> Tensor:
    stored = rest[-1]
    assert isinstance(stored, Sequence)
    return x.new_empty(*x.shape[:-1], Stored(*stored).outputs)


operator("int8_weight(Tensor codes, Tensor? zero, Tensor? table, int[] stored) -> Tensor", int8_weight, _fake_weight)
operator(
    "few_rows(Tensor x, Tensor codes, Tensor scale, Tensor? zero, Tensor? table, Tensor? bias, int[] stored) -> Tensor",
    few_rows,
    _fake_few,
)
