"""Ranges that end where concatenated inputs end."""

from dataclasses import replace

import jobs
import pytest
import torch
from diffusers import HunyuanDiT2DModel
from torch import nn

import dither
from dither.checkpoint import header_of
from dither.errors import BadRecipe
from dither.models import adapter_for
from dither.quantization import plan_ahead
from dither.spec import Act, Bits, Codebook, Int, LinearSpec, Log2, Recipe, Rotation, TwoRegion
from dither.stages import Assign, Job, Ranges, Rotate, Rtn, Split, Widen, describe

WIDTH = 32
SKIP = "blocks.3.skip_linear"
STATIC = Assign(weight=Int(8), act=Act(Int(8, False), static=True), adaln=Int(8))
FC2 = "transformer_blocks.0.ff.net.2"


def hunyuan(uneven: float = 100.0) -> HunyuanDiT2DModel:
    """Four blocks, of which the last reads a skip connection; the stream beside it spans ``uneven`` times its range.

    The function is that of an even model: the weight's columns undo what the norm before it does.
    """
    torch.manual_seed(0)
    model = HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, patch_size=2, sample_size=8, hidden_size=WIDTH,
        num_layers=4, cross_attention_dim=8, cross_attention_dim_t5=8, pooled_projection_dim=8, text_len=3, text_len_t5=3,
    ).eval()  # fmt: skip
    block = model.blocks[3]
    block.skip_norm.weight.data[:WIDTH] *= uneven
    block.skip_linear.weight.data[:, :WIDTH] /= uneven
    return model


def sample(model: nn.Module) -> torch.Tensor:
    """The answers of three calls, as a sampler would make them."""
    make = torch.Generator().manual_seed(1)
    answers = []
    for time in (900.0, 500.0, 100.0):
        text = torch.randn(2, 3, 8, generator=make)
        with torch.no_grad():
            answers += model(
                torch.randn(2, 4, 8, 8, generator=make), torch.tensor([time, time]), encoder_hidden_states=text,
                text_embedding_mask=torch.ones(2, 3), encoder_hidden_states_t5=text,
                text_embedding_mask_t5=torch.ones(2, 3), image_meta_size=torch.ones(2, 6),
                style=torch.zeros(2, dtype=torch.long), image_rotary_emb=(torch.ones(16, 16), torch.zeros(16, 16)),
                return_dict=False,
            )  # fmt: skip
    return torch.cat(answers)


def quantized(*stages) -> HunyuanDiT2DModel:
    model = hunyuan()
    recipe = Recipe("test", "", Bits(8, 8), describe((*stages, Rtn(), Ranges())))
    return dither.quantize(model, recipe, run=lambda: sample(model))


def error(model: nn.Module) -> float:
    """Of the skip linear, given what it reads in the full-precision model."""
    plain = hunyuan()
    read: list[torch.Tensor] = []
    plain.blocks[3].skip_linear.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    sample(plain)
    x = torch.cat(read)
    with torch.no_grad():
        want, got = plain.blocks[3].skip_linear(x), model.blocks[3].skip_linear(x)
    return float((got - want).pow(2).mean() / want.pow(2).mean())


def test_a_skip_connection_of_a_small_range_survives_only_if_it_is_split():
    together, apart = error(quantized(STATIC)), error(quantized(STATIC, Split()))
    assert together > 0.1  # all that is small is lost
    assert apart < 1e-3
    weights = error(quantized(replace(STATIC, act=None), Split()))
    assert weights < apart
    assert error(quantized(replace(STATIC, act=None))) > 100 * weights


def test_only_what_is_concatenated_is_split_and_each_part_has_a_row_of_scales():
    plain, model = quantized(STATIC), quantized(STATIC, Split())
    want, got = header_of(plain).plan.layers, header_of(model).plan.layers
    assert {name for name in want if want[name] != got[name]} == {SKIP}
    assert got[SKIP] == LinearSpec(Int(8, group=WIDTH), Act(Int(8, False, group=WIDTH), static=True))
    skip = model.blocks[3].skip_linear
    scale = skip.get_buffer("act_scale")
    assert scale.shape == (1, 2)
    assert 30 < float(scale[0, 0] / scale[0, 1]) < 300
    assert skip.get_buffer("weight_scale").shape == (WIDTH, 2)


def test_a_checkpoint_reloads_to_the_same_bits(tmp_path):
    model = quantized(replace(STATIC, time_groups=2), Split())
    assert model.blocks[3].skip_linear.get_buffer("act_scale").shape == (2, 2)
    dither.save(model, tmp_path / "saved")
    again = dither.load(tmp_path / "saved")
    assert header_of(again).plan == header_of(model).plan
    assert torch.equal(sample(again), sample(model))


def test_a_model_without_concatenations_stays_as_it_is():
    plain = jobs.run((STATIC,), jobs.pipeline().transformer)
    assert jobs.run((STATIC, Split()), jobs.pipeline().transformer).specs == plain.specs


def test_a_layer_that_was_promised_nothing_stays_in_full_precision():
    assert SKIP not in job(replace(STATIC, exclude="skip_linear"), Split()).specs


def job(*stages, bits: str = "w8a8") -> Job:
    """A job on the model with a skip, after these stages; nothing is recorded."""
    model = hunyuan()
    made = Job(model, adapter_for(model), Bits.parse(bits), 0, lambda: pytest.fail("no data is needed"))
    for stage in stages:
        stage.run(made)
    return made


@pytest.mark.parametrize(
    ("parts", "had", "gets"),
    [
        ((32, 32), 0, 32), ((32, 32), -1, 32), ((16, 48), 0, 16), ((48, 16), -1, 16), ((16, 32, 16), 0, 16),
        ((32, 32), 8, 8), ((32, 32), 64, 32), ((16, 48), 32, 16), ((4, 60), 0, 4), ((4, 60), 16, 4),
    ],
)  # fmt: skip
def test_the_widest_groups_that_lie_in_one_part(parts, had, gets):
    assign = Assign(weight=Int(4, group=had), act=Act(Int(8, group=had)), fit=True)
    spec = job(assign, Split(layers="skip_linear", parts=parts)).specs[SKIP]
    assert (spec.weight.group, spec.act.grid.group) == (gets, gets)


@pytest.mark.parametrize(
    "act",
    [
        Act(Int(8)), Act(Int(8, group=-1)), Act(Log2(8)), Act(TwoRegion(8, signed=True)),
        Act(TwoRegion(8), static=True, rows=1),
    ],
)  # fmt: skip
def test_every_grid_can_be_split_and_keeps_all_else(act):
    spec = job(Assign(act=act), Split()).specs[SKIP]
    assert spec == LinearSpec(act=replace(act, grid=replace(act.grid, group=WIDTH)))


def test_explicit_parts_are_for_the_layers_that_are_named():
    made = jobs.run((STATIC, Split(layers=r"0\.ff\.net\.2", parts=(16, 48))), jobs.pipeline().transformer)
    assert {name for name, spec in made.specs.items() if spec.weight.group} == {FC2}
    assert made.specs[FC2].act.grid.group == made.specs[FC2].weight.group == 16
    ahead = plan_ahead(jobs.pipeline(), Recipe("", "", Bits(8, 8), describe((STATIC, Split("0.ff.net.2", (16, 48))))))
    assert ahead.specs == made.specs


def test_a_name_may_choose_among_what_is_known():
    assert job(STATIC, Split(layers="skip")).specs[SKIP].weight.group == WIDTH


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ((Split(parts=(32, 32)),), r"split\.parts \(32, 32\): .* that split\.layers names"),
        ((Split("skip", (64,)),), r"split\.parts \(64,\): two or more"),
        ((Split("skip", (-8, 72)),), r"split\.parts \(-8, 72\): two or more positive"),
        ((Split("skip", (32, 16)),), rf"split\.parts \(32, 16\) are 48 channels, and layer '{SKIP}' has 64"),
        ((Split("shortcut"),), r"split\.layers 'shortcut' is found in no layer's name"),
        ((Split("attn1"),), r"split\.layers 'attn1': none .* \(give split\.parts\)"),
        (
            (Split("proj_out", (16, 16)),),
            r"split\.layers 'proj_out': none of the layers that it finds is to be quantized",
        ),
        (
            (Split("skip", (31, 33)),),
            rf"layer '{SKIP}' reads parts of \(31, 33\) channels, and only groups of 1 divide",
        ),
    ],
)
def test_fields_that_make_no_sense_are_named(stages, says):
    with pytest.raises(BadRecipe, match=says):
        job(STATIC, *stages)


def test_codebooks_have_no_groups():
    with pytest.raises(BadRecipe, match=rf"layer '{SKIP}' has codebook 16x2 weights"):
        job(Assign(weight=Codebook(2, 16)), Split())


def test_a_rotation_may_not_mix_the_parts():
    with pytest.raises(BadRecipe, match=rf"layer '{SKIP}' is rotated in blocks of 64 channels.* rotate blocks of 32"):
        job(Rotate(), STATIC, Split())
    spec = job(Rotate(block=16, layers="skip"), STATIC, Split()).specs[SKIP]
    assert spec.rotation == Rotation(16, spec.rotation.seed)
    assert spec.weight.group == WIDTH


def test_what_changes_over_time_is_split_before():
    widen = Widen(layers="skip", ranges=2, at=(1,), weight=8)
    with pytest.raises(BadRecipe, match=rf"layer '{SKIP}' changes its width over time already: split it before"):
        job(Assign(weight=Int(4)), widen, Split())
    views = job(Assign(weight=Int(4)), Split(), widen).varied[SKIP]
    assert views.base.weight == Int(8, group=WIDTH)
