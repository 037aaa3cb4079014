"""The kernel of float8 on a GPU that multiplies it: beside float64 in every dtype, in graphs and in streams."""

import pytest
import torch
from conformance.test_every_format import assert_close, input_of, layer_of, oracle
from kernels.test_float8 import BOTH, TAKEN

from dither.gpu import machine

CUDA = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not machine.multiplies_float8(CUDA), reason="no NVIDIA GPU of compute capability 8.9 here"),
]
ACCUMULATED = 2.0**-10
"""What tensor cores may lose of a sum, relative to the largest output: they add products of float8 in fewer bits than 24."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("spec", TAKEN.values(), ids=TAKEN)
@pytest.mark.parametrize(("m", "n", "k"), [(2, 48, 64), (18, 1152, 1152), (512, 4608, 1152), (300, 1152, 4608)])
def test_sizes_of_models(spec, m, n, k, dtype):
    """The oracle runs there too: division by a number is not the CPU's, so that a code next to a tie may be the other one."""
    layer, x = layer_of(spec, n, k).to(dtype).to(CUDA), input_of(2, m // 2, k).to(CUDA, dtype)
    assert layer.kernel.name == "scaled_mm"
    assert not layer.simulated
    assert_close(layer(x), oracle(layer, x), 2 * torch.finfo(dtype).eps + ACCUMULATED)


@pytest.mark.parametrize("rows", [1, 15, 17, 257])
def test_any_number_of_rows(rows):
    layer, x = layer_of(BOTH, 64, 128).to(torch.bfloat16).to(CUDA), input_of(rows, 128).to(CUDA, torch.bfloat16)
    assert_close(layer(x), oracle(layer, x), 2 * torch.finfo(torch.bfloat16).eps + ACCUMULATED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_graphs(mode, dtype):
    """Whole, and captured."""
    layer = layer_of(TAKEN["static by time"], 256, 128).to(dtype).to(CUDA)
    x = input_of(2, 64, 128).to(CUDA, dtype)
    want = layer(x)
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    for _ in range(3):
        torch.testing.assert_close(compiled(x), want, rtol=2.0**-6, atol=2.0**-6)


def test_another_stream():
    """Row-wise products once ran in the default one, whatever the current one was."""
    layer, x = layer_of(BOTH, 1152, 1152).to(torch.bfloat16).to(CUDA), input_of(4096, 1152).to(CUDA, torch.bfloat16)
    want = layer(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(20):
            y = x * 1.0
            got = layer(y)
            assert torch.equal(got, want)
