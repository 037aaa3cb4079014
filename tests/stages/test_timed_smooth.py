"""Scales and weight banks by range of the noise level: exactness, formula, bytes, the whole way to disk, bad fields."""

import json
import re

import jobs
import pytest
import torch

import dither
from dither.checkpoint import header_of
from dither.errors import BadRecipe
from dither.inspection import describe as inspect
from dither.models import adapter_for
from dither.nn import QLinear, TimedLinear
from dither.numerics import decode, encode, random_signs, rotate
from dither.recipes import recipe_from, recipe_to
from dither.spec import Act, Bits, Int, LinearSpec, LowRank, Recipe, Rotation, Timed
from dither.stages import Assign, Clip, Rtn, Smooth, describe
from dither.stages.balance import column_peaks, smoothing_scale
from dither.stages.timed_smooth import TimedSmooth

FIRST = "transformer_blocks.0."
Q = FIRST + "attn1.to_q"
W8 = Assign(weight=Int(8), adaln=Int(8))
W4A8 = Assign(weight=Int(4), act=Act(Int(8)), adaln=Int(8))
CALIBRATION = dither.Calibration(samples=10, steps=4, calls=8)


def banks(job, layer: str) -> list[QLinear]:
    module = job.model.get_submodule(layer)
    assert isinstance(module, TimedLinear)
    return list(module.variants)


def test_each_bank_is_the_scaled_weight_rounded():
    model, dense = jobs.pipeline().transformer, jobs.pipeline().transformer
    peaks, job = {}, jobs.run((W4A8,), model)
    job.set_clock((0.6,), 1)
    for late in (False, True):
        inputs = [c for c in jobs.calls() if bool(job.adapter.noise_level(model, c)[0] >= 0.6) is late]
        seen: list[torch.Tensor] = []
        handle = model.get_submodule(Q).register_forward_pre_hook(lambda m, a, seen=seen: seen.append(a[0]))
        with torch.no_grad():
            for c in inputs:
                model(*c.args, **c.kwargs)
        handle.remove()
        peaks[late] = torch.cat([x.flatten(0, 1) for x in seen]).abs().amax(0)
    with torch.no_grad():
        TimedSmooth(edges=(0.6,), alpha=(0.25, 0.75)).run(job)
    w = column_peaks([dense.get_submodule(FIRST + f"attn1.to_{x}").weight for x in "qkv"])
    for bank, late, alpha in zip(banks(job, Q), (False, True), (0.25, 0.75), strict=True):
        s = smoothing_scale(peaks[late], w, alpha)
        torch.testing.assert_close(bank.get_buffer("pre_scale"), (1 / s)[None])
        want = decode(encode(dense.get_submodule(Q).weight.detach() * s, Int(4)), Int(4), (16, 16))
        torch.testing.assert_close(decode(bank.stored(), Int(4), (16, 16)), want)


def test_vidit_alphas_count_from_the_other_end():
    models = [jobs.pipeline().transformer for _ in range(2)]
    jobs.run((W4A8, TimedSmooth(alpha=(0.25, 0.75)), Rtn()), models[0])
    jobs.run((W4A8, TimedSmooth(vidit_alpha=(0.75, 0.25)), Rtn()), models[1])
    assert jobs.same_tensors(*models)


@pytest.mark.parametrize("online", [False, True], ids=["folded", "online"])
@pytest.mark.parametrize("rotated", [False, True], ids=["plain", "rotated"])
@pytest.mark.parametrize("timed", [TimedSmooth(alpha=(0.2, 0.8)), TimedSmooth(search=(0.2, 0.8), rows=32)])
def test_an_earlier_scale_and_rotation_stay_in_what_is_computed(online, rotated, timed):
    """At 8 bits and full-precision inputs every bank is the layer that was there, but for rounding."""
    model = jobs.pipeline().transformer
    want = {n: m.weight.detach().clone() for n, m in model.named_modules() if n.endswith("ff.net.2")}
    job = jobs.run((Smooth(online=True),) if online else (), model)
    if rotated:
        for name in want:
            signs = random_signs(job.dense(name).shape[1], 1)
            job.dense(name).copy_(rotate(job.dense(name), signs, 16))
            job.online(name, rotation=(Rotation(16, 1), signs))
    with torch.no_grad():
        for stage in (W8, timed):
            stage.run(job)
    for name, weight in want.items():
        for bank in banks(job, name):
            assert (bank.spec.rotation is not None) is rotated
            assert (bank.dequantized() - weight).norm() < 0.01 * weight.norm()


def quantize(*stages, bits: str = "w4a8"):
    recipe = Recipe("test", "", Bits.parse(bits), describe(stages))
    return dither.quantize(jobs.pipeline(), recipe, calibration=CALIBRATION).transformer


@pytest.mark.parametrize(
    "stage",
    [
        TimedSmooth(),
        TimedSmooth(edges=(0.3, 0.7), search=(0.25, 0.75), rows=64),
        TimedSmooth(data_free=True, calibrate=False, search=(0.5,), rows=64),
        TimedSmooth(only=r"attn1\.to_q"),
    ],
    ids=["plain", "three ranges", "data-free", "some layers"],
)
def test_it_goes_to_disk_and_comes_back_bit_for_bit(stage, tmp_path):
    recipe = Recipe("test", "", Bits(4, 8), describe((W4A8, stage, Rtn())))
    assert recipe_from(json.loads(json.dumps(recipe_to(recipe)))) == recipe
    model, again = quantize(W4A8, stage, Rtn()), quantize(W4A8, stage, Rtn())
    assert jobs.same_tensors(model, again)
    plan = header_of(model).plan
    assert plan.time_edges == stage.edges
    assert isinstance(plan.layers[Q], Timed)
    dither.save(model, tmp_path / "saved")
    loaded = dither.load(tmp_path / "saved")
    assert torch.equal(jobs.outputs(loaded), jobs.outputs(model))


def test_only_the_chosen_layers_pay_and_the_bytes_are_counted():
    def bits(model) -> dict[str, float]:
        return {r["name"]: r["bits_per_weight"] for r in inspect(model, adapter_for(model))}

    one = bits(quantize(W4A8, Rtn()))
    two = bits(quantize(W4A8, TimedSmooth(only=r"attn1\.to_q"), Rtn()))
    assert {n for n in one if one[n] != two[n]} == {f"transformer_blocks.{i}.attn1.to_q" for i in range(2)}
    bias = 16 * 32 / 256  # bits of the bias per weight of a 16 x 16 layer, shared by the banks
    scale = 16 * 32 / 256  # of the online scale
    assert two[Q] - bias == pytest.approx(2 * (one[Q] - bias + scale))


def test_banks_of_their_own_are_better_than_one_scale_for_all_times():
    """At 4 bits the picture is nearer to full precision with a scale for each range."""
    want = jobs.outputs(jobs.pipeline().transformer)
    a4 = Assign(weight=Int(8), act=Act(Int(4)), adaln=None)
    search = (0.2, 0.4, 0.6, 0.8, 1.0)
    plain, one, two = (
        float((jobs.outputs(m) - want).square().mean())
        for m in (
            quantize(a4, Rtn()),
            quantize(Smooth(search=search, weight=Int(8), act=Act(Int(4)), online=True), a4, Rtn()),
            quantize(a4, TimedSmooth(search=search), Rtn()),
        )
    )
    assert two < plain, (plain, one, two)
    assert two < 1.1 * one, (plain, one, two)


def test_data_free_alone_leaves_other_sites_one_bank():
    plan = header_of(quantize(W4A8, TimedSmooth(data_free=True, calibrate=False), Rtn())).plan
    timed = {
        name.partition(".0.")[2] for name, spec in plan.layers.items() if isinstance(spec, Timed) and ".0." in name
    }
    assert timed == {"attn1.to_q", "attn1.to_k", "attn1.to_v", "ff.net.0.proj"} | {"proj"} & timed


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (TimedSmooth(edges=()), "timed-smooth.edges []"),
        (TimedSmooth(edges=(0.0,)), "timed-smooth.edges [0.0]"),
        (TimedSmooth(edges=(0.5, 0.5)), "timed-smooth.edges [0.5, 0.5]"),
        (TimedSmooth(edges=(float("nan"),)), "timed-smooth.edges [nan]"),
        (TimedSmooth(alpha=(0.1, 0.2, 0.3)), "timed-smooth.alpha: 3 values for 2 ranges"),
        (TimedSmooth(vidit_alpha=(0.1, 0.2, 0.3)), "timed-smooth.vidit_alpha: 3 values for 2 ranges"),
        (TimedSmooth(alpha=(1.5,)), "timed-smooth.alpha 1.5"),
        (TimedSmooth(vidit_alpha=(0.5, -0.5)), "timed-smooth.vidit_alpha -0.5"),
        (TimedSmooth(alpha=(0.5,), vidit_alpha=(0.5,)), "give one of the two"),
        (TimedSmooth(search=(2.0,)), "timed-smooth.search 2.0"),
        (TimedSmooth(rows=0), "timed-smooth.rows 0"),
        (TimedSmooth(levels=0), "timed-smooth.levels 0"),
        (TimedSmooth(calibrate=False), "timed-smooth.calibrate false"),
        (TimedSmooth(only="("), "timed-smooth.only '('"),
        (TimedSmooth(only="nothing"), "timed-smooth.only 'nothing' is found in no layer"),
    ],
)
def test_bad_fields_are_refused_before_anything_changes(stage, message):
    model = jobs.pipeline().transformer
    with pytest.raises(BadRecipe, match=re.escape(message)):
        jobs.run((W4A8, stage), model)
    assert jobs.same_tensors(model, jobs.pipeline().transformer)


def test_an_interrupted_job_takes_its_banks_from_the_store():
    class Kept(dict):
        put = dict.__setitem__

    first, again = jobs.job(jobs.pipeline().transformer), jobs.job(jobs.pipeline(seed=1).transformer)
    first.store = again.store = Kept()
    with torch.no_grad():
        for job in (first, again):
            W4A8.run(job)
            TimedSmooth().run(job)
    for bank, same in zip(banks(first, Q), banks(again, Q), strict=True):  # another model, yet the stored banks
        assert all(torch.equal(v, same.get_buffer(k)) for k, v in bank.named_buffers())


def test_it_needs_specs():
    with pytest.raises(BadRecipe, match="finds no layer that is to be quantized"):
        jobs.run((TimedSmooth(),), jobs.pipeline().transformer)


def test_what_banks_cannot_have_is_refused_by_layer():
    static = Assign(weight=Int(4), act=Act(Int(8), static=True))
    with pytest.raises(BadRecipe, match=f"layer '{re.escape(Q)}' has static activations"):
        jobs.run((static, TimedSmooth()), jobs.pipeline().transformer)
    with pytest.raises(BadRecipe, match="put 'timed-smooth' before 'clip'"):
        jobs.run((W4A8, Clip(outputs=False, steps=2), TimedSmooth()), jobs.pipeline().transformer)
    job = jobs.run((W4A8,), jobs.pipeline().transformer)
    job.specs[Q] = LinearSpec(Int(4), lowrank=LowRank(2))
    with pytest.raises(BadRecipe, match="low-rank branch"):
        TimedSmooth().run(job)


def test_the_choice_of_each_range_is_noted():
    job = jobs.run((W4A8, TimedSmooth(search=(0.25, 0.75), rows=64)), jobs.pipeline().transformer)
    assert set(job.notes) == set(job.timed)
    assert all(len(n["timed_smooth_alpha"]) == 2 for n in job.notes.values())
    assert {a for n in job.notes.values() for a in n["timed_smooth_alpha"]} <= {None, 0.25, 0.75}


def test_edges_must_be_among_those_of_other_stages():
    grouped = Assign(weight=Int(4), act=Act(Int(8)), time_groups=4)
    job = jobs.run((grouped, TimedSmooth(edges=(0.5,))), jobs.pipeline().transformer)
    assert job.timed[Q].select == (0, 0, 1, 1)
    with pytest.raises(BadRecipe, match=r"0\.3 is not an edge of the time groups \[0\.25, 0\.5, 0\.75\]"):
        jobs.run((grouped, TimedSmooth(edges=(0.3, 0.5))), jobs.pipeline().transformer)
