"""Norms, scales and rotations in Triton's interpreter: torch's but for the last places, the same codes together and apart."""

import pytest
import torch
import torch.nn.functional as F
from lanes import interpreted, silent

from dither.errors import DitherError
from dither.gpu import tile_of
from dither.kernels import gpu_inputs
from dither.kernels.fusion import Around, Turn
from dither.numerics import dynamic_grid, hadamard_matrix, random_signs, rotate, to_codes
from dither.spec import Int

pytestmark = [interpreted, *silent]
OPS = torch.ops.dither
B, T = 2, 3


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(width, dtype=torch.float32):
    """x, and shift and gain as chunks of one modulation lie in memory."""
    modulation = random(B, 3 * width, seed=1)
    return 3 * random(B, T, width, dtype=dtype) + 1, modulation[:, :width], modulation[:, 2 * width :]


def turn_of(width, block=0, scaled=False):
    pre = random(width, seed=2).abs() + 0.5 if scaled else None
    return Turn(pre, random_signs(width, 3), block) if block else Turn(pre)


def by_torch(x, shift, gain, turn):
    """In float64; each step is rounded to the dtype of x."""
    y = x.double()
    if shift is not None:
        y = F.layer_norm(y, (x.shape[-1],), eps=1e-6) * (1 + gain[:, None].double()) + shift[:, None].double()
        y = y.to(x.dtype).double()
    if turn.pre is not None:
        y = (y * turn.pre.to(x.dtype).double()).to(x.dtype).double()
    return y if turn.signs is None else rotate(y, turn.signs, turn.block)


CASES = {
    "norm": (88, 0, False),
    "norm, scale": (88, 0, True),
    "power of two": (192, 64, False),
    "narrow blocks": (40, 8, True),
    "order 12": (24, 12, True),
    "whole, order 20": (80, 80, True),
    "over lines": (192, 192, True),
    "two blocks over lines": (384, 192, False),
    "as wide as DiT-XL": (1152, 1152, True),
    "several parts in float32": (2560, 32, True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("norm", [True, False], ids=["modulated", "plain"])
@pytest.mark.parametrize("case", CASES)
def test_what_lies_before_a_linear_is_torchs(case, norm, dtype):
    width, block, scaled = CASES[case]
    x, shift, gain = inputs(width, dtype)
    turn = turn_of(width, block, scaled)
    around = Around(shift, gain, 1e-6) if norm else Around()
    assert not block or gpu_inputs.rotates(block, width)
    y = gpu_inputs.turned_alone(x, turn, around)
    want = by_torch(x, around.shift, around.scale, turn)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    most = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-3, "atol": 8e-3}
    torch.testing.assert_close(y.double(), want, **most)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("grid", [Int(8), Int(8, False), Int(4, False)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_codes_are_those_of_the_values(case, grid, static, dtype):
    """Bit for bit: of what is written beside them, which has the bits that it has alone."""
    width, block, scaled = CASES[case]
    x, shift, gain = inputs(width, dtype)
    turn = turn_of(width, block, scaled)
    x, around = gpu_inputs._norm_first(x, turn, Around(shift, gain, 1e-6))
    table = dynamic_grid(random(B * T, width, seed=4), grid) if static else (None, None)
    first = gpu_inputs._beside(x, turn, around, None)
    codes, scale, zero, sums, y = OPS.int8_beside(*first, *table, grid.bits, grid.symmetric, 1, False, True, True)
    assert torch.equal(y, gpu_inputs.turned_alone(x, turn, around))
    want = OPS.int8_rows(y, *table, None, grid.bits, grid.symmetric, 1, 0, False, True)
    assert all(torch.equal(a, b) for a, b in zip((codes, scale, zero, sums), want, strict=True))
    flat = y.flatten(0, 1)
    s, z = table if static else dynamic_grid(flat, grid)
    moved = 128 if grid.bits == 8 and not grid.symmetric else 0
    assert torch.equal(codes.int(), to_codes(flat, s, z, grid).int() - moved)
    halved = OPS.int8_beside(*first, *table, grid.bits, grid.symmetric, 1, True, False, False)
    assert torch.equal(halved[0], torch.cat((codes[:, ::2], codes[:, 1::2]), 1))
    assert halved[3].numel() == halved[4].numel() == 0


@pytest.mark.parametrize("each", [False, True], ids=["dynamic", "rows"])
@pytest.mark.parametrize(
    ("width", "block", "group"), [(96, 0, 24), (96, 0, 32), (96, 48, 48), (96, 32, 32), (2560, 32, 32)]
)
@pytest.mark.parametrize("grid", [Int(8), Int(6, False)], ids=str)
def test_lines_have_ranges_of_their_own(grid, width, block, group, each):
    x, shift, gain = inputs(width)
    turn, many = turn_of(width, block, True), width // group
    x, around = gpu_inputs._norm_first(x, turn, Around(shift, gain, 1e-6))
    fmt = Int(grid.bits, grid.symmetric, group)
    table = dynamic_grid(random(B * T, width, seed=4), fmt) if each else (None, None)
    first = gpu_inputs._beside(x, turn, around, gpu_inputs._columns(turn, width, many))
    *found, y = OPS.int8_beside(*first, *table, grid.bits, grid.symmetric, many, False, True, True)
    torch.testing.assert_close(y, gpu_inputs.turned_alone(x, turn, around))  # sums of the norm have another order
    want = OPS.int8_rows(y, *table, None, grid.bits, grid.symmetric, many, 0, False, True)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of what is no number
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("block", [0, 64, 192])
def test_what_is_not_finite_marks_its_own_row(bad, block):
    x, shift, gain = inputs(192)
    x[0, 1, 5] = bad
    first = gpu_inputs._beside(x, turn_of(192, block), Around(shift, gain, 1e-6), None)
    _, scale, *_ = OPS.int8_beside(*first, None, None, 8, True, 1, False, False, False)
    assert scale.isnan().flatten().tolist() == [False, True, False, False, False, False]


def test_what_is_not_finite_in_a_later_part_marks_its_own_row():
    x = random(6, 12 * 1024, dtype=torch.float16)
    x[1, -1] = torch.nan
    first = gpu_inputs._beside(x, turn_of(x.shape[1], 128), Around(), None)
    _, scale, *_ = OPS.int8_beside(*first, None, None, 8, True, 1, False, False, False)
    assert scale.isnan().flatten().tolist() == [False, True, False, False, False, False]


def test_what_kernels_rotate():
    """Whole widths of models, and blocks; not what registers have no room for."""
    assert all(gpu_inputs.rotates(n, n) for n in (16, 24, 96, 384, 768, 1152, 1536, 2304, 3072, 4608))
    assert all(gpu_inputs.rotates(block, 1152) for block in (2, 4, 16, 64, 128, 384, 576))
    assert not gpu_inputs.rotates(12288, 12288)
    assert not gpu_inputs.rotates(16, 1 << 15)
    assert not gpu_inputs.rotates(1152, 4608)  # 144 lines that meet
    assert not gpu_inputs.rotates(152, 152)  # 76 * 2: neither part is a tile
    assert tile_of(9, 128, True) == (16, 128)
    assert tile_of(1, 1152) == (1, 2048)


def test_no_rows():
    x, shift, gain = torch.empty(2, 0, 32), torch.ones(2, 32), torch.ones(2, 32)
    first = gpu_inputs._beside(x, turn_of(32, 32), Around(shift, gain, 1e-6), None)
    assert OPS.beside(*first).shape == (2, 0, 32)
    assert OPS.int8_beside(*first, None, None, 8, True, 1, False, False, True)[4].shape == (2, 0, 32)


def test_tensors_that_do_not_fit_are_refused():
    x, shift, gain = inputs(96)
    signs, h = random_signs(96, 0), hadamard_matrix(32)
    none = (None, None, None)
    for given, told in {
        (x, shift[:1], gain, 0.0, None, *none, 96, 1): r"shift is float32 \(1, 96\)",
        (x[0], shift, gain, 0.0, None, *none, 96, 1): r"x is float32 \(3, 96\)",
        (x, shift, None, 0.0, None, *none, 96, 1): "gain is nothing",
        (x, None, None, 0.0, gain[0, :9], *none, 96, 1): r"pre is float32 \(9,\)",
        (x, None, None, 0.0, None, signs[:32], h, None, 32, 32): r"signs is int8 \(32,\)",
        (x, None, None, 0.0, None, signs, None, None, 32, 32): "inner is nothing",
        (x, None, None, 0.0, None, signs, h, h, 32, 96): r"outer is int8 \(32, 32\)",
        (x, None, None, 0.0, None, *none, 90, 1): r"x is float32 \(2, 3, 96\)",
        (x.double(), None, None, 0.0, None, *none, 96, 1): "x is float64",
    }.items():
        with pytest.raises(
            DitherError, match=f"turning 3 rows of 96 cannot run: {told}|turning 6 rows of 96 .* {told}"
        ):
            OPS.beside(*given)
    with pytest.raises(DitherError, match="turning and quantizing 6 rows of 96 cannot run: x is"):
        OPS.int8_beside(x, None, None, 0.0, None, *none, 48, 1, None, None, 8, True, 3, False, False, False)


@pytest.mark.parametrize("block", [0, 32, 192])
def test_the_operators_are_good_ones(block):
    x, shift, gain = inputs(192)
    first = gpu_inputs._beside(x, turn_of(192, block, True), Around(shift, gain, 1e-6), None)
    torch.library.opcheck(OPS.beside.default, first)
    torch.library.opcheck(OPS.int8_beside.default, (*first, None, None, 8, False, 1, True, True, True))
    alone = gpu_inputs._beside(x[0], turn_of(192, block, True), Around(), None)
    table = (torch.ones(1, 1), torch.ones(1, 1, dtype=torch.uint8))
    torch.library.opcheck(OPS.int8_beside.default, (*alone, *table, 8, False, 1, False, False, False))
