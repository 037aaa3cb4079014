"""Channel balancing: exact folding, online scales, dead channels, the search."""

import jobs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dither.calibrate import AbsMax
from dither.errors import BadRecipe
from dither.models import adapter_for
from dither.nn import QLinear
from dither.spec import Bits
from dither.stages import Smooth
from dither.stages.smooth import _output_error, absorb, smoothing_scale

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


# --- the scale


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(0, 1e30), st.floats(0, 1e30)), min_size=1, max_size=8), st.floats(0, 1))
def test_the_scale_is_finite_and_positive_and_dead_channels_keep_theirs(pairs, alpha):
    a, w = (torch.tensor(v, dtype=torch.float32) for v in zip(*pairs, strict=True))
    s = smoothing_scale(a, w, alpha)
    assert torch.isfinite(s).all()
    assert torch.isfinite(1 / s).all()
    assert (s > 0).all()
    assert (s[(a == 0) | (w == 0)] == 1).all()


def test_the_scale_follows_the_formula():
    a, w = torch.tensor([4.0, 9.0]), torch.tensor([16.0, 1.0])
    torch.testing.assert_close(smoothing_scale(a, w, 0.5), torch.tensor([0.5, 3.0]))
    torch.testing.assert_close(smoothing_scale(a, w, 1.0), a)
    torch.testing.assert_close(smoothing_scale(a, w, 0.0), 1 / w)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_dead_channel_keeps_the_scale_1(alpha):
    """At alpha 0 (or 1) the formula alone would give 1 / w (or a): a number, and a needless change."""
    s = smoothing_scale(torch.tensor([0.0, 4.0]), torch.tensor([4.0, 0.0]), alpha)
    assert s.tolist() == [1.0, 1.0]


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
    for stage in (Smooth(alpha=alpha), Smooth(search=(0.5, alpha))):
        model = jobs.pipeline().transformer
        with pytest.raises(BadRecipe, match=r"smooth\.alpha"):
            jobs.run((stage,), model)
        assert jobs.same_tensors(model, jobs.pipeline().transformer)


def test_no_rows_are_refused():
    with pytest.raises(BadRecipe, match=r"smooth\.rows 0"):
        jobs.run((Smooth(search=(0.5,), rows=0),), jobs.pipeline().transformer)


# --- the search


def test_the_search_finds_the_best_of_its_candidates():
    make = torch.Generator().manual_seed(0)
    x = torch.randn(256, 16, generator=make) * factors(16)
    w = torch.randn(24, 16, generator=make) / factors(16).sqrt()
    bits, peaks = Bits(4, 8), (x.abs().amax(0), w.abs().amax(0))
    errors = {c: _output_error(x, w, smoothing_scale(*peaks, c), bits) for c in (0.0, 0.5, 1.0)}
    assert min(errors.values()) < 0.5 * max(errors.values())


def quantization_error(stage: Smooth) -> float:
    """Error of all folding sites' readers, rounded to w4a4, over recorded inputs."""
    model = jobs.pipeline().transformer
    jobs.run((stage,), model, "w4a4")
    total = 0.0
    for site in folding_sites(model):
        x = input_of(model, site.readers[0]).flatten(0, 1)
        w = torch.cat([model.get_submodule(r).weight for r in site.readers]).detach()
        total += _output_error(x, w, torch.ones(x.shape[1]), Bits(4, 4)) / float((x @ w.T).square().sum())
    return total


def test_searching_beats_the_worst_and_equals_the_best_single_candidate_or_better():
    single = [quantization_error(Smooth(alpha=c)) for c in (0.0, 0.5, 1.0)]
    searched = quantization_error(Smooth(search=(0.0, 0.5, 1.0), rows=4096))
    assert searched < max(single)
    assert searched < 1.05 * min(single)
