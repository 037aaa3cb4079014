"""What launchers hand to kernels compiles as it is handed over: arguments, constants, options; by a driver without a GPU.

The interpreter never sees which numbers become constants (1 does), what is aligned, or which options a compiler knows.
"""

from collections import Counter

import pytest
import torch
from lanes import compiled

from dither.gpu import SIGNED, UNSIGNED, WHOLE, around, inputs, launch, products, weights
from dither.kernels import gpu, gpu_inputs, gpu_weights
from dither.kernels.fusion import Around, Turn
from dither.kernels.table import Inputs
from dither.numerics import encode, random_signs
from dither.spec import Act, Int, LinearSpec, Trellis

pytestmark = compiled
OPS = torch.ops.dither


class Driver:
    """A GPU of sm_90, in name."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 99  # what is compiled for it stays apart from what a real one has

    def get_current_stream(self, device=None):
        return 0


@pytest.fixture
def made(monkeypatch):
    """Names of kernels that were compiled instead of started."""
    from triton.runtime import driver

    found = Counter()

    def compile_only(kernel, grid, where, warps, stages, registers=None, **arguments):
        options = {"num_warps": warps, "num_stages": stages, "maxnreg": registers, **launch.OPTIONS}
        code = kernel.warmup(grid=grid, **arguments, **options)
        assert code.asm["cubin"]
        found[kernel.__name__] += 1

    for room in (around, inputs, products, weights):
        monkeypatch.setattr(room, "launch", compile_only)
    monkeypatch.setattr(launch, "is_interpreted", lambda: True)
    monkeypatch.setattr(products, "processors", lambda device: 10**6)  # the smallest tiles take the least time
    monkeypatch.setattr(driver, "_active", Driver())
    return found


def run(spec, rows, n, k, dtype=torch.bfloat16):
    kernel = gpu.TRITON_INT8 if spec.act is not None else gpu.TRITON_DECODE
    stored = encode(torch.randn(n, k), spec.weight)
    ready = kernel.prepare(spec, (n, k), stored)
    x, bias = torch.randn(rows, k).to(dtype), torch.randn(n).to(dtype)
    y = kernel.run(Inputs(x, spec, (n, k), stored, None, bias, ready))
    assert (y.shape, y.dtype) == ((rows, n), dtype)


@pytest.mark.parametrize(
    ("spec", "rows", "n", "k", "kernels"),
    [
        (LinearSpec(Int(8), Act(Int(8))), 1, 1, 1, ("quantize_rows", "multiply")),
        (LinearSpec(Int(8, False), Act(Int(8, False))), 7, 30, 75, ("quantize_rows", "int8", "multiply")),
        (LinearSpec(Int(4, False), Act(Int(8, False))), 33, 48, 64, ("quantize_rows", "multiply_nibbles")),
        (
            LinearSpec(Int(3, False, 16), Act(Int(8, group=32))),
            33,
            48,
            64,
            ("quantize_rows", "int8", "multiply_groups"),
        ),
        (LinearSpec(Int(4, False, 16)), 3, 48, 64, ("multiply_few",)),
        (LinearSpec(Trellis(2, 8, 16, 4)), 1, 32, 20, ("multiply_few",)),
    ],
    ids=str,
)
def test_linears(spec, rows, n, k, kernels, made):
    run(spec, rows, n, k)
    assert set(made) == {"decode_weight" if name == "int8" else name for name in kernels}


def test_what_comes_before_a_product(made):
    x = torch.randn(2, 3, 64).bfloat16()
    OPS.triton_gelu(x, True)
    norm, scale, block = Around(x[:, 0], x[:, 1], 1e-6), torch.ones(64), Turn(torch.ones(64), random_signs(64, 0), 16)
    for turn in (Turn(), Turn(scale), block, Turn(scale, random_signs(64, 0), 64)):
        for beside in (norm, Around()):
            first = gpu_inputs._beside(x, turn, beside, None)
            OPS.beside(*first)
            OPS.int8_beside(*first, None, None, 8, False, 1, True, True, True)
    first = gpu_inputs._beside(x[:1, :1], block, Around(x[:1, 0], x[:1, 1], 1e-6), 16)
    OPS.int8_beside(*first, torch.ones(1, 4), None, 8, True, 4, False, False, False)
    wide = torch.randn(2, 3, 384).bfloat16()
    first = gpu_inputs._beside(wide, Turn(None, random_signs(384, 0), 384), Around(), None)
    OPS.int8_beside(*first, torch.ones(6, 1), torch.ones(6, 1, dtype=torch.uint8), 4, False, 1, False, True, False)
    OPS.int8_rows(x, None, None, torch.ones(64), 8, False, 2, 2, False, True)
    assert made == {"gelu_all": 1, "rows_around": 18, "quantize_rows": 1}


@pytest.mark.parametrize("nibbles", [WHOLE, SIGNED, UNSIGNED])
def test_what_comes_behind_a_product(nibbles, made):
    a, w = torch.zeros(4, 64, dtype=torch.int8), torch.zeros(16, 64, dtype=torch.int8)
    w = w if nibbles == WHOLE else w[:, :32].view(torch.uint8)
    both = (a, torch.ones(4, 1), None, None, w, torch.ones(16, 1), None, None, torch.ones(16).bfloat16())
    wide, low = torch.ones(4, 16).bfloat16(), (torch.ones(4, 16).bfloat16(), torch.ones(16, 16).bfloat16())
    OPS.int8_product(*both, None, None, wide[:2], wide, 0, nibbles, torch.bfloat16)
    if nibbles == WHOLE:
        OPS.int8_product(*both, *low, None, None, 2, nibbles, torch.float32)
        OPS.int8_product_codes(
            *both, torch.ones(4, 1), torch.ones(4, 1, dtype=torch.uint8), 8, 1, nibbles, torch.float16
        )
    assert sum(made.values()) == (3 if nibbles == WHOLE else 1)


def test_the_formats_above_take_the_ways_they_are_meant_to():
    assert gpu_weights.nibbles_of(LinearSpec(Int(4, False), Act(Int(8))), (48, 64)) == UNSIGNED
    assert gpu_weights.nibbles_of(LinearSpec(Int(4, False), Act(Int(8))), (48, 60)) == WHOLE
