"""Quantized linears: their buffers, what they compute, casting, loading and gradients."""

import copy

import pytest
import tiny
import torch
from torch import nn

from dither.clock import Clock
from dither.errors import BadCheckpoint
from dither.kernels import named
from dither.nn import QLinear, build, tensor_layout
from dither.spec import PER_TENSOR, Act, Codebook, Int, LinearSpec, LowRank, Nested, Rotation, Trellis

SPECS = {
    "w8a8": tiny.W8A8,
    "w4": tiny.W4,
    "rich": tiny.RICH,
    "static": LinearSpec(Int(8), Act(Int(8, False), static=True)),
    "nested": LinearSpec(Nested(Int(8, False), 4)),
    "codebook": LinearSpec(Codebook(2, 16)),
    "trellis": LinearSpec(Trellis(2, rows=8)),
    "act only": LinearSpec(None, Act(Int(8))),
    "lowrank int": LinearSpec(Int(2), lowrank=LowRank(4, Int(8))),
    "w1 per tensor": LinearSpec(Int(1, group=PER_TENSOR)),
}


def linear(spec: LinearSpec, n: int = 24, k: int = 16, bias: bool = True, clock: Clock | None = None) -> QLinear:
    torch.manual_seed(0)
    dense = nn.Linear(k, n, bias=bias)
    made = build(spec, dense, clock)
    assert isinstance(made, QLinear)
    tiny.fill(made, dense.weight, 0)
    return made.requires_grad_(False)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_buffers_are_the_layout(spec):
    layer = linear(spec)
    found = {k: (tuple(v.shape), v.dtype) for k, v in layer.named_buffers()}
    assert found == tensor_layout(spec, (24, 16))
    assert isinstance(layer, nn.Linear)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


@pytest.mark.parametrize(
    "spec",
    [s for s in SPECS.values() if s.act is None],
    ids=[k for k, s in SPECS.items() if s.act is None],
)
def test_weight_only_is_the_dequantized_linear(spec):
    layer = linear(spec)
    x = torch.randn(3, 5, 16)
    torch.testing.assert_close(layer(x), x @ layer.dequantized().T + layer.bias)


def test_dequantized_undoes_scale_and_rotation():
    spec = LinearSpec(Int(8), pre_scale=1, rotation=Rotation(8, seed=1), lowrank=LowRank(2))
    layer = linear(spec, k=24)
    x = torch.randn(7, 24)
    torch.testing.assert_close(layer(x), x @ layer.dequantized().T + layer.bias, rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    assert (layer.dequantized() - nn.Linear(24, 24).weight).abs().max() < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_output_has_the_dtype_and_shape_of_the_input(spec, dtype):
    layer = linear(spec).to(dtype)
    y = layer(torch.randn(2, 3, 16).to(dtype))
    assert (y.dtype, tuple(y.shape)) == (dtype, (2, 3, 24))


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, lambda m: m.to(torch.float16), nn.Module.double])
def test_casting_keeps_scales_and_casts_the_rest(cast):
    layer = linear(tiny.RICH)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    cast(layer)
    for name, value in layer.state_dict().items():
        if name == "bias" or name.endswith("_dense"):
            assert value.dtype != torch.float32
        else:
            assert value.dtype == before[name].dtype
            assert torch.equal(value, before[name])


def test_moving_to_meta_keeps_dtypes():
    layer = linear(tiny.RICH)
    dtypes = {k: v.dtype for k, v in layer.state_dict().items()}
    layer.to("meta")
    assert {k: v.dtype for k, v in layer.state_dict().items()} == dtypes
    assert all(v.device.type == "meta" for v in layer.state_dict().values())


def test_load_refuses_a_wrong_name_shape_or_dtype():
    layer = linear(tiny.W8A8)
    for name, tensor in {
        "weight_zero": torch.zeros(24, 1, dtype=torch.uint8),
        "weight_scale": torch.ones(24, 2),
        "weight_codes": torch.zeros(24, 16, dtype=torch.int8),
    }.items():
        with pytest.raises(BadCheckpoint, match=name):
            layer.load({name: tensor})


def test_load_state_dict_forgets_what_kernels_prepared():
    spec = LinearSpec(Int(8), Act(Int(8, False)))  # asymmetric inputs: the kernel keeps row sums of the weight
    first, second = linear(spec), linear(spec)
    tiny.fill(second, torch.randn(24, 16), 1)
    x = torch.randn(4, 16)
    first(x)
    first.load_state_dict(second.state_dict())
    assert torch.equal(first(x), second(x))


def test_kernel_can_be_overridden():
    layer = linear(tiny.W8A8)
    x = torch.randn(4, 16)
    real = layer(x)
    assert not layer.simulated
    layer.kernel = named("reference")
    assert layer.simulated
    torch.testing.assert_close(layer(x), real, rtol=1e-4, atol=1e-4)


def test_deepcopy_is_independent():
    layer = linear(tiny.W8A8)
    twin = copy.deepcopy(layer)
    twin.get_buffer("weight_scale").zero_()
    assert layer.get_buffer("weight_scale").abs().min() > 0


# --- gradients


@pytest.mark.parametrize(
    "spec",
    [tiny.W8A8, tiny.W4, tiny.RICH],
    ids=["w8a8", "w4", "rich"],
)
def test_gradient_is_that_of_the_dequantized_linear(spec):
    layer = linear(spec).requires_grad_(True)
    x = torch.randn(2, 3, 16, requires_grad=True)
    with torch.no_grad():
        quiet = layer(x)
    y = layer(x)
    assert torch.equal(y, quiet)  # training sees the same numbers as inference
    g = torch.randn_like(y)
    y.backward(g)
    torch.testing.assert_close(x.grad, g @ layer.dequantized(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.bias.grad, g.sum((0, 1)))


def test_gradient_in_bfloat16_and_without_bias():
    layer = linear(tiny.W8A8, bias=False)
    x = torch.randn(5, 16, dtype=torch.bfloat16, requires_grad=True)
    layer(x).float().sum().backward()
    assert x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(x.grad.float(), layer.dequantized().sum(0).expand(5, 16), rtol=2e-2, atol=2e-2)


# --- tables of several rows


def test_static_rows_follow_the_clock():
    clock = Clock((0.5,))
    layer = linear(LinearSpec(Int(8), Act(Int(8), static=True, rows=2)), clock=clock)
    layer.load({"act_scale": torch.tensor([[0.5], [0.001]])})
    x = torch.randn(2, 4, 16)
    clock.set(torch.tensor([0.1, 0.9]), torch.tensor([0, 0]))
    both = layer(x)
    for i, level in enumerate((0.1, 0.9)):
        clock.set(torch.tensor([level]), torch.tensor([0]))
        torch.testing.assert_close(both[i : i + 1], layer(x[i : i + 1]))
    clock.set(torch.tensor([0.9, 0.1]), torch.tensor([0, 0]))
    assert not torch.allclose(layer(x), both)
