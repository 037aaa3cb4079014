"""Machine code of kernels for GPUs that are not here: tensor cores are used, nothing spills, shared memory suffices.

Each case is the heaviest of its kind; lighter epilogues of the same tiles take fewer registers.
"""

from typing import Any

import pytest
from lanes import compiled as lane

from dither.gpu.tiles import DEFAULTS, GROUPED, NIBBLES, Tile
from dither.gpu.weights import FEW_REGISTERS, INTEGERS, TRELLIS, WORDS

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


def holds(code: Any, arch: int) -> None:
    from assembly import SHARED, TENSOR_CORES

    assert code.count(rf"(?:{TENSOR_CORES[arch]})\S*"), "no tensor cores"
    assert code.stack == 0, f"{code.stack} bytes spilled"
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

    from dither.gpu.inputs import warps_for
    from dither.gpu.jit.quantize import quantize_rows

    assert warps_for(size) == warps
    numbers = {"COUNT": "i32", "SIZE": "i32!", "STRIDE": "i32", "GROUPS": "i32"}
    fixed = {**GRID, "GELU": 1, "HALVES": True, "ROWS": 1, "BLOCK": size}
    code = compiled(quantize_rows, {**ROWS, "between": "fp32"}, numbers, fixed, 80, warps, 1)
    assert code.stack == 0


NORM = {"shift": "fp32", "gain": "fp32"}
SCALE = {"pre": "fp32"}
TURN = {"signs": "i8", "inner": "i8"}
OVER_LINES = {**TURN, "outer": "i8"}
BESIDE = {
    "norm of 4096": ((1, 4096), NORM | SCALE, {"HALVES": True}),
    "norm of 16384": ((1, 16384), NORM | SCALE, {"HALVES": True}),
    "norm of 9 groups": ((16, 128), NORM | SCALE, {"GROUPED": True}),
    "norm of 1152 in blocks": ((16, 128), NORM | SCALE | TURN, {"HALVES": True}),
    "norm of 1152, whole": ((64, 32), NORM | SCALE | OVER_LINES, {"HALVES": True}),
    "norm of 3072, whole": ((64, 64), NORM | SCALE | OVER_LINES, {"HALVES": True}),
    "4608 in blocks": ((64, 128), SCALE | TURN, {"HALVES": True}),
    "12288 in blocks": ((128, 128), SCALE | TURN, {"HALVES": True}),
    "4608, whole": ((128, 64), SCALE | OVER_LINES, {"HALVES": True}),
    "1152, whole, and values": ((64, 32), NORM | SCALE | OVER_LINES | {"values": "bf16"}, {}),
}


def beside(case: str, arch: int, **changes: str) -> Any:
    """Code of what lies before a linear, of bfloat16 inputs; changes are other dtypes."""
    import torch
    from assembly import compiled

    from dither.gpu import parts_of
    from dither.gpu.inputs import warps_for
    from dither.gpu.jit.around import rows_around

    (a, b), more, told = BESIDE[case]
    pointers = {**ROWS, **more, **changes}
    by_lines = "inner" in more and "outer" not in more
    parts = parts_of((a, b), torch.float32 if pointers["x"] == "fp32" else torch.bfloat16) if by_lines else 1
    a //= parts
    numbers = {"SIZE": "i32!", "LINES": "i32", "COLUMNS": "i32!", "TOKENS": "i32", "ACROSS": "i32!", "STRIDE": "i32"}
    numbers |= {"EPS": "fp32", "NORM": "fp32"}
    fixed = {**GRID, "GROUPED": False, "HALVES": False, **told, "A": a, "B": b, "PARTS": parts}
    return compiled(rows_around, pointers, numbers, fixed, arch, warps_for(a * b), 1)


@pytest.mark.parametrize(
    ("case", "arch"),
    [(case, arch) for case in BESIDE for arch in (ARCHITECTURES if "whole" in case else (80, 90))],
    ids=str,
)
def test_what_lies_before_a_linear_fits_registers(case, arch):
    from assembly import SHARED

    code = beside(case, arch)
    assert code.stack == 0, f"{code.stack} bytes spilled"
    assert code.shared <= SHARED[arch] * 1024
    assert bool(code.count(r"HMMA\S*|HGMMA\S*|UTC\w*MMA\S*")) == ("signs" in BESIDE[case][1]), "tensor cores rotate"


@pytest.mark.parametrize(
    "case", ["norm of 1152, whole", "norm of 1152 in blocks", "4608 in blocks", "12288 in blocks", "4608, whole"]
)
@pytest.mark.parametrize(("dtype", "arch"), [("fp16", 80), ("fp32", 80), ("fp32", 90)])
def test_other_dtypes_are_rotated_on_tensor_cores_too(case, dtype, arch):
    code = beside(case, arch, x=dtype)
    assert code.count(r"HG?MMA\S*")
    assert code.stack == 0


INT3 = {"KIND": INTEGERS, "BITS": 3, "FLIP": 0, "SUB": 0, "ONES": 0, "TURN": 0, "DIM": 1, "COLUMNS": 1, "STATES": 1}
STORED = {
    "int3": (INT3, "zero"),
    "int8": ({**INT3, "BITS": 8}, "zero"),
    "words": ({**INT3, "KIND": WORDS, "BITS": 6, "DIM": 2}, "table"),
    "trellis": ({**INT3, "KIND": TRELLIS, "BITS": 2, "DIM": 16, "COLUMNS": 16, "STATES": 12}, "table"),
}


def own_of(kind: str) -> dict[str, str]:
    """Tensors that a weight is stored as."""
    more = STORED[kind][1]
    return {more: "i8" if more == "table" else "u8", "codes": "u8"}


@pytest.mark.parametrize("kind", STORED)
def test_packed_weights_become_integers(kind):
    from assembly import compiled

    from dither.gpu.jit.decode import decode_weight

    numbers = {"N": "i32", "K": "i32!", "LINE": "i32", "GROUP": "i32", "GROUPS": "i32"}
    pointers, fixed = {**own_of(kind), "out": "i8"}, {**STORED[kind][0], "ROWS": 16, "BLOCK": 256}
    assert compiled(decode_weight, pointers, numbers, fixed, 80, 4, 1).stack == 0


@pytest.mark.parametrize("rows", [16, 32])
@pytest.mark.parametrize(
    ("kind", "dtype", "arch"),
    [
        *((kind, dtype, arch) for kind in STORED for dtype in ("bf16", "fp32") for arch in (80, 90)),
        *(("int3", "bf16", arch) for arch in (89, 100, 120)),
    ],
)
def test_a_few_rows_with_packed_weights(kind, dtype, arch, rows):
    from assembly import SHARED, compiled

    from dither.gpu.jit.few import multiply_few

    pointers = {**own_of(kind), "x": dtype, "scale": "fp32", "bias": "fp32", "out": dtype}
    numbers = {"M": "i32", "N": "i32", "K": "i32!", "LINE": "i32", "GROUPS": "i32", "SIZE": "i32!"}
    fixed = {**STORED[kind][0], "BM": rows, "BN": 16, "BK": 32 if kind == "trellis" else 64}
    code = compiled(multiply_few, pointers, numbers, fixed, arch, 4, 3, registers=FEW_REGISTERS)
    assert code.stack == 0, f"{code.stack} bytes spilled"
    assert code.shared <= SHARED[arch] * 1024
    if dtype == "bf16":
        assert code.count(r"HMMA\S*"), "no tensor cores"
