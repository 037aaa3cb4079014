"""The table of kernels, and what the integer kernel prepares; what kernels compute is in ``conformance``."""

import pytest
import tiny
import torch
from torch import nn

from dither.errors import DitherError
from dither.kernels import KERNELS, Kernel, choose, named
from dither.kernels.gradient import run
from dither.kernels.table import Inputs
from dither.nn import build
from dither.spec import Act, Float8, Int, LinearSpec

ASYM = LinearSpec(Int(8), Act(Int(8, False)))
FLOAT8 = LinearSpec(Float8(), Act(Float8()))
TAKEN = {"cpu_decode": tiny.W4, "dequantize": tiny.W4, "scaled_mm": FLOAT8}
"""By kernel: what it runs; the others run ``ASYM``."""


def layer(spec: LinearSpec):
    torch.manual_seed(0)
    dense = nn.Linear(16, 24)
    made = build(spec, dense)
    tiny.fill(made, dense.weight, 0)
    return made.requires_grad_(False)


def test_names_are_unique_and_the_last_kernel_runs_everything():
    assert len({k.name for k in KERNELS}) == len(KERNELS)
    for device in ("cpu", "cuda", "meta"):
        assert KERNELS[-1].when(tiny.RICH, (3, 5), torch.device(device))
    assert not KERNELS[-1].real


def test_the_first_that_fits_wins(monkeypatch):
    mine = Kernel("mine", True, lambda spec, shape, device: spec == tiny.W4, KERNELS[-1].prepare, KERNELS[-1].run)
    monkeypatch.setattr("dither.kernels.table.KERNELS", [mine, *KERNELS])
    assert choose(tiny.W4, (8, 8), torch.device("cpu")).name == "mine"
    assert choose(tiny.W8A8, (8, 8), torch.device("cpu")).name == tiny.INTEGER
    assert named("mine") is mine


def test_an_unknown_name_lists_the_known():
    known = "cpu_int8, triton_int8, int8_mm, scaled_mm, cpu_decode, triton_decode, dequantize, reference"
    with pytest.raises(DitherError, match=f"unknown kernel 'fast'; known are {known}"):
        named("fast")


ON_CPU = [k for k in KERNELS if not k.name.startswith("triton_")]
"""Those of Triton are held to the same in ``gpu/test_interpreted_linears.py``."""


@pytest.mark.parametrize("kernel", ON_CPU, ids=lambda k: k.name)
def test_a_kernel_leaves_its_inputs_alone(kernel):
    found = layer(TAKEN.get(kernel.name, ASYM))
    stored = found.stored()
    before = {k: v.clone() for k, v in stored.items()}
    x = torch.randn(3, 16)
    kept, bias = x.clone(), found.bias.clone()
    ready = kernel.prepare(found.spec, found.shape, stored)
    first = kernel.run(Inputs(x, found.spec, found.shape, stored, None, found.bias, ready))
    again = kernel.run(Inputs(x, found.spec, found.shape, stored, None, found.bias, ready))
    assert torch.equal(first, again)
    assert torch.equal(x, kept)
    assert torch.equal(found.bias, bias)
    assert all(torch.equal(v, before[k]) for k, v in stored.items())


@pytest.mark.parametrize(
    "spec", [tiny.W8A8, ASYM, LinearSpec(None, Act(Int(8))), FLOAT8], ids=["sym", "asym", "dense", "float8"]
)
def test_gradients_pass_straight_through(spec):
    found = layer(spec)
    x = torch.randn(2, 3, 16, requires_grad=True)
    bias = found.bias.clone().requires_grad_()
    stored = found.stored()
    ready = found.kernel.prepare(spec, found.shape, stored)
    y = run(found.kernel, Inputs(x, spec, found.shape, stored, None, bias, ready))
    with torch.no_grad():
        assert torch.equal(y, run(found.kernel, Inputs(x, spec, found.shape, stored, None, bias, ready)))
    g = torch.randn_like(y)
    y.backward(g)
    torch.testing.assert_close(x.grad, g @ found.dequantized())
    torch.testing.assert_close(bias.grad, g.sum((0, 1)))
