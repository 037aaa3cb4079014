"""Blocks of DiT and PixArt in Triton's interpreter: in a few kernels what modules give one by one, and near the reference."""

import copy
from collections import Counter

import pytest
import tiny
import torch
from diffusers import PixArtTransformer2DModel
from lanes import interpreted, silent
from nn.test_block import quantized, watched
from spied import spied, together

from dither.gpu import around, inputs, products, weights
from dither.kernels import KERNELS, gpu, named
from dither.nn import Clock, QBlock, QLinear, fuse
from dither.spec import PER_TENSOR, Act, Int, LinearSpec, LowRank, Rotation, Trellis, TwoRegion

pytestmark = [interpreted, *silent]
INT8 = Act(Int(8))
TIMED = Act(Int(8, False), static=True, rows=3)
TOGETHER = ["linears", "linears", "feed_forward"]
APART = ["linears"] * 4 + ["feed_forward"]
SIX = {"multiply": 6}
SPECS = {
    "int8": (LinearSpec(Int(8), INT8), TOGETHER, {"rows_around": 2, "quantize_rows": 2, **SIX}),
    "nibbles": (LinearSpec(Int(4, False), Act(Int(8, False))), TOGETHER, {"rows_around": 2, "nibbles": 6}),
    "groups": (LinearSpec(Int(4, False, 8), Act(Int(8, False, 8))), TOGETHER, {"rows_around": 2, "quantize_rows": 2}),
    "scaled": (LinearSpec(Int(8), INT8, 1), TOGETHER, {"rows_around": 2, "quantize_rows": 2, **SIX}),
    "rotated": (LinearSpec(Int(8), INT8, 0, Rotation(8, seed=1)), TOGETHER, {"rows_around": 4, **SIX}),
    "scaled and rotated": (LinearSpec(Int(4), INT8, 1, Rotation(16, seed=1)), TOGETHER, {"rows_around": 4}),
    "rotated in groups": (LinearSpec(Int(8), Act(Int(8, group=8)), 0, Rotation(8, seed=1)), TOGETHER, {"rows_around": 4}),
    "static": (LinearSpec(Int(8), TIMED), TOGETHER, {"rows_around": 2, "quantize_rows": 1, **SIX}),
    "static, rotated": (LinearSpec(Int(8), TIMED, 1, Rotation(16, seed=1)), TOGETHER, {"rows_around": 4, **SIX}),
    "low rank": (LinearSpec(Int(8), INT8, 0, None, LowRank(2)), TOGETHER, {"rows_around": 2, "quantize_rows": 2, **SIX}),
    "low rank, rotated": (
        LinearSpec(Int(8), TIMED, 1, Rotation(16, seed=1), LowRank(3, Int(8))), TOGETHER, {"rows_around": 4, **SIX},
    ),
    "trellis": (LinearSpec(Trellis(2, 8, 8, 8), Act(Int(6))), TOGETHER, {"rows_around": 2, "quantize_rows": 2, **SIX}),
    "two regions": (LinearSpec(Int(8), Act(TwoRegion(8, True))), TOGETHER, {"rows_around": 2, "quantize_rows": 8}),
    "per tensor": (LinearSpec(Int(8), Act(Int(8, True, PER_TENSOR))), TOGETHER[:2], {"rows_around": 2, "quantize_rows": 4}),
}  # fmt: skip
OTHER_ORDER = {name for name in SPECS if "rotated" in name or "group" in name or "low rank" in name}
"""Where sums of a norm, or of a branch, have another order when modules run alone: codes next to ties may differ."""


@pytest.fixture(autouse=True)
def as_if_it_were_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "can_run", lambda device: True)
    first = [gpu.TRITON_INT8, gpu.TRITON_DECODE]
    monkeypatch.setattr("dither.kernels.table.KERNELS", [*first, *(k for k in KERNELS if k not in first)])


@pytest.fixture
def started(monkeypatch):
    """Names of kernels as they start."""
    found = Counter()
    for room in (around, inputs, products, weights):
        true = room.launch

        def seen(kernel, *args, true=true, **arguments):
            found[kernel.__name__.replace("multiply_nibbles", "nibbles")] += 1
            true(kernel, *args, **arguments)

        monkeypatch.setattr(room, "launch", seen)
    return found


def dit():
    return tiny.dit(num_layers=1, attention_head_dim=16)


def pixart():
    torch.manual_seed(0)
    return PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=1, sample_size=8,
        cross_attention_dim=32, caption_channels=12, use_additional_conditions=False,
    ).eval().requires_grad_(False)  # fmt: skip


def block_of(make, spec):
    """Its only block, quantized; three samples of three noise levels, and what else it is given."""
    model = quantized(make(), spec)
    clock = Clock((0.3, 0.6))
    clock.set(torch.tensor([0.1, 0.5, 0.9]), torch.zeros(3, dtype=torch.int64))
    for layer in model.modules():
        if isinstance(layer, QLinear):
            layer.clock = clock
    block = model.transformer_blocks[0]
    if spec.act.static:  # ranges of one tensor are equal
        ranges = {f"act_{key}": t for key, t in block.attn1.to_q.stored("act").items()}
        block.attn1.to_k.load(ranges)
        block.attn1.to_v.load(ranges)
    torch.manual_seed(1)
    x = torch.randn(3, 4, block.attn1.to_q.in_features)
    if block.attn2 is None:
        return model, x, {"timestep": torch.tensor([5, 300, 900]), "class_labels": torch.tensor([0, 3, 2])}
    return (
        model,
        x,
        {"timestep": torch.randn(3, 6 * x.shape[-1]), "encoder_hidden_states": torch.randn(3, 5, x.shape[-1])},
    )


def run(model, x, given):
    """What the block gives, and what ran in one call."""
    given = {key: t.to(x.dtype) if t.is_floating_point() else t for key, t in given.items()}
    with torch.no_grad(), spied() as calls:
        return model.transformer_blocks[0](x, **given), together(calls)


def simulated(model):
    """The same on the reference, not fused."""
    other = copy.deepcopy(model)
    for layer in other.modules():
        if isinstance(layer, QLinear):
            layer.kernel = named("reference")
    return other


def near(got, want):
    return float((got.float() - want).norm() / want.norm())


HALF = ("nibbles", "static, rotated", "low rank, rotated")
CASES = [(name, torch.float32) for name in SPECS] + [(name, torch.float16) for name in HALF]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_a_few_kernels_are_the_modules_one_by_one(name, dtype, started):
    spec, in_one_call, kernels = SPECS[name]
    model, x, given = block_of(dit, spec)
    plain, _ = run(simulated(model), x, given)
    model, x = model.to(dtype), x.to(dtype)
    fuse(model)
    assert type(model.transformer_blocks[0]) is QBlock
    started.clear()
    got, calls = run(model, x, given)
    assert calls == in_one_call
    assert {kernel: started[kernel] for kernel in kernels} == kernels
    want, apart = run(watched(model), x, given)
    assert "feed_forward" not in apart
    assert got.dtype == dtype
    if name in OTHER_ORDER:
        assert near(got - x, want.float() - x) < 2e-2
    else:
        assert torch.equal(got, want)
    assert near(got - x, plain - x) < (5e-3 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("name", ["int8", "static, rotated"])
def test_pixart(name, started):
    """Its cross-attention reads each row of the text once for k and for v, and runs as modules."""
    spec, in_one_call, _ = SPECS[name]
    model, x, given = block_of(pixart, spec)
    plain, _ = run(simulated(model), x, given)
    fuse(model)
    started.clear()
    got, calls = run(model, x, given)
    beside = 4 if spec.rotation is not None else 0  # of q, k, v and the output of the other attention
    assert calls == [in_one_call[0], in_one_call[1], *["linears"] * beside, in_one_call[2]]
    assert started["multiply"] == 10
    assert near(got - x, plain - x) < 5e-3


def test_readers_of_other_ranges_round_for_themselves(started):
    model, x, given = block_of(dit, SPECS["static, rotated"][0])
    table = model.transformer_blocks[0].attn1.to_k
    table.load({"act_scale": table.get_buffer("act_scale") * 1.5})
    plain, _ = run(simulated(model), x, given)
    fuse(model)
    started.clear()
    got, calls = run(model, x, given)
    assert calls == ["linears"] * 4 + ["feed_forward"]
    assert (started["rows_around"], started["multiply"]) == (6, 6)
    assert near(got - x, plain - x) < 5e-3


def test_what_no_kernel_rotates_is_rotated_before():
    """By torch, in the dtype of the model; norms and gates run in kernels all the same."""
    model, x, given = block_of(dit, LinearSpec(Int(8), INT8, 3))  # scales by time
    plain, _ = run(simulated(model), x, given)
    fuse(model)
    got, calls = run(model, x, given)
    assert calls == ["linears"] * 4
    assert near(got - x, plain - x) < 5e-3


@pytest.mark.parametrize("name", ["int8", "static, rotated", "low rank, rotated"])
def test_graphs_are_whole_and_batches_may_change(name):
    model, x, given = block_of(dit, SPECS[name][0])
    fuse(model)
    want, _ = run(model, x, given)  # what kernels prepare is there
    block = model.transformer_blocks[0]
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for tokens in (4, 2):
            seen = x[:, :tokens].clone()
            torch.testing.assert_close(compiled(seen, **given), block(seen, **given), rtol=1e-3, atol=1e-3)
    assert want.isfinite().all()
