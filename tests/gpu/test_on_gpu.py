"""The kernels on a GPU itself: the same codes and sums as on the CPU, in bfloat16 too, in graphs, and without memory."""

import pytest
import torch
from conformance.test_every_format import ACTS, WEIGHTS, K, assert_close, input_of, layer_of, oracle, spec_of
from lanes import TRITON

from dither.errors import DitherError
from dither.gpu import machine
from dither.kernels import choose
from dither.numerics import dynamic_grid, to_codes
from dither.spec import Act, Int, LinearSpec

CUDA = torch.device("cuda")


def fits() -> bool:
    return TRITON and torch.cuda.is_available() and machine.can_run(CUDA)


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not fits(), reason="no CUDA device with Triton and compute capability 8.0 here"),
]


@pytest.mark.parametrize("act", [None, *ACTS.values()], ids=["weight only", *ACTS])
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_every_pair_of_formats(weight, act):
    """The oracle is that of the CPU, whose divisions are IEEE's."""
    layer = layer_of(spec_of(weight, act))
    x = input_of(2, 5, K)
    want = oracle(layer, x)
    layer.to(CUDA)
    if not layer.kernel.name.startswith("triton_"):
        pytest.skip(f"not a format of these kernels: {layer.kernel.name}")
    assert_close(layer(x.to(CUDA)).cpu(), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1152, 1152), (512, 4608, 1152), (300, 1152, 4608), (7, 100, 75)])
@pytest.mark.parametrize("spec", [spec_of(Int(8), Act(Int(8))), spec_of(Int(4, False), Act(Int(8, False)))], ids=str)
def test_sizes_of_models_in_half_precision(spec, m, n, k, dtype):
    layer = layer_of(spec, n, k).to(dtype)
    x = input_of(m, k).to(dtype)
    want = oracle(layer, x)
    layer.to(CUDA)
    assert_close(layer(x.to(CUDA)).cpu(), want, 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grid", [Int(8), Int(8, False), Int(4, False)], ids=str)
def test_codes_are_those_of_the_cpu(grid, dtype):
    x = input_of(500, 1152).to(dtype)
    scale, zero = dynamic_grid(x, grid)
    codes, s, *_ = torch.ops.dither.int8_rows(
        x.to(CUDA), None, None, None, grid.bits, grid.symmetric, 1, 0, False, False
    )
    moved = 128 if grid.bits == 8 and not grid.symmetric else 0
    assert torch.equal(codes.cpu().int(), to_codes(x, scale, zero, grid).int() - moved)
    assert torch.equal(s.cpu(), scale)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_graphs(mode):
    """Whole, and captured."""
    layer = layer_of(spec_of(Int(8), ACTS["a8 asym static rows"]), 256, 128).to(CUDA)
    x = input_of(2, 64, 128).to(CUDA)
    want = layer(x)
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    for _ in range(3):
        torch.testing.assert_close(compiled(x), want)


def test_no_memory_names_the_layer():
    spec = LinearSpec(Int(8), Act(Int(8)))
    layer = layer_of(spec, 4096, 64).to(CUDA)
    assert choose(spec, (4096, 64), CUDA).name == "triton_int8"
    x = torch.zeros(1 << 12, 64, device=CUDA)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-9)
    try:
        with pytest.raises(DitherError, match="no memory left for"):
            layer(x)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
