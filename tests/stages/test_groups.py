"""Group sizes by layer name."""

import json

import jobs
import pytest

import dither
from dither.errors import BadFormat, BadRecipe
from dither.recipes import recipe_from, recipe_to
from dither.spec import Act, Bits, Codebook, Int, LinearSpec, Recipe
from dither.stages import Assign, Groups, Rtn, Widen, describe

Q, MODULATION = "transformer_blocks.0.attn1.to_q", "transformer_blocks.1.norm1.linear"
GROUPED = Assign(weight=Int(4, False, 8), act=Act(Int(8, group=8)), adaln=Int(4, False, 8))


def ran(*stages):
    return jobs.run(stages, jobs.pipeline().transformer)


def test_named_layers_get_their_size_and_others_stay():
    before = ran(GROUPED).specs
    job = ran(GROUPED, Groups({Q: 4, MODULATION: 16}))
    assert job.specs[Q] == LinearSpec(Int(4, False, 4), Act(Int(8, group=4)))
    assert job.specs[MODULATION] == LinearSpec(Int(4, False, 16))
    assert {n: s for n, s in job.specs.items() if n not in (Q, MODULATION)} == {
        n: s for n, s in before.items() if n not in (Q, MODULATION)
    }
    assert job.notes["groups"] == {"groups": {Q: 4, MODULATION: 16}}


def test_inputs_without_groups_keep_none():
    job = ran(Assign(weight=Int(4), act=Act(Int(8))), Groups({Q: 4}))
    assert job.specs[Q] == LinearSpec(Int(4, group=4), Act(Int(8)))


def test_nothing_named_is_nothing_done():
    assert ran(GROUPED, Groups()).notes == {}
    assert Groups() == Groups({})
    with pytest.raises(TypeError):
        Groups().sizes["x"] = 1


def test_a_recipe_holds_the_sizes_as_plain_data():
    recipe = Recipe("test", "", Bits(4, 8), describe((GROUPED, Groups({Q: 4}), Rtn())))
    assert recipe_to(recipe)["stages"][1] == {"stage": "groups", "sizes": {Q: 4}}
    assert recipe_from(json.loads(json.dumps(recipe_to(recipe)))) == recipe
    pipe = dither.quantize(jobs.pipeline(), recipe)  # it asks for no data
    assert pipe.transformer.get_submodule(Q).spec.weight.group == 4


@pytest.mark.parametrize("sizes", [{Q: 4.0}, {Q: "4"}, {Q: True}, [Q], 4, {Q: None}])
def test_sizes_are_whole_numbers_by_name(sizes):
    data = recipe_to(Recipe("test", "", Bits(4, 8), describe((GROUPED, Groups(), Rtn()))))
    data["stages"][1]["sizes"] = sizes
    with pytest.raises(BadRecipe, match=r"groups\.sizes cannot be"):
        recipe_from(data)


@pytest.mark.parametrize(
    ("stages", "error", "words"),
    [
        ((GROUPED, Groups({"nowhere": 8})), BadRecipe, "names layer 'nowhere', which DiTTransformer2DModel does not"),
        ((GROUPED, Groups({Q: 0})), BadRecipe, f"gives layer '{Q}' the group size 0: it must be at least 1"),
        ((GROUPED, Groups({Q: -1})), BadRecipe, f"layer '{Q}' the group size -1"),
        ((GROUPED, Groups({Q: 5})), BadFormat, f"layer '{Q}': .*5"),
        ((Groups({Q: 8}),), BadRecipe, f"layer '{Q}' has full-precision weights, and only integers have group sizes"),
        ((GROUPED, Groups({"proj_out_2": 8})), BadRecipe, "layer 'proj_out_2' has full-precision weights"),
        ((Assign(weight=Codebook(2, 16)), Groups({Q: 8})), BadRecipe, f"layer '{Q}' has codebook 16x2 weights"),
        (
            (GROUPED, Widen(ranges=2, at=(1,), weight=8), Groups({Q: 4})),
            BadRecipe,
            f"groups: layer '{Q}' changes its width over time already",
        ),
    ],
)
def test_a_layer_that_cannot_have_its_size_is_named(stages, error, words):
    with pytest.raises(error, match=words):
        ran(*stages)
