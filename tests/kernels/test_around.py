"""Norms, rotations, gates and linears of one tensor: operators of native code beside torch, together and one by one."""

import copy
from dataclasses import replace

import pytest
import torch
from called import SPECS, call_of, instructions

from dither.errors import DitherError
from dither.kernels import KERNELS, Kernel, cpu, means
from dither.kernels.fusion import Around, Turn
from dither.kernels.gradient import turned
from dither.kernels.native_ops import OPS
from dither.numerics import dynamic_table, random_signs, rotate
from dither.spec import PER_TENSOR, Act, Int, LinearSpec, TwoRegion

pytestmark = pytest.mark.skipif(means() is None, reason="no native code on this machine")
WIDTH, MANY = 72, 80
PLAIN = LinearSpec(Int(8), Act(Int(8)))


def inputs(dtype=torch.float32):
    """x (2, 5, 72), shift and scale (2, 72), and of outputs the gate (2, 80) and what is there (2, 5, 80)."""
    torch.manual_seed(0)
    rows = torch.randn(2, 3 * WIDTH + MANY)
    shift, scale, _, gate = rows.split([WIDTH, WIDTH, WIDTH, MANY], 1)  # views, as chunks of one tensor are
    return torch.randn(2, 5, WIDTH).to(dtype), shift, scale, gate, torch.randn(2, 5, MANY).to(dtype)


def call(spec, x, seed=0):
    torch.manual_seed(seed)
    return call_of(spec, x, MANY)[1]


def given_of(spec, x, seed=0):
    """What native code is given of a linear."""
    made = call(spec, x, seed)
    return list(cpu._given(made, cpu._ranges(made, x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_lies_around_is_torchs_but_for_the_last_places(dtype):
    x, shift, scale, gate, there = inputs(dtype)
    wide = torch.nn.functional.layer_norm(x.double(), (WIDTH,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 1e-6}
    found = OPS.modulate(x, shift, scale, 1e-6)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wide.double(), **close)
    y = there.flip(0)
    torch.testing.assert_close(
        OPS.gated(y, gate, there).double(), there.double() + gate[:, None].double() * y.double(), **close
    )


def test_the_operators_are_good_ones():
    x, shift, scale, gate, there = inputs()
    torch.library.opcheck(OPS.modulate.default, (x, shift, scale, 1e-6))
    torch.library.opcheck(OPS.gated.default, (there, gate, there))
    given = [t for seed in (0, 1, 2) for t in given_of(PLAIN, x, seed)]
    torch.library.opcheck(OPS.linears_int8.default, (x, [shift, scale, *[None] * 4], 1e-6, 0, given, [MANY] * 3))
    torch.library.opcheck(
        OPS.linears_int8.default, (x, [None, None, gate, there, *[None] * 2], 0.0, 0, given[:9], [MANY])
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", SPECS[:6], ids=str)
def test_together_has_the_bits_that_it_has_one_by_one(spec, dtype):
    x, shift, scale, gate, there = inputs(dtype)
    around = Around(shift, scale, 1e-6)
    seen = OPS.modulate(x, shift, scale, 1e-6)
    want = [call(spec, seen, seed) for seed in (0, 1, 2)]
    got = cpu.linears([call(spec, x, seed) for seed in (0, 1, 2)], Turn(), around)
    for i in range(3):
        assert torch.equal(got[i], cpu.CPU_INT8.run(want[i]))
    one = cpu.linears([call(spec, x)], Turn(), Around(gate=gate, residual=there))[0]
    assert torch.equal(one, OPS.gated(cpu.CPU_INT8.run(call(spec, x)), gate, there))


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("grid", [Int(8), Int(8, False), Int(6, False, 24), TwoRegion(8, True)], ids=str)
def test_stored_ranges_go_together_where_they_are_one_tensor(grid, samples):
    x, shift, scale, *_ = inputs()
    spec, around = LinearSpec(Int(8, group=24), Act(grid, static=True)), Around(shift, scale, 1e-6)
    seen = OPS.modulate(x, shift, scale, 1e-6)
    found = dynamic_table(seen[:samples, 0], grid)  # (samples, G)
    table = {name: t[:, None] for name, t in found.items()}

    def stored(x, seed):
        return replace(call(spec, x, seed), table=table)

    got = cpu.linears([stored(x, seed) for seed in (0, 1, 2)], Turn(), around)
    for i in range(3):
        assert torch.equal(got[i], cpu.CPU_INT8.run(stored(seen, i)))
    ranges = cpu._ranges(stored(x, 0), x)
    others = (ranges[0].clone(), *ranges[1:])
    apart = [*cpu._given(stored(x, 0), ranges), *cpu._given(stored(x, 1), others)]
    with pytest.raises(DitherError, match="native code does not know"):
        OPS.linears_int8(x, around.tensors(Turn()), 1e-6, 0, apart, [MANY] * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("width", "block"), [(3, 1), (24, 2), (24, 8), (24, 12), (72, 24), (96, 96), (192, 64), (20, 20), (1152, 1152)]
)
def test_a_turn_is_numericss_rotation_but_for_the_last_places(width, block, dtype):
    torch.manual_seed(0)
    x, pre, signs = torch.randn(2, 3, width).to(dtype), torch.rand(width) + 0.5, random_signs(width, 3)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 1e-5}
    plain = OPS.turn(x, *Turn(None, signs, block).tensors, block)
    assert plain.dtype == dtype
    torch.testing.assert_close(plain.double(), rotate(x.double(), signs, block), **close)
    if dtype == torch.float32:
        given = (x, *Turn(pre, signs, block).tensors, block)
        torch.library.opcheck(OPS.turn.default, given)
        torch.testing.assert_close(OPS.turn(*given).double(), rotate(x.double() * pre, signs, block), **close)
        assert torch.equal(OPS.turn(x, pre, None, 0), x * pre)
        assert torch.equal(OPS.turn(x[0, 0], *given[1:]), OPS.turn(*given)[0, 0])


def test_gradients_pass_through_a_turn():
    signs = random_signs(72, 1)
    x = torch.randn(4, 72, requires_grad=True)
    y = turned(x, signs, 24)
    assert torch.equal(y.detach(), turned(x.detach(), signs, 24))
    want = rotate(x, signs, 24)
    found, expected = (torch.autograd.grad((t * torch.arange(72)).sum(), x)[0] for t in (y, want))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("wrong", [(1, torch.ones(71)), (2, torch.ones(72)), (3, 7), (3, 48), (3, 0)], ids=str)
def test_a_turn_that_does_not_fit_is_refused(wrong):
    given = [torch.randn(2, 72), torch.ones(72), random_signs(72, 1), 24]
    place, value = wrong
    given[place] = value
    with pytest.raises(DitherError):
        OPS.turn(*given)


def test_norms_and_rotations_give_the_same_bits_on_all_instructions(afresh, monkeypatch):
    x, shift, scale, *_ = inputs()
    signs, found = random_signs(WIDTH, 1), []
    for _ in instructions(monkeypatch):
        found.append(OPS.turn(OPS.modulate(x, shift, scale, 1e-6), *Turn(None, signs, 24).tensors, 24))
    assert all(torch.equal(y, found[0]) for y in found)


def test_what_does_not_fit_is_refused_before_it_is_read():
    x, shift, scale, gate, there = inputs()
    with pytest.raises(DitherError, match=r"scale is float32 \(2, 71\) for inputs \(2, 5, 72\), not float32 \(2, 72\)"):
        OPS.modulate(x, shift, scale[:, 1:], 1e-6)
    with pytest.raises(DitherError, match=r"shift is float64"):
        OPS.modulate(x, shift.double(), scale, 1e-6)
    with pytest.raises(DitherError, match=r"gate is float32 \(1, 80\)"):
        OPS.gated(there, gate[:1], there)
    with pytest.raises(DitherError, match=r"residual is float32 \(2, 4, 80\)"):
        OPS.gated(there, gate, there[:, 1:])
    with pytest.raises(DitherError, match=r"inputs are float16"):
        OPS.gated(there.half(), gate, there.half())
    with pytest.raises(DitherError, match=r"shift is float32 \(2, 72\) for inputs \(5, 72\)"):
        OPS.modulate(x[0], shift, scale, 1e-6)
    given = given_of(PLAIN, x)
    with pytest.raises(DitherError, match=r"gate is float32 \(2, 80\) for inputs"):  # of which output?
        OPS.linears_int8(x, [None, None, gate, there, *[None] * 2], 0.0, 0, given * 2, [MANY] * 2)
    with pytest.raises(DitherError, match="45 tensors of 5 linears: 4 may read one tensor"):
        OPS.linears_int8(x, [], 0.0, 0, given * 5, [MANY] * 5)


def test_inputs_that_are_rounded_otherwise_do_not_go_together():
    for other in (
        LinearSpec(Int(8), Act(Int(7))),
        LinearSpec(Int(8), Act(Int(8, False))),
        LinearSpec(Int(8), Act(Int(8, group=8))),
        LinearSpec(Int(8, group=8), Act(Int(8))),
        LinearSpec(Int(8), Act(Int(8, True, PER_TENSOR))),
        LinearSpec(Int(8), Act(Int(8), static=True)),
        LinearSpec(Int(8)),
    ):
        assert not cpu.rounds_alike(PLAIN, other, WIDTH)
        assert cpu.rounds_alike(other, other, WIDTH) == (
            other.act is not None and (other.act.static or other.act.grid.group != PER_TENSOR)
        )
    assert cpu.rounds_alike(PLAIN, LinearSpec(Int(4, False), Act(Int(8))), WIDTH)
    x, *_ = inputs()
    given = [*given_of(PLAIN, x), *given_of(LinearSpec(Int(8), Act(Int(7))), x)]
    with pytest.raises(DitherError, match="native code does not know"):
        OPS.linears_int8(x, [], 0.0, 0, given, [MANY] * 2)


def test_no_rows_give_no_rows():
    x, shift, scale, gate, there = inputs()
    assert OPS.modulate(x[:, :0], shift, scale, 1e-6).shape == (2, 0, WIDTH)
    assert OPS.gated(there[:0], gate[:0], there[:0]).shape == (0, 5, MANY)


def test_a_copy_of_a_kernel_is_the_kernel():
    assert all(copy.deepcopy(kernel) is kernel for kernel in KERNELS)
    mine = Kernel("mine", True, *[lambda *_: None] * 3)
    assert copy.copy(mine) == mine
