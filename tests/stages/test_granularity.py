"""The problem of group sizes: who shares one, what it costs, and limits that cannot be met."""

from dataclasses import replace
from math import inf, nan

import jobs
import pytest
import studies
import torch

from dither.errors import BadRecipe
from dither.quantization import plan_ahead
from dither.spec import Act, Bits, Int, LinearSpec, Recipe
from dither.stages import Assign, GroupProgram, Rtn, Widen, describe
from dither.stages.cost import bit_operations, weight_bits
from dither.stages.granularity import Limits, problem_of, resized, settle

GROUPED = Assign(weight=Int(4, False, 8), act=Act(Int(8, group=8)), adaln=Int(4, False, 8))
BLOCK = "transformer_blocks.0."
QKV = tuple(f"{BLOCK}attn1.to_{x}" for x in "qkv")
SIZES = (4, 8, 16, 64)


def assigned(*stages):
    return jobs.run(stages or (GROUPED,), jobs.pipeline().transformer)


def asked(job, sizes=SIZES, bits=None, bitops=None):
    with torch.no_grad():
        return problem_of(job, "search", sizes, Limits(bits, bitops))


def test_linears_that_read_one_tensor_share_a_size():
    problem = asked(assigned())
    units = {u.name: u for u in problem.units}
    assert units[f"{BLOCK}norm1"].layers == QKV
    assert units[f"{BLOCK}norm1.silu"].layers == (f"{BLOCK}norm1.linear",)
    assert len(units) == 10
    assert units[f"{BLOCK}norm1"].sizes == (16, 8, 4)  # of 16 channels; 64 does not divide them
    assert units[f"{BLOCK}ff.activation"].sizes == (64, 16, 8, 4)
    assert sorted(problem.sizes(problem.uniform)) == sorted(assigned().specs)
    assert set(problem.sizes(problem.uniform).values()) == {8}


def test_linears_that_were_given_different_formats_are_apart():
    job = assigned()
    job.promise(QKV[0], resized(job.specs[QKV[0]], 16))
    names = {u.name: u.layers for u in asked(job).units}
    assert all(names[name] == (name,) for name in QKV)
    job = assigned()
    job.promise(QKV[1], LinearSpec(Int(8)))  # takes no part
    assert {u.name: u.layers for u in asked(job).units}[f"{BLOCK}norm1"] == (QKV[0], QKV[2])


def test_costs_are_sums_over_layers_and_tokens():
    job = assigned()
    problem = asked(job)
    unit = next(u for u in problem.units if u.layers == QKV)
    for i, size in enumerate(unit.sizes):
        spec = LinearSpec(Int(4, False, size), Act(Int(8, group=size)))
        assert unit.costs["bits"][i] == 3 * weight_bits(spec, (16, 16))
        assert unit.costs["bitops"][i] == 3 * bit_operations(spec, (16, 16), 16)  # 8 x 8 pixels in patches of 2 x 2
    modulation = next(u for u in problem.units if u.layers == (f"{BLOCK}norm1.linear",))
    assert set(modulation.costs["bitops"]) == {bit_operations(LinearSpec(Int(4)), (96, 16), 1)}  # weight-only, one row
    assert problem.per["bits"] == sum(job.dense(n).numel() for n in job.specs)
    assert problem.cost(problem.uniform, "bits") == 4 + 40 / 8


def test_without_limits_the_uniform_size_is_just_allowed():
    problem = asked(assigned())
    assert problem.allows(problem.uniform)
    finer = (problem.uniform[0] + 1, *problem.uniform[1:])
    assert not problem.allows(finer)
    assert asked(assigned(), bits=10.0, bitops=1e6).allows(finer)
    uniform = asked(assigned(), sizes=(4, 16)).uniform  # 8 is none of these: the next coarser one
    assert set(asked(assigned(), sizes=(4, 16)).sizes(uniform).values()) == {16}


def test_inputs_with_groups_follow_and_others_stay():
    spec = LinearSpec(Int(4, False, 8), Act(Int(6, group=8)))
    assert resized(spec, 16) == LinearSpec(Int(4, False, 16), Act(Int(6, group=16)))
    by_token = replace(spec, act=Act(Int(6)))
    assert resized(by_token, 16) == LinearSpec(Int(4, False, 16), Act(Int(6)))
    assert resized(replace(spec, act=None), 16) == LinearSpec(Int(4, False, 16))


def test_what_is_settled_is_promised_and_noted():
    job = assigned()
    problem = asked(job)
    coarsest = (0,) * len(problem.units)
    settle(job, "search", problem, coarsest, {"more": 1})
    assert job.specs[QKV[0]] == LinearSpec(Int(4, False, 16), Act(Int(8, group=16)))
    assert job.specs[f"{BLOCK}norm1.linear"] == LinearSpec(Int(4, False, 16))
    assert job.specs[f"{BLOCK}ff.net.2"].weight.group == 64
    said = job.notes["search"]
    assert said["groups"] == problem.sizes(coarsest)
    assert said["costs"]["bits"] == pytest.approx(problem.cost(coarsest, "bits"), rel=1e-5)
    assert said["limits"]["bits"] == 9.0
    assert said["more"] == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": ()}, r"search.sizes \[\]: name at least one group size"),
        ({"sizes": (8, 0)}, r"search.sizes \[8, 0\]: .* all positive"),
        ({"sizes": (5, 7)}, r"search.sizes \[5, 7\]: none divides the 16 input channels of layer 'transformer_blocks"),
        ({"bits": 6.0}, r"search.bits 6: the coarsest sizes take 6.08334 bits per weight; nothing less can be met"),
        ({"bits": 0.0}, "search.bits 0: must be positive and finite"),
        ({"bits": nan}, "search.bits nan: must be positive and finite"),
        ({"bitops": inf}, "search.bitops inf: must be positive and finite"),
        ({"bitops": 9.0}, r"search.bitops 9: the coarsest sizes take \d+\.\d+ bit operations per multiply-accumulate"),
    ],
)
def test_what_cannot_be_searched_is_named(changes, words):
    with pytest.raises(BadRecipe, match=words):
        asked(assigned(), **changes)


def test_the_least_that_is_named_can_be_met():
    problem = asked(assigned(), bits=6.08334)
    assert problem.allows((0,) * len(problem.units))
    with pytest.raises(BadRecipe, match=r"coarsest sizes take (\d+\.\d+)") as e:
        asked(assigned(), bitops=9.0)
    least = float(str(e.value).split("take ")[1].split()[0])
    assert asked(assigned(), bitops=least * (1 + 1e-5))


def test_layers_that_have_no_size_to_search_are_refused():
    with pytest.raises(BadRecipe, match="search: no layer has a group size to search for"):
        asked(assigned(Assign(weight=Int(4), adaln=Int(4))))
    with pytest.raises(BadRecipe, match=r"layer '.*' changes its width over time already"):
        asked(assigned(GROUPED, Widen(ranges=2, at=(1,), weight=8)))
    with pytest.raises(BadRecipe, match=r"layer '.*' has static activations"):
        asked(assigned(replace(GROUPED, act=Act(Int(8, group=8), static=True))))


def test_bits_that_cannot_be_met_are_refused_before_anything_is_drawn():
    pipe = jobs.pipeline()
    recipe = Recipe("test", "", Bits(4, 8), describe((GROUPED, GroupProgram(sizes=SIZES, bits=6.0), Rtn())))
    with pytest.raises(BadRecipe, match=r"group-program.bits 6: the coarsest sizes take 6.08334"):
        plan_ahead(pipe, recipe)
    job, found = studies.job(pipe)
    job.record = lambda: pytest.fail("it drew first")
    GROUPED.run(job)
    with pytest.raises(BadRecipe, match=r"group-program.bits 6"):
        GroupProgram(sizes=SIZES, bits=6.0).run(job)
    assert found == []


@pytest.mark.parametrize("measure", ["bits", "bitops"])
def test_the_least_that_is_named_can_be_given_back(measure):
    with pytest.raises(BadRecipe, match="the coarsest sizes take") as refused:
        asked(assigned(), **{measure: 1.0})
    least = float(str(refused.value).split("take ")[1].split()[0])
    problem = asked(assigned(), **{measure: least})
    assert problem.cost((0,) * len(problem.units), measure) == pytest.approx(least, rel=1e-4)


def test_the_whole_width_is_a_choice_where_nothing_is_coarser_than_what_was_assigned():
    problem = asked(assigned(), sizes=(4, 8))
    assert {u.sizes for u in problem.units} == {(16, 8, 4), (64, 8, 4)}
