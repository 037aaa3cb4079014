"""What attention reads, quantized: which layers, what becomes of them, and what a model then computes."""

from dataclasses import replace

import jobs
import pytest
import torch
from torch import Tensor, nn

import dither
from dither.checkpoint import header_of
from dither.errors import BadRecipe
from dither.models import adapter_for
from dither.nn import QLinear, ViewedLinear
from dither.quantization import plan_ahead
from dither.spec import Act, Bits, Int, LinearSpec, LowRank, Recipe, Timed, View, Views
from dither.stages import Assign, Attention, Job, Rtn, Widen, describe

PLAIN = Assign(weight=Int(8), act=Act(Int(8)))
OUT = Act(Int(8, False, group=8))
QKV = [f"transformer_blocks.{i}.attn1.to_{x}" for i in range(2) for x in "qkv"]


def promised(*stages) -> dict[str, LinearSpec]:
    return jobs.run(stages, jobs.pipeline().transformer).promised


def by_head(y: Tensor, head: int, bits: int) -> Tensor:
    """The formula, in other words: each token's channels of each head on a grid of 2^bits steps that contains 0."""
    parts = y.unflatten(-1, (-1, head))
    lo, hi = parts.amin(-1, keepdim=True).clamp(max=0), parts.amax(-1, keepdim=True).clamp(min=0)
    s = (hi - lo) / (2**bits - 1)
    z = torch.round(-lo / s)
    return (s * ((torch.round(parts / s) + z).clamp(0, 2**bits - 1) - z)).flatten(-2)


@pytest.mark.parametrize("order", [1, -1])
def test_q_k_and_v_get_outputs_and_keep_the_rest_whatever_comes_first(order):
    found, plain = promised(*(PLAIN, Attention())[::order]), promised(PLAIN)
    assert found.keys() == plain.keys()
    for name, spec in found.items():
        assert spec == (replace(plain[name], out=OUT) if name in QKV else plain[name])


def test_layers_are_chosen_by_name_and_may_have_nothing_else():
    found = promised(Attention(4, True, r"\.0\..*to_[qv]"))
    assert found == {n: LinearSpec(out=Act(Int(4, True, group=8))) for n in QKV[:3] if not n.endswith("k")}
    only = promised(Attention(layers="attn1"))  # to_out as well, which attention does not read
    assert list(only) == QKV


def test_what_changes_over_time_keeps_changing():
    changing = promised(Assign(weight=Int(4), act=Act(Int(4))), Widen(ranges=2, at=(1,), weight=8), Attention())
    assert changing[QKV[0]] == Views(
        LinearSpec(Int(8), Act(Int(4)), out=OUT), (View(4, Act(Int(4))), View(8, Act(Int(4)))), (0, 1)
    )
    job = jobs.run((PLAIN,), jobs.pipeline().transformer)
    job.set_clock((0.5,), 1)
    job.vary(QKV[1], Timed((LinearSpec(Int(4)), LinearSpec(Int(8))), (0, 1)))
    Attention(layers="to_k").run(job)
    assert job.promised[QKV[1]] == Timed((LinearSpec(Int(4), out=OUT), LinearSpec(Int(8), out=OUT)), (0, 1))


def test_a_model_computes_with_heads_quantized():
    """Nothing else is quantized, so that hooks on the full-precision layers do the same."""
    model, want = jobs.pipeline().transformer, jobs.pipeline().transformer
    job = jobs.run((Attention(bits=4), Rtn()), model)
    plan = job.finish()
    assert plan.layers == {n: LinearSpec(out=Act(Int(4, False, group=8))) for n in QKV}
    for name in QKV:
        layer = model.get_submodule(name)
        assert isinstance(layer, QLinear)
        assert torch.equal(layer.get_buffer("weight_dense"), want.get_submodule(name).weight)
        want.get_submodule(name).register_forward_hook(lambda _, args, y: by_head(y, 8, 4))
    assert jobs.relative_error(jobs.outputs(model), jobs.outputs(want)) < 1e-5
    assert jobs.relative_error(jobs.outputs(model), jobs.outputs(jobs.pipeline().transformer)) > 1e-3


@pytest.mark.parametrize(("heads", "head"), [(2, 6), (4, 9)])
def test_heads_of_any_width(heads, head):
    model, want = (jobs.pipeline(num_attention_heads=heads, attention_head_dim=head).transformer for _ in range(2))
    jobs.run((Attention(bits=3), Rtn()), model)
    x = torch.randn(2, 5, heads * head)
    with torch.no_grad():
        for name in QKV:
            torch.testing.assert_close(model.get_submodule(name)(x), by_head(want.get_submodule(name)(x), head, 3))


def test_views_quantize_their_outputs_and_a_checkpoint_reloads_to_the_same_bits(tmp_path):
    narrow = Assign(weight=Int(4), act=Act(Int(6)))
    stages = (narrow, Widen(layers="to_v", ranges=2, at=(0,), act=8, weight=8), Attention(bits=3), Rtn())
    recipe = Recipe("test", "", Bits(4, 6), describe(stages))
    pipe = jobs.pipeline()
    ahead = plan_ahead(pipe, recipe).promised
    how = dither.Calibration(samples=4, steps=2, calls=2)
    model = dither.quantize(pipe, recipe, calibration=how).transformer
    assert header_of(model).plan.layers == ahead
    assert isinstance(model.get_submodule(QKV[2]), ViewedLinear)
    got = jobs.outputs(model)
    dither.save(model, tmp_path / "saved")
    assert torch.equal(jobs.outputs(dither.load(tmp_path / "saved")), got)


def test_outputs_stay_exact_until_a_layer_is_finished():
    """Stages that change or measure weights see what the full-precision model gives."""
    model = jobs.pipeline().transformer
    job = jobs.run((PLAIN, Attention(bits=2)), model)
    want = jobs.outputs(model)
    branch = {"lowrank_a_dense": torch.zeros(2, 16), "lowrank_b_dense": torch.zeros(16, 2)}
    job.split(QKV[0], LowRank(2), branch, job.dense(QKV[0]))
    assert job.specs[QKV[0]].out is not None
    assert jobs.relative_error(jobs.outputs(model), want) < 1e-5


def test_a_recipe_without_a_weight_stage_is_told_what_it_lacks():
    job = jobs.run((Attention(),), jobs.pipeline().transformer)
    with pytest.raises(BadRecipe, match=r"to_q' is to be .*no stage \(such as 'rtn'"):
        job.finish()


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (Attention(bits=0), r"attention\.bits 0"),
        (Attention(bits=9), r"attention\.bits 9"),
        (Attention(layers="(to"), r"attention\.layers '\(to' is not a regular expression"),
        (Attention(layers="to_x"), r"attention\.layers 'to_x' is found in no layer's name"),
        (
            Attention(layers="ff"),
            r"attention\.layers 'ff' finds no layer whose head width the model family 'dit' tells",
        ),
    ],
)
def test_fields_that_make_no_sense_are_named(stage, says):
    with pytest.raises(BadRecipe, match=says):
        promised(stage)


def test_a_family_that_knows_no_heads_is_named():
    class Unknown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.ModuleDict({"to_q": nn.Linear(8, 8)}) for _ in range(2))

    model = Unknown()
    with pytest.raises(BadRecipe, match="family 'generic'"):
        Attention().run(Job(model, adapter_for(model), Bits(8), 0, jobs.calls))


def test_no_bits_quantize_nothing():
    assert promised(PLAIN, Attention(bits=None)) == promised(PLAIN)
