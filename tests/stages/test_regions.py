"""Two regions: what gets them, how they are chosen, and the steps that calibration gives them."""

import jobs
import pytest
import torch
from torch import Tensor

from dither.errors import BadRecipe
from dither.numerics import act_quantize, dynamic_table, range_table, split_table
from dither.probes import GroupRange, RowsByTime, seen_ranges
from dither.spec import Act, AttentionSpec, Int, TwoRegion
from dither.stages import Assign, Attention, Ranges, Regions, Rotate, Rtn, Smooth
from dither.stages.splits import SPLITS, best_splits, split_tables

STATIC = Assign(weight=Int(8), act=Act(Int(6, False), static=True))
PROBS = Attention(None, probs=6, static=True)
FC2 = [f"transformer_blocks.{i}.ff.net.2" for i in range(2)]
ATTENTIONS = [f"transformer_blocks.{i}.attn1" for i in range(2)]


def after(*stages, **changes):
    return jobs.run(stages, jobs.pipeline(**changes).transformer)


def probabilities(model) -> Tensor:
    """Of the first attention over all calls, (n, T)."""
    seen = []
    job = jobs.job(model)
    own = job.rounded_attention(ATTENTIONS[0], AttentionSpec(), {})
    own.probs.register_forward_hook(lambda _, args, y: seen.append(args[0].flatten(0, 2)))
    jobs.outputs(model)
    return torch.cat(seen)


def test_inputs_behind_gelu_and_probabilities_are_promised_two_regions():
    plain, job = after(STATIC, PROBS), after(STATIC, PROBS, Regions())
    for name, spec in job.specs.items():
        want = Act(TwoRegion(6, signed=True), static=True) if name in FC2 else plain.specs[name].act
        assert spec.act == want
    assert {spec.probs for spec in job.attention.values()} == {Act(TwoRegion(6), static=True)}
    shifted = after(STATIC, PROBS, Regions(gelu=False, shift=True))
    assert shifted.specs == plain.specs
    assert {spec.probs for spec in shifted.attention.values()} == {Act(TwoRegion(6, shift=True), static=True)}
    assert after(STATIC, PROBS, Regions(softmax=False)).attention == plain.attention


def test_dynamic_inputs_have_a_region_for_each_sign_as_well():
    job = after(Assign(weight=Int(8), act=Act(Int(8, group=8))), Regions())
    assert job.specs[FC2[0]].act == Act(TwoRegion(8, signed=True, group=8))


def test_tables_reach_the_ends_of_what_gelu_gives_and_meet_where_the_error_is_least():
    stages = (STATIC, PROBS, Regions(), Rtn(), Ranges(rows=4096))
    job = after(*stages)
    plain = after(STATIC, PROBS, Regions(), Rtn()).model
    seen = []
    plain.get_submodule(FC2[0]).register_forward_hook(lambda _, args, y: seen.append(args[0]))
    a = probabilities(plain)
    x = torch.cat(seen)
    layer = job.model.get_submodule(FC2[0])
    torch.testing.assert_close(layer.get_buffer("act_scale"), (-x.min() / 32).reshape(1, 1))
    torch.testing.assert_close(layer.get_buffer("act_upper"), (x.max() / 31).reshape(1, 1))
    part = job.model.get_submodule(ATTENTIONS[0]).quantized.probs
    top = a.max().reshape(1, 1)
    errors = [
        (act_quantize(a, TwoRegion(6), split_table(top, top / 2**i, TwoRegion(6))) - a).square().sum()
        for i in range(20)
    ]
    want = split_table(top, top / 2 ** int(torch.stack(errors).argmin()), TwoRegion(6))
    torch.testing.assert_close(part.get_buffer("upper"), want["upper"])
    assert 0 < float(part.get_buffer("scale")) <= float(part.get_buffer("upper"))


def test_the_top_may_be_the_published_one():
    part = after(STATIC, PROBS, Regions(), Rtn(), Ranges(top=1.0)).model.get_submodule(ATTENTIONS[1]).quantized.probs
    assert float(part.get_buffer("upper")) == pytest.approx(1 / 31)


def test_rows_that_no_call_fell_into_take_the_values_of_all_others():
    probe = RowsByTime(3, 64)
    x = torch.rand(2, 10, 4)
    ends = GroupRange(1, 3)
    for each in (probe, ends):
        each.update(x, torch.tensor([0, 2]))
    table = best_splits(probe, seen_ranges(ends.lo, ends.hi)[1][:, 0], TwoRegion(4))
    assert table["scale"].shape == table["upper"].shape == (3, 1)
    for row, values in ((0, x[0]), (1, x), (2, x[1])):
        assert float(table["upper"][row]) == pytest.approx(float(values.max()) / 7)


def test_candidates_of_a_split_halve():
    tables = split_tables(torch.tensor(1.0), TwoRegion(3))
    assert len(tables) == SPLITS
    assert [float(t["upper"]) for t in tables] == [pytest.approx(1 / 3)] * SPLITS
    assert [float(t["scale"]) for t in tables[:3]] == pytest.approx([1 / 3, 1 / 6, 1 / 12])


@pytest.mark.parametrize("dynamic", [False, True])
def test_each_place_takes_what_makes_the_least_error(dynamic):
    job = after(STATIC, PROBS, Regions(choose=True, dynamic=dynamic, rows=4096))
    plain = jobs.pipeline().transformer
    seen = []
    plain.get_submodule(FC2[0]).register_forward_hook(lambda _, args, y: seen.append(args[0].flatten(0, 1)))
    jobs.outputs(plain)
    x = torch.cat(seen)
    grids = {"two regions": TwoRegion(6, signed=True), "one range": Int(6, False)}
    lo, hi = x.min().reshape(1, 1), x.max().reshape(1, 1)
    errors = {w: (act_quantize(x, g, range_table(lo, hi, g)) - x).square().sum() for w, g in grids.items()}
    if dynamic:
        errors["per row"] = (act_quantize(x, Int(6, False), dynamic_table(x, Int(6, False))) - x).square().sum()
    noted = job.notes[FC2[0]]["regions"]
    for word, error in errors.items():
        assert noted[word] == pytest.approx(float(error / x.square().sum()), rel=0.15)  # a sample of all calls' rows
    best = min(errors, key=lambda w: errors[w])
    assert noted["chosen"] == best
    made = job.specs[FC2[0]].act
    assert (made.static, type(made.grid)) == (best != "per row", TwoRegion if best == "two regions" else Int)
    assert set(job.notes[ATTENTIONS[0]]["regions"]) == {"chosen", *errors}
    assert torch.equal(jobs.outputs(job.model), jobs.outputs(plain))  # nothing is left of looking


def test_the_choice_sees_values_after_online_scales():
    """Of equal inputs, scaled ones make other errors."""
    plain, scaled = (
        after(*first, STATIC, Regions(softmax=False, choose=True)).notes[FC2[0]]["regions"]
        for first in ((), (Smooth(online=True),))
    )
    assert plain["one range"] != scaled["one range"]


def test_rotated_inputs_keep_one_range():
    job = after(Rotate(layers=r"net\.2"), STATIC, PROBS, Regions())
    assert job.specs[FC2[0]].act == STATIC.act


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ((STATIC, Regions(rows=0)), r"regions\.rows 0"),
        ((Assign(weight=Int(8)), Regions()), "no input behind a GELU and no probabilities"),
        ((STATIC, Regions(gelu=False)), "no input behind a GELU and no probabilities"),
        (
            (STATIC, Attention(probs=8), Regions()),
            "'transformer_blocks.0.attn1' has probabilities with a range for each row",
        ),
    ],
)
def test_what_makes_no_sense_is_named(stages, says):
    with pytest.raises(BadRecipe, match=says):
        after(*stages)
