"""The Gaussian format: words that are committed, what they lose on a Gaussian source, and what is refused."""

import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dither.errors import BadFormat, BadValue
from dither.numerics import decode, encode, gaussian_codes, stored_bits
from dither.numerics.deviation import UNIT
from dither.numerics.gaussian import WORDS, encode_gaussian, gaussian_words
from dither.spec import Gaussian

SETS = [Gaussian(8, 256), Gaussian(4, 256), Gaussian(2, 64), Gaussian(2, 256)]
GOLDEN = "5dd9b4a7fa337658a2e3aab0d8190fecf081a5968aae73a9967af91221d5532a"


def gauss(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_words_are_what_every_checkpoint_was_written_with():
    assert hashlib.sha256(WORDS.read_bytes()).hexdigest() == GOLDEN
    assert set(json.loads(WORDS.read_text())) == {f"{f.dim}x{f.size}" for f in SETS}


@pytest.mark.parametrize("fmt", SETS, ids=str)
def test_words_are_distinct_and_centred(fmt):
    words = gaussian_words(fmt)
    assert words.shape == (fmt.size, fmt.dim)
    assert words.dtype == torch.int8
    assert len(set(map(tuple, words.tolist()))) == fmt.size
    assert words.float().mean(0).abs().max() < UNIT / 10


@pytest.mark.parametrize(("fmt", "most"), list(zip(SETS, [0.345, 0.104, 0.0315, 0.0082], strict=True)), ids=str)
def test_loss_on_a_gaussian_source(fmt, most):
    w = gauss(64, 512)
    error = float((decode(encode(w, fmt), fmt, w.shape) - w).square().mean())
    assert 4.0 ** -(fmt.bits / fmt.dim) < error < most
    assert stored_bits(fmt, w.shape) == 64 * (512 // fmt.dim * fmt.bits + 16)


@given(
    rows=st.integers(1, 5), vectors=st.integers(1, 9), seed=st.integers(0, 999), size=st.sampled_from([1e-8, 1, 1e5])
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_values_are_int8_times_the_scale_of_a_row(rows, vectors, seed, size):
    fmt = Gaussian(4, 256)
    w = gauss(rows, 4 * vectors, seed=seed) * size
    tensors = encode_gaussian(w, fmt)
    codes = gaussian_codes(tensors, fmt, w.shape)
    assert codes.dtype == torch.int8
    assert torch.equal(decode(tensors, fmt, w.shape), codes.float() * tensors["scale"].float())
    assert (decode(tensors, fmt, w.shape) - w).square().sum() <= w.square().sum() * 1.01


def test_a_row_of_zeros_stays_zero():
    w = gauss(3, 16)
    w[1] = 0
    again = decode(encode(w, Gaussian(4, 256)), Gaussian(4, 256), w.shape)
    assert not again[1].any()
    assert again[0].any()


@pytest.mark.parametrize(
    ("fmt", "shape", "message"),
    [
        (Gaussian(4, 256), (2, 6), "sub-vector length 4 does not divide the 6 input channels"),
        (Gaussian(3, 16), (2, 6), "the Gaussian codebooks that there are have 8x256, 4x256, 2x64, 2x256"),
    ],
)
def test_what_it_cannot_hold_is_refused(fmt, shape, message):
    with pytest.raises(BadFormat, match=message):
        encode(gauss(*shape), fmt)


def test_words_are_a_power_of_two():
    with pytest.raises(BadFormat, match="power of two"):
        Gaussian(2, 100)


def test_nan_is_refused():
    with pytest.raises(BadValue):
        encode(torch.full((2, 4), torch.nan), Gaussian(4, 256))
