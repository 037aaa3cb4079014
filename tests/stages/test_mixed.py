"""Mixed precision as a stage: what it promises, budgets, clocks, bad fields, interruption, and the whole way to disk."""

import json

import jobs
import pytest
import studies
import torch

import dither
from dither.checkpoint import header_of
from dither.errors import BadRecipe, BadValue
from dither.nn import QLinear, TimedLinear, ViewedLinear
from dither.spec import Act, Bits, Codebook, Int, LinearSpec, Recipe, Timed, Views
from dither.stages import Assign, Clip, Mixed, Program, Ranges, Rtn, TimedSmooth, Widen, describe, stages_of
from dither.store import open_store

W4A8 = Assign(weight=Int(4, False), act=Act(Int(8)), adaln=Int(4))
QUICK = dither.Calibration(samples=4, steps=2)
ZOO = {"content": "zoo:fashion", "visual": "zoo:fashion", "samples": 2, "steps": 4, "ranges": 2}


def ran(*stages, store=None):
    pipe = jobs.pipeline()
    job, found = studies.job(pipe, store=store)
    with torch.no_grad():
        for stage in stages:
            stage.run(job)
    return job, found


def by_time(job, name: str, ranges: int) -> tuple[list[int], list[int | None]]:
    """Weight and input widths from low to high noise, as the job will make them."""
    spec = job.promised[name]
    if isinstance(spec, Views):
        runs = [spec.specs[i] for i in spec.select]
    elif isinstance(spec, Timed):
        runs = [spec.variants[i] for i in spec.select]
    else:
        runs = [spec] * ranges
    return [r.weight.bits for r in runs], [None if r.act is None else r.act.grid.bits for r in runs]


def average(job, side: int, ranges: int) -> float:
    spent = total = 0
    for name in job.promised:
        widths = by_time(job, name, ranges)[side]
        if None not in widths:
            size = job.dense(name).numel()
            spent, total = spent + size * sum(widths) / ranges, total + size
    return spent / total


@pytest.fixture(scope="module")
def mixed():
    return ran(W4A8, Mixed(weight=5.0, act=6.0, ranges=2))


def test_the_budget_is_the_mean_over_time_of_what_runs(mixed):
    job, _ = mixed
    for side, asked in ((0, 5.0), (1, 6.0)):
        assert asked - 0.25 < average(job, side, 2) <= asked
    assert job.time_edges == (0.5,)
    assert any(isinstance(spec, Views) for spec in job.promised.values())


def test_formats_stay_but_for_their_widths_and_modulation_stays_weight_only(mixed):
    job, _ = mixed
    for name, spec in job.specs.items():
        assert isinstance(spec.weight, Int)
        adaln = "norm1.linear" in name
        assert (spec.weight.symmetric, spec.act is None) == (adaln, adaln)
        assert set(by_time(job, name, 2)[0]) <= {4, 6, 8}


def test_only_the_narrower_widths_are_drawn_and_full_precision_once(mixed):
    _, (study,) = mixed
    assert study.begun == 1
    assert study.drawn == 6 * 2 * 2 + 4 * 2 * 2  # units x ranges x widths: weights of all, inputs of all but modulation
    assert study.roles == ("content", "visual")


def test_notes_say_widths_and_sensitivity_from_low_to_high_noise(mixed):
    job, _ = mixed
    json.dumps(job.notes)
    for name in job.specs:
        facts = job.notes[name]
        weights, acts = by_time(job, name, 2)
        if len(set(zip(weights, acts, strict=True))) == 1:
            assert len(set(facts["widths"]["weight"])) == 1
        assert facts["widths"] == {"weight": weights, "act": acts}
        found = facts["sensitivity"]
        assert found["role"] == ("content" if "norm1" in name else "visual")
        assert all(len(values) == 2 for key in ("w4", "w6") for values in found[key].values())
        assert ("a4" in found) == ("norm1" not in name)
    said = job.notes["mixed"]
    assert said["judges"] == {"content": "largest difference", "visual": "largest difference"}
    assert said["weight"]["average"] == pytest.approx(average(job, 0, 2))


def test_stored_gives_a_weight_one_width_at_all_times():
    job, _ = ran(W4A8, Mixed(weight=5.0, ranges=2, stored=True))
    assert not job.varied
    assert job.time_edges == ()
    assert average(job, 0, 1) <= 5.0
    assert {spec.weight.bits for spec in job.specs.values()} > {4}


def test_banks_instead_of_nested_codes():
    job, _ = ran(W4A8, Mixed(weight=5.0, ranges=2, nested=False), Rtn())
    plan = job.finish()
    assert not any(isinstance(spec, Views) for spec in plan.layers.values())
    banks = [name for name, spec in plan.layers.items() if isinstance(spec, Timed)]
    assert banks
    assert all(isinstance(job.model.get_submodule(name), TimedLinear) for name in banks)
    assert torch.isfinite(jobs.outputs(job.model)).all()


def test_modulation_never_gets_fewer_bits_than_it_was_given():
    job, _ = ran(Assign(weight=Int(2), adaln=Int(5)), Mixed(weight=4.0, weight_widths=(2, 4, 8), ranges=2))
    modulation = {w for name in job.promised if "norm1" in name for w in by_time(job, name, 2)[0]}
    assert modulation <= {5, 8}
    with pytest.raises(BadRecipe, match=r"mixed.weight 2.9: the smallest average .* is 3 bits"):
        ran(Assign(weight=Int(2), adaln=Int(5)), Mixed(weight=2.9, weight_widths=(2, 4, 8)))


def test_what_stays_in_full_precision_is_not_counted():
    job, study = ran(Assign(weight=Int(4), exclude="norm1|ff"), Mixed(weight=6.0, weight_widths=(4, 8), ranges=2))
    assert set(job.promised) == {
        f"transformer_blocks.{i}.attn1.to_{x}" for i in (0, 1) for x in ("q", "k", "v", "out.0")
    }
    assert average(job, 0, 2) == pytest.approx(6.0)
    assert study[0].roles == ("visual",)


def test_nothing_asked_is_nothing_done():
    job, found = ran(W4A8, Mixed())
    assert (found, job.varied, job.notes) == ([], {}, {})


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (Mixed(weight=3.5), r"mixed.weight 3.5: the smallest average .* is 4 bits"),
        (Mixed(act=3.0), r"mixed.act 3: the smallest average .* is 4 bits"),
        (Mixed(weight=5, weight_widths=()), r"mixed.weight_widths \[\]"),
        (Mixed(weight=5, weight_widths=(8, 4)), r"mixed.weight_widths \[8, 4\]: must ascend"),
        (Mixed(act=5, act_widths=(4, 16)), r"mixed.act_widths \[4, 16\]"),
        (Mixed(weight=5, ranges=0), "mixed.ranges 0"),
        (Mixed(weight=5, samples=0), "mixed.samples 0"),
        (Mixed(weight=5, steps=0), "mixed.steps 0"),
        (Mixed(weight=5, temporal="clip"), "mixed.temporal 'clip': no layer that is mixed has this role"),
        (Program(weight=3.5), r"integer-program.weight 3.5: the smallest average .* is 4 bits"),
        (Program(weight=5, seconds=0.0), "integer-program.seconds 0: must be positive"),
        (Program(weight=5, samples=0), "integer-program.samples 0"),
    ],
)
def test_bad_fields_are_named_before_anything_is_drawn(stage, words):
    with pytest.raises(BadRecipe, match=words):
        ran(W4A8, stage)
    with pytest.raises(BadRecipe, match=words):  # and by the plan that is made before anything is changed
        dither.quantize(jobs.pipeline(), Recipe("test", "", Bits(4, 8), describe((W4A8, stage, Rtn()))))


def test_time_groups_of_another_stage_must_be_made_of_the_ranges():
    static = Assign(weight=Int(4), act=Act(Int(8, False), static=True), adaln=Int(4), time_groups=3)
    with pytest.raises(BadRecipe, match=r"mixed.ranges 4: 0.25 is not an edge of the time groups \[0.3333, 0.6667\]"):
        ran(static, Mixed(weight=5.0))
    with pytest.raises(BadRecipe, match="static activations, and only dynamic ones"):
        ran(Assign(weight=Int(4), act=Act(Int(8, False), static=True), adaln=Int(4)), Mixed(weight=5.0))


def test_finer_time_groups_are_kept():
    pipe = jobs.pipeline()
    job, _ = studies.job(pipe)
    job.set_clock((0.25, 0.5, 0.75), 2)
    with torch.no_grad():
        for stage in (W4A8, Mixed(weight=5.0, ranges=2)):
            stage.run(job)
    assert job.time_edges == (0.25, 0.5, 0.75)
    select = next(iter(job.varied.values())).select
    assert len(select) == 8
    assert len(set(select[:4])) == len(set(select[4:])) == 1


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(BadRecipe, match="codebook 16x2 weights, and only integers"):
        ran(Assign(weight=Codebook(2, 16)), Mixed(weight=5.0))
    with pytest.raises(BadRecipe, match="no layer has quantized weights to mix"):
        ran(Mixed(weight=5.0))
    with pytest.raises(BadRecipe, match="changes its width over time already"):
        ran(W4A8, Widen(ranges=2, at=(1,), weight=8), Mixed(weight=5.0, ranges=2))
    for stage in (Mixed(weight=5.0), Program(weight=5.0)):
        with pytest.raises(
            BadRecipe, match=rf"'timed-smooth' gives .* and '{stage.tag}' widths by time: leave one out"
        ):
            stages_of(Recipe("test", "", Bits(4, 8), describe((W4A8, stage, TimedSmooth(), Rtn()))))
    job, _ = ran(W4A8, Widen(ranges=2, at=(1,), weight=8))
    name = next(iter(job.varied))
    with pytest.raises(BadRecipe, match="cannot have other banks by time as well"):
        job.commit_timed(name, Timed((LinearSpec(Int(4)),) * 2, (0, 1)), dict)


def test_without_a_pipeline_it_says_what_is_missing():
    recipe = Recipe("test", "", Bits(4, 8), describe((W4A8, Mixed(weight=5.0), Rtn())))
    with pytest.raises(BadValue, match=r"draws pictures .*: give it a pipeline"):
        dither.quantize(jobs.pipeline().transformer, recipe)


def test_what_was_promised_over_time_must_be_made():
    job, _ = ran(W4A8, Mixed(weight=5.0, ranges=2))
    with pytest.raises(BadRecipe, match="is to have nested weights, but no stage"):
        job.finish()


def test_a_later_promise_replaces_what_varies():
    job, _ = ran(W4A8, Mixed(weight=5.0, ranges=2))
    name = next(iter(job.varied))
    job.promise(name, LinearSpec(Int(8)))
    assert job.promised[name] == LinearSpec(Int(8))


def test_selection_must_fit_the_clock():
    job, _ = ran(W4A8)
    name = next(iter(job.specs))
    with pytest.raises(BadRecipe, match=f"layer '{name}' selects by 3 time groups, not by 1"):
        job.vary(name, Timed((LinearSpec(Int(4)),), (0, 0, 0)))


@pytest.mark.parametrize("nested", [True, False])
def test_the_whole_way_to_disk_interrupted_in_the_middle(nested, tmp_path):
    how = Mixed(weight=5.0, act=6.0, nested=nested, **ZOO)
    assign = Assign(weight=Int(4), act=Act(Int(8)), adaln=Int(4))
    recipe = Recipe("test", "", Bits(4, 8), describe((assign, how, Clip(steps=3, outputs=False), Rtn(), Ranges())))

    def quantized(store, progress=None):
        return dither.quantize(jobs.pipeline(), recipe, calibration=QUICK, store=store, progress=progress).transformer

    def stop(what: str, at: int):
        def progress(now: str, done: int, total: int) -> None:
            if (now, done) == (what, at):
                raise KeyboardInterrupt

        return progress

    whole = quantized(None)
    for what, at in (("measuring sensitivity", 9), ("rounding weights", 3)):
        store = open_store(tmp_path / "out", {}, resume=True)
        with pytest.raises(KeyboardInterrupt):
            quantized(store, stop(what, at))
    assert store.kept() == 3
    assert store.measured() == 40
    assert store.told() == "40 measurements and 3 finished layers"
    store = open_store(tmp_path / "out", {}, resume=True)
    model = quantized(store)
    assert store.reused == 3
    assert jobs.same_tensors(model, whole)
    plan = header_of(model).plan
    assert {type(model.get_submodule(n)) for n in plan.layers} <= {
        QLinear,
        ViewedLinear if nested else TimedLinear,
        ViewedLinear,
    }
    dither.save(model, tmp_path / "saved")
    again = dither.load(tmp_path / "saved")
    assert header_of(again).plan == plan
    assert torch.equal(jobs.outputs(again), jobs.outputs(model))
