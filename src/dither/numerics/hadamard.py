"""Hadamard matrices of order n = K 2^k by construction, the fast transform, and randomized blockwise rotations.

A Hadamard matrix has entries -1 and +1 and ``H H^T = n I``. Multiplying by ``diag(signs) H / sqrt(n)`` is a rotation
that spreads an outlier channel over all n channels (QuIP#, arXiv 2402.04396; QuaRot, arXiv 2404.00456). Widths of
diffusion transformers are rarely powers of two (1152 = 36 * 32), so H is the Kronecker product of two parts:

    H (n, n) = H_K (K, K) x H_{2^k}        2^k: Sylvester's        K: Paley's

Paley (1933) needs a prime power q and the quadratic character chi of the field GF(q); with ``Q_ab = chi(a - b)``:

    I   q = 3 mod 4, K = q + 1       H = I + S                                S = [[0, 1], [-1, Q]]
    II  q = 1 mod 4, K = 2 (q + 1)   H = S x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]]   S = [[0, 1], [1, Q]]

Given n, K is the smallest order of that kind (1 for a power of two) that leaves a power of two.

A row is transformed as a matrix of a rows and b columns, ``H_a^T x H_b`` with ``H = H_a x H_b`` and a, b as near to each
other as K allows: two small matmuls, of n (a + b) products a row. Butterflies need fewer, but each of them reads and
writes the whole input, and took four to seven times as long.
"""

import itertools
import math
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dither.errors import BadFormat

__all__ = [
    "hadamard_matrix",
    "hadamard_order",
    "hadamard_transform",
    "paley_matrix",
    "random_signs",
    "rotate",
    "unrotate",
]

F = TypeVar("F", bound=Callable[..., object])

_LARGEST = 2048  # of K: beyond it the matrix is no longer small


def _constant(function: F) -> F:
    """Tell ``torch.compile`` to call the function while it traces, and to keep the result."""
    marked: F = torch.compiler.assume_constant_result(function)  # type: ignore[no-untyped-call,unused-ignore]
    return marked


@_constant
def hadamard_order(n: int) -> tuple[int, int]:
    """Split ``n`` into (K, 2^k), K the smallest order with a known matrix. Raises BadFormat naming n if none is."""
    if n >= 1:
        twos = n & -n
        odd = n // twos
        for k in range(twos.bit_length()):
            order = odd << k
            if order <= _LARGEST and (order == 1 or _paley_field(order)):
                return order, n // order
    raise BadFormat(f"no Hadamard matrix of order {n} is known here: it must be K * 2^k, K = 1 or of Paley's orders")


def hadamard_matrix(n: int) -> Tensor:
    """The matrix H (n, n) of ``hadamard_transform``, not yet divided by sqrt(n): int8, entries -1 and +1."""
    order, power = hadamard_order(n)
    return torch.from_numpy(np.kron(_paley(order), _sylvester(power)))


def paley_matrix(n: int) -> Tensor:
    """Paley's part (K, K) of the matrix of order n, float32, entries -1 and +1; it must not be written."""
    return torch.from_numpy(_wide_paley(hadamard_order(n)[0]))


def hadamard_transform(x: Tensor) -> Tensor:
    """``x (..., n) H / sqrt(n)``, O(n (K + k)) a row; float32, or float64 if given that. Raises BadFormat naming n."""
    return _transform(x, transpose=False)


def random_signs(n: int, seed: int) -> Tensor:
    """n signs, int8 (n,): the top bits of NumPy's raw PCG64 stream, which is the same in every version and machine."""
    raw = np.random.PCG64(seed).random_raw(n)
    return torch.from_numpy(1 - 2 * (raw >> np.uint64(63)).astype(np.int8))


def rotate(x: Tensor, signs: Tensor, block: int) -> Tensor:
    """Rotate the last axis block by block: ``(x * signs) H / sqrt(block)``, x (..., K), signs (K,).

    Weights (N, K) and inputs (..., K) rotate alike, and ``rotate(x) @ rotate(W).T == x @ W.T``.

    Raises:
        BadFormat: the block does not divide K or has no Hadamard matrix.
    """
    x = _blocks(_wide(x) * signs, block)  # (..., K / block, block)
    return _transform(x, transpose=False).flatten(-2)


def unrotate(x: Tensor, signs: Tensor, block: int) -> Tensor:
    """The inverse of ``rotate``."""
    return _transform(_blocks(_wide(x), block), transpose=True).flatten(-2) * signs


def _wide(x: Tensor) -> Tensor:
    """float64 stays; everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def _blocks(x: Tensor, block: int) -> Tensor:
    if block < 1 or x.shape[-1] % block:
        raise BadFormat(f"rotation block {block} does not divide the {x.shape[-1]} input channels")
    return x.reshape(*x.shape[:-1], x.shape[-1] // block, block)


def _transform(x: Tensor, transpose: bool) -> Tensor:
    x = _wide(x)
    n = x.shape[-1]
    outer, inner = (m.to(device=x.device, dtype=x.dtype) for m in _factors(n))  # (a, a), (b, b)
    a, b = len(outer), len(inner)
    y = x.reshape(-1, b) @ (inner / math.sqrt(n))  # Sylvester's part is symmetric
    # y[r, i, j] = sum_h H_a[h, i] y[r, h, j]
    y = (outer if transpose else outer.T) @ y.view(-1, a, b)
    out: Tensor = y.reshape(x.shape)
    return out


@_constant
def _factors(n: int) -> tuple[Tensor, Tensor]:
    """H_a (a, a) with K in it and Sylvester's H_b (b, b) of the split with the fewest products, int8.

    Fresh tensors each time: what is made in inference mode and kept could not serve training later.
    """
    outer, inner = _split(n)
    return torch.from_numpy(outer.copy()), torch.from_numpy(inner.copy())


@lru_cache(maxsize=64)
def _split(n: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8]]:
    """H_a and H_b, made once: every call of a rotated layer asks for them."""
    order, power = hadamard_order(n)
    inner = min((1 << k for k in range(power.bit_length())), key=lambda b: (n // b + b, b))
    return np.kron(_paley(order), _sylvester(power // inner)), _sylvester(inner)


@lru_cache(maxsize=256)
def _paley_field(order: int) -> tuple[int, int, bool] | None:
    """(p, m, first): Paley's construction I (``first``) or II of this order uses GF(p^m). None if neither applies."""
    for q, first in ((order - 1, True), (order // 2 - 1, False)):
        if order % 4 == 0 and q % 4 == (3 if first else 1) and (field := _prime_power(q)):
            return (*field, first)
    return None


def _prime_power(q: int) -> tuple[int, int] | None:
    """(p, m) with q = p^m and p prime, or None."""
    if q < 2:
        return None
    p = next((d for d in range(2, math.isqrt(q) + 1) if q % d == 0), q)
    m = 1
    while p**m < q:
        m += 1
    return (p, m) if p**m == q else None


@lru_cache(maxsize=64)
def _sylvester(power: int) -> npt.NDArray[np.int8]:
    """Sylvester's matrix of a power of two, int8."""
    out = np.ones((1, 1), dtype=np.int8)
    while len(out) < power:
        out = np.kron(out, np.array([[1, 1], [1, -1]], dtype=np.int8))
    return out


@lru_cache(maxsize=64)
def _paley(order: int) -> npt.NDArray[np.int8]:
    """Paley's matrix of this order, int8; (1, 1) for order 1."""
    if order == 1:
        return np.ones((1, 1), dtype=np.int8)
    field = _paley_field(order)
    if field is None:
        raise BadFormat(f"no Hadamard matrix of order {order} is known here")
    p, m, first = field
    q = p**m
    core = np.ones((q + 1, q + 1), dtype=np.int8)
    core[0, 0] = 0
    core[1:, 0] = -1 if first else 1
    core[1:, 1:] = _jacobsthal(p, m)
    eye = np.eye(q + 1, dtype=np.int8)
    if first:
        return core + eye
    plus, minus = np.array([[1, 1], [1, -1]], dtype=np.int8), np.array([[1, -1], [-1, -1]], dtype=np.int8)
    matrix: npt.NDArray[np.int8] = np.kron(core, plus) + np.kron(eye, minus)
    return matrix


@lru_cache(maxsize=64)
def _wide_paley(order: int) -> npt.NDArray[np.float32]:
    return _paley(order).astype(np.float32)


def _jacobsthal(p: int, m: int) -> npt.NDArray[np.int8]:
    """``Q_ab = chi(a - b)`` over GF(p^m), elements numbered by their digits in base p: int8 (q, q)."""
    q = p**m
    chi = np.zeros(q, dtype=np.int8)
    chi[_powers(p, m)] = np.where(np.arange(q - 1) % 2 == 0, 1, -1)  # even powers of a generator are the squares
    weights = p ** np.arange(m)
    digits = np.arange(q)[:, None] // weights % p  # (q, m)
    difference = (digits[:, None] - digits[None]) % p @ weights  # (q, q)
    matrix: npt.NDArray[np.int8] = chi[difference]
    return matrix


def _powers(p: int, m: int) -> list[int]:
    """The powers 1, x, x^2, ... of a generator x of GF(p^m), all q - 1 of them, as numbers.

    The field is polynomials over GF(p) modulo ``x^m = c_0 + c_1 x + ...``. That polynomial is primitive, and x a
    generator, exactly when the powers of x return to 1 only after q - 1 steps; for m = 1, c_0 is then a primitive root.
    """
    q, one = p**m, (1, *(0,) * (m - 1))
    for c in itertools.product(range(p), repeat=m):
        if c[0] == 0:
            continue
        powers, element = [one], _times_x(one, c, p)
        while element != one and len(powers) < q:
            powers.append(element)
            element = _times_x(element, c, p)
        if len(powers) == q - 1:
            return [sum(d * p**i for i, d in enumerate(e)) for e in powers]
    raise AssertionError(f"GF({p}^{m}) has no primitive polynomial")  # cannot be: one exists for every p and m


def _times_x(element: tuple[int, ...], c: tuple[int, ...], p: int) -> tuple[int, ...]:
    """x times an element: shift the digits up and reduce the top one by ``x^m = c``."""
    return tuple((low + element[-1] * ci) % p for low, ci in zip((0, *element[:-1]), c, strict=True))
