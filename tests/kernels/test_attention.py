"""Attention on integers: what native code knows, beside the same rounding in floating point."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from called import instructions

from dither.clock import Clock
from dither.errors import DitherError
from dither.kernels.attention import CPU_ATTENTION, attention_kernel, is_integer
from dither.kernels.native_attention import ATTENTION
from dither.kernels.native_calls import has_attention
from dither.nn import QAttention, Widths
from dither.numerics import range_table
from dither.spec import PER_TENSOR, Act, AttentionSpec, Int, Log2, TwoRegion

pytestmark = pytest.mark.skipif(not has_attention(), reason="needs native code")
CPU = torch.device("cpu")
HEADS, WIDTH = 3, 20
UNIFORM, REGIONS, FOUND = Act(Int(8, False), True), Act(TwoRegion(8), True), Act(Int(6, False))
EACH = Act(Int(8, group=WIDTH))
STORED = Act(Int(7, False, group=WIDTH), True)
ONE = Act(Int(8), True)
CHANNELS = Act(Int(8, False, group=1), True)
SPECS = [
    AttentionSpec(q, k, v, probs)
    for (q, k), v, probs in product([(EACH, STORED), (STORED, EACH), (ONE, ONE)], [CHANNELS, ONE], [UNIFORM, REGIONS, FOUND])
]  # fmt: skip


def factors(n=33, m=70, batch=2, width=WIDTH, seed=0, dtype=torch.float32):
    make = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, tokens, HEADS, width, generator=make).mul(1.5).to(dtype).transpose(1, 2)
        for tokens in (n, m, m)
    ]


def ranged(spec, given, rows=1):
    """An attention whose stored ranges cover the factors; of several rows all are the same but for their size."""
    width = given[0].shape[-1]
    made = QAttention(spec, Widths(*[HEADS * width] * 3, HEADS), Clock())
    tables = {}
    for (name, act), x in zip([("q", spec.q), ("k", spec.k), ("v", spec.v)], given, strict=True):
        if not act.static:
            continue
        flat = x.float().transpose(1, 2).reshape(-1, HEADS * width)
        groups = flat.unflatten(1, (-1, act.grid.group if act.grid.group > 0 else HEADS * width))
        table = range_table(groups.amin((0, 2))[None], groups.amax((0, 2))[None], act.grid)
        tables |= {f"{name}.{key}": t for key, t in table.items()}
    if spec.probs == REGIONS:
        tables |= {"probs.scale": torch.tensor([[0.1 / 127]]), "probs.upper": torch.tensor([[0.8 / 127]])}
    if spec.probs == UNIFORM:
        tables |= {"probs.scale": torch.tensor([[0.5 / 255]]), "probs.zero": torch.zeros(1, 1, dtype=torch.uint8)}
    return made.load(tables)


def simulated(made, *given, **more):
    """The same in floating point: where a factor is looked at, native code does not run."""
    seen = made.q.register_forward_pre_hook(lambda *_: None)
    try:
        return made.attend(*given, **more)
    finally:
        seen.remove()


def away(got, want):
    return float((got.float() - want.float()).norm() / want.float().norm())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_it_is_what_is_simulated_up_to_codes_next_to_a_tie(spec):
    given = factors()
    made = ranged(spec, given)
    assert made.kernel == CPU_ATTENTION
    assert not made.simulated
    got, want = made.attend(*given), simulated(made, *given)
    assert got.shape == want.shape
    assert away(got, want) < 2e-3
    assert away(want, F.scaled_dot_product_attention(*given)) > 5 * away(got, want)


@pytest.mark.parametrize(("n", "m", "width"), [(1, 1, 8), (5, 64, 72), (64, 3, 64), (40, 129, 16), (33, 65, 80)])
def test_shapes(n, m, width):
    given = factors(n, m, 1, width)
    side = Act(Int(8, False, group=width))
    made = ranged(AttentionSpec(side, side, CHANNELS, REGIONS), given)
    assert away(made.attend(*given), simulated(made, *given)) < 2e-3
    assert away(made.attend(*given, scale=0.3), simulated(made, *given, scale=0.3)) < 2e-3


@pytest.mark.parametrize("spec", SPECS[:6], ids=str)
def test_all_instructions_and_threads_give_the_same_bits(spec, afresh, monkeypatch):
    given = factors(70, 130)
    made = ranged(spec, given)
    want, before = made.attend(*given), torch.get_num_threads()
    for _ in instructions(monkeypatch):
        for threads in (1, 3):
            torch.set_num_threads(threads)
            try:
                assert torch.equal(made.attend(*given), want)
            finally:
                torch.set_num_threads(before)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.02), (torch.float16, 0.004)])
def test_other_dtypes(dtype, limit):
    """Native code rounds once, in the end."""
    given = factors(dtype=dtype)
    made = ranged(SPECS[0], given)
    got = made.attend(*given)
    assert got.dtype == dtype
    assert away(got, simulated(made, *(x.float() for x in given))) < limit


def test_memory_may_lie_in_any_order():
    given = factors()
    made = ranged(SPECS[1], given)
    want = made.attend(*given)
    assert torch.equal(made.attend(*(x.contiguous() for x in given)), want)
    assert torch.equal(made.attend(*(x.mT.contiguous().mT for x in given)), want)
    wide = torch.cat(given[1:], -1)  # k and v of one tensor
    assert torch.equal(made.attend(given[0], *wide.split(WIDTH, -1)), want)


@pytest.mark.parametrize("shape", [(33, 70), (2, 1, 1, 70), (2, 3, 33, 70), (1, 1, 33, 1), (1, 3, 1, 70)])
def test_masks_add_and_hide(shape):
    given = factors()
    made = ranged(SPECS[0], given)
    mask = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert away(made.attend(*given, mask), simulated(made, *given, mask)) < 2e-3
    if shape[-1] > 1:
        keep = mask > -0.5
        assert away(made.attend(*given, keep), simulated(made, *given, keep)) < 2e-3


def test_who_sees_nothing_has_no_number():
    given = factors()
    made = ranged(SPECS[0], given)
    keep = torch.ones(33, 70, dtype=torch.bool)
    keep[4] = False
    got = made.attend(*given, keep)
    assert got[:, :, 4].isnan().all()
    assert got[:, :, 5:].isfinite().all()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays_visible(bad):
    for which, spec in product(range(3), (SPECS[0], SPECS[-1])):
        given = factors()
        made = ranged(spec, given)
        given[which][1, 2, 6, 3] = bad
        got = made.attend(*given)
        touched = got[1, 2, 6] if which == 0 else got[1, 2]
        assert touched.isnan().all()
        assert int(got.isnan().sum()) == touched.numel()


def test_tables_follow_the_clock():
    clock = Clock((0.5,))
    clock.set(torch.tensor([0.1, 0.9]), torch.zeros(2, dtype=torch.int64))
    stored = Act(Int(8), True, 2)
    given = factors()
    tops = torch.tensor([[1.0], [9.0]])
    tables = {f"{name}.scale": tops / 127 for name in "qkv"} | {"probs.scale": tops / 2550}
    probs = Act(TwoRegion(8), True, 2)
    made = QAttention(AttentionSpec(stored, stored, stored, probs), Widths(*[HEADS * WIDTH] * 3, HEADS), clock)
    made.load({**tables, "probs.upper": tops / 256})
    got = made.attend(*given)
    assert away(got, simulated(made, *given)) < 2e-3
    clock.set(torch.tensor([0.9, 0.1]), torch.zeros(2, dtype=torch.int64))
    assert not torch.equal(made.attend(*given), got)


def test_nothing_of_it_stays_behind():
    given = factors()
    made = ranged(SPECS[0], given)
    want = made.attend(*given)
    made.attend(*factors(5, 200, 1, seed=3))
    assert torch.equal(made.attend(*given), want)
    assert made.attend(*factors(batch=0)).shape == (0, HEADS, 33, WIDTH)


def test_gradients_and_looks_go_through_floating_point():
    given = factors()
    made = ranged(SPECS[0], given)
    asked = [x.clone().requires_grad_() for x in given]
    made.attend(*asked).square().sum().backward()
    assert all(float(x.grad.abs().max()) > 0 for x in asked)
    seen = []
    made.probs.register_forward_hook(lambda _, args, y: seen.append(y.shape))
    made.attend(*given)
    assert seen == [(2, HEADS, 33, 70)]


def call(**changes):
    q, k, v = factors()
    scale = torch.full((1, HEADS), 0.03)
    ranges = dict.fromkeys(
        ("q_scale", "q_zero", "k_scale", "k_zero", "v_scale", "v_zero", "p_scale", "p_upper", "p_zero")
    )
    ranges |= {"q_scale": scale, "v_scale": torch.full((2, HEADS * WIDTH), 0.03)}
    given = {"q": q, "k": k, "v": v, "mask": None, "scale": 0.2, "grids": [8, 1, 8, 0, 8, 1, 8, 0]}
    given |= {name: t for name, t in changes.items() if name in given}
    ranges |= {name: t for name, t in changes.items() if name in ranges}
    return [*given.values(), list(ranges.values())]


def test_torch_finds_the_operator_whole():
    torch.library.opcheck(ATTENTION, call())
    torch.library.opcheck(ATTENTION, call(mask=torch.zeros(2, 1, 1, 70)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"q": torch.zeros(2, 3, 33, 16)}, "its factors are float32"),
        ({"k": torch.zeros(2, 3, 70, WIDTH).half()}, r"float16 \(2, 3, 70, 20\)"),
        ({"v": torch.zeros(2, 3, 71, WIDTH)}, "its factors are"),
        ({"q": torch.zeros(3, 33, WIDTH)}, "its factors are"),
        ({"mask": torch.zeros(2, 1, 1, 69)}, "mask"),
        ({"mask": torch.zeros(70, dtype=torch.float64)}, "its mask is float64"),
        ({"q_scale": torch.zeros(1, 2)}, r"q_scale is float32 \(1, 2\)"),
        ({"q_zero": torch.zeros(1, 3)}, "q_zero is float32"),
        ({"k_zero": torch.zeros(1, 3, dtype=torch.uint8)}, "k_scale is not"),
        ({"v_scale": torch.zeros(3, 60)}, "v_scale is"),
        ({"v_scale": None}, "native code does not know"),
        ({"grids": [1, 1, 8, 0, 8, 1, 8, 0]}, "native code does not know"),
        ({"grids": [8, 1, 8, 0, 9, 1, 8, 0]}, "native code does not know"),
        ({"grids": [8, 1, 8, 0, 8, 1, 8, 1]}, "native code does not know"),
        ({"p_upper": torch.ones(1, 1)}, "p_scale is not"),
    ],
)
def test_what_does_not_fit_is_named_before_memory_is_read(changes, said):
    with pytest.raises((DitherError, RuntimeError), match=said):
        ATTENTION(*call(**changes))


@pytest.mark.parametrize(
    "spec",
    [
        AttentionSpec(),
        AttentionSpec(EACH, EACH, CHANNELS),
        AttentionSpec(EACH, EACH, EACH, UNIFORM),
        AttentionSpec(EACH, None, CHANNELS, UNIFORM),
        AttentionSpec(EACH, EACH, CHANNELS, Act(Log2(4), True)),
        AttentionSpec(EACH, EACH, CHANNELS, Act(Int(8, False, group=PER_TENSOR))),
        AttentionSpec(EACH, EACH, CHANNELS, Act(Int(8), True)),
        AttentionSpec(Act(Int(8)), EACH, CHANNELS, UNIFORM),
        AttentionSpec(Act(Int(8, group=5), True), EACH, CHANNELS, UNIFORM),
        AttentionSpec(Act(Int(1), True), EACH, CHANNELS, UNIFORM),
    ],
    ids=str,
)
def test_what_it_does_not_know_is_simulated(spec):
    heads = {"q": WIDTH, "k": WIDTH, "v": WIDTH}
    assert not is_integer(spec, heads)
    assert attention_kernel(spec, heads, CPU) == "reference"
    assert QAttention(spec, Widths(*[HEADS * WIDTH] * 3, HEADS), Clock()).simulated


def test_without_native_code_it_is_simulated(afresh, monkeypatch):
    given = factors()
    made = ranged(SPECS[0], given)
    want = simulated(made, *given)
    monkeypatch.setenv("DITHER_NATIVE", "off")
    assert made.simulated
    assert torch.equal(made.attend(*given), want)
    assert attention_kernel(SPECS[0], {"q": WIDTH, "k": WIDTH, "v": WIDTH}, torch.device("meta")) == "reference"
