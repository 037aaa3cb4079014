"""What kernels of Triton must know of a weight: how it is stored, what they prepare of it, and its integers."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from dither.gpu import INTEGERS, SIGNED, TRELLIS, UNSIGNED, WHOLE, WORDS, Stored
from dither.kernels.integers import is_sign, unread, values_named, whole
from dither.kernels.table import Inputs, Shape
from dither.numerics import (
    gaussian_codes,
    groups,
    high_bits,
    trellis_codes,
    unpack_int,
)
from dither.spec import Format, Gaussian, Int, LinearSpec, Nested, Trellis

__all__ = ["decoded", "group_counts", "nibbles_of", "prepare", "prepare_weight_only", "stored_as"]

_ALIGNED = 32  # columns: nibbles are read in whole vectors


def stored_as(fmt: Format | None, shape: Shape) -> Stored:
    """What kernels must know of a weight (N, K) of this format."""
    n, k = shape
    if isinstance(fmt, Trellis):
        return Stored(TRELLIS, n, k, fmt.bits, dim=fmt.rows, columns=fmt.columns, states=fmt.states)
    if isinstance(fmt, Gaussian):
        return Stored(WORDS, n, k, fmt.bits, dim=fmt.dim)
    stored = whole(fmt)
    many = groups(k, stored.group)
    if is_sign(stored):
        return Stored(WORDS, n, k, 1, groups=many)
    found = Stored(INTEGERS, n, k, stored.bits, groups=many, **unread(fmt))
    sign = 1 << stored.bits - 1
    if stored.symmetric:
        return replace(found, flip=sign, sub=sign)
    return replace(found, sub=sign) if stored.bits == 8 else found


def nibbles_of(spec: LinearSpec, shape: Shape) -> int:
    """Whether the product takes 4-bit codes as they are stored."""
    fmt = spec.weight
    if not isinstance(fmt, Int) or fmt.bits != 4 or fmt.group > 0 or shape[1] % _ALIGNED:
        return WHOLE
    if spec.act is None or spec.act.grid.group > 0:
        return WHOLE
    return SIGNED if fmt.symmetric else UNSIGNED


def _moved(spec: LinearSpec, shape: Shape) -> int | None:
    """How far codes are moved where the product itself corrects zero points; None where they are subtracted before."""
    if not isinstance(spec.weight, Int | Nested) or whole(spec.weight).symmetric:
        return None
    if nibbles_of(spec, shape) == UNSIGNED:
        return 8
    return 128 if whole(spec.weight).bits == 8 else None


def _integers(spec: LinearSpec, shape: Shape, weight: Mapping[str, Tensor]) -> Tensor:
    """The int8 (N, K) that the product multiplies, by torch."""
    fmt = spec.weight
    if isinstance(fmt, Trellis):
        return trellis_codes(weight, fmt, shape)
    if isinstance(fmt, Gaussian):
        return gaussian_codes(weight, fmt, shape)
    stored = whole(fmt)
    codes = unpack_int(weight, stored, shape[1])
    codes = high_bits(codes, fmt) if isinstance(fmt, Nested) else codes
    wide = codes.to(torch.int16)
    if is_sign(stored):
        wide = 2 * wide - 1
    elif not stored.symmetric:
        moved = _moved(spec, shape)
        zero = (
            _per_row(weight["zero"], shape)
            .to(torch.int16)
            .repeat_interleave(shape[1] // groups(shape[1], stored.group), 1)
        )
        wide = wide - (zero if moved is None else moved)
    return wide.to(torch.int8)


def _per_row(t: Tensor, shape: Shape) -> Tensor:
    """Scales or zero points (N, G), also where all rows share one."""
    return t.expand(shape[0], t.shape[1]).contiguous()


def prepare(spec: LinearSpec, shape: Shape, weight: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scales and zero points for each row, sums of integers, and the values that codes name."""
    ready = prepare_weight_only(spec, shape, weight)
    moved = _moved(spec, shape)
    if moved is not None:
        ready["moved"] = ready.pop("zero").to(torch.int32) - moved
    if spec.act is not None and isinstance(spec.act.grid, Int) and not spec.act.grid.symmetric:
        size = math.gcd(*(shape[1] // count for count in group_counts(spec, shape)))
        parts = _integers(spec, shape, weight).view(shape[0], -1, size)
        ready["sums"] = parts.sum(-1, dtype=torch.int32).T.contiguous()  # (S, N)
    return ready


def prepare_weight_only(spec: LinearSpec, shape: Shape, weight: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scales and zero points for each row, and the values that codes name."""
    ready = {"scale": _per_row(weight["scale"].float(), shape)}
    if "zero" in weight:
        ready["zero"] = _per_row(weight["zero"], shape)
    table = values_named(spec.weight)
    return ready if table is None else {**ready, "table": table.to(weight["codes"].device)}


def group_counts(spec: LinearSpec, shape: Shape) -> tuple[int, int]:
    """Groups of the weight and of inputs."""
    assert spec.act is not None  # see _fits
    return stored_as(spec.weight, shape).groups, groups(shape[1], spec.act.grid.group)


def decoded(call: Inputs) -> Tensor:
    """(N, K) int8 in a scratch tensor, of what was prepared."""
    ready = call.prepared
    stored = stored_as(call.spec.weight, call.shape)
    zero = ready.get("zero") if stored.bits < 8 else None
    w: Tensor = torch.ops.dither.int8_weight(call.weight["codes"], zero, ready.get("table"), stored.numbers())
    return w
