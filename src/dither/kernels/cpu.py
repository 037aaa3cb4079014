"""Kernels of native code, on AMX, AVX-512 VNNI, AVX-VNNI or AVX2, whichever the CPU has.

    cpu_int8     y = s_x s_w [ sum a c - z_x sum c - z_w sum a + K z_x z_w ] + bias,  summed over groups
    cpu_decode   y = x decode(weight)^T + bias    of few rows, such as those of modulation; of more, as ``dequantize`` does

``cpu_int8`` sums the integers that ``int8_mm`` does and, where there are no groups, gives the same bits; it takes groups and
two regions of inputs besides. Packed codes of any format whose values are integers become int8 in the caches, once for each
call. Two regions are two passes: values of one, then of the other. Where there is no compiler, or none of these
instructions, the kernels of torch do the work.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from dither.kernels.fusion import Around, Fusion, Turn
from dither.kernels.integers import is_sign, unread, values_named, whole
from dither.kernels.native_calls import FACTS, INTEGERS, MOST_ROWS, TRELLIS, TYPES, WORDS, has_few, means
from dither.kernels.native_ops import OPS
from dither.kernels.reference import DEQUANTIZE
from dither.kernels.table import Inputs, Kernel, Shape, rows_of, takes
from dither.numerics import dynamic_table, groups, trellis_values
from dither.spec import PER_TENSOR, Format, Gaussian, Int, LinearSpec, Nested, Trellis, TwoRegion

__all__ = ["CPU_DECODE", "CPU_INT8", "NATIVE", "feed_forward", "linears", "rounds_alike"]

_PANEL = 64  # outputs that native code takes at a time; tiles of trellises must divide them
_MOST_INPUTS = 1 << 16  # sums fit 32 bits


def _has_integers(fmt: Format | None) -> bool:
    """Whether codes of this format are, or name, integers that native code knows."""
    if isinstance(fmt, Trellis):
        return _PANEL % fmt.rows == 0
    return isinstance(fmt, Int | Nested | Gaussian)


def _fits(spec: LinearSpec, shape: Shape, device: torch.device) -> bool:
    if device.type != "cpu" or spec.act is None or not 0 < shape[1] <= _MOST_INPUTS:
        return False
    return _has_integers(spec.weight) and takes(spec.act.grid) and means() is not None


def _fits_weight_only(spec: LinearSpec, shape: Shape, device: torch.device) -> bool:
    return device.type == "cpu" and spec.act is None and min(shape) > 0 and _has_integers(spec.weight) and has_few()


def _facts(spec: LinearSpec, shape: Shape) -> list[int]:
    """Numbers of ``FACTS`` for a linear."""
    n, k = shape
    facts = {"outputs": n, "inputs": k, **_weight_facts(spec, shape)}
    if spec.act is not None:
        grid = spec.act.grid
        regions = isinstance(grid, TwoRegion)
        signed = isinstance(grid, Int) and grid.symmetric
        facts |= {"act_bits": grid.bits, "act_symmetric": int(signed), "act_regions": int(regions)}
        facts |= {"act_groups": groups(k, grid.group), "segments": _segments(spec, k)}
    return [facts.get(name, 0) for name in FACTS]


def _weight_facts(spec: LinearSpec, shape: Shape) -> dict[str, int]:
    n, k = shape
    fmt = spec.weight
    if isinstance(fmt, Trellis):
        tile = {"dim": fmt.rows, "columns": fmt.columns, "states": fmt.states, "pairs": int(_has_pairs(fmt))}
        return {"kind": TRELLIS, "bits": fmt.bits, **tile, "scale_rows": n, "weight_groups": 1}
    if isinstance(fmt, Gaussian):
        return {"kind": WORDS, "bits": fmt.bits, "dim": fmt.dim, "scale_rows": n, "weight_groups": 1}
    stored = whole(fmt)
    facts = {"kind": INTEGERS, "bits": stored.bits, "weight_groups": _weight_groups(fmt, k), **unread(fmt)}
    facts["scale_rows"] = 1 if stored.group == PER_TENSOR else n
    if is_sign(stored):
        return {**facts, "kind": WORDS, "dim": 1}
    if stored.symmetric:
        sign = 1 << stored.bits - 1
        return facts if stored.bits == 8 else {**facts, "flip": sign, "sub": sign}
    return {**facts, "flip": 128, "zero_moved": 128} if stored.bits == 8 else facts


def _weight_groups(fmt: Format | None, k: int) -> int:
    """Groups of a row's K inputs whose weights have scales of their own."""
    return 1 if isinstance(fmt, Trellis | Gaussian) else groups(k, whole(fmt).group)


def _segments(spec: LinearSpec, k: int) -> int:
    """Parts of a row's K inputs that share all scales, on both sides."""
    assert spec.act is not None  # see _fits
    return k // math.gcd(k // groups(k, spec.act.grid.group), k // _weight_groups(spec.weight, k))


def _table(fmt: Format | None) -> Tensor | None:
    """What codes are looked up in, int8."""
    return _pairs(fmt.states, fmt.bits) if isinstance(fmt, Trellis) and _has_pairs(fmt) else values_named(fmt)


def _has_pairs(fmt: Trellis) -> bool:
    """Whether native code decodes two values at a time: windows are whole codes, tiles and what is loaded whole bytes."""
    k = fmt.bits
    together = 8 if k > 3 else 16  # values that come from one load of 57 bits
    tile = fmt.rows * fmt.columns * k
    whole = fmt.states % k == 0 and fmt.columns % together == 0
    return whole and together * k + fmt.states - k <= 57 and 64 <= tile <= 8 * 512


@cache
def _pairs(states: int, bits: int) -> Tensor:
    """Two values (2^(states + bits), 2) int8 for the bits that name both, the older ones in the lower places."""
    index = torch.arange(1 << states + bits)
    many = states // bits
    both = torch.zeros(len(index), 2, dtype=torch.int64)
    for i in range(many):  # from the oldest code on, which a window has in its highest place
        for j in (0, 1):
            both[:, j] |= (index >> bits * (i + j) & (1 << bits) - 1) << bits * (many - 1 - i)
    return trellis_values(states)[both]


def _prepare(spec: LinearSpec, shape: Shape, weight: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scales as float32, numbers, and the values that codes name: a few bytes a row, and what all layers share."""
    table = _table(spec.weight)
    facts = torch.tensor(_facts(spec, shape), dtype=torch.int64)
    return {"scale": weight["scale"].float(), "facts": facts} | ({} if table is None else {"table": table})


def _run(call: Inputs) -> Tensor:
    x = call.x if call.x.dtype in TYPES else call.x.float()
    y: Tensor = OPS.linear_int8(x, *_given(call, _ranges(call, x)), call.shape[0])
    return y.to(call.x.dtype)


def _ranges(call: Inputs, x: Tensor) -> tuple[Tensor | None, ...]:
    """Scales, those of an upper region, and zero points of the rows of x; None: found in native code, or not there."""
    assert call.spec.act is not None  # see _fits
    ranges = call.table
    if ranges is None and call.spec.act.grid.group == PER_TENSOR:
        ranges = dynamic_table(x, call.spec.act.grid)
    found = {name: rows_of(t, x) for name, t in (ranges or {}).items()}
    return found.get("scale"), found.get("upper"), found.get("zero")


def _given(call: Inputs, ranges: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """What ``linear_int8`` takes between x and the number of outputs."""
    return (*_stored(call), *ranges, _bias(call), call.prepared["facts"])


def rounds_alike(one: LinearSpec, other: LinearSpec, inputs: int) -> bool:
    """Whether two linears of ``inputs`` that ``CPU_INT8`` runs turn one tensor into the same codes.

    They do by each row's own range, and by stored ones if these are equal, which callers know.
    """
    if one.act is None or one.act != other.act or not (one.act.static or one.act.grid.group != PER_TENSOR):
        return False
    return _segments(one, inputs) == _segments(other, inputs)


def linears(calls: Sequence[Inputs], turn: Turn, around: Around) -> list[Tensor]:
    """Linears that ``CPU_INT8`` runs, of one x (float32 or bfloat16) and inputs rounded alike, which are rounded once.

    Args:
        calls: of each, with x as it was before it was turned; ranges are found from what it becomes, or are those stored
            with the first one.
        turn: what all of them do to x.
        around: what happens to x before, and, if there is one linear, to its output.
    """
    x = calls[0].x
    ranges = _ranges(calls[0], x)
    given = [t for call in calls for t in _given(call, ranges)]
    outputs = [call.shape[0] for call in calls]
    y: list[Tensor] = OPS.linears_int8(x, around.tensors(turn), around.eps, turn.block, given, outputs)
    return y


def feed_forward(calls: tuple[Inputs, Inputs], turns: tuple[Turn, Turn], tanh: bool, around: Around) -> Tensor:
    """Two linears that ``CPU_INT8`` runs, with a GELU between them: what is between never leaves the caches.

    Args:
        calls: of the first one, with x (float32 or bfloat16) as it was before it was turned; and of the second one, whose x
            gives its rows alone, and whose ranges must not depend on more of it.
        turns: what each does to its inputs.
        tanh: GELU is the approximation by tanh.
        around: what happens to the first one's inputs before, and to the second one's outputs.
    """
    x, outputs, blocks = calls[0].x, calls[1].shape[0], [turn.block for turn in turns]
    first, second = (list(_given(call, _ranges(call, x))) for call in calls)
    before = around.tensors(turns[0])
    y: Tensor = OPS.feed_forward_int8(x, before, around.eps, blocks, first, second, turns[1].tensors, tanh, outputs)
    return y


def _takes(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in TYPES and means() is not None


def _turns(spec: LinearSpec, inputs: int, dtype: torch.dtype) -> bool:
    return dtype in TYPES and (not spec.pre_scale or dtype == torch.float32)


def _turn(x: Tensor, turn: Turn) -> Tensor:
    y: Tensor = OPS.turn(x, *turn.tensors, turn.block)
    return y


def _run_weight_only(call: Inputs) -> Tensor:
    k = call.shape[1]
    if call.x.numel() > MOST_ROWS * k or call.x.numel() == 0:
        return DEQUANTIZE.run(call)
    x, facts = call.x.float(), call.prepared["facts"]
    y: Tensor = OPS.linear_few(x, *_stored(call), _bias(call), facts, call.shape[0])
    return y.to(call.x.dtype)


def _stored(call: Inputs) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Codes, scales, zero points and what codes name."""
    return call.weight["codes"], call.prepared["scale"], call.weight.get("zero"), call.prepared.get("table")


def _bias(call: Inputs) -> Tensor | None:
    return None if call.bias is None else call.bias.float()


CPU_INT8 = Kernel("cpu_int8", True, _fits, _prepare, _run)
CPU_DECODE = Kernel("cpu_decode", True, _fits_weight_only, _prepare, _run_weight_only)
NATIVE = Fusion(
    CPU_INT8, _takes, _turns, None, rounds_alike, False, linears, feed_forward, OPS.modulate, _turn, OPS.gated, OPS.gelu
)
