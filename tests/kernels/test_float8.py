"""The kernel of float8: what it takes and where, and its two ways to scale, by torch's own product on the CPU."""

import pytest
import torch
from conformance.test_every_format import assert_close, input_of, layer_of, oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.gpu import machine
from dither.kernels import choose, float8, is_simulated, named
from dither.kernels.gradient import run
from dither.spec import PER_TENSOR, Act, Float8, Int, LinearSpec

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BOTH = LinearSpec(Float8(), Act(Float8()))
TAKEN = {
    "by row": BOTH,
    "weight by tensor": LinearSpec(Float8(PER_TENSOR), Act(Float8())),
    "input by tensor": LinearSpec(Float8(), Act(Float8(PER_TENSOR))),
    "static": LinearSpec(Float8(), Act(Float8(), static=True)),
    "static by time": LinearSpec(Float8(PER_TENSOR), Act(Float8(PER_TENSOR), static=True, rows=4)),
}
NOT_TAKEN = {
    "weight alone": (LinearSpec(Float8()), "dequantize"),
    "groups of the weight": (LinearSpec(Float8(16), Act(Float8())), "reference"),
    "groups of the input": (LinearSpec(Float8(), Act(Float8(16))), "reference"),
    "integer inputs": (LinearSpec(Float8(), Act(Int(8))), "reference"),
    "integer weights": (LinearSpec(Int(8), Act(Float8())), "reference"),
}


@pytest.fixture
def gpu(monkeypatch):
    """As if there were a GPU of a capability that the test sets."""
    found = {"capability": (9, 0)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: found["capability"])
    monkeypatch.setattr(machine, "_why_not", lambda index: "")
    return found


def taken(spec=BOTH, n=48, k=64, dtype=torch.float32, **how):
    """A layer that runs on the kernel, wherever it is."""
    layer = layer_of(spec, n, k, **how).to(dtype)
    layer.kernel = named("scaled_mm")
    return layer


@pytest.mark.parametrize("spec", TAKEN.values(), ids=TAKEN)
@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0), (12, 0)])
def test_it_is_chosen_on_gpus_that_multiply_float8(spec, capability, gpu):
    gpu["capability"] = capability
    found = choose(spec, (16, 32), CUDA)
    assert found.name == "scaled_mm"
    assert not is_simulated(spec, found)


@pytest.mark.parametrize(("spec", "name"), NOT_TAKEN.values(), ids=NOT_TAKEN)
def test_other_formats_go_to_other_kernels(spec, name, gpu):
    assert choose(spec, (32, 32), CUDA).name == name


@pytest.mark.parametrize("shape", [(16, 24), (24, 16), (8, 16), (16, 8)])
def test_widths_are_multiples_of_sixteen_or_simulated(shape, gpu):
    found = choose(BOTH, shape, CUDA)
    assert found.name == "reference"
    assert is_simulated(BOTH, found)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6)])
def test_older_gpus_simulate(capability, gpu):
    gpu["capability"] = capability
    assert choose(BOTH, (16, 32), CUDA).name == "reference"


def test_gpus_of_other_makers_simulate(gpu, monkeypatch):
    """Theirs multiply another float8, of another bias."""
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert choose(BOTH, (16, 32), CUDA).name == "reference"


def test_the_cpu_simulates():
    layer = layer_of(BOTH, 16, 32)
    assert layer.kernel.name == "reference"
    assert layer.simulated


@pytest.mark.parametrize(
    ("capability", "inside"), [((8, 9), False), ((9, 0), True), ((10, 0), True), ((10, 3), True), ((12, 0), False)]
)
def test_which_gpus_scale_rows_inside_the_product(capability, inside, gpu):
    gpu["capability"] = capability
    assert machine.scales_rows(CUDA) == inside


# --- numbers


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("spec", TAKEN.values(), ids=TAKEN)
def test_against_float64(spec, dtype, bias):
    layer = taken(spec, dtype=dtype, bias=bias)
    for x in (input_of(2, 64), input_of(2, 5, 64), input_of(2, 1, 64)):
        got = layer(x.to(dtype))
        assert got.dtype == dtype
        assert_close(got, oracle(layer, x.to(dtype)), 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 40), n=st.integers(1, 6), k=st.integers(1, 12), seed=st.integers(0, 99), bias=st.booleans(),
    spec=st.sampled_from([spec for spec in TAKEN.values() if spec.act.rows == 1]),
)  # fmt: skip
def test_sizes(m, n, k, seed, bias, spec):
    layer, x = taken(spec, 16 * n, 16 * k, bias=bias, seed=seed), input_of(m, 16 * k, seed=seed)
    assert_close(layer(x), oracle(layer, x), 1e-6)


@pytest.mark.parametrize("inside", [True, False])
def test_both_ways_to_scale_in_bfloat16(inside, monkeypatch):
    """On GPUs that cannot scale rows the same numbers come from float32 sums."""
    asked = []
    monkeypatch.setattr(float8, "scales_rows", lambda device: asked.append(device) or inside)
    layer, x = taken(dtype=torch.bfloat16), input_of(7, 64).bfloat16()
    assert_close(layer(x), oracle(layer, x), torch.finfo(torch.bfloat16).eps)
    assert asked == [CPU]


def test_a_bias_is_never_made_narrower():
    """One in float32 beside inputs in bfloat16 is added to float32 sums."""
    layer, x = taken(dtype=torch.bfloat16, bias=False), input_of(3, 64).bfloat16()
    want = layer.compute(x, None).float()
    bias = torch.full((48,), 1 + 2.0**-12)
    call = layer.inputs(x, bias, layer.ways[0])
    assert not float8._scales_inside(call)
    assert_close(layer.kernel.run(call), want.double() + bias.double(), torch.finfo(torch.bfloat16).eps)
    assert float8._scales_inside(layer.inputs(x, bias.bfloat16(), layer.ways[0]))


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)])
def test_no_rows(shape):
    assert taken()(torch.empty(shape)).shape == (*shape[:-1], 48)


def test_rows_that_are_not_finite_give_no_numbers():
    x = input_of(4, 64)
    x[1, 3], x[2, 5] = torch.nan, torch.inf
    layer = taken()
    got = layer(x)
    assert got[1:3].isnan().all()
    assert_close(got[[0, 3]], oracle(layer, x[[0, 3]]), 1e-6)


def test_inputs_of_any_stride():
    layer, wide = taken(), input_of(4, 128)
    for x in (input_of(64, 5).T, input_of(2, 64, 5).mT, wide[:, ::2], wide[::2, 64:], input_of(1, 64).expand(3, 64)):
        assert_close(layer(x), oracle(layer, x), 1e-6)


def test_gradients_pass_straight_through():
    layer = taken()
    x, bias = input_of(2, 3, 64).requires_grad_(), layer.bias.clone().requires_grad_()
    y = run(layer.kernel, layer.inputs(x, bias, layer.ways[0]))
    g = torch.randn_like(y)
    y.backward(g)
    torch.testing.assert_close(x.grad, g @ layer.dequantized())
    torch.testing.assert_close(bias.grad, g.sum((0, 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_graphs_see_through(dtype):
    layer = taken(TAKEN["static"], dtype=dtype)
    x = input_of(3, 64).to(dtype)
    graph = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(graph(x), layer(x))


def test_the_weight_is_multiplied_as_it_is_stored():
    """No copy of it is prepared."""
    layer = taken()
    layer(input_of(1, 64))
    ready = layer.ways[0].prepared
    assert {name: t.numel() for name, t in ready.items()} == {"scale": 48, "one": 1}
    assert ready["scale"].data_ptr() == layer.get_buffer("weight_scale").data_ptr()
