"""The operator that multiplies int8 inputs with int8 or 4-bit weights, with everything that may follow in its epilogue."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dither.gpu.launch import INNER, NARROW, launch, memory_for, operator, require
from dither.gpu.machine import processors, triton_version
from dither.gpu.tiles import DEFAULTS, GROUPED, NIBBLES, Tile, block, default_tile
from dither.gpu.tuner import Key, measured

__all__ = ["RANKS", "SIGNED", "UNSIGNED", "WHOLE", "Product", "int8_product", "int8_product_codes"]

WHOLE, SIGNED, UNSIGNED = range(3)
"""How the weight comes: int8, or nibbles of either sort."""
RANKS = (16, 32, 64, 128)
"""Of low-rank branches."""


def int8_product(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    a_sum: Tensor | None,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor | None,
    w_sum: Tensor | None,
    bias: Tensor | None,
    left: Tensor | None,
    right: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    gelu: int,
    nibbles: int,
    dtype: torch.dtype,
) -> Tensor:
    """(M, N) of ``dtype``.

        y = a w^T, corrected and scaled, + bias + left right^T;    y = GELU(y);    y = residual + gate * y

    Args:
        a: int8 (M, K); for nibbles its even columns first.
        a_scale: float32 (M, Ga); with ``a_zero`` int32 alike, and ``a_sum`` int32 (M, S) where the weight has zero points.
        w: int8 (N, K), or nibbles uint8 (N, K / 2), their unsigned codes moved by -8 in ``w_zero`` and ``w_sum``.
        w_scale: float32 (N, Gw); with ``w_zero`` int32 alike, and ``w_sum`` int32 (S, N) where inputs have zero points.
        bias: (N,).
        left, right: a low-rank branch, (M, R) and (N, R) of one dtype, R one of ``RANKS``.
        gate: (B, N), a row for each M / B rows of y, elements of a row next to each other.
        residual: (M, N).
        gelu: 0 none, 1 by tanh, 2 by erf.
        nibbles: ``WHOLE``, ``SIGNED`` or ``UNSIGNED``.
        dtype: float32, float16 or bfloat16.

    S is the number of segments of K that lie in one group of either side.

    Raises:
        DitherError: tensors that do not fit each other.
    """
    product = Product.of(
        a, a_scale, a_zero, a_sum, w, w_scale, w_zero, w_sum, bias, left, right, gate, residual, None, None, 8, gelu, nibbles,
        dtype,
    )  # fmt: skip
    product.start(measured(product.key) or product.tiles[0])
    return product.out


def int8_product_codes(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    a_sum: Tensor | None,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor | None,
    w_sum: Tensor | None,
    bias: Tensor | None,
    out_scale: Tensor,
    out_zero: Tensor | None,
    out_bits: int,
    gelu: int,
    nibbles: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Codes (M, N) int8 of what ``int8_product`` gives, and their scales (M, 1) float32, NaN where a row is not finite.

    Args:
        out_scale, out_zero: static ranges, float32 and uint8 (1 or M, 1); without zero points they are symmetric.
        out_bits: of these codes; unsigned ones of 8 bits are moved by -128.
        dtype: that values are rounded to before.
        others: as of ``int8_product``.

    Raises:
        DitherError: tensors that do not fit each other.
    """
    product = Product.of(
        a, a_scale, a_zero, a_sum, w, w_scale, w_zero, w_sum, bias, None, None, None, None, out_scale, out_zero, out_bits,
        gelu, nibbles, dtype,
    )  # fmt: skip
    product.start(measured(product.key) or product.tiles[0])
    marks: Tensor = product.arguments["marks"]
    return product.out, marks


@dataclass(frozen=True)
class Product:
    """A product that may be started, with any tile.

    Args:
        kernel: of ``jit.gemm``.
        out: where its result goes.
        inner: inputs, or pairs of them, that are summed before scales are applied.
        arguments: of the kernel, by name.
        epilogue: what follows the product, in words; the bias costs nothing.
    """

    kernel: Any
    out: Tensor
    inner: int
    arguments: dict[str, Any]
    epilogue: str

    @classmethod
    def of(
        cls,
        a: Tensor,
        a_scale: Tensor,
        a_zero: Tensor | None,
        a_sum: Tensor | None,
        w: Tensor,
        w_scale: Tensor,
        w_zero: Tensor | None,
        w_sum: Tensor | None,
        bias: Tensor | None,
        left: Tensor | None,
        right: Tensor | None,
        gate: Tensor | None,
        residual: Tensor | None,
        out_scale: Tensor | None,
        out_zero: Tensor | None,
        out_bits: int,
        gelu: int,
        nibbles: int,
        dtype: torch.dtype,
    ) -> "Product":
        """Of the arguments of ``int8_product`` and ``int8_product_codes``, which are looked at."""
        import triton.language as tl

        from dither.gpu.jit.gemm import multiply, multiply_groups, multiply_nibbles

        (m, k), n = a.shape, w.shape[0]
        what = f"a linear of {n} x {k} and {m} rows"
        with memory_for(what, a):
            segments = _segments(a_scale, w_scale, k)
            _check_operands(a, a_scale, a_zero, a_sum, w, w_scale, w_zero, w_sum, segments, nibbles, what)
            _check_epilogue(m, n, bias, left, right, gate, residual, out_scale, out_zero, dtype, what)
            out = a.new_empty((m, n), dtype=dtype if out_scale is None else torch.int8)
            tensors = {
                "a": a, "w": w, "a_scale": a_scale, "a_zero": a_zero, "a_sum": a_sum, "w_scale": w_scale, "w_zero": w_zero,
                "w_sum": w_sum, "bias": bias, "left": left, "right": right, "residual": residual, "out_scale": out_scale,
                "out_zero": out_zero,
            }  # fmt: skip
            ready: dict[str, Any] = {name: None if t is None else t.contiguous() for name, t in tensors.items()}
            marks = None if out_scale is None else out_scale.expand(m, 1).clone()
        names = [name for name in ("a_zero", "w_zero", "left", "residual", "out_scale") if ready[name] is not None]
        epilogue = "+".join(names + ["gate"] * (gate is not None) + ["gelu"] * bool(gelu)) or "plain"
        ready |= {
            "out": out, "gate": gate, "M": m, "N": n, "K": k, "SPAN": 1 if gate is None else m // len(gate), "GELU": gelu,
            "ACROSS": 0 if gate is None else gate.stride(0), "RANK": 16 if left is None else left.shape[1],
            "OUT_STRIDE": 0 if out_scale is None or len(out_scale) == 1 else 1, "OUT_BITS": out_bits,
            "OUT_SYMMETRIC": out_zero is None, "marks": marks,
            "NARROW": {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[dtype],
        }  # fmt: skip
        if nibbles != WHOLE:
            return cls(multiply_nibbles, out, k // 2, ready | {"UNSIGNED": nibbles == UNSIGNED}, epilogue)
        if segments == 1:
            return cls(multiply, out, k, ready, epilogue)
        size = k // segments
        groups = {"A_GROUPS": a_scale.shape[1], "W_GROUPS": w_scale.shape[1]}
        return cls(multiply_groups, out, size, ready | groups | {"SEGMENTS": segments, "SIZE": size}, epilogue)

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """That may be tried, the one that serves untuned first."""
        m, n = self.out.shape
        tiles = {"multiply_nibbles": NIBBLES, "multiply_groups": GROUPED}.get(self.kernel.__name__, DEFAULTS)
        if {"w_zero", "residual"} <= set(self.epilogue.split("+")):
            tiles = tiles[1:]  # the largest would not fit registers
        first = default_tile(tiles, m, n, processors(self.out.device))
        return (first, *(tile for tile in tiles if tile != first))

    @property
    def key(self) -> Key:
        """What a measured tile is kept under."""
        (m, n), device = self.out.shape, self.out.device
        rows = 1 << max(m - 1, 0).bit_length()
        return Key(self.kernel.__name__, *_machine(device), rows, n, self.arguments["K"], self.epilogue)

    def start(self, tile: Tile) -> None:
        """Let the GPU compute it."""
        m, n = self.out.shape
        deep = max(32, min(tile.k, block(self.inner)))
        launch(
            self.kernel, (-(-m // tile.m) * -(-n // tile.n),), self.out, tile.warps, tile.stages,
            **self.arguments, EVEN=self.inner % deep == 0, BM=tile.m, BN=tile.n, BK=deep,
        )  # fmt: skip


@lru_cache
def _machine(device: torch.device) -> tuple[str, str]:
    """Names of the GPU and of Triton."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    return gpu, str(triton_version())


def _segments(a_scale: Tensor, w_scale: Tensor, k: int) -> int:
    of_inputs, of_weights = max(a_scale.shape[-1], 1), max(w_scale.shape[-1], 1)
    return k // math.gcd(k // of_inputs, k // of_weights)


def _is(t: Tensor | None, dtype: torch.dtype, *shapes: tuple[int, ...]) -> bool:
    return t is not None and t.dtype == dtype and tuple(t.shape) in shapes


def _check_operands(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    a_sum: Tensor | None,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor | None,
    w_sum: Tensor | None,
    segments: int,
    nibbles: int,
    what: str,
) -> None:
    (m, k), n = a.shape, w.shape[0]
    f32, i32 = torch.float32, torch.int32
    require(a.dtype == torch.int8 and 0 < k <= INNER, what, "a", a)
    weight = _is(w, torch.int8, (n, k)) if nibbles == WHOLE else _is(w, torch.uint8, (n, k // 2)) and k % 2 == 0
    require(weight and n > 0, what, "w", w)
    of_inputs, of_weights = a_scale.shape[-1], w_scale.shape[-1]
    require(_is(a_scale, f32, (m, of_inputs)) and k % of_inputs == 0, what, "a_scale", a_scale)
    require(_is(w_scale, f32, (n, of_weights)) and k % of_weights == 0, what, "w_scale", w_scale)
    require(nibbles == WHOLE or segments == 1, what, "w_scale", w_scale)
    require(a_zero is None or _is(a_zero, i32, tuple(a_scale.shape)), what, "a_zero", a_zero)
    require(a_zero is None or _is(w_sum, i32, (segments, n)), what, "w_sum", w_sum)
    require(w_zero is None or _is(w_zero, i32, tuple(w_scale.shape)), what, "w_zero", w_zero)
    require(w_zero is None or _is(a_sum, i32, (m, segments)), what, "a_sum", a_sum)


def _check_epilogue(
    m: int,
    n: int,
    bias: Tensor | None,
    left: Tensor | None,
    right: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    out_scale: Tensor | None,
    out_zero: Tensor | None,
    dtype: torch.dtype,
    what: str,
) -> None:
    require(bias is None or (bias.dtype in NARROW and bias.shape == (n,)), what, "bias", bias)
    require((left is None) == (right is None), what, "right", right)
    if left is not None and right is not None:
        rank = left.shape[-1]
        fits = rank in RANKS and left.dtype in NARROW and tuple(left.shape) == (m, rank)
        require(fits, what, "left", left)
        require(_is(right, left.dtype, (n, rank)), what, "right", right)
    if gate is not None:
        whole = gate.ndim == 2 and gate.shape[1] == n and gate.stride(1) == 1 and len(gate) > 0 and m % len(gate) == 0
        require(whole and gate.dtype in NARROW, what, "gate", gate)
    require(
        residual is None or (residual.dtype in NARROW and tuple(residual.shape) == (m, n)), what, "residual", residual
    )
    require(out_scale is None or _is(out_scale, torch.float32, (1, 1), (m, 1)), what, "out_scale", out_scale)
    if out_zero is not None:
        fits = out_scale is not None and _is(out_zero, torch.uint8, tuple(out_scale.shape))
        require(fits, what, "out_zero", out_zero)
    require(dtype in NARROW, what, "dtype", torch.empty(0, dtype=dtype))


def _fake(a: Tensor, *rest: object) -> Tensor:
    w, dtype = rest[3], rest[-1]
    assert isinstance(w, Tensor)
    assert isinstance(dtype, torch.dtype)
    return a.new_empty((a.shape[0], w.shape[0]), dtype=dtype)


def _fake_codes(a: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    codes = _fake(a, *rest[:-1], torch.int8)
    return codes, a.new_empty((a.shape[0], 1), dtype=torch.float32)


_BOTH = (
    "Tensor a, Tensor a_scale, Tensor? a_zero, Tensor? a_sum, Tensor w, Tensor w_scale, Tensor? w_zero, Tensor? w_sum"
)
operator(
    f"int8_product({_BOTH}, Tensor? bias, Tensor? left, Tensor? right, Tensor? gate, Tensor? residual, int gelu, "
    "int nibbles, ScalarType dtype) -> Tensor",
    int8_product,
    _fake,
)
operator(
    f"int8_product_codes({_BOTH}, Tensor? bias, Tensor out_scale, Tensor? out_zero, int out_bits, int gelu, int nibbles, "
    "ScalarType dtype) -> (Tensor, Tensor)",
    int8_product_codes,
    _fake_codes,
)
