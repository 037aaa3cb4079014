"""A block in a few calls is its modules one by one, to the bit; and diffusers' block but for the last places."""

import copy

import pytest
import tiny
import torch
from diffusers import PixArtTransformer2DModel
from diffusers.models.attention_processor import AttnProcessor
from spied import spied
from spied import together as in_one_call
from torch import nn

from dither.kernels import means
from dither.nn import Clock, QAttention, QBlock, build, fuse, replace, widths_of
from dither.spec import PER_TENSOR, Act, AttentionSpec, Gaussian, Int, LinearSpec, LowRank, Rotation, Trellis

needs_native = pytest.mark.skipif(means() is None, reason="no native code on this machine")
PLAIN = LinearSpec(Int(8), Act(Int(8)))
STATIC = LinearSpec(Int(8), Act(Int(8, False), static=True, rows=1))
TOGETHER = ["linears", "linears", "feed_forward"]
SPECS = {
    "int8": (PLAIN, TOGETHER),
    "zero points in groups": (LinearSpec(Int(4, False, 8), Act(Int(8, False, 8))), TOGETHER),
    "names of integers": (LinearSpec(Gaussian(4, 256), Act(Int(8))), TOGETHER),
    "trellis": (LinearSpec(Trellis(2, 8, 8, 8), Act(Int(6))), TOGETHER),
    "scaled": (LinearSpec(Int(8), Act(Int(8)), 1), TOGETHER),
    "rotated": (LinearSpec(Int(8), Act(Int(8)), 0, Rotation(8, seed=1)), TOGETHER),
    "scaled and rotated": (LinearSpec(Int(8), Act(Int(8)), 1, Rotation(16, seed=1)), TOGETHER),
    "static": (STATIC, TOGETHER),
    "per tensor": (LinearSpec(Int(8), Act(Int(8, True, PER_TENSOR))), []),
    "low rank": (LinearSpec(Int(8), Act(Int(8)), 0, None, LowRank(2)), []),
    "weight-only": (LinearSpec(Int(8)), []),
}


def pixart(seed=0):
    torch.manual_seed(seed)
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2, sample_size=8,
        cross_attention_dim=16, caption_channels=12, use_additional_conditions=False,
    )  # fmt: skip
    return model.eval().requires_grad_(False)


def quantized(model, spec, only=""):
    """Every linear of the blocks but modulation, seeds by name."""
    clock = Clock()
    for i, (name, linear) in enumerate(list(model.named_modules())):
        if (
            isinstance(linear, nn.Linear)
            and name.startswith("transformer_blocks.")
            and only in name
            and "norm" not in name
        ):
            layer = build(spec, linear, clock)
            tiny.fill(layer, linear.weight, 7 if "to_" in name else i)  # q, k and v transform alike
            replace(model, name, layer)
    return model.eval().requires_grad_(False)


def arguments(model, dtype=torch.float32):
    torch.manual_seed(1)
    x = torch.randn(3, model.config.in_channels, 8, 8).to(dtype)
    if isinstance(model, PixArtTransformer2DModel):
        given = {"timestep": torch.tensor([5, 300, 900]), "encoder_hidden_states": torch.randn(3, 7, 12).to(dtype)}
        mask = torch.ones(3, 7)
        mask[0, 3:] = 0
        return x, {**given, "added_cond_kwargs": {}, "encoder_attention_mask": mask}
    return x, {"timestep": torch.tensor([5, 300, 900]), "class_labels": torch.tensor([0, 3, 2])}


def run(model, dtype=torch.float32):
    """The output, and what ran in one call in the first block."""
    x, given = arguments(model, dtype)
    with torch.no_grad(), spied() as calls:
        found = model(x, **given).sample
    ran = in_one_call(calls)
    return found, ran[: len(ran) // len(model.transformer_blocks)]


def watched(model):
    """A copy with a hook on every linear, so that each runs as a module."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_: None)
    return other


@needs_native
@pytest.mark.parametrize("make", [tiny.dit, pixart], ids=["dit", "pixart"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "spec", "together"), [(k, *v) for k, v in SPECS.items()], ids=SPECS)
def test_one_call_is_the_modules_one_by_one(name, spec, together, dtype, make):
    model = quantized(make(), spec).to(dtype)
    plain, _ = run(copy.deepcopy(model).float())
    fuse(model)
    assert all(type(block) is QBlock for block in model.transformer_blocks)
    got, calls = run(model, dtype)
    want, apart = run(watched(model), dtype)
    assert apart == []
    if dtype == torch.float32 or "scaled" not in name:  # a scale beside bfloat16 keeps a feed-forward part apart
        assert calls == together
    assert got.dtype == dtype
    assert torch.equal(got, want)
    assert float((got.float() - plain).norm() / plain.norm()) < (3e-3 if dtype == torch.float32 else 5e-2)


@needs_native
@pytest.mark.parametrize("make", [tiny.dit, pixart], ids=["dit", "pixart"])
def test_without_rounding_it_is_diffusers_block(make):
    """Weights alone in floating point: what is left to differ is the order of sums."""
    model = quantized(make(), LinearSpec(Int(8)))
    want, _ = run(model)
    fuse(model)
    got, _ = run(model)
    assert not torch.equal(got, want)  # it did run
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@needs_native
def test_who_looks_at_norms_sees_them():
    model = quantized(tiny.dit(), PLAIN)
    want, _ = run(model)
    fuse(model)
    block = model.transformer_blocks[0]
    for name in ("norm1", "norm1.norm", "norm3"):
        seen = []
        handle = block.get_submodule(name).register_forward_hook(lambda *_, seen=seen: seen.append(1))
        got, _ = run(model)
        assert seen
        handle.remove()
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)
    for name in ("attn1", "attn1.to_k", "attn1.to_out.1", "ff", "ff.net.2", "attn1.to_out.0"):
        seen = []
        handle = block.get_submodule(name).register_forward_hook(lambda *_, seen=seen: seen.append(1))
        run(model)
        assert seen, name
        handle.remove()


@needs_native
def test_other_attention_runs_as_its_module():
    model = quantized(tiny.dit(), PLAIN)
    fuse(model)
    want, calls = run(model)
    assert calls == TOGETHER
    for block in model.transformer_blocks:
        block.attn1.set_processor(AttnProcessor())
    got, calls = run(model)
    assert calls == ["feed_forward"]
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


@needs_native
@pytest.mark.parametrize("static", [True, False])
def test_quantized_attention_runs_inside_unless_it_is_looked_at(static):
    """Simulated or on integers, with the bits that it has as a module."""
    model = quantized(tiny.dit(), PLAIN)
    fuse(model)
    side, v = Act(Int(8, group=8)), Act(Int(8, group=1), static)
    for block in model.transformer_blocks:
        made = QAttention(AttentionSpec(side, side, v, Act(Int(8, False))), widths_of(block.attn1), Clock())
        made.load({"v.scale": torch.full((1, 16), 0.02)} if static else {}).attach(block.attn1)
        assert made.simulated == (not static)
    want, calls = run(model)
    assert calls == TOGETHER
    for block in (*model.transformer_blocks, *copy.deepcopy(model).transformer_blocks):
        block.attn1.register_forward_hook(lambda *_: None)
    got, calls = run(model)
    assert calls == ["feed_forward"]
    assert torch.equal(got, want)


@needs_native
def test_readers_of_other_ranges_round_for_themselves():
    model = quantized(tiny.dit(), STATIC)
    fuse(model)
    assert run(model)[1] == TOGETHER
    for block in model.transformer_blocks:
        v = block.attn1.to_v
        v.load({f"act_{key}": 2 * t if key == "scale" else t for key, t in v.stored("act").items()})
    got, calls = run(model)
    assert calls == ["feed_forward"]
    plain = copy.deepcopy(model)
    for block in plain.transformer_blocks:
        block.norm3.register_forward_hook(lambda *_: None)  # runs as diffusers' block
    want, _ = run(plain)
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


@needs_native
def test_chunks_training_and_gradients_run_as_diffusers_block():
    model = quantized(tiny.dit(), PLAIN)
    fuse(model)
    block = model.transformer_blocks[0]
    torch.manual_seed(0)
    x = torch.randn(2, 16, model.inner_dim)
    given = {"timestep": torch.tensor([5, 300]), "class_labels": torch.tensor([0, 3])}
    with torch.no_grad():
        want = block(x, **given)
        block.set_chunk_feed_forward(8, 1)
        torch.testing.assert_close(block(x, **given), want, rtol=2e-2, atol=2e-2)
        block.set_chunk_feed_forward(None)
    y = block(x.requires_grad_(), **given)
    assert torch.autograd.grad(y.square().sum(), x)[0].isfinite().all()
    torch.testing.assert_close(y, want, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("make", [tiny.dit, pixart], ids=["dit", "pixart"])
def test_names_copies_and_full_precision_stay(make):
    model = make()
    fuse(model)
    assert not any(type(m) is QBlock for m in model.modules())
    hints = model._no_split_modules
    quantized(model, PLAIN)
    names = list(model.state_dict())
    want, _ = run(model)
    fuse(model)
    assert list(model.state_dict()) == names
    assert model._no_split_modules == (hints and [*hints, "QBlock"])
    assert type(model)._no_split_modules == hints
    again = copy.deepcopy(model)
    assert again.transformer_blocks[0].ff.net[2] is not model.transformer_blocks[0].ff.net[2]
    assert torch.equal(run(again)[0], run(model)[0])
    torch.testing.assert_close(run(model)[0], want, rtol=2e-2, atol=2e-2)


@needs_native
@pytest.mark.parametrize("name", ["int8", "rotated", "static"])
def test_graphs_are_whole(name):
    model = quantized(tiny.dit(), SPECS[name][0])
    fuse(model)
    block = model.transformer_blocks[0]
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 16, model.inner_dim)
    given = {"timestep": torch.tensor([5, 300]), "class_labels": torch.tensor([0, 3])}
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, **given), block(x, **given), rtol=1e-3, atol=1e-3)
