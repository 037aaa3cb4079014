"""Wider formats for chosen layers, always or at times."""

import jobs
import pytest
import torch
import torch.nn.functional as F

import dither
from dither.errors import BadRecipe
from dither.nn import ViewedLinear
from dither.numerics import decode
from dither.recipes import get, override, recipe_from, recipe_to
from dither.spec import Act, Codebook, Int, LinearSpec, Nested, Rotation, Timed, View, Views
from dither.stages import Assign, Rtn, Widen

PLAIN = Assign(weight=Int(4, False), act=Act(Int(4, False)), adaln=Int(4, False))
BLOCK = "transformer_blocks.{}."
FC1 = BLOCK.format(0) + "ff.net.0.proj"
ADALN = BLOCK.format(1) + "norm1.linear"


def specs(*stages) -> dict[str, LinearSpec]:
    return jobs.run((PLAIN, *stages), jobs.pipeline().transformer).promised


def linear(weight: int, act: int | None = 4) -> LinearSpec:
    return LinearSpec(Int(weight, False), None if act is None else Act(Int(act, False)))


def test_layers_are_found_by_name_and_keep_their_grids():
    found, plain = specs(Widen(layers=r"\.ff\.", weight=8, act=6)), specs()
    for name, spec in found.items():
        assert spec == (linear(8, 6) if ".ff." in name else plain[name])


def test_blocks_count_from_both_ends_and_modulation_has_no_activation_to_widen():
    found, plain = specs(Widen(blocks=(-1,), weight=6, act=8)), specs()
    for name, spec in found.items():
        inside = name.startswith(BLOCK.format(1))
        assert spec == ((linear(6, None) if name == ADALN else linear(6, 8)) if inside else plain[name])
    assert specs(Widen(blocks=(1,), weight=6, act=8)) == found


def test_both_filters_must_hold():
    found, plain = specs(Widen(layers="to_q", blocks=(0,), weight=8)), specs()
    assert [name for name in found if found[name] != plain[name]] == [BLOCK.format(0) + "attn1.to_q"]


def test_layers_in_full_precision_stay_so():
    assert set(specs(Widen(weight=8))) == set(specs())


@pytest.mark.parametrize("order", [1, -1])
def test_the_widest_of_several_wins_and_nothing_is_narrowed(order):
    stages = (Widen(weight=6, act=2), Widen(layers="to_q", weight=5, act=8))[::order]
    found = specs(*stages)
    assert found[BLOCK.format(0) + "attn1.to_q"] == linear(6, 8)
    assert found[FC1] == linear(6, 4)


@pytest.mark.parametrize("order", [1, -1])
def test_at_some_times_the_weight_is_stored_once_at_its_widest(order):
    stages = (Widen(ranges=4, at=(3,), weight=8), Widen(ranges=4, at=(0, 3), act=6))[::order]
    job = jobs.run((PLAIN, *stages), jobs.pipeline().transformer)
    assert job.time_edges == (0.25, 0.5, 0.75)
    spec = job.promised[FC1]
    assert isinstance(spec, Views)
    assert spec.base == linear(8, 6)
    ran = [spec.specs[i] for i in spec.select]
    assert [(r.weight.bits, r.act.grid.bits) for r in ran] == [(4, 6), (4, 4), (4, 4), (8, 6)]
    assert job.notes[FC1] == {"widths": {"weight": [4, 4, 4, 8], "act": [6, 4, 4, 6]}}
    assert job.notes[ADALN] == {"widths": {"weight": [4, 4, 4, 8], "act": [None] * 4}}


@pytest.mark.parametrize("order", [1, -1])
def test_always_and_at_times_add_up(order):
    """The first release's plan: feed-forward layers at 8 bits, and all others only in the noisiest quarter."""
    stages = (Widen(ranges=4, at=(3,), weight=8), Widen(layers="ff", weight=8))[::order]
    found = specs(*stages)
    assert found[FC1] == linear(8)  # nothing changes over time any more
    wide, narrow = View(8, Act(Int(4, False))), View(4, Act(Int(4, False)))
    assert found[BLOCK.format(0) + "attn1.to_q"] == Views(linear(8), (narrow, wide), (0, 0, 0, 1))


@pytest.mark.parametrize("at", [(), (0, 1), (1, 0, 1)])
def test_at_all_times_is_always(at):
    job = jobs.run((PLAIN, Widen(ranges=2, at=at, weight=8)), jobs.pipeline().transformer)
    assert job.time_edges == ()
    assert job.promised[FC1] == linear(8)


def test_ranges_follow_a_clock_that_is_cut_finer():
    finer = Assign(weight=Int(4), time_groups=8)
    job = jobs.run((finer, Widen(ranges=4, at=(1,), weight=8)), jobs.pipeline().transformer)
    assert job.promised[FC1].select == (0, 0, 1, 1, 0, 0, 0, 0)


def test_ranges_that_cross_another_stages_are_an_error():
    with pytest.raises(BadRecipe, match=r"widen\.ranges 3: 0\.333333 is not an edge of the time groups \[0\.25"):
        specs(Widen(ranges=4, at=(0,), weight=8), Widen(ranges=3, at=(0,), weight=8))


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (Widen(), "give widen.weight or widen.act"),
        (Widen(weight=9), "widen.weight 9: the width must be 1 to 8"),
        (Widen(act=0), "widen.act 0"),
        (Widen(weight=8, ranges=0), "widen.ranges 0"),
        (Widen(weight=8, ranges=4, at=(4,)), r"widen\.at 4: there are 4 ranges, 0 \(the least noise\) to 3"),
        (Widen(weight=8, ranges=4, at=(-1,)), "widen.at -1"),
        (Widen(weight=8, blocks=(2,)), "widen.blocks 2: the model has 2 blocks, 0 to 1"),
        (Widen(weight=8, blocks=(0, -3)), "widen.blocks -3"),
        (Widen(weight=8, layers="(ff"), r"widen\.layers '\(ff' is not a regular expression"),
        (Widen(weight=8, layers="nothing"), "widen.layers 'nothing' is found in no layer's name"),
        (Widen(weight=8, layers="proj_out"), "widen.layers 'proj_out' finds no layer"),
        (Widen(act=8, layers="norm1", blocks=(0,)), r"widen\.layers 'norm1' with widen\.blocks \[0\] finds no layer"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_named(stage, words):
    with pytest.raises(BadRecipe, match=words) as e:
        specs(stage)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("assign", "stage", "words"),
    [
        (Assign(weight=Codebook(2, 16)), Widen(weight=8), "widen.weight: layer 'transformer_blocks.0.* codebook 16x2"),
        (Assign(weight=Codebook(2, 16), act=Act(Int(4))), Widen(ranges=2, at=(0,), act=8), "has no integer weights"),
        (Assign(weight=Int(4), act=Act(Int(8), static=True)), Widen(ranges=2, at=(0,), weight=8), "static activations"),
    ],
)
def test_formats_that_cannot_change_are_named(assign, stage, words):
    with pytest.raises(BadRecipe, match=words):
        jobs.run((assign, stage), jobs.pipeline().transformer)


def test_banks_by_time_are_not_widened():
    job = jobs.job(jobs.pipeline().transformer)
    PLAIN.run(job)
    job.set_clock((0.5,), 1)
    job.vary(FC1, Timed((linear(4), linear(8)), (0, 1)))
    job.specs[FC1] = linear(4)
    with pytest.raises(BadRecipe, match="bank of weights"):
        Widen(layers="ff", weight=8).run(job)


def test_static_activations_may_be_widened_always():
    found = jobs.run(
        (Assign(weight=Int(4), act=Act(Int(8), static=True)), Widen(weight=8)), jobs.pipeline().transformer
    )
    assert found.promised[FC1] == LinearSpec(Int(8), Act(Int(8), static=True))


def test_each_time_runs_what_was_promised():
    """In the noisier half all 8 bits of the codes, and in the other half their high 4."""
    model = jobs.run(
        (Assign(weight=Int(4)), Widen(ranges=2, at=(1,), weight=8), Rtn()), jobs.pipeline().transformer
    ).model
    layer = model.get_submodule(FC1)
    assert isinstance(layer, ViewedLinear)
    shape = (layer.base.out_features, layer.base.in_features)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    layer.clock.tell(torch.tensor([0, 1]))
    got = layer(x)
    for row, fmt in ((0, Nested(Int(8), 4)), (1, Int(8))):
        want = F.linear(x[row], decode(layer.base.stored(), fmt, shape), layer.bias)
        torch.testing.assert_close(got[row], want, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_it_reloads_to_the_same_bits(tmp_path):
    data = recipe_to(override(get("vidit-q", "w4a8"), ["rotate.block=8"]))
    at = next(i for i, s in enumerate(data["stages"]) if s["stage"] == "rtn")
    data["stages"].insert(at, {"stage": "widen", "ranges": 4, "at": [3], "weight": 8})
    how = dither.Calibration(samples=10, steps=4, calls=4)
    model = dither.quantize(jobs.pipeline(), recipe_from(data), calibration=how).transformer
    layer = model.get_submodule(FC1)
    assert layer.base.spec.rotation == Rotation(8)
    want = jobs.outputs(model)
    dither.save(model, tmp_path / "saved")
    again = dither.load(tmp_path / "saved")
    assert jobs.same_tensors(again, model)
    assert torch.equal(jobs.outputs(again), want)
