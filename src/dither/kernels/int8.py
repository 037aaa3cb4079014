"""Integer linear on ``torch._int_mm``: int8 x int8 -> int32, exact, with zero points corrected in integers.

With ``x = s_x (a - z_x)`` per token and ``w = s_w (c - z_w)`` per output channel,

    y = s_x s_w [ sum_k a c  -  z_x sum_k c  -  z_w sum_k a  +  K z_x z_w ] + bias

Nested weights run as well: the codes of the whole width, with the low bits that are not read set to 10..0. So do trellis
codes and Gaussian codebooks: the values that they name are int8.

Weights of fewer than 8 bits stay packed and are unpacked to int8 for the product. Unsigned 8-bit codes are moved by -128
with their zero point, which leaves the formula unchanged. On the CPU oneDNN runs this on VNNI instructions.

Sums over k have no order, so 4-bit codes are unpacked to even columns first, odd columns after: two shifts of whole rows,
where putting neighbours side by side again takes longer than the product. The activations' columns follow them. On the CPU
rows go through in blocks, so that codes and sums stay in the caches.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from dither.kernels.table import Inputs, Kernel, Shape, rows_of
from dither.numerics import dynamic_grid, gaussian_codes, high_bits, to_codes, trellis_codes, unpack_int
from dither.spec import PER_ROW, PER_TENSOR, Gaussian, Int, LinearSpec, Nested, Trellis

__all__ = ["INT8_MM"]

_WHOLE = (PER_ROW, PER_TENSOR)
_CUDA_ROWS = 32  # torch._int_mm on CUDA wants more than 16 rows and multiples of 8
_BLOCK = 512  # rows at least; fewer make oneDNN's packing of the weight show
_ELEMENTS = 1 << 21  # of a block's codes or sums: more leave the caches, fewer make the many small operations show
# On the CPU it reads leading dimensions from strides, which mean nothing for an axis of length 1: torch.compile writes 0
# there, oneDNN then refuses the call, and the result is garbage without an error (pytorch issue 195066).
_CPU_LEAST = 2


def _fits(spec: LinearSpec, shape: Shape, device: torch.device) -> bool:
    act = spec.act
    if not isinstance(spec.weight, Int | Nested | Gaussian | Trellis) or act is None or not isinstance(act.grid, Int):
        return False
    weight = _stored(spec)
    if weight.group not in _WHOLE or act.grid.group not in _WHOLE:
        return False
    if any(f.symmetric and f.bits == 1 for f in (weight, act.grid)):  # codes of {-1, +1} are not integers in place
        return False
    if device.type == "cpu":
        return min(shape) >= _CPU_LEAST
    return device.type == "cuda" and shape[0] % 8 == 0 and shape[1] % 8 == 0


def _stored(spec: LinearSpec) -> Int:
    """The integers that the weight is stored in, or that its codes name."""
    if isinstance(spec.weight, Nested):
        return spec.weight.whole
    if isinstance(spec.weight, Gaussian | Trellis):
        return Int(8)
    assert isinstance(spec.weight, Int)  # see _fits
    return spec.weight


def _inputs(spec: LinearSpec) -> Int:
    """The integers that inputs become."""
    assert spec.act is not None
    assert isinstance(spec.act.grid, Int)  # see _fits
    return spec.act.grid


def _centre(codes: Tensor, fmt: Int) -> Tensor:
    """Codes as int8; unsigned 8-bit ones move by -128."""
    if codes.dtype == torch.int8:
        return codes
    return (codes ^ 0x80).view(torch.int8) if fmt.bits == 8 else codes.view(torch.int8)


def _offset(fmt: Int) -> int:
    """How far ``_centre`` moved the codes, to move zero points alike."""
    return 128 if fmt.bits == 8 and not fmt.symmetric else 0


def _in_halves(fmt: Int, k: int) -> bool:
    """Whether the weight's codes come as two halves, the even columns and the odd ones: two 4-bit codes fill a byte."""
    return fmt.bits == 4 and k % 2 == 0


def _weight_codes(spec: LinearSpec, shape: Shape, weight: Mapping[str, Tensor]) -> Tensor:
    """(N, K) int8, its columns as ``_in_halves`` says; a view for 8-bit symmetric weights."""
    if isinstance(spec.weight, Trellis):
        return trellis_codes(weight, spec.weight, shape)
    if isinstance(spec.weight, Gaussian):
        return gaussian_codes(weight, spec.weight, shape)
    fmt, k = _stored(spec), shape[1]
    codes = _in_two(weight, fmt, shape) if _in_halves(fmt, k) else _centre(unpack_int(weight, fmt, k), fmt)
    return high_bits(codes, spec.weight) if isinstance(spec.weight, Nested) else codes


def _in_two(weight: Mapping[str, Tensor], fmt: Int, shape: Shape) -> Tensor:
    """4-bit codes (N, K) int8, the even columns first."""
    pairs = weight["codes"]  # (N, K / 2) uint8, the even column in the low bits
    halves = torch.empty((shape[0], 2, shape[1] // 2), dtype=torch.int8, device=pairs.device)
    bytes_ = pairs.view(torch.int8) if fmt.symmetric else pairs  # shifts to the right repeat the sign of int8
    halves[:, 0] = (bytes_ << 4) >> 4
    halves[:, 1] = bytes_ >> 4
    return halves.view(shape)


def _activation_codes(x: Tensor, scale: Tensor, zero: Tensor | None, act: Int, weight: Int) -> Tensor:
    """(M, K) int8, its columns in the order of the weight's."""
    a = _centre(to_codes(x, scale, zero, act), act)
    rows, k = a.shape
    return a.reshape(rows, k // 2, 2).transpose(1, 2).reshape(rows, k) if _in_halves(weight, k) else a


def _prepare(spec: LinearSpec, shape: Shape, weight: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Row sums of the weight codes, needed when activations have zero points."""
    if spec.act is None or _inputs(spec).symmetric:
        return {}
    return {"sums": _weight_codes(spec, shape, weight).sum(dim=1, dtype=torch.int32)}  # (N,)


def _matmul(a: Tensor, codes: Tensor) -> Tensor:
    """(M, K) int8 times (N, K) int8 transposed, (M, N) int32."""
    rows, least = a.shape[0], _CUDA_ROWS if a.is_cuda else _CPU_LEAST
    if rows < least:
        a = torch.nn.functional.pad(a, (0, 0, 0, least - rows))
    return torch._int_mm(a, codes.t())[:rows]


def _block(x: Tensor, sx: Tensor | None, zx: Tensor | None, codes: Tensor, call: Inputs) -> Tensor:
    """Some rows x (M, K) with their scales, if static; (M, N) float32."""
    wf, af = _stored(call.spec), _inputs(call.spec)
    x = x.float()
    if sx is None:
        sx, zx = dynamic_grid(x, af)  # (M, 1)
    a = _activation_codes(x, sx, zx, af, wf)  # (M, K) int8
    za = None if zx is None else zx.to(torch.int32) - _offset(af)
    acc = _matmul(a, codes)  # (M, N) int32
    if za is not None:
        acc -= za * call.prepared["sums"]
    if not wf.symmetric:
        zw = call.weight["zero"].to(torch.int32).reshape(1, -1) - _offset(wf)  # (1, N or 1)
        sums = a.sum(dim=1, keepdim=True, dtype=torch.int32)  # (M, 1)
        acc -= zw * (sums if za is None else sums - x.shape[1] * za)
    y = acc.float().mul_(sx).mul_(call.weight["scale"].reshape(1, -1))
    return y if call.bias is None else y.add_(call.bias.float())


def _run(call: Inputs) -> Tensor:
    n, k = call.shape
    af = _inputs(call.spec)
    x = call.x.reshape(-1, k)  # (M, K)
    sx = zx = None
    if call.table is not None:
        found = {name: rows_of(t, call.x) for name, t in call.table.items()}
        sx, zx = found["scale"], found.get("zero")
    elif af.group == PER_TENSOR:
        sx, zx = dynamic_grid(x, af)
    codes = _weight_codes(call.spec, call.shape, call.weight)  # (N, K)
    rows, step = len(x), max(_BLOCK, _ELEMENTS // max(n, k))
    if rows <= step or x.is_cuda or torch.compiler.is_compiling():
        y = _block(x, sx, zx, codes, call)
    else:
        y = x.new_empty(rows, n)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            y[part] = _block(x[part], _cut(sx, part), _cut(zx, part), codes, call)
    return y.reshape(*call.x.shape[:-1], n).to(call.x.dtype)


def _cut(t: Tensor | None, part: slice) -> Tensor | None:
    """These rows of a column, or the one that serves all."""
    return t if t is None or t.shape[0] == 1 else t[part]


INT8_MM = Kernel("int8_mm", True, _fits, _prepare, _run)
