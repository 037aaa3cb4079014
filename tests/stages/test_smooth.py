"""Channel balancing: exact folding, online scales, dead channels, both alphas, no data, the search."""

import re
from dataclasses import replace

import jobs
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from dither.calibrate import AbsMax
from dither.errors import BadModel, BadRecipe
from dither.models import Call, adapter_for
from dither.models.generic import Generic
from dither.nn import QLinear
from dither.numerics import encode, random_signs
from dither.spec import Act, Bits, Int
from dither.stages import Assign, Job, Ranges, Rotate, Rtn, Smooth
from dither.stages.balance import Judge
from dither.stages.data_free import modulated_peaks
from dither.stages.smooth import absorb

FIRST = "transformer_blocks.0."


def factors(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)).mul(6).sub(3).exp()  # 1/20 to 20


def input_of(model: nn.Module, layer: str) -> torch.Tensor:
    """What a layer reads over all calls, (B, T, K)."""
    seen = []
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    jobs.outputs(model)
    handle.remove()
    return torch.cat(seen)


def folding_sites(model: nn.Module) -> list:
    return [s for s in adapter_for(model).sites(model) if s.fold is not None]


@pytest.mark.parametrize("index", range(6), ids=["qkv0", "out0", "fc0", "qkv1", "out1", "fc1"])
def test_absorbing_multiplies_the_site_and_nothing_else(index):
    model = jobs.pipeline().transformer
    site = folding_sites(model)[index]
    before = input_of(model, site.readers[0])
    c = factors(before.shape[-1])
    absorb(model, site.fold, c)
    torch.testing.assert_close(
        input_of(model, site.readers[0]), before * c, rtol=1e-4, atol=1e-4 * float(before.abs().max())
    )


@pytest.mark.parametrize("bias", [True, False])
def test_absorbing_and_compensating_keeps_the_function(bias):
    model = jobs.pipeline(attention_bias=bias).transformer
    want = jobs.outputs(model)
    for i, site in enumerate(folding_sites(model)):
        width = model.get_submodule(site.readers[0]).in_features
        c = factors(width, i)
        absorb(model, site.fold, c)
        for reader in site.readers:
            model.get_submodule(reader).weight.data /= c
    assert jobs.relative_error(jobs.outputs(model), want) < 1e-5


def test_smoothing_equalizes_the_channels():
    """alpha = 1 leaves activations whose channels all peak at 1."""
    model = jobs.pipeline().transformer
    before = input_of(model, FIRST + "attn1.to_q").abs().amax((0, 1))
    jobs.run((Smooth(alpha=1.0),), model)
    after = input_of(model, FIRST + "attn1.to_q").abs().amax((0, 1))
    assert before.max() / before.min() > 3
    torch.testing.assert_close(after, torch.ones_like(after), rtol=1e-4, atol=1e-4)


def test_readers_of_one_site_share_a_scale():
    model, dense = jobs.pipeline().transformer, jobs.pipeline().transformer
    jobs.run((Smooth(),), model)
    ratios = [
        model.get_submodule(FIRST + f"attn1.to_{x}").weight / dense.get_submodule(FIRST + f"attn1.to_{x}").weight
        for x in "qk"
    ]
    torch.testing.assert_close(ratios[0], ratios[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ratios[0], ratios[0][:1].expand_as(ratios[0]), rtol=1e-4, atol=1e-4)


def test_online_scales_the_input_of_fc2_and_only_that():
    model = jobs.pipeline().transformer
    job = jobs.run((Smooth(online=True),), model)
    assert set(job.specs) == {f"transformer_blocks.{i}.ff.net.2" for i in range(2)}
    layer = model.get_submodule(FIRST + "ff.net.2")
    assert isinstance(layer, QLinear)
    peak = AbsMax(64)
    job.observe("", {FIRST + "ff.net.2": (peak,)})
    scaled = peak.value[0] * layer.get_buffer("pre_scale")[0]
    columns = layer.get_buffer("weight_dense").abs().amax(0)
    torch.testing.assert_close(scaled, columns, rtol=1e-4, atol=1e-6)  # alpha = 1/2 meets in the middle


def test_embedders_and_modulation_are_never_scaled():
    model, dense = jobs.pipeline().transformer, jobs.pipeline().transformer
    jobs.run((Smooth(online=True),), model)
    for name in (FIRST + "norm1.emb.timestep_embedder.linear_1", "proj_out_1", "proj_out_2"):
        assert torch.equal(model.get_submodule(name).weight, dense.get_submodule(name).weight)


def test_dead_channels_keep_the_function():
    model = jobs.pipeline().transformer
    block = model.transformer_blocks[0]
    block.attn1.to_v.weight.data[3] = 0
    block.attn1.to_v.bias.data[3] = 0  # channel 3 of the heads is always zero
    block.attn1.to_out[0].weight.data[:, 5] = 0  # nobody reads channel 5
    block.ff.net[0].proj.weight.data[:, 2] = 0
    want = jobs.outputs(model)
    jobs.run((Smooth(online=True),), model)
    assert jobs.relative_error(jobs.outputs(model), want) < 1e-5


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), float("inf")])
def test_alpha_outside_of_0_to_1_is_refused_before_anything_changes(alpha):
    for stage, field in ((Smooth(alpha=alpha), "alpha"), (Smooth(search=(0.5, alpha)), "search")):
        model = jobs.pipeline().transformer
        with pytest.raises(BadRecipe, match=rf"smooth\.{field} .*\[0, 1\]"):
            jobs.run((stage,), model)
        assert jobs.same_tensors(model, jobs.pipeline().transformer)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_vidit_alpha_is_refused_under_its_own_name(alpha):
    with pytest.raises(BadRecipe, match=r"smooth\.vidit_alpha .*\[0, 1\]"):
        jobs.run((Smooth(vidit_alpha=alpha),), jobs.pipeline().transformer)


def test_the_two_alphas_count_from_opposite_ends():
    models = [jobs.pipeline().transformer for _ in range(4)]
    for model, stage in zip(models, (Smooth(alpha=0.25), Smooth(vidit_alpha=0.75), Smooth(), Smooth(0.5)), strict=True):
        jobs.run((stage,), model)
    assert jobs.same_tensors(models[0], models[1])
    assert jobs.same_tensors(models[2], models[3])  # neither given: one half
    assert not jobs.same_tensors(models[0], models[2])


def test_both_alphas_are_refused_even_if_they_agree():
    with pytest.raises(BadRecipe, match=r"smooth\.alpha 0\.25 and smooth\.vidit_alpha 0\.75: give one"):
        jobs.run((Smooth(alpha=0.25, vidit_alpha=0.75),), jobs.pipeline().transformer)


@pytest.mark.parametrize(
    ("stage", "field"),
    [
        (Smooth(search=(0.5,), rows=0), "smooth.rows 0"),
        (Smooth(rotation=-1), "smooth.rotation -1"),
        (Smooth(levels=0), "smooth.levels 0"),
        (Smooth(calibrate=False), "smooth.calibrate false"),
        (Smooth(search=(0.5, 2.0)), "smooth.search 2.0"),
        (Smooth(aggregate="median"), "smooth.aggregate 'median': must be one of max, mean, spearman, self-weighted"),
        (Smooth(aggregate="mean", ranges=0), "smooth.ranges 0: must be 1 to 1000"),
        (Smooth(ranges=1001), "smooth.ranges 1001: must be 1 to 1000"),
    ],
)
def test_fields_that_make_no_sense_are_refused_before_anything_changes(stage, field):
    model = jobs.pipeline().transformer
    with pytest.raises(BadRecipe, match=re.escape(field)):
        jobs.run((stage,), model)
    assert jobs.same_tensors(model, jobs.pipeline().transformer)


# --- without data


def no_calls() -> tuple:
    raise AssertionError("calibration calls were asked for")


def test_without_calibration_nothing_is_sampled_and_what_stays_unscaled_is_said():
    model, dense = jobs.pipeline().transformer, jobs.pipeline().transformer
    want, said = jobs.outputs(model), []
    job = Job(model, adapter_for(model), Bits(4, 8), 0, no_calls)
    job.progress = lambda what, done, total: said.append((what, done, total))
    with torch.no_grad():
        Smooth(data_free=True, calibrate=False, search=(0.25, 0.75), rows=64).run(job)
    assert jobs.relative_error(jobs.outputs(model), want) < 1e-5
    assert ("2 sites stay unscaled, as adaLN does not make them; scaling", 4, 6) in said
    for name, changed in (("attn1.to_q", True), ("ff.net.0.proj", True), ("attn1.to_out.0", False)):
        layer, before = model.get_submodule(FIRST + name), dense.get_submodule(FIRST + name)
        assert torch.equal(layer.weight, before.weight) is not changed
    assert job.notes[FIRST + "attn1.to_out.0"] == {"smooth": "not scaled: adaLN does not make its input"}
    assert job.notes[FIRST + "attn1.to_q"]["smooth_alpha"] in (None, 0.25, 0.75)


def test_data_free_and_measured_sites_live_together():
    """Sites that adaLN makes take their scale from it; the others are measured, and the function stays."""
    free, measured = jobs.pipeline().transformer, jobs.pipeline().transformer
    want = jobs.outputs(free)
    jobs.run((Smooth(data_free=True),), free)
    jobs.run((Smooth(),), measured)
    assert jobs.relative_error(jobs.outputs(free), want) < 1e-5
    for name, same in (("attn1.to_q", False), ("ff.net.0.proj", False), ("attn1.to_out.0", True)):
        layers = [m.get_submodule(FIRST + name).weight for m in (free, measured)]
        assert torch.allclose(*layers, rtol=1e-4, atol=1e-5) is same


def test_data_free_needs_a_model_whose_modulation_is_known():
    model = jobs.pipeline().transformer
    unknown = replace(jobs.job(model), adapter=Generic())
    with pytest.raises(BadModel, match=r"smooth\.data_free: .*noise level and class alone"):
        Smooth(data_free=True, online=True).run(unknown)


# --- the search


def quantization_error(stage: Smooth | None, judge: Judge, only: str = "") -> float:
    """Error of folding sites' readers under these formats, over recorded inputs."""
    model = jobs.pipeline().transformer
    jobs.run(() if stage is None else (stage,), model, "w4a4")
    total = 0.0
    for site in (s for s in folding_sites(model) if only in s.name):
        x = input_of(model, site.readers[0]).flatten(0, 1)
        w = torch.cat([model.get_submodule(r).weight for r in site.readers]).detach()
        total += judge.error(x, w, torch.ones(x.shape[1])) / float((x @ w.T).square().sum())
    return total


def test_searching_beats_the_worst_and_equals_the_best_single_candidate_or_better():
    judge = Judge(Int(4), Act(Int(4)))
    single = [quantization_error(Smooth(alpha=c), judge) for c in (0.0, 0.5, 1.0)]
    searched = quantization_error(Smooth(search=(0.0, 0.5, 1.0), rows=4096), judge)
    assert searched < max(single)
    assert searched < 1.05 * min(single)


def test_the_search_judges_with_the_formats_and_the_rotation_that_it_is_told():
    told = {"weight": Int(3, False, 8), "act": Act(Int(8, False), static=True), "rotation": 16}
    judge = Judge(told["weight"], told["act"], random_signs(16, 0), 16)
    candidates = (0.0, 0.25, 0.5, 0.75, 1.0)
    untold = quantization_error(Smooth(search=candidates, rows=4096), judge)
    searched = quantization_error(Smooth(search=candidates, rows=4096, **told), judge)
    assert searched < untold


def test_data_free_search_gains_half_of_what_a_measured_one_does_or_more():
    judge, measured = Judge(Int(4), Act(Int(4))), Smooth(search=(0.25, 0.5, 0.75))
    free = replace(measured, data_free=True, calibrate=False)
    none, some, most = (quantization_error(stage, judge, ".norm") for stage in (None, free, measured))
    assert most < none
    assert some < (none + most) / 2, (none, some, most)


def test_smooth_after_rotate_is_refused_by_layer_name():
    model = jobs.pipeline().transformer
    with pytest.raises(BadRecipe, match=r"smooth must come before rotate: the input of layer 'transformer_blocks\.0"):
        jobs.run((Rotate(), Smooth()), model)


def test_tensors_that_may_be_mapped_from_a_file_are_never_written_to():
    """Written pages of a mapped file stay in memory until all its tensors are gone, one model more than needed."""
    model = jobs.pipeline().transformer
    weights = {name: p.data for name, p in model.named_parameters() if p.ndim == 2}
    before = {name: w.clone() for name, w in weights.items()}
    jobs.run((Smooth(online=True),), model)
    assert all(torch.equal(w, before[name]) for name, w in weights.items())
    now = dict(model.named_parameters())
    for name in ("attn1.to_q.weight", "attn1.to_v.weight", "norm1.linear.weight", "ff.net.0.proj.weight"):
        assert not torch.equal(now[FIRST + name], before[FIRST + name])


# --- over time

AGGREGATES = ("max", "mean", "spearman", "self-weighted")
QKV = tuple(FIRST + f"attn1.to_{x}" for x in "qkv")
FC2 = FIRST + "ff.net.2"


def job_on(model: nn.Module, calls: tuple[Call, ...]) -> Job:
    return replace(jobs.job(model), record=lambda: calls)


def smoothed(stage: Smooth, calls: tuple[Call, ...] | None = None) -> nn.Module:
    model = jobs.pipeline().transformer
    with torch.no_grad():
        stage.run(job_on(model, jobs.calls() if calls is None else calls))
    return model


def scales(stage: Smooth, calls: tuple[Call, ...] | None = None) -> dict[str, torch.Tensor]:
    """s (K,) of q, k and v of the first block, and of its fc2, in double precision."""
    model, dense = smoothed(replace(stage, online=True), calls), jobs.pipeline().transformer
    ratio = model.get_submodule(QKV[0]).weight.double() / dense.get_submodule(QKV[0]).weight
    return {
        QKV[0]: ratio.median(0).values.detach(),
        FC2: 1 / model.get_submodule(FC2).get_buffer("pre_scale")[0].double(),
    }


def peaks_by_range(model: nn.Module, layer: str, ranges: int) -> np.ndarray:
    """(R, K) in double precision: ranges that a call falls into, low to high, cut by hand."""
    parts: dict[int, list[np.ndarray]] = {}
    for call in jobs.calls():
        seen: list[torch.Tensor] = []
        handle = model.get_submodule(layer).register_forward_pre_hook(lambda m, a, seen=seen: seen.append(a[0]))
        with torch.no_grad():
            model(*call.args, **call.kwargs)
        handle.remove()
        (step,) = {int(t) for t in call.kwargs["timestep"]}
        parts.setdefault(step * ranges // 1000, []).append(seen[0].abs().amax((0, 1)).double().numpy())
    return np.stack([np.max(parts[r], 0) for r in sorted(parts)])


def over_time(how: str, m: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The papers' formulas."""
    if how == "max":
        return m.max(0)
    if how == "self-weighted":
        return (m**2).sum(0) / m.sum(0)
    shares = np.exp([-spearmanr(each, w).statistic for each in m]) if how == "spearman" else np.ones(len(m))
    return (shares / shares.sum()) @ m


def column_peaks_of(model: nn.Module, layers: tuple[str, ...]) -> np.ndarray:
    return np.max([model.get_submodule(n).weight.detach().abs().amax(0).double().numpy() for n in layers], 0)


@pytest.mark.parametrize("ranges", [3, 10])
@pytest.mark.parametrize("how", AGGREGATES)
def test_scales_follow_the_papers_formulas(how, ranges):
    """Three ranges hold one, one and two of the tiny sampler's calls; of ten, six hold none."""
    dense = jobs.pipeline().transformer
    found = scales(Smooth(alpha=0.5, aggregate=how, ranges=ranges))
    for layer, readers in ((QKV[0], QKV), (FC2, (FC2,))):
        m, w = peaks_by_range(dense, layer, ranges), column_peaks_of(dense, readers)
        assert len(m) == {3: 3, 10: 4}[ranges]
        np.testing.assert_allclose(found[layer].numpy(), np.sqrt(over_time(how, m, w) / w), rtol=1e-4)


def test_the_largest_is_the_default_whatever_the_ranges():
    default = smoothed(Smooth())
    assert jobs.same_tensors(default, smoothed(Smooth(aggregate="max", ranges=3)))
    assert jobs.same_tensors(default, smoothed(Smooth(aggregate="mean", ranges=1)))
    searched = Smooth(data_free=True, search=(0.25, 0.5, 0.75), rows=64)
    assert jobs.same_tensors(smoothed(searched), smoothed(replace(searched, ranges=1)))
    assert not jobs.same_tensors(default, smoothed(Smooth(aggregate="mean")))


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("how", AGGREGATES[1:])
def test_every_aggregate_keeps_the_function_dead_channels_included(how, alpha):
    model = jobs.pipeline().transformer
    block = model.transformer_blocks[0]
    block.attn1.to_v.weight.data[3] = 0
    block.attn1.to_v.bias.data[3] = 0  # channel 3 of the heads is always zero
    block.ff.net[2].weight.data[:, 5] = 0  # nobody reads channel 5
    want = jobs.outputs(model)
    jobs.run((Smooth(alpha=alpha, aggregate=how, ranges=4, online=True),), model)
    assert jobs.relative_error(jobs.outputs(model), want) < 1e-5


def test_spearman_balances_calibrated_activations_with_weights():
    """PTQ4DiT, equations 5 and 6: after balancing both saliences are one; the shares are those of the weight before."""
    dense = jobs.pipeline().transformer
    m, w = peaks_by_range(dense, QKV[0], 10), column_peaks_of(dense, QKV)
    shares = np.exp([-spearmanr(each, w).statistic for each in m])
    model = smoothed(Smooth(aggregate="spearman"))
    after = (shares / shares.sum()) @ peaks_by_range(model, QKV[0], 10)
    unabsorbed = (
        column_peaks_of(dense, QKV) * scales(Smooth(aggregate="spearman"))[QKV[0]].numpy()
    )  # V rows are scaled too
    np.testing.assert_allclose(after, unabsorbed, rtol=1e-4)
    np.testing.assert_allclose(after, np.sqrt(((shares / shares.sum()) @ m) * w), rtol=1e-4)


def test_alpha_1_self_weighted_is_the_reparameterization_of_tcaq_dm():
    """r_j is the self-weighted mean of the ranges, which is 1 for every channel afterwards."""
    stage = Smooth(alpha=1.0, aggregate="self-weighted")
    m = peaks_by_range(jobs.pipeline().transformer, QKV[0], 10)
    r = scales(stage)[QKV[0]].numpy()
    np.testing.assert_allclose(r, (m**2).sum(0) / m.sum(0), rtol=1e-4)
    after = peaks_by_range(smoothed(stage), QKV[0], 10)
    np.testing.assert_allclose((after**2).sum(0) / after.sum(0), 1, rtol=1e-4)
    assert r.max() / r.min() <= m.max() / m.min()  # no worse conditioned than the channels themselves


def test_a_factor_common_to_a_site_changes_no_code():
    """Why TCAQ-DM's normalizer may be left out."""
    s = factors(16).abs()
    w, x = torch.randn(8, 16, generator=torch.Generator().manual_seed(1)), torch.linspace(-3, 3, 64).reshape(4, 16)
    for c in (1 / 8, 4.0):  # exact in floating point
        plain, normalized = encode(w * s, Int(4)), encode(w * s * c, Int(4))
        assert torch.equal(plain["codes"], normalized["codes"])
        judge = Judge(Int(4), Act(Int(4)))
        assert judge.error(x, w, s * c) == judge.error(x, w, s)


def twice(call: Call) -> Call:
    """The same samples once more in one batch."""
    kwargs = {k: torch.cat([v, v]) if isinstance(v, torch.Tensor) else v for k, v in call.kwargs.items()}
    return Call(tuple(torch.cat([a, a]) for a in call.args), kwargs)


@pytest.mark.parametrize("how", AGGREGATES)
def test_a_range_counts_once_however_many_samples_it_has(how):
    stage = Smooth(aggregate=how)
    calls = jobs.calls()
    want = scales(stage)
    for more in ((twice(calls[0]), *calls[1:]), (*calls, calls[2], calls[2])):
        for name, s in scales(stage, more).items():
            torch.testing.assert_close(s, want[name], rtol=1e-5, atol=0)


@pytest.mark.parametrize("how", AGGREGATES[1:])
def test_calls_of_a_single_range_give_its_peaks(how):
    some = jobs.calls()[:1]
    for name, s in scales(Smooth(aggregate=how), some).items():
        torch.testing.assert_close(s, scales(Smooth(), some)[name], rtol=1e-5, atol=0)


def test_ranges_of_statistics_are_none_of_the_clocks():
    """Static tables have the rows that they were asked to have, and scales do not depend on a clock that is set."""
    act = Act(Int(8, False), static=True)
    stages = (Smooth(aggregate="spearman"), Assign(weight=Int(8), act=act, time_groups=3, branches=2), Rtn(), Ranges())
    job = jobs.run(stages, jobs.pipeline().transformer)
    assert (len(job.time_edges), job.branches) == (2, 2)
    assert job.model.get_submodule(QKV[0]).get_buffer("act_scale").shape == (6, 1)
    timed = job_on(jobs.pipeline().transformer, jobs.calls())
    timed.set_clock((0.35, 0.6), 2)
    with torch.no_grad():
        Smooth(aggregate="spearman").run(timed)
    assert jobs.same_tensors(timed.model, smoothed(Smooth(aggregate="spearman")))
    assert timed.time_edges == (0.35, 0.6)


def test_without_data_ranges_are_those_of_the_modulation():
    """Ten ranges of levels that no call ever had."""
    model, dense = jobs.pipeline().transformer, jobs.pipeline().transformer
    job = Job(model, adapter_for(model), Bits(4, 8), 0, no_calls)
    with torch.no_grad():
        Smooth(data_free=True, calibrate=False, aggregate="spearman", levels=2).run(job)
    (site,) = (s for s in adapter_for(dense).sites(dense) if s.readers == QKV)
    levels = [torch.tensor([r / 10 + 0.025, r / 10 + 0.075]) for r in range(10)]
    m = torch.stack([modulated_peaks(dense, site.modulation, each) for each in levels]).detach().double().numpy()
    w = column_peaks_of(dense, QKV)
    ratio = model.get_submodule(QKV[0]).weight / dense.get_submodule(QKV[0]).weight
    got = ratio.detach().double().median(0).values.numpy()
    np.testing.assert_allclose(got, np.sqrt(over_time("spearman", m, w) / w), rtol=1e-4)


def test_measured_sites_beside_data_free_ones_leave_their_empty_ranges_out():
    model = jobs.pipeline().transformer
    want = jobs.outputs(model)
    jobs.run((Smooth(data_free=True, aggregate="self-weighted", online=True),), model)
    assert jobs.relative_error(jobs.outputs(model), want) < 1e-5
    alone = scales(Smooth(aggregate="self-weighted"))[FC2]
    torch.testing.assert_close(
        1 / model.get_submodule(FC2).get_buffer("pre_scale")[0].double(), alone, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("how", AGGREGATES[1:])
def test_the_search_chooses_among_scales_of_the_aggregate(how):
    judge = Judge(Int(4), Act(Int(4)))
    stage = Smooth(aggregate=how, ranges=4)
    single = [quantization_error(replace(stage, alpha=c), judge) for c in (0.0, 0.5, 1.0)]
    searched = quantization_error(replace(stage, search=(0.0, 0.5, 1.0), rows=4096), judge)
    assert searched < max(single)
    assert searched < 1.05 * min(single)


@pytest.mark.parametrize(("rows", "tokens"), [(4096, 4 * 64), (100, 4 * 12), (5, 4)])
def test_a_search_over_ranges_has_as_many_tokens_from_each(rows, tokens, monkeypatch):
    """A sample takes 64 of a call's tokens, and where that is more than may be kept, half of what may."""
    seen = []

    def spy(parts, alphas, a, w, x):
        seen.append(len(x))
        return None, torch.ones_like(w)

    monkeypatch.setattr("dither.stages.smooth.best_scale", spy)
    smoothed(Smooth(aggregate="mean", ranges=4, search=(0.5,), rows=rows))
    assert set(seen) == {tokens}
