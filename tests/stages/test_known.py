"""Stages beside float8: those that round integers alone say so, and nothing passes for a method that was not applied."""

import jobs
import pytest

import dither
from dither.errors import BadRecipe
from dither.spec import Act, Bits, Codebook, Float8, Int, LinearSpec, Recipe
from dither.stages import AdaRound, Assign, Clip, CodeProgram, Gptq, Mixed, Program, Rtn, SplitLowRank, Widen, describe
from dither.stages.known import check_some, of_width

ALL = Assign(weight=Float8(), act=Act(Float8()), adaln=Float8())
INPUTS = Assign(weight=Int(8), act=Act(Float8()), adaln=Int(8))
FEW = dither.Calibration(samples=4, steps=2, calls=2)


def quantized(*stages):
    recipe = Recipe("mine", "", Bits(8, 8, floating=True), describe((*stages, Rtn())))
    return dither.quantize(jobs.pipeline(), recipe, calibration=FEW)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (
            Gptq(),
            "gptq works on integers, trellis codes and Gaussian words, and no layer is to have such .*float8 per row",
        ),
        (Gptq(outputs=4, tokens=64), "gptq works on"),
        (AdaRound(), "adaround works on integers, and no layer .*: float8 per row\\): leave 'adaround' out"),
        (Clip(), "clip works on integers"),
        (CodeProgram(), "code-program: no layer is to have integers or trellis codes"),
        (SplitLowRank(), "low-rank.layers '': no such layer"),
        (Widen(weight=8), "widen.weight: layer '.*' has weight float8 per row, and only integers"),
        (Mixed(weight=6.0), "mixed: layer '.*' has float8 per row weights, and only integers"),
        (Program(weight=6.0), "integer-program: layer '.*' has float8 per row weights"),
    ],
    ids=lambda v: getattr(v, "tag", None),
)
def test_weights_of_float8_are_refused_by_name(stage, words):
    with pytest.raises(BadRecipe, match=words):
        quantized(ALL, stage)


@pytest.mark.parametrize(
    "stage", [Widen(act=8), Mixed(weight=None, act=6.0, samples=2, steps=2)], ids=["widen", "mixed"]
)
def test_inputs_of_float8_have_no_other_widths(stage):
    with pytest.raises(BadRecipe, match=rf"{stage.tag}.act: the input of layer '.*' is float8 per token dynamic, and"):
        quantized(INPUTS, stage)


def test_some_weights_of_a_known_format_suffice():
    specs = {"a": LinearSpec(Codebook(2, 16)), "b": LinearSpec(Int(4)), "c": LinearSpec()}
    check_some("gptq", "integers", ["b"], specs)
    check_some("gptq", "integers", [], {"c": LinearSpec(act=Act(Int(8)))})  # nothing to round at all
    with pytest.raises(BadRecipe, match=r"gptq works on integers, .*\('a': codebook 16x2\)"):
        check_some("gptq", "integers", [], specs)


def test_the_width_of_an_act():
    assert of_width(Act(Int(8, False, 4)), 6) == Act(Int(6, False, 4))
