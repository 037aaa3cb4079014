"""Round to nearest, and what a job does when it commits layers."""

import jobs
import pytest
import torch

from dither.errors import BadRecipe, BadValue
from dither.nn import QLinear
from dither.numerics import decode, encode
from dither.spec import Act, Bits, Codebook, Int, Recipe
from dither.stages import Assign, Clip, Ranges, Rtn, Smooth, describe, stage_from, stages_of

FORMATS = [Int(8), Int(4, False), Int(3, group=4), Int(1), Codebook(2, 16), Codebook(4, 7, row_scale=True)]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_each_weight_goes_to_the_nearest_value_of_its_format(fmt):
    model, dense = jobs.pipeline().transformer, jobs.pipeline().transformer
    job = jobs.run((Assign(weight=fmt, adaln=Int(8)), Rtn()), model)
    for name, spec in job.finish().layers.items():
        layer, w = model.get_submodule(name), dense.get_submodule(name).weight
        assert isinstance(layer, QLinear)
        want = decode(encode(w, spec.weight), spec.weight, tuple(w.shape))
        assert torch.equal(layer.dequantized(), want)
        assert torch.equal(layer.bias, dense.get_submodule(name).bias)


def test_bfloat16_weights_are_rounded_from_their_own_values():
    model, dense = jobs.pipeline().transformer.bfloat16(), jobs.pipeline().transformer.bfloat16()
    job = jobs.job(model)
    for stage in (Assign(weight=Int(8)), Rtn()):
        with torch.no_grad():
            stage.run(job)
    name = "transformer_blocks.0.attn1.to_q"
    w = dense.get_submodule(name).weight.float()
    assert torch.equal(model.get_submodule(name).dequantized(), decode(encode(w, Int(8)), Int(8), tuple(w.shape)))


def test_activation_only_layers_keep_their_weights():
    model, dense = jobs.pipeline().transformer, jobs.pipeline().transformer
    jobs.run((Assign(act=Act(Int(8))), Rtn()), model).finish()
    name = "transformer_blocks.0.attn1.to_q"
    assert torch.equal(model.get_submodule(name).get_buffer("weight_dense"), dense.get_submodule(name).weight)


def test_nan_in_a_weight_names_the_layer():
    model = jobs.pipeline().transformer
    model.transformer_blocks[1].attn1.to_k.weight.data[0, 0] = torch.nan
    with pytest.raises(BadValue, match=r"layer 'transformer_blocks\.1\.attn1\.to_k'"):
        jobs.run((Assign(weight=Int(8)), Rtn()), model)


def test_a_recipe_without_a_weight_stage_is_told_what_it_lacks():
    with pytest.raises(BadRecipe, match="no stage of the recipe makes them"):
        jobs.run((Assign(weight=Int(8)),), jobs.pipeline().transformer).finish()


def test_progress_counts_to_the_end():
    told = []
    job = jobs.job(jobs.pipeline().transformer)
    job.progress = lambda what, done, total: told.append((what, done, total))
    for stage in (Smooth(), Assign(weight=Int(8)), Clip(rows=16, steps=2), Rtn(), Ranges()):
        with torch.no_grad():
            stage.run(job)
    for what in {w for w, _, _ in told}:
        counts = [(d, n) for w, d, n in told if w == what]
        assert counts == [(i + 1, len(counts)) for i in range(len(counts))]
    assert {w for w, _, _ in told} >= {"smoothing", "rounding weights", "searching ranges", "measuring channels"}


# --- naming stages


def test_unknown_stages_fields_and_values_are_named():
    with pytest.raises(BadRecipe, match=r"unknown stage 'rtnn'; known are teacher, precompute, smooth, rotate"):
        stage_from("rtnn", {})
    with pytest.raises(BadRecipe, match=r"stage 'smooth' has no field 'alhpa'; its fields are alpha"):
        stage_from("smooth", {"alhpa": 1})
    with pytest.raises(BadRecipe, match=r"smooth\.alpha cannot be 'high'"):
        stage_from("smooth", {"alpha": "high"})
    with pytest.raises(BadRecipe, match=r"smooth\.online cannot be 1"):
        stage_from("smooth", {"online": 1})
    with pytest.raises(BadRecipe, match=r"smooth\.rows cannot be True"):
        stage_from("smooth", {"rows": True})
    with pytest.raises(BadRecipe, match=r"assign\.weight.*'float'"):
        stage_from("assign", {"weight": {"kind": "float"}})
    with pytest.raises(BadRecipe, match=r"assign\.weight.*12 bits"):
        stage_from("assign", {"weight": {"kind": "int", "bits": 12}})
    with pytest.raises(BadRecipe, match=r"assign\.weight cannot be"):
        stage_from("assign", {"weight": {"kind": "rotation", "block": 4}})


@pytest.mark.parametrize("stages", [(Rtn(), Smooth()), (Assign(), Ranges(), Rtn()), (Rtn(), Assign())])
def test_stages_in_an_impossible_order_are_named(stages):
    with pytest.raises(BadRecipe, match=r"recipe 'mine': stage '\w+' \(\w+\) cannot follow '\w+' \(\w+\)"):
        stages_of(Recipe("mine", "", Bits(8, 8), describe(stages)))
