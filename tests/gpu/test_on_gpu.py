"""The kernels on a GPU itself: the same codes and sums as on the CPU, in bfloat16 too, in graphs, and without memory."""

import copy
from dataclasses import replace

import pytest
import tiny
import torch
from conformance.test_every_format import ACTS, WEIGHTS, K, assert_close, input_of, layer_of, oracle, spec_of
from diffusers.models.attention import BasicTransformerBlock
from lanes import TRITON
from torch import nn

from dither.errors import DitherError
from dither.gpu import machine
from dither.kernels import choose, named
from dither.nn import Clock, QBlock, QLinear, build, fuse
from dither.nn import replace as put
from dither.numerics import dynamic_grid, to_codes
from dither.spec import Act, Int, LinearSpec, LowRank, Rotation

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


BLOCKS = {
    "int8": LinearSpec(Int(8), Act(Int(8))),
    "nibbles, asymmetric": LinearSpec(Int(4, False), Act(Int(8, False))),
    "rotated in blocks": LinearSpec(Int(4), Act(Int(8)), 1, Rotation(128, seed=1)),
    "rotated over the whole width": LinearSpec(Int(8), Act(Int(8, False)), 1, Rotation(1152, seed=1)),
    "static by time": LinearSpec(Int(8), Act(Int(8, False), static=True, rows=3)),
    "low rank": LinearSpec(Int(8), Act(Int(8)), 0, None, LowRank(32)),
}


def block_of(spec: LinearSpec) -> tuple[nn.Module, Clock]:
    """As wide as DiT-XL's, on the CPU, not fused; the modulation is whatever it is given."""
    torch.manual_seed(0)
    block = BasicTransformerBlock(
        1152, 16, 72, activation_fn="gelu-approximate", attention_bias=True, norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6,
    ).eval().requires_grad_(False)  # fmt: skip
    clock = Clock((0.3, 0.6))
    for name, linear in list(block.named_modules()):
        if isinstance(linear, nn.Linear):
            whole = spec.rotation is not None and spec.rotation.block > 128
            rotation = Rotation(linear.in_features, seed=1) if whole else spec.rotation
            layer = build(replace(spec, rotation=rotation), linear, clock)
            tiny.fill(layer, linear.weight, 7 if "to_" in name else 1)
            put(block, name, layer)
    return nn.Sequential(block), clock


def inputs_of(samples: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(samples, 64, 1152).to(dtype), (0.3 * torch.randn(samples, 6 * 1152)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_their_simulation(name, dtype):
    """Together and, where hooks look, one by one."""
    holder, clock = block_of(BLOCKS[name])
    clock.set(torch.tensor([0.1, 0.9], device=CUDA), torch.zeros(2, dtype=torch.int64, device=CUDA))
    holder.to(CUDA, dtype)
    plain, (x, modulation) = copy.deepcopy(holder), (t.to(CUDA) for t in inputs_of(2, dtype))
    for layer in plain.modules():
        if isinstance(layer, QLinear):
            layer.kernel = named("reference")
    fuse(holder)
    assert type(holder[0]) is QBlock
    with torch.no_grad():
        want = plain[0](x, timestep=modulation)
        got = holder[0](x, timestep=modulation)
        for layer in holder.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(lambda *_: None)
        apart = holder[0](x, timestep=modulation)
    most = 2e-2 if dtype == torch.float32 else 6e-2
    scale = float((want - x).float().norm())
    assert got.dtype == dtype
    assert float((got - want).float().norm()) < most * scale
    assert float((got - apart).float().norm()) < most * scale


@pytest.mark.parametrize("name", BLOCKS)
def test_a_captured_block_replays(name):
    """Nothing in its path waits for the device; other inputs and another noise level go through the same graph."""
    holder, clock = block_of(BLOCKS[name])
    row = torch.zeros(2, dtype=torch.int64, device=CUDA)
    clock.tell(row)
    holder.to(CUDA, torch.bfloat16)
    fuse(holder)
    x, modulation = (t.to(CUDA) for t in inputs_of(2, torch.bfloat16))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(2):
            holder[0](x, timestep=modulation)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = holder[0](x, timestep=modulation)
    x.copy_(x.flip(0) * 1.5)
    row.copy_(torch.tensor([2, 1]))
    graph.replay()
    with torch.no_grad():
        assert torch.equal(y, holder[0](x, timestep=modulation))


@pytest.mark.parametrize("name", ["int8", "rotated over the whole width", "low rank"])
def test_compiled_blocks(name):
    holder, _ = block_of(BLOCKS[name])
    holder.to(CUDA, torch.bfloat16)
    fuse(holder)
    x, modulation = (t.to(CUDA) for t in inputs_of(2, torch.bfloat16))
    with torch.no_grad():
        want = holder[0](x, timestep=modulation)
        got = torch.compile(holder[0], fullgraph=True)(x, timestep=modulation)
    assert float((got - want).float().norm()) < 2e-2 * float((want - x).float().norm())


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
