"""What attention's products read, quantized: which attentions, what is promised, and what a model then computes."""

import jobs
import pytest
import torch
from torch import nn

import dither
from dither.checkpoint import header_of
from dither.errors import BadFormat, BadRecipe
from dither.kernels.native_calls import has_attention
from dither.models import adapter_for
from dither.nn import QAttention
from dither.numerics import act_quantize, dynamic_table, range_table
from dither.quantization import plan_ahead
from dither.spec import Act, AttentionSpec, Bits, Int, Recipe
from dither.stages import Assign, Attention, Job, Ranges, Rtn, describe

PLAIN = Assign(weight=Int(8), act=Act(Int(8)))
SIDE = Act(Int(8, False, group=8))
NAMES = [f"transformer_blocks.{i}.attn1" for i in range(2)]


def promised(*stages) -> dict[str, AttentionSpec]:
    return jobs.run(stages, jobs.pipeline().transformer).attention


def test_every_attention_is_promised_formats_by_head_and_linears_are_left_alone():
    assert promised(Attention()) == {name: AttentionSpec(SIDE, SIDE, SIDE) for name in NAMES}
    job = jobs.run((PLAIN, Attention()), jobs.pipeline().transformer)
    assert job.promised == jobs.run((PLAIN,), jobs.pipeline().transformer).promised


def test_sides_and_probabilities_are_chosen_apart_and_by_name():
    static = Act(Int(6, False), static=True)
    assert promised(Attention(None, probs=6, static=True)) == {n: AttentionSpec(probs=static) for n in NAMES}
    side = Act(Int(4, True, group=8), static=True)
    found = promised(Attention(4, True, probs=8, static=True, layers=r"\.1\."))
    assert found == {NAMES[1]: AttentionSpec(side, side, side, Act(Int(8, False), static=True))}
    assert promised(Attention(bits=None)) == {}


@pytest.mark.parametrize(("heads", "head"), [(2, 6), (4, 9)])
def test_heads_of_any_width(heads, head):
    model = jobs.pipeline(num_attention_heads=heads, attention_head_dim=head).transformer
    found = jobs.run((Attention(bits=3),), model).attention
    assert {spec.k for spec in found.values()} == {Act(Int(3, False, group=head))}


def hooked(act, of):
    """A model whose q, k and v of the first attention are rounded by hooks on the linears, which nothing stands behind."""
    model = jobs.pipeline().transformer
    for x in "qkv":
        model.get_submodule(f"{NAMES[0]}.to_{x}").register_forward_hook(lambda _, args, y: act(y, of))
    return model


def test_a_model_computes_with_heads_quantized_anew_for_each_token():
    model, grid = jobs.pipeline().transformer, Int(4, False, group=8)
    jobs.run((Attention(bits=4, layers=r"\.0\."), Ranges()), model).finish()
    want = hooked(lambda y, _: act_quantize(y, grid, dynamic_table(y, grid)), None)
    assert jobs.relative_error(jobs.outputs(model), jobs.outputs(want)) < 1e-5
    assert jobs.relative_error(jobs.outputs(model), jobs.outputs(jobs.pipeline().transformer)) > 1e-3


def test_static_ranges_are_those_of_each_head_over_all_calls():
    model, plain = jobs.pipeline().transformer, jobs.pipeline().transformer
    seen = []
    plain.get_submodule(f"{NAMES[0]}.to_k").register_forward_hook(
        lambda _, args, y: seen.append(y.unflatten(-1, (2, 8)))
    )
    jobs.outputs(plain)
    heads = torch.cat(seen)  # (B, T, 2, 8)
    job = jobs.run((Attention(static=True, probs=8), Ranges()), model)
    part = model.get_submodule(NAMES[0]).quantized
    want = range_table(heads.amin((0, 1, 3)), heads.amax((0, 1, 3)), Int(8, False, group=8))
    torch.testing.assert_close(part.k.get_buffer("scale")[0], want["scale"])
    assert torch.equal(part.k.get_buffer("zero")[0], want["zero"])
    assert part.probs.get_buffer("zero").tolist() == [[0]]
    assert 0 < float(part.probs.get_buffer("scale")) <= 1 / 255
    assert job.finish().attention == job.attention


def test_channels_of_v_have_ranges_of_their_own():
    model, plain = jobs.pipeline().transformer, jobs.pipeline().transformer
    seen = []
    plain.get_submodule(f"{NAMES[0]}.to_v").register_forward_hook(lambda _, args, y: seen.append(y.flatten(0, 1)))
    jobs.outputs(plain)
    jobs.run((Attention(static=True, channels=True), Ranges()), model)
    part, v = model.get_submodule(NAMES[0]).quantized, torch.cat(seen)
    want = range_table(v.amin(0), v.amax(0), Int(8, False, group=1))
    torch.testing.assert_close(part.v.get_buffer("scale")[0], want["scale"])
    assert part.q.get_buffer("scale").shape == part.k.get_buffer("scale").shape == (1, 2)  # heads


def test_channels_of_v_have_stored_ranges_where_others_have_none_and_all_is_integer():
    model = jobs.pipeline().transformer
    jobs.run((PLAIN, Attention(probs=8, channels=True), Rtn(), Ranges()), model).finish()
    for name in NAMES:
        part = model.get_submodule(name).quantized
        assert part.spec == AttentionSpec(SIDE, SIDE, Act(Int(8, False, group=1), True), Act(Int(8, False)))
        assert sorted(dict(part.named_buffers())) == ["v.scale", "v.zero"]
        assert part.simulated == (not has_attention())


def test_a_channel_of_v_that_stands_out_hurts_no_other():
    """Its factor is undone behind attention: the model is the same."""

    def error(channels):
        models = jobs.pipeline().transformer, jobs.pipeline().transformer
        for model in models:
            with torch.no_grad():
                model.get_submodule(f"{NAMES[0]}.to_v").weight[3] *= 64
                model.get_submodule(f"{NAMES[0]}.to_v").bias[3] *= 64
                model.get_submodule(f"{NAMES[0]}.to_out.0").weight[:, 3] /= 64
        jobs.run((Attention(4, static=True, channels=channels, layers=r"\.0\."), Ranges()), models[0])
        return jobs.relative_error(jobs.outputs(models[0]), jobs.outputs(models[1]))

    assert error(channels=True) < error(channels=False) / 2


@pytest.mark.parametrize("channels", [False, True])
def test_a_checkpoint_reloads_to_the_same_bits(tmp_path, channels):
    stages = (PLAIN, Attention(4, static=True, probs=5, channels=channels), Rtn(), Ranges())
    recipe = Recipe("test", "", Bits(8, 8), describe(stages))
    pipe = jobs.pipeline()
    ahead = plan_ahead(pipe, recipe).attention
    model = dither.quantize(pipe, recipe, calibration=dither.Calibration(samples=4, steps=2, calls=2)).transformer
    assert header_of(model).plan.attention == ahead
    got = jobs.outputs(model)
    dither.save(model, tmp_path / "saved")
    again = dither.load(tmp_path / "saved")
    assert isinstance(again.get_submodule(NAMES[1]).quantized, QAttention)
    assert torch.equal(jobs.outputs(again), got)
    # inside a whole pipeline too
    dither.save(pipe, tmp_path / "pipe")
    assert torch.equal(jobs.outputs(dither.load(tmp_path / "pipe").transformer), got)


def test_products_stay_exact_until_the_last_phase():
    model = jobs.pipeline().transformer
    jobs.run((Attention(bits=2),), model)
    assert torch.equal(jobs.outputs(model), jobs.outputs(jobs.pipeline().transformer))


def test_a_recipe_without_the_last_stage_is_told_what_it_lacks():
    job = jobs.run((PLAIN, Attention(), Rtn()), jobs.pipeline().transformer)
    with pytest.raises(BadRecipe, match=r"attention 'transformer_blocks.0.attn1'.*no stage \(such as 'ranges'\)"):
        job.finish()


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (Attention(bits=0), r"attention\.bits 0"),
        (Attention(bits=9), r"attention\.bits 9"),
        (Attention(probs=9), r"attention\.probs 9"),
        (Attention(layers="(to"), r"attention\.layers '\(to' is not a regular expression"),
        (Attention(layers="to_x"), r"attention\.layers 'to_x' is found in no layer's name"),
    ],
)
def test_fields_that_make_no_sense_are_named(stage, says):
    with pytest.raises(BadRecipe, match=says):
        promised(stage)


def test_a_group_that_does_not_divide_is_named():
    job = jobs.job(jobs.pipeline().transformer)
    with pytest.raises(BadFormat, match=r"attention 'transformer_blocks\.0\.attn1': group size 5"):
        job.attend(NAMES[0], AttentionSpec(q=Act(Int(8, group=5))))


def test_a_model_without_attention_is_named():
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(BadRecipe, match=r"Sequential \(family 'generic'\) has no attention"):
        Attention().run(Job(model, adapter_for(model), Bits(8), 0, jobs.calls))
