"""Machine code of kernels for GPUs that are not here: tensor cores are used, nothing spills, shared memory suffices.

Each case is the heaviest of its kind; lighter epilogues of the same tiles take fewer registers.
"""

from typing import Any

import pytest
from lanes import compiled as lane

from dither.gpu.tiles import DEFAULTS, GROUPED, NIBBLES, Tile
from dither.gpu.weights import INTEGERS, TRELLIS

pytestmark = lane
ARCHITECTURES = (80, 89, 90, 100, 120)
ZERO = {"a_zero": "i32", "w_sum": "i32"}
BOTH_ZEROS = {**ZERO, "w_zero": "i32", "a_sum": "i32"}
GATE = {"gate": "bf16", "residual": "bf16"}
CODES = {"marks": "fp32", "out_scale": "fp32", "out_zero": "u8", "out": "i8"}
RANK = {"left": "bf16", "right": "bf16"}


def product(name: str, tile: Tile, arch: int, epilogue: dict[str, str], **constants: Any) -> Any:
    """Code of a product of bfloat16 outputs; widths are multiples of 16, as those of models are."""
    import triton.language as tl
    from assembly import compiled

    from dither.gpu.jit import gemm

    pointers = {"a": "i8", "w": "i8", "out": "bf16", "a_scale": "fp32", "w_scale": "fp32", "bias": "bf16", **epilogue}
    numbers = {"M": "i32", "N": "i32!", "K": "i32!", "SPAN": "i32", "ACROSS": "i32!", "OUT_STRIDE": "i32"}
    fixed = {
        "GELU": 0, "RANK": 32, "OUT_BITS": 8, "OUT_SYMMETRIC": False, "NARROW": tl.bfloat16, "EVEN": True,
        "BM": tile.m, "BN": tile.n, "BK": tile.k,
        **constants,
    }  # fmt: skip
    if name == "multiply_nibbles":
        pointers["w"], fixed["UNSIGNED"] = "u8", True
    if name == "multiply_groups":
        numbers |= {"SEGMENTS": "i32", "SIZE": "i32!", "A_GROUPS": "i32", "W_GROUPS": "i32"}
    return compiled(getattr(gemm, name), pointers, numbers, fixed, arch, tile.warps, tile.stages)


def holds(code: Any, arch: int, stack: int = 0) -> None:
    from assembly import SHARED, TENSOR_CORES

    assert code.count(rf"(?:{TENSOR_CORES[arch]})\S*"), "no tensor cores"
    assert code.stack <= stack, f"{code.stack} bytes spilled"
    assert code.shared <= SHARED[arch] * 1024


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_product_on_every_architecture(arch):
    holds(product("multiply", DEFAULTS[0], arch, ZERO | GATE), arch)


@pytest.mark.parametrize("tile", DEFAULTS[1:], ids=str)
@pytest.mark.parametrize("arch", [80, 90])
def test_smaller_tiles(arch, tile):
    holds(product("multiply", tile, arch, BOTH_ZEROS | GATE), arch)


@pytest.mark.parametrize(("more", "gelu"), [(CODES, 1), (RANK, 2)], ids=["codes", "low rank"])
def test_other_epilogues(more, gelu):
    holds(product("multiply", DEFAULTS[0], 90, BOTH_ZEROS | more, GELU=gelu), 90)


def test_numbers_that_are_1_become_constants():
    """As the launcher makes them: one row, one output, one sample."""
    import triton.language as tl
    from assembly import compiled

    from dither.gpu.jit.gemm import multiply

    pointers = {"a": "i8", "w": "i8", "out": "fp32", "a_scale": "fp32", "w_scale": "fp32", "bias": "fp32", **GATE}
    ones = dict.fromkeys(("M", "N", "K", "SPAN", "ACROSS", "OUT_STRIDE"), 1)
    fixed = {
        "GELU": 0,
        "RANK": 16,
        "OUT_BITS": 8,
        "OUT_SYMMETRIC": True,
        "NARROW": tl.float32,
        "EVEN": False,
        "BM": 64,
        "BN": 64,
        "BK": 32,
    }
    holds(compiled(multiply, pointers, {}, {**ones, **fixed}, 80, 4, 3), 80)


@pytest.mark.parametrize(
    ("arch", "tile"), [(80, NIBBLES[0]), (90, NIBBLES[0]), (120, NIBBLES[0]), (90, NIBBLES[1])], ids=str
)
def test_nibbles(arch, tile):
    holds(product("multiply_nibbles", tile, arch, BOTH_ZEROS | GATE), arch)


@pytest.mark.parametrize(
    ("arch", "tile"), [(80, GROUPED[0]), (90, GROUPED[0]), (100, GROUPED[0]), (80, GROUPED[1])], ids=str
)
def test_groups(arch, tile):
    holds(product("multiply_groups", tile, arch, BOTH_ZEROS), arch)


ROWS = {"x": "bf16", "codes": "i8", "scale": "fp32", "zero": "i32", "sums": "i32"}
GRID = {"BITS": 8, "SYMMETRIC": False}


@pytest.mark.parametrize(("size", "warps"), [(2048, 4), (8192, 8), (16384, 16)])
def test_rows_fit_registers(size, warps):
    """With GELU and a scale of columns."""
    from assembly import compiled

    from dither.gpu.inputs import _warps
    from dither.gpu.jit.quantize import quantize_rows

    assert _warps(size) == warps
    numbers = {"COUNT": "i32", "SIZE": "i32!", "STRIDE": "i32", "GROUPS": "i32"}
    fixed = {**GRID, "GELU": 1, "HALVES": True, "ROWS": 1, "BLOCK": size}
    code = compiled(quantize_rows, {**ROWS, "between": "fp32"}, numbers, fixed, 80, warps, 1)
    assert code.stack == 0


def test_normalized_and_rotated_rows_fit_registers():
    from assembly import compiled

    from dither.gpu.jit.quantize import hadamard_rows, modulated_rows

    numbers = {"COUNT": "i32", "SIZE": "i32!", "STRIDE": "i32"}
    norm = numbers | {"TOKENS": "i32", "ACROSS": "i32!", "EPS": "fp32"}
    fixed = {**GRID, "HALVES": True, "ROWS": 1, "BLOCK": 4096}
    assert compiled(modulated_rows, {**ROWS, "shift": "bf16", "gain": "bf16"}, norm, fixed, 80, 8, 1).stack == 0
    turn = compiled(
        hadamard_rows, {**ROWS, "signs": "i8", "matrix": "i8"}, numbers, {**GRID, "WIDTH": 128, "ROWS": 32}, 90, 8, 1
    )
    assert turn.stack == 0
    assert turn.count(r"HMMA\S*|HGMMA\S*"), "no tensor cores"


INT3 = {"KIND": INTEGERS, "BITS": 3, "FLIP": 0, "SUB": 0, "ONES": 0, "TURN": 0, "DIM": 1, "COLUMNS": 1, "STATES": 1}
QTIP = {**INT3, "KIND": TRELLIS, "BITS": 2, "DIM": 16, "COLUMNS": 16, "STATES": 12}


@pytest.mark.parametrize(
    ("stored", "more", "depth"), [(INT3, "zero", 64), (QTIP, "table", 32)], ids=["int3", "trellis"]
)
def test_packed_weights(stored, more, depth):
    """A few bytes of a stack are borne in ``multiply_few``, which waits for memory anyway."""
    from assembly import compiled

    from dither.gpu.jit.decode import decode_weight
    from dither.gpu.jit.few import multiply_few

    own = {more: "i8" if more == "table" else "u8", "codes": "u8"}
    numbers = {"N": "i32", "K": "i32!", "LINE": "i32", "GROUP": "i32", "GROUPS": "i32"}
    decoded = compiled(decode_weight, {**own, "out": "i8"}, numbers, {**stored, "ROWS": 16, "BLOCK": 256}, 80, 4, 1)
    assert decoded.stack == 0
    pointers = {**own, "x": "bf16", "scale": "fp32", "bias": "fp32", "out": "bf16"}
    numbers = {"M": "i32", "N": "i32", "K": "i32!", "LINE": "i32", "GROUPS": "i32", "SIZE": "i32!"}
    few = compiled(multiply_few, pointers, numbers, {**stored, "BM": 16, "BN": 32, "BK": depth}, 80, 4, 3)
    assert few.stack <= 16
    assert few.count(r"HMMA\S*"), "no tensor cores"
