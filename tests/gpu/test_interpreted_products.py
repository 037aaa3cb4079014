"""Products in Triton's interpreter beside float64: every epilogue, tails on every side, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lanes import interpreted, silent

from dither.errors import DitherError
from dither.gpu import SIGNED, UNSIGNED, WHOLE
from dither.numerics import pack, to_codes
from dither.spec import Int

pytestmark = [interpreted, *silent]
NAMES = (
    "a", "a_scale", "a_zero", "a_sum", "w", "w_scale", "w_zero", "w_sum", "bias", "left", "right", "gate", "residual",
    "gelu", "nibbles", "dtype",
)  # fmt: skip
OF_CODES = (*NAMES[:9], "out_scale", "out_zero", "out_bits", *NAMES[-3:])
REST = {"out_bits": 8, "gelu": 0, "nibbles": WHOLE, "dtype": torch.float32}


def product(given):
    return torch.ops.dither.int8_product(*({**REST, **given}.get(name) for name in NAMES))


def product_codes(given):
    return torch.ops.dither.int8_product_codes(*({**REST, **given}.get(name) for name in OF_CODES))


def operands(m, n, k, zeros=(False, False), groups=(1, 1), seed=0):
    """What a product takes, and what it is in float64 before an epilogue."""
    make = torch.Generator().manual_seed(seed)
    a, w = (torch.randint(-128, 128, (rows, k), dtype=torch.int8, generator=make) for rows in (m, n))
    scales = [torch.rand(rows, g, generator=make) * 0.01 for rows, g in zip((m, n), groups, strict=True)]
    points = [
        torch.randint(-128, 128, s.shape, dtype=torch.int32, generator=make) if z else None
        for s, z in zip(scales, zeros, strict=True)
    ]
    segments = max(groups)
    sums = [t.view(len(t), segments, k // segments).sum(-1, dtype=torch.int32) for t in (a, w)]
    given = {
        "a": a, "a_scale": scales[0], "a_zero": points[0], "a_sum": sums[0] if zeros[1] else None, "w": w,
        "w_scale": scales[1], "w_zero": points[1], "w_sum": sums[1].T.contiguous() if zeros[0] else None,
    }  # fmt: skip
    wide = []
    for codes, scale, zero in zip((a, w), scales, points, strict=True):
        values = codes.double().view(len(codes), scale.shape[1], k // scale.shape[1])
        values = values if zero is None else values - zero.double()[:, :, None]
        wide.append((values * scale.double()[:, :, None]).flatten(1))
    return given, wide[0] @ wide[1].T


def close(got, want, tolerance=1e-5):
    assert got.shape == want.shape
    assert float((got.double() - want).abs().max()) <= tolerance * float(want.abs().max())


@pytest.mark.parametrize("zeros", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (37, 75, 150), (130, 64, 128)])
def test_sums_are_exact(m, n, k, zeros):
    given, want = operands(m, n, k, zeros)
    close(product(given), want, 1e-6)


def test_the_largest_sums_fit():
    k = 1 << 15
    given = {
        "a": torch.full((1, k), 127, dtype=torch.int8), "w": torch.full((1, k), 127, dtype=torch.int8),
        "a_scale": torch.ones(1, 1), "w_scale": torch.ones(1, 1),
        "a_zero": torch.full((1, 1), -128, dtype=torch.int32), "w_zero": torch.full((1, 1), -128, dtype=torch.int32),
        "a_sum": torch.full((1, 1), 127 * k, dtype=torch.int32), "w_sum": torch.full((1, 1), 127 * k, dtype=torch.int32),
    }  # fmt: skip
    assert product(given).item() == float(255 * 255 * k)


@pytest.mark.parametrize("groups", [(1, 3), (3, 1), (4, 2), (5, 5)], ids=str)
@pytest.mark.parametrize("zeros", [(False, False), (True, True)], ids=str)
def test_groups_add_in_float(groups, zeros):
    given, want = operands(20, 30, 240, zeros, groups)
    if max(groups) > 1 and 240 % max(groups) == 0:
        close(product(given), want)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 40), n=st.integers(1, 40), size=st.integers(1, 50), groups=st.sampled_from([(1, 1), (1, 2), (6, 3)]),
    zeros=st.tuples(st.booleans(), st.booleans()), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(m, n, size, groups, zeros, seed):
    given, want = operands(m, n, 6 * size, zeros, groups, seed)
    close(product(given), want + 0, 1e-5 if float(want.abs().max()) > 1e-3 else 1e-2)


@pytest.mark.parametrize("gelu", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_epilogues(gelu, dtype):
    given, want = operands(36, 50, 96)
    bias, gate, residual = torch.randn(50), torch.randn(3, 60).to(dtype)[:, 5:55], torch.randn(36, 50).to(dtype)
    y = want + bias.double()
    y = [y, F.gelu(y, approximate="tanh"), F.gelu(y)][gelu]
    got = product(given | {"bias": bias, "gelu": gelu, "dtype": dtype})
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    close(got, y, tolerance)
    gated = product(given | {"bias": bias, "gelu": gelu, "dtype": dtype, "gate": gate, "residual": residual})
    close(gated, residual.double() + gate.double().repeat_interleave(12, 0) * y, tolerance)
    added = product(given | {"bias": bias, "gelu": gelu, "dtype": dtype, "residual": residual})
    close(added, residual.double() + y, tolerance)


@pytest.mark.parametrize("rank", [16, 64])
def test_a_low_rank_branch(rank):
    given, want = operands(33, 40, 96)
    left, right = torch.randn(33, rank), torch.randn(40, rank)
    close(product(given | {"left": left, "right": right}), want + left.double() @ right.double().T)


@pytest.mark.parametrize("grid", [Int(8), Int(8, False), Int(4, False)], ids=str)
@pytest.mark.parametrize("each", [False, True], ids=["one row", "rows"])
def test_codes_of_the_output(grid, each):
    """What lets GELU and the next linear's codes be made before anything is written."""
    given, want = operands(20, 60, 96)
    scale = torch.rand(20 if each else 1, 1) * 0.01 + 0.01
    zero = None if grid.symmetric else torch.randint(0, 1 << grid.bits, scale.shape, dtype=torch.uint8)
    given |= {"gelu": 1, "out_scale": scale, "out_zero": zero, "out_bits": grid.bits}
    got, scales = product_codes(given)
    assert got.dtype == torch.int8
    assert torch.equal(scales, scale.expand(20, 1))
    given["a_scale"][3] = torch.nan  # as rows are marked whose inputs are not finite
    again, scales = product_codes(given)
    assert scales.isnan().flatten().nonzero().tolist() == [[3]]
    assert torch.equal(again[4:], got[4:])
    y = F.gelu(want, approximate="tanh").float()
    codes = to_codes(y, scale.expand(20, 1), None if zero is None else zero.expand(20, 1), grid).int()
    difference = got - (codes - (128 if grid.bits == 8 and not grid.symmetric else 0))
    assert difference.abs().max() <= 1
    assert (difference != 0).sum() <= 2


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 3, 2), (37, 75, 150), (20, 64, 256)])
def test_nibbles_are_never_unpacked(m, n, k, unsigned, asymmetric):
    given, _ = operands(m, n, k, (asymmetric, unsigned))
    w = torch.randint(0, 16, (n, k), dtype=torch.uint8) if unsigned else torch.randint(-8, 8, (n, k), dtype=torch.int8)
    moved = w.int() - (8 if unsigned else 0)
    zero = torch.randint(-8, 8, (n, 1), dtype=torch.int32) if unsigned else None
    a = given["a"]
    given |= {
        "a": torch.cat((a[:, ::2], a[:, 1::2]), 1), "w": pack(w, 4, not unsigned), "w_zero": zero,
        "w_sum": moved.sum(1, dtype=torch.int32)[None] if asymmetric else None,
        "nibbles": UNSIGNED if unsigned else SIGNED,
    }  # fmt: skip
    left = a.double() - (given["a_zero"].double() if asymmetric else 0)
    right = moved.double() - (zero.double() if unsigned else 0)
    close(product(given), left @ right.T * given["a_scale"].double() * given["w_scale"].double().T, 1e-6)


def test_no_rows():
    given, _ = operands(0, 5, 32)
    assert product(given).shape == (0, 5)


def test_the_operator_is_a_good_one():
    given, _ = operands(6, 8, 32, (True, True))
    given |= {"out_bits": 8, "gelu": 1, "nibbles": WHOLE, "dtype": torch.float16, "bias": torch.ones(8)}
    torch.library.opcheck(torch.ops.dither.int8_product.default, tuple(given.get(name) for name in NAMES))
    given |= {"out_scale": torch.ones(1, 1)}
    torch.library.opcheck(torch.ops.dither.int8_product_codes.default, tuple(given.get(name) for name in OF_CODES))


WRONG = {
    "a": torch.zeros(6, 32, dtype=torch.uint8),
    "a_scale": torch.ones(5, 1),
    "a_zero": torch.zeros(6, 1),
    "a_sum": None,
    "w": torch.zeros(8, 31, dtype=torch.int8),
    "w_scale": torch.ones(8, 5),
    "w_zero": torch.zeros(8, 2, dtype=torch.int32),
    "w_sum": torch.zeros(8, 1, dtype=torch.int32),
    "bias": torch.ones(7),
    "left": torch.ones(6, 17),
    "gate": torch.ones(4, 8),
    "residual": torch.ones(6, 7),
    "out_scale": torch.ones(2, 1),
    "out_zero": torch.ones(1, 2, dtype=torch.uint8),
    "dtype": torch.float64,
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_before_it_is_read(name):
    given, _ = operands(6, 8, 32, (True, True))
    wrong = WRONG[name]
    extra = {"right": torch.ones(8, 17)} if name == "left" else {}
    run = product_codes if name.startswith("out_") else product
    out = {"out_scale": torch.ones(1, 1)} if name == "out_zero" else {}
    with pytest.raises(DitherError, match=f"a linear of 8 x 32 and 6 rows cannot run: {name} is "):
        run(given | extra | out | {name: wrong})


def test_tiles_follow_the_epilogue():
    from dither.gpu.products import Product
    from dither.gpu.tiles import DEFAULTS, GROUPED

    def of(given):
        told = {**REST, **given}
        return Product.of(*(told.get(name) for name in (*NAMES[:13], "out_scale", "out_zero", "out_bits", *NAMES[13:])))

    plain, both = operands(6, 8, 32)[0], operands(6, 8, 32, (True, True))[0]
    assert of(plain).tiles == DEFAULTS
    assert of(plain).epilogue == "plain"
    heavy = of(both | {"gate": torch.ones(2, 8), "residual": torch.ones(6, 8)})
    assert heavy.epilogue == "a_zero+w_zero+residual+gate"
    assert heavy.tiles == DEFAULTS[1:]
    assert of(operands(6, 8, 32, groups=(2, 2))[0]).tiles == GROUPED


def test_measured_tiles_are_taken(tmp_path, monkeypatch):
    """And only the key says for what."""
    from dither.gpu import products, tuner
    from dither.gpu.tiles import Tile
    from dither.gpu.tuning import tune_product

    monkeypatch.setenv("DITHER_CACHE", str(tmp_path))
    tuner.forget()
    given, want = operands(37, 40, 96)
    arguments = [{**REST, **given}.get(name) for name in NAMES]
    started = []
    start = products.Product.start
    monkeypatch.setattr(products.Product, "start", lambda self, tile: (started.append(tile), start(self, tile)))
    key = products.Product.of(*arguments[:13], None, None, 8, *arguments[13:]).key
    assert (key.rows, key.n, key.k, key.epilogue) == (64, 40, 96, "plain")
    tuner.tune(key, [Tile(16, 32, 32, 4, 1)], lambda tile: 1.0)
    close(torch.ops.dither.int8_product(*arguments), want)
    assert started == [Tile(16, 32, 32, 4, 1)]
    with pytest.raises(DitherError, match="tiles cannot be measured on 'cpu'"):
        tune_product(*arguments)
    tuner.forget()
