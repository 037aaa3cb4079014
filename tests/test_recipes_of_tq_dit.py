"""Recipes of TQ-DiT and of the methods that learn roundings: order, switches, formats, and models that reload."""

from dataclasses import replace

import jobs
import pytest
import torch

import dither
from dither.checkpoint import header_of
from dither.quantization import plan_ahead
from dither.recipes import get, override
from dither.spec import PER_TENSOR, Act, Bits, Int, Log2, TwoRegion
from dither.stages import AdaRound, Assign, FisherScales, Ranges, Regions, Smooth, TimeGroups, stages_of

DRAWN = dither.Calibration(samples=10, steps=4, calls=4)
QUICK = {
    "tq-dit": ("fisher-scales.steps=10", "fisher-scales.rows=64", "time-groups.groups=3"),
    "adaround": ("adaround.iterations=10", "adaround.batch=4"),
}
STATIC = (
    "tq-dit",
    "tq-dit-balanced",
    "tq-dit-released",
    "fisher-scales",
    "time-groups",
    "ptq4dit",
    "q-diffusion",
    "tcaq-dm",
)
FC2 = "transformer_blocks.0.ff.net.2"
ATTENTION = "transformer_blocks.0.attn1"


def stage_of(recipe, kind):
    return next((s for s in stages_of(recipe) if isinstance(s, kind)), None)


def quick(name: str, bits: str = "w6a6", *settings: str):
    """A tiny model after a recipe of which nothing is left out, but little is searched and learned."""
    recipe = get(name, bits)
    tags = {tag for tag, _ in recipe.stages}
    given = [s for group in QUICK.values() for s in group if s.partition(".")[0] in tags]
    pipe = jobs.pipeline()
    dither.quantize(pipe, override(recipe, [*given, *settings]), calibration=DRAWN)
    return pipe


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("tq-dit", "assign attention regions time-groups fisher-scales rtn ranges"),
        ("tq-dit-balanced", "smooth assign attention regions time-groups fisher-scales rtn ranges"),
        ("tq-dit-released", "assign attention regions time-groups fisher-scales rtn ranges"),
        ("fisher-scales", "assign fisher-scales rtn ranges"),
        ("time-groups", "assign time-groups rtn ranges"),
        ("adaround", "assign adaround rtn ranges"),
        ("ptq4dit", "smooth assign attention adaround rtn ranges"),
        ("q-diffusion", "assign split attention clip adaround rtn ranges"),
        ("tcaq-dm", "smooth assign attention log2 adaround rtn ranges"),
    ],
)
def test_the_order_is_the_papers(name, order):
    for bits in ("w8a8", "w6a6", "w4a8"):
        assert [tag for tag, _ in get(name, bits).stages] == [*order.split(), "share"]


@pytest.mark.parametrize("name", STATIC)
def test_ranges_are_static_and_weights_per_channel(name):
    assign = stage_of(get(name, "w4a6"), Assign)
    assert assign.act.static
    assert assign.act.grid.bits == 6
    assert assign.weight.bits == assign.adaln.bits == 4
    assert assign.weight.group == (PER_TENSOR if name == "tq-dit-released" else 0)


def test_the_papers_settings_differ_where_they_are_said_to():
    ours, released = (get(name, "w6a6") for name in ("tq-dit", "tq-dit-released"))
    assert (stage_of(ours, Ranges).top, stage_of(released, Ranges).top) == (0.0, 1.0)
    assert stage_of(released, Assign).act.grid.symmetric
    assert stage_of(ours, TimeGroups) == stage_of(released, TimeGroups) == TimeGroups(10)
    assert stage_of(ours, Regions) == Regions()
    assert stage_of(ours, FisherScales) == FisherScales()
    assert stage_of(get("ptq4dit"), Smooth) == Smooth(alpha=0.5, aggregate="spearman")
    assert stage_of(get("tcaq-dm"), Smooth) == Smooth(alpha=1.0, aggregate="self-weighted")
    assert stage_of(get("ptq4dit"), AdaRound).act_after == 0
    assert stage_of(get("q-diffusion"), AdaRound).act_after > 0


def test_switched_off_components_leave_static_ranges_per_tensor():
    off = ["regions=off", "time-groups=off", "fisher-scales=off", "attention.channels=false"]
    job = plan_ahead(jobs.pipeline(), override(get("tq-dit", "w6a6"), off))
    assert job.specs[FC2].act == Act(Int(6, False), static=True)
    side = Act(Int(6, group=8), static=True)
    assert job.attention[ATTENTION].parts == {"q": side, "k": side, "v": side, "probs": Act(Int(6, False), static=True)}


def test_v_has_a_range_for_each_channel_where_nothing_balances_its_channels():
    """The release has one for each head."""
    for name, group in (("tq-dit", 1), ("tq-dit-balanced", 8), ("tq-dit-released", 8)):
        assert plan_ahead(jobs.pipeline(), get(name, "w6a6")).attention[ATTENTION].v.grid.group == group


def test_tq_dit_has_regions_and_rows_by_time(tmp_path):
    pipe = quick("tq-dit")
    plan = header_of(pipe.transformer).plan
    assert len(plan.time_edges) == 2
    assert plan.layers[FC2].act == Act(TwoRegion(6, signed=True), static=True, rows=3)
    assert plan.attention[ATTENTION].probs == Act(TwoRegion(6), static=True, rows=3)
    assert {s.act.rows for s in plan.layers.values() if s.act is not None} == {3}


@pytest.mark.parametrize("name", ["tq-dit", "tq-dit-balanced", "ptq4dit", "q-diffusion", "tcaq-dm", "adaround"])
def test_one_folder_reloads_to_the_same_bits_and_serves_any_number_of_steps(name, tmp_path):
    """No calibration file, no full-precision model."""
    pipe = quick(name, "w4a8")
    want = [jobs.sample(pipe, steps=steps) for steps in (3, 7)]
    dither.save(pipe, tmp_path / "saved")
    again = dither.load(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    for steps, pictures in zip((3, 7), want, strict=True):
        assert torch.equal(jobs.sample(again, steps=steps), pictures)
        assert torch.isfinite(pictures).all()


@pytest.mark.parametrize("name", ["ptq4dit", "q-diffusion", "tcaq-dm"])
def test_products_of_attention_have_eight_bits_whatever_the_inputs_have(name):
    job = plan_ahead(jobs.pipeline(), get(name, "w4a6"))
    spec = job.attention[ATTENTION]
    assert {act.grid.bits for act in spec.parts.values()} == {8}
    assert all(act.static for act in spec.parts.values())


def test_the_softmax_of_tcaq_dm_is_uniform_or_of_powers_of_two_as_noted():
    pipe = quick("tcaq-dm", "w4a8")
    header = header_of(pipe.transformer)
    for name, spec in header.plan.attention.items():
        noted = header.recipe["notes"][name]["log2"]
        assert isinstance(spec.probs.grid, Log2 if noted["ratio"] > 0 else Int)


@pytest.mark.parametrize("name", ["tq-dit", "ptq4dit", "q-diffusion"])
def test_weight_only_widths_leave_activations_alone(name):
    job = plan_ahead(jobs.pipeline(), get(name, "w4"))
    assert not job.attention
    assert all(spec.act is None for spec in job.specs.values())


def test_bricks_alone_are_rtn_without_them():
    for name in ("fisher-scales", "time-groups"):
        alone = override(get(name, "w6a6"), [f"{name}=off"])
        assert [tag for tag, _ in alone.stages] == ["assign", "rtn", "ranges", "share"]
        plain = stage_of(get("rtn", "w6a6"), Assign)
        assert replace(stage_of(alone, Assign), act=plain.act) == plain
    assert Bits.parse("w4a8") == get("adaround").bits
