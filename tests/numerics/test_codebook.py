"""The Codebook format: exact on data that has few vectors, better with more words, seeded, repaired."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dither.errors import BadFormat, BadValue
from dither.numerics import assign, decode_codebook, encode_codebook, fit_codebook, unpack_indices
from dither.spec import Codebook


def weight(seed: int, rows: int = 32, count: int = 24) -> Tensor:
    return torch.randn(rows, count, generator=torch.Generator().manual_seed(seed))


def error(w: Tensor, fmt: Codebook, seed: int = 0) -> float:
    return float((decode_codebook(encode_codebook(w, fmt, seed=seed), fmt, w.shape) - w).square().mean())


def test_golden_tensors() -> None:
    fmt = Codebook(dim=2, size=3)
    words = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 2.0]])
    w = torch.tensor([[0.9, 1.2, -0.8, 1.9, 0.1, -0.1], [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]])
    tensors = encode_codebook(w, fmt, words)
    assert tensors["codes"].tolist() == [[0b00_10_01], [0b01_01_00]]
    assert unpack_indices(tensors, fmt, 6).tolist() == [[1, 2, 0], [0, 1, 1]]
    assert decode_codebook(tensors, fmt, w.shape).tolist() == [[1, 1, -1, 2, 0, 0], [0, 0, 1, 1, 1, 1]]


def test_half_words_are_words_that_float16_holds() -> None:
    w, fmt = weight(0), Codebook(4, 16, half=True)
    tensors, plain = encode_codebook(w, fmt), encode_codebook(w, Codebook(4, 16))
    assert tensors["codebook"].dtype == torch.float16
    assert torch.equal(tensors["codebook"], plain["codebook"].half())
    indices = unpack_indices(tensors, fmt, w.shape[1]).long().flatten()
    assert torch.equal(decode_codebook(tensors, fmt, w.shape).view(-1, 4), tensors["codebook"].float()[indices])
    with pytest.raises(BadValue, match="a word is too large for float16"):
        encode_codebook(1e6 * w, fmt)


@given(
    seed=st.integers(0, 999),
    size=st.sampled_from([2, 3, 16, 17, 300]),
    dim=st.sampled_from([1, 3, 4]),
    rs=st.booleans(),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_codes_are_stable_and_the_choice_is_nearest(seed: int, size: int, dim: int, rs: bool) -> None:
    fmt = Codebook(dim, size, row_scale=rs)
    w = weight(seed, rows=6)
    tensors = encode_codebook(w, fmt, seed=seed, iterations=3)
    points = (w / tensors["scale"] if rs else w).reshape(-1, dim)
    words = tensors["codebook"]
    found = unpack_indices(tensors, fmt, 24).long().flatten()
    assert int(found.max()) < size
    got = (points - words[found]).square().sum(1)
    best = torch.cdist(points.double(), words.double()).square().min(1).values
    assert torch.all(got <= best + 1e-5)


def test_more_words_fit_better_and_words_fit_better_than_chance() -> None:
    w = weight(0, rows=256)
    errors = [error(w, Codebook(4, size)) for size in (4, 16, 64, 256)]
    assert errors == sorted(errors, reverse=True)
    points = w.reshape(-1, 4)
    assert errors[2] < 0.8 * float(assign(points, points[:64])[1].mean()) / 4


def test_distinct_vectors_no_more_than_words_are_exact() -> None:
    words = weight(1, rows=5, count=4)
    w = words[torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(0))].view(8, 20)
    for size in (5, 8, 200):  # 200 words for 40 sub-vectors: words repeat
        assert error(w, Codebook(4, size)) < 1e-12


def test_row_scale_serves_rows_of_different_size() -> None:
    w = weight(2, rows=64) * torch.logspace(-2, 2, 64)[:, None]
    relative = [
        (((decode_codebook(encode_codebook(w, f), f, w.shape) - w) / w.norm(dim=1, keepdim=True)).square().mean())
        for f in (Codebook(4, 32), Codebook(4, 32, row_scale=True))
    ]
    assert relative[1] < 0.2 * relative[0]


def test_the_fit_with_row_scale_minimises_the_error_of_the_weight() -> None:
    """Small rows have other shapes than large rows; words are worth more where the weight is large."""
    w = torch.cat([weight(4).sign() * 1e-3, weight(5)])
    fmt = Codebook(4, 16, row_scale=True)
    points = (w / w.square().mean(1, keepdim=True).sqrt()).reshape(-1, 4)
    unweighted = encode_codebook(w, fmt, fit_codebook(points, torch.ones(len(points)), 16))
    worse = float((decode_codebook(unweighted, fmt, w.shape) - w).square().mean())
    assert error(w, fmt) < 0.9 * worse


def test_a_zero_row_stays_zero_with_row_scale() -> None:
    w = weight(3)
    w[4] = 0
    fmt = Codebook(4, 16, row_scale=True)
    tensors = encode_codebook(w, fmt)
    assert tensors["scale"][4].item() == 0
    got = decode_codebook(tensors, fmt, w.shape)
    assert torch.isfinite(got).all()
    assert torch.all(got[4] == 0)


def test_seeded() -> None:
    fmt = Codebook(4, 16)
    a, b, c = (encode_codebook(weight(0), fmt, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["codebook"], c["codebook"])


def test_a_word_that_nobody_chose_moves() -> None:
    """The start draws several words at once, so some coincide; the repair must still find a use for every word."""
    points = weight(0, rows=300, count=2)
    words = fit_codebook(points, torch.ones(300), 256)
    assert len(assign(points, words)[0].unique()) == 256


def test_fit_on_a_sample_of_a_large_weight() -> None:
    w = weight(0, rows=512, count=64)  # 32768 sub-vectors of length 1, far over 256 for each of 4 words
    assert error(w, Codebook(1, 4)) < 0.13  # Lloyd-Max for a Gaussian: 0.1175


def test_bad_input() -> None:
    with pytest.raises(BadFormat, match="length 5 does not divide the 24"):
        encode_codebook(weight(0), Codebook(5, 4))
    with pytest.raises(BadFormat, match=r"needs \(4, 2\)"):
        encode_codebook(weight(0), Codebook(2, 4), torch.zeros(4, 3))
    w = weight(0)
    w[0, 0] = float("nan")
    with pytest.raises(BadValue, match="1 values"):
        encode_codebook(w, Codebook(4, 4))
