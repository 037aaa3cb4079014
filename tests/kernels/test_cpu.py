"""Kernels of native code: the same bits on all instructions and threads, and nothing is read that is not there."""

import pytest
import tiny
import torch
from called import CPU, SPECS, call_of, instructions
from torch import nn

from dither.errors import DitherError
from dither.kernels import choose, cpu, means, named
from dither.kernels.table import Inputs
from dither.nn import build as built
from dither.numerics import act_quantize, decode, dynamic_table, encode, layout
from dither.spec import Act, Int, LinearSpec, Trellis

pytestmark = pytest.mark.skipif(means() is None, reason="no native code on this machine")


@pytest.mark.parametrize("rows", [3, 37])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_all_instructions_and_threads_give_the_same_bits(spec, rows, afresh, monkeypatch):
    x = torch.randn(rows, 72, generator=torch.Generator().manual_seed(1))
    before, found = torch.get_num_threads(), []
    for _ in instructions(monkeypatch):
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            kernel, call = call_of(spec, x, 80)
            assert kernel.name.startswith("cpu_")
            found.append(kernel.run(call))
        torch.set_num_threads(before)
    if spec.act is None:  # sums of float32 are as long as the CPU's vectors
        assert all(torch.allclose(y, found[0], rtol=1e-5, atol=1e-5) for y in found)
    else:
        assert all(torch.equal(y, found[0]) for y in found)


def test_codes_next_to_a_tie_are_those_of_a_division():
    """A product by the reciprocal would be off there."""
    k = 64
    spec = LinearSpec(Int(8), Act(Int(8)))
    weight = torch.eye(k)
    stored = encode(weight, spec.weight)
    generator = torch.Generator().manual_seed(0)
    top = torch.rand(200, 1, generator=generator) * 10
    halves = (torch.randint(-126, 126, (200, k), generator=generator) + 0.5) * (top / 127)
    nudged = torch.stack([torch.nextafter(halves, halves + step) for step in (-1.0, 0.0, 1.0)]).flatten(0, 1)
    x = torch.cat([nudged, top.repeat(3, 1)], 1)[:, 1:]
    calls = {}
    for name in ("cpu_int8", "int8_mm"):
        kernel = named(name)
        prepared = kernel.prepare(spec, (k, k), stored)
        calls[name] = kernel.run(Inputs(x, spec, (k, k), stored, None, None, prepared))
    assert torch.equal(calls["cpu_int8"], calls["int8_mm"])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_makes_its_own_row_nan(bad):
    x = torch.randn(20, 72)
    x[3, 5] = bad
    kernel, call = call_of(SPECS[0], x, 80)
    y = kernel.run(call)
    assert y[3].isnan().all()
    assert y[[i for i in range(20) if i != 3]].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 72), (2, 0, 72)])
@pytest.mark.parametrize("spec", [SPECS[0], SPECS[-1]], ids=str)
def test_no_rows_give_no_rows(shape, spec):
    kernel, call = call_of(spec, torch.randn(shape), 80)
    assert kernel.run(call).shape == (*shape[:-1], 80)


@pytest.mark.parametrize("weight", [Int(8), Int(8, False), Int(4, group=24), Int(4, False), Int(4, group=16)], ids=str)
def test_a_few_rows_do_not_depend_on_each_other(weight):
    x = torch.randn(7, 144)
    kernel, call = call_of(LinearSpec(weight=weight), x, 79)  # outputs are made in pairs, and one is left over
    y = kernel.run(call)
    torch.testing.assert_close(y, named("dequantize").run(call))
    for rows in range(1, 7):
        _, some = call_of(LinearSpec(weight=weight), x[:rows], 79)
        assert torch.equal(kernel.run(some), y[:rows])


def test_few_rows_and_many_agree():
    x = torch.randn(40, 72)
    for spec in SPECS[-2:]:
        kernel, call = call_of(spec, x, 80)
        few = [kernel.run(call_of(spec, x[i : i + 8], 80)[1]) for i in range(0, 40, 8)]
        torch.testing.assert_close(torch.cat(few), kernel.run(call))


@pytest.mark.parametrize("states", [4, 8, 12])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (4, 32), (8, 8), (2, 36)])
def test_all_trellises_have_their_values(bits, states, rows, columns):
    if states <= bits:
        pytest.skip("no window is one code alone")
    fmt = Trellis(bits, states, rows, columns)
    shape, known = (64, 2 * 288), decode(random_trellis(fmt, (64, 2 * 288)), fmt, (64, 2 * 288))
    x = torch.randn(3, shape[1])
    for act in (None, Act(Int(8))):
        spec = LinearSpec(fmt, act)
        kernel = choose(spec, shape, CPU)
        stored = random_trellis(fmt, shape)
        y = kernel.run(Inputs(x, spec, shape, stored, None, None, kernel.prepare(spec, shape, stored)))
        seen = x if act is None else act_quantize(x, act.grid, dynamic_table(x, act.grid))
        torch.testing.assert_close(y, seen @ known.T, rtol=1e-4, atol=1e-3)


def random_trellis(fmt, shape):
    """Any bits are a path."""
    generator = torch.Generator().manual_seed(0)
    codes, scale = layout(fmt, shape)["codes"][0], layout(fmt, shape)["scale"]
    return {
        "codes": torch.randint(0, 256, codes, generator=generator, dtype=torch.uint8),
        "scale": (torch.rand(scale[0], generator=generator) * 0.01 + 0.01).to(scale[1]),
    }


def arguments(spec=SPECS[1], rows=9):
    _, call = call_of(spec, torch.randn(rows, 72), 80)
    return [
        call.x, call.weight["codes"], call.prepared["scale"], call.weight.get("zero"), call.prepared.get("table"), None, None,
        None, call.bias, call.prepared["facts"], 80,
    ]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS[:7], ids=str)
def test_the_operator_of_integers_is_a_good_one(spec):
    torch.library.opcheck(torch.ops.dither.linear_int8.default, tuple(arguments(spec)))


def test_the_operator_of_few_rows_is_a_good_one():
    given = arguments(SPECS[-1])
    torch.library.opcheck(torch.ops.dither.linear_few.default, tuple(given[:5] + given[8:]))


def both_linears(rows=9):
    """What a feed-forward part of 72 to 96 to 72 takes."""
    x = torch.randn(rows, 72, generator=torch.Generator().manual_seed(1))
    _, one = call_of(SPECS[2], x, 96)
    _, two = call_of(SPECS[0], torch.randn(rows, 96), 72)
    return x, cpu_given(one, x), cpu_given(two, x)


def cpu_given(call, x):
    return list(cpu._given(call, cpu._ranges(call, x)))


def test_the_operator_of_feed_forward_is_a_good_one():
    x, one, two = both_linears()
    torch.library.opcheck(
        torch.ops.dither.feed_forward_int8.default,
        (x, [], 0.0, [0, 0], one, two, [torch.ones(96), None], True, 72),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tanh", [False, True])
def test_gelu_is_torchs_but_for_the_last_places(tanh, dtype):
    x = torch.cat([torch.linspace(-12, 12, 5001), torch.tensor([0.0, -0.0, 100.0, -100.0])]).to(dtype)
    torch.library.opcheck(torch.ops.dither.gelu.default, (x, tanh))
    want = torch.nn.functional.gelu(x, approximate="tanh" if tanh else "none")
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {}
    torch.testing.assert_close(torch.ops.dither.gelu(x, tanh), want, **close)
    with pytest.raises(DitherError, match="gelu of float16"):
        torch.ops.dither.gelu(x.half(), tanh)


def test_feed_forward_gives_the_same_bits_on_all_instructions(afresh, monkeypatch):
    found = []
    for _ in instructions(monkeypatch):
        x, one, two = both_linears(70)
        found.append(torch.ops.dither.feed_forward_int8(x, [], 0.0, [0, 0], one, two, [], False, 72))
    assert all(torch.equal(y, found[0]) for y in found)


def test_feed_forward_refuses_linears_that_do_not_follow_each_other():
    x, one, two = both_linears()
    with pytest.raises(DitherError, match="linears of 72 to 96 behind 96 were asked for 96"):
        torch.ops.dither.feed_forward_int8(x, [], 0.0, [0, 0], one, one, [], True, 96)
    with pytest.raises(DitherError, match=r"pre is float32 \(72,\)"):
        torch.ops.dither.feed_forward_int8(x, [], 0.0, [0, 0], one, two, [torch.ones(72), None], True, 72)
    one[1] = None
    with pytest.raises(DitherError, match="scale is nothing"):
        torch.ops.dither.feed_forward_int8(x, [], 0.0, [0, 0], one, two, [], True, 72)


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[2], SPECS[7]], ids=str)
def test_graphs_are_whole(spec):
    torch.manual_seed(0)
    dense = nn.Linear(72, 80)
    layer = built(spec, dense)
    tiny.fill(layer, dense.weight, 0)
    layer.requires_grad_(False)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for rows in (3, 40):
        x = torch.randn(rows, 72)
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize(
    ("place", "wrong", "says"),
    [
        (0, torch.randn(9, 71), r"x is float32 \(9, 71\)"),
        (0, torch.randn(9, 72).half(), r"x is float16"),
        (1, torch.zeros(80, 71, dtype=torch.uint8), r"codes is uint8 \(80, 71\)"),
        (1, torch.zeros(80, 72, dtype=torch.int8), r"codes is int8"),
        (2, torch.ones(79, 1), r"scale is float32 \(79, 1\)"),
        (3, torch.zeros(80, 2, dtype=torch.uint8), r"zero is uint8 \(80, 2\)"),
        (4, torch.zeros(7, dtype=torch.float32), r"table is float32 \(7,\)"),
        (5, torch.ones(8, 1), r"act_scale is float32 \(8, 1\)"),
        (8, torch.ones(79), r"bias is float32 \(79,\)"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_before_they_are_read(place, wrong, says):
    given = arguments()
    given[place] = wrong
    with pytest.raises(DitherError, match=f"a linear of 80 x 72 cannot run: {says}"):
        torch.ops.dither.linear_int8(*given)


def test_words_without_a_table_are_refused():
    given = arguments(SPECS[5])
    given[4] = None
    with pytest.raises(DitherError, match="table is nothing"):
        torch.ops.dither.linear_int8(*given)
    given = arguments(SPECS[6])
    given[5] = torch.ones(9, 1)
    with pytest.raises(DitherError, match="act_upper is nothing"):
        torch.ops.dither.linear_int8(*given)


def test_another_number_of_outputs_is_refused():
    given = arguments()
    given[-1] = 81
    with pytest.raises(DitherError, match="a linear of 80 outputs was asked for 81"):
        torch.ops.dither.linear_int8(*given)


def test_more_rows_than_few_are_refused():
    given = arguments(SPECS[-1], rows=33)
    with pytest.raises(DitherError, match=r"x is float32 \(33, 72\)"):
        torch.ops.dither.linear_few(*given[:5], *given[8:])
