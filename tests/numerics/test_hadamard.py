"""Hadamard matrices are orthogonal in integers, the fast transform is the matrix, and rotations keep the product."""

import math

import pytest
import torch

from dither.errors import BadFormat
from dither.numerics import hadamard_matrix, hadamard_order, hadamard_transform, random_signs, rotate, unrotate

WIDTHS = {
    1152: (36, 32),
    4608: (36, 128),
    1536: (12, 128),
    3072: (12, 256),
    8960: (140, 64),
    13824: (108, 128),
    768: (12, 64),
    1024: (1, 1024),
    384: (12, 32),
    192: (12, 16),
    64: (1, 64),
    5120: (20, 256),
    2432: (76, 32),
    3584: (28, 128),
    11008: (344, 32),
}
MISSING = {92, 116, 156, 172, 184, 188, 232, 236}  # multiples of 4 up to 256 that Paley and Sylvester do not reach

SIGNS_OF_SEED_0 = [-1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, 1]


def known(n: int) -> bool:
    return n <= 2 or (n % 4 == 0 and n not in MISSING)


@pytest.mark.parametrize(("n", "split"), WIDTHS.items())
def test_widths_of_real_models(n: int, split: tuple[int, int]) -> None:
    assert hadamard_order(n) == split
    row = torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = hadamard_transform(row)
    torch.testing.assert_close(out.norm(dim=1), row.norm(dim=1), rtol=1e-12, atol=0)
    torch.testing.assert_close(out @ out.T, row @ row.T, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("n", [n for n in range(1, 257) if known(n)])
def test_orthogonal_in_integers_and_equal_to_the_transform(n: int) -> None:
    h = hadamard_matrix(n)
    assert torch.all(h.abs() == 1)
    h = h.long()
    assert torch.equal(h @ h.T, n * torch.eye(n, dtype=torch.long))
    x = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    torch.testing.assert_close(hadamard_transform(x), x @ h.double() / math.sqrt(n))


@pytest.mark.parametrize("n", [344, 28])
def test_fields_of_prime_powers(n: int) -> None:
    """28 = 27 + 1 and 344 = 343 + 1 come from GF(3^3) and GF(7^3)."""
    h = hadamard_matrix(n).long()
    assert torch.equal(h @ h.T, n * torch.eye(n, dtype=torch.long))


@pytest.mark.parametrize("n", [0, -4, 3, 6, 10, 18, 100 + 2, 92, 15000 + 1])
def test_unknown_order_is_refused_by_number(n: int) -> None:
    with pytest.raises(BadFormat, match=f"order {n} "):
        hadamard_order(n)


@pytest.mark.parametrize(("count", "block"), [(1152, 1152), (1152, 64), (768, 384), (240, 12)])
def test_rotated_product_is_the_product(count: int, block: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(2, 5, count, generator=generator), torch.randn(7, count, generator=generator)
    signs = random_signs(count, seed=1)
    want = x @ w.T
    got = rotate(x, signs, block) @ rotate(w, signs, block).T
    assert float((got - want).abs().max() / want.abs().max()) < 1e-5
    torch.testing.assert_close(unrotate(rotate(x, signs, block), signs, block), x, rtol=1e-5, atol=1e-5)


def test_rotate_is_the_formula() -> None:
    x = torch.randn(4, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    signs = random_signs(24, seed=3)
    h = torch.block_diag(*[hadamard_matrix(12).double()] * 2)
    torch.testing.assert_close(rotate(x, signs, 12), (x * signs) @ h / math.sqrt(12))


def test_an_outlier_channel_is_spread() -> None:
    x = torch.ones(1, 1152)
    x[0, 7] = 100.0
    assert float(rotate(x, random_signs(1152, 0), 1152).abs().max()) < 10.0


def test_signs_are_fixed_for_ever() -> None:
    signs = random_signs(16, seed=0)
    assert signs.dtype == torch.int8
    assert signs.tolist() == SIGNS_OF_SEED_0
    assert torch.equal(random_signs(16, 0), signs)
    assert not torch.equal(random_signs(64, 0), random_signs(64, 1))
    assert abs(int(random_signs(10000, 5).sum())) < 400


def test_low_precision_input_gives_float32() -> None:
    x = torch.randn(3, 64).bfloat16()
    assert rotate(x, random_signs(64, 0), 64).dtype == torch.float32


@pytest.mark.parametrize("block", [0, 7, 25, 48])
def test_a_block_that_does_not_divide_is_refused(block: int) -> None:
    with pytest.raises(BadFormat, match=f"block {block} does not divide the 24"):
        rotate(torch.zeros(1, 24), random_signs(24, 0), block)


def test_matrices_made_in_inference_mode_serve_training_later() -> None:
    with torch.inference_mode():
        hadamard_transform(torch.zeros(1, 20 * 4))
    x = torch.randn(1, 80, requires_grad=True)
    hadamard_transform(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_torch_compile_sees_through() -> None:
    signs = random_signs(48, 0)
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(lambda v: rotate(v, signs, 48), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), rotate(x, signs, 48))
