"""One conformance table: every format declares what it stores, stores just that, and refuses anything else."""

import math

import pytest
import torch
from torch import Tensor

from dither.errors import BadCheckpoint, BadFormat, BadValue
from dither.numerics import decode, encode, layout, stored_bits, validate
from dither.spec import PER_ROW, PER_TENSOR, Act, Codebook, Float8, Format, Gaussian, Int, Nested, Trellis

FORMATS: list[Format] = [
    *(Int(b, s, g) for b in range(1, 9) for s in (True, False) for g in (PER_ROW, PER_TENSOR, 6)),
    *(
        Nested(Int(b, s, g), n)
        for b, n in ((8, 4), (8, 2), (5, 3))
        for s in (True, False)
        for g in (PER_ROW, PER_TENSOR, 6)
    ),
    *(Float8(g) for g in (PER_ROW, PER_TENSOR, 6)),
    Codebook(2, 16),
    Codebook(3, 5),
    Codebook(2, 8, half=True),
    Codebook(1, 180, row_scale=True),
    Gaussian(2, 64),
    Trellis(1, 9, 2, 18),
    Trellis(2, 8, 5, 6),
    Trellis(3, 10, 1, 9),
    Trellis(4, 6, 10, 3),
]
SHAPE = (10, 18)


def weight() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_conformance(fmt: Format) -> None:
    w = weight()
    tensors = encode(w, fmt)
    declared = layout(fmt, SHAPE)
    assert {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()} == declared
    assert list(tensors) == list(declared)
    assert all(t.is_contiguous() for t in tensors.values())
    validate(tensors, fmt, SHAPE)
    got = decode(tensors, fmt, SHAPE)
    assert got.shape == SHAPE
    assert got.dtype == torch.float32
    assert float((got - w).square().mean()) < float(w.square().mean())
    assert stored_bits(fmt, SHAPE) == 8 * sum(t.numel() * t.element_size() for t in tensors.values())
    assert all(torch.equal(t, encode(w, fmt)[n]) for n, t in tensors.items())


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_declared_tensors_can_be_made_on_meta(fmt: Format) -> None:
    made = {n: torch.empty(size, dtype=dtype, device="meta") for n, (size, dtype) in layout(fmt, SHAPE).items()}
    assert {n: (tuple(t.shape), t.dtype) for n, t in made.items()} == layout(fmt, SHAPE)


def test_stored_bits_of_dit_xl() -> None:
    assert stored_bits(Int(8), (1152, 1152)) == 1152 * (1152 * 8 + 32)
    assert stored_bits(Int(4, symmetric=False, group=128), (4608, 1152)) == 4608 * (1152 * 4 + 9 * 40)
    assert stored_bits(Float8(), (1152, 1152)) == 1152 * (1152 * 8 + 32)
    assert stored_bits(Nested(Int(8), 4), (1152, 1152)) == stored_bits(Int(8), (1152, 1152))  # it is all stored
    assert stored_bits(Int(3, group=PER_TENSOR), (4, 9)) == 4 * 32 + 32  # 27 bits fill 4 bytes
    assert stored_bits(Codebook(4, 256), (1152, 1152)) == 1152 * 1152 * 2 + 256 * 4 * 32
    assert stored_bits(Codebook(4, 256, half=True), (1152, 1152)) == 1152 * 1152 * 2 + 256 * 4 * 16
    assert stored_bits(Trellis(3), (4608, 1152)) == 4608 * (1152 * 3 + 16)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_each_tensor_at_fault_is_named(fmt: Format) -> None:
    good = encode(weight(), fmt)
    for name, tensor in good.items():
        for bad in (
            {n: t for n, t in good.items() if n != name},
            {**good, name: tensor[:-1]},
            {**good, name: tensor.to(torch.float64)},
            {**good, name: tensor[None]},
        ):
            with pytest.raises(BadCheckpoint, match=rf"'blocks\.0\.{name}'"):
                validate(bad, fmt, SHAPE, layer="blocks.0")
    with pytest.raises(BadCheckpoint, match=r"'extra' .* does not belong"):
        validate({**good, "extra": torch.zeros(1)}, fmt, SHAPE)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_tampered_scales_are_refused(value: float) -> None:
    for fmt in (Int(4), Int(8, False, 6), Float8(6), Nested(Int(8), 3), Codebook(2, 16, row_scale=True)):
        tensors = encode(weight(), fmt)
        tensors["scale"][3, 0] = value
        with pytest.raises(BadCheckpoint, match="'scale'"):
            validate(tensors, fmt, SHAPE)


def test_tampered_zeros_codes_and_words_are_refused() -> None:
    tensors = encode(weight(), Int(4, symmetric=False))
    tensors["zero"][0, 0] = 16
    with pytest.raises(BadCheckpoint, match=r"'zero' .* above 15"):
        validate(tensors, Int(4, symmetric=False), SHAPE)
    nested = Nested(Int(4, symmetric=False), 2)
    with pytest.raises(BadCheckpoint, match=r"'zero' .* above 15"):
        validate(tensors, nested, SHAPE)
    for code in (0x7F, 0xFF):
        tensors = encode(weight(), Float8())
        tensors["codes"][3, 2] = code
        with pytest.raises(BadCheckpoint, match=r"'codes' .* that are NaN"):
            validate(tensors, Float8(), SHAPE)
    tensors = encode(weight(), Codebook(3, 5))
    tensors["codes"][2, 0] = 5  # index 5 of 0 to 4, in the first 3 bits
    with pytest.raises(BadCheckpoint, match=r"'codes' .* beyond the 5"):
        validate(tensors, Codebook(3, 5), SHAPE)
    tensors = encode(weight(), Codebook(3, 5))
    tensors["codebook"][0, 0] = math.nan
    with pytest.raises(BadCheckpoint, match="'codebook'"):
        validate(tensors, Codebook(3, 5), SHAPE)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (), (0, 4), (4, 0)])
@pytest.mark.parametrize("fmt", [Int(8), Float8(), Nested(Int(8), 4), Codebook(2, 4)], ids=str)
def test_only_matrices(fmt: Format, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadFormat, match="matrix"):
        layout(fmt, shape)
    with pytest.raises(BadFormat, match="matrix"):
        encode(torch.zeros(shape), fmt)


@pytest.mark.parametrize("fmt", [Int(8), Float8(), Nested(Int(8), 4), Codebook(2, 4)], ids=str)
def test_nan_is_refused(fmt: Format) -> None:
    with pytest.raises(BadValue, match="180 values"):
        encode(torch.full(SHAPE, math.nan), fmt)


def test_group_that_does_not_divide_is_refused_before_any_data() -> None:
    with pytest.raises(BadFormat, match=r"group size 7 .* 18"):
        layout(Int(4, group=7), SHAPE)
    with pytest.raises(BadFormat, match=r"length 4 .* 18"):
        layout(Codebook(4, 16), SHAPE)


def test_what_is_not_a_format_is_refused() -> None:
    with pytest.raises(BadFormat, match="not a format; known are Codebook, Float8, Gaussian, Int, Nested, Trellis"):
        encode(weight(), Act(Int(8)))  # type: ignore[arg-type]
