"""Statistics from the modulation alone: against the model's own modulation, and against measured channels."""

import jobs
import pytest
import torch
import torch.nn.functional as F

from dither.calibrate import AbsMax
from dither.models import adapter_for
from dither.stages.data_free import PEAK, levels_between, modulated_peaks, modulated_tokens

LEVELS = levels_between(0, 1, 8)


def sites(model):
    return [s for s in adapter_for(model).sites(model) if s.modulation is not None]


def modulation(model, block: int, level: float, label: int) -> torch.Tensor:
    """What the block itself computes: (6, D)."""
    norm = model.transformer_blocks[block].norm1
    embedding = norm.emb(torch.tensor([1000 * level]), torch.tensor([label]), hidden_dtype=torch.float32)
    return norm.linear(F.silu(embedding))[0].chunk(6)


def test_only_sites_made_by_a_known_modulation_are_known():
    model = jobs.pipeline().transformer
    names = {s.name.partition(".")[2] for s in sites(model)}
    assert names == {"0.norm1", "0.norm3", "1.norm1", "1.norm3"}


def test_levels_are_midpoints():
    torch.testing.assert_close(levels_between(0.5, 1.0, 2), torch.tensor([0.625, 0.875]))


@torch.no_grad()
@pytest.mark.parametrize("index", range(4))
def test_peaks_are_those_of_every_class_and_level(index):
    model = jobs.pipeline().transformer
    site = sites(model)[index]
    shift, scale = ((0, 1), (3, 4))[index % 2]
    want = torch.zeros(16)
    for level in LEVELS.tolist():
        for label in range(11):  # ten classes and the null class
            parts = modulation(model, index // 2, level, label)
            want = torch.maximum(want, parts[shift].abs() + PEAK * (1 + parts[scale]).abs())
    torch.testing.assert_close(modulated_peaks(model, site.modulation, LEVELS), want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("index", "least"), [(0, 0.9), (1, 0.9), (2, 0.8), (3, 0.6)])
def test_peaks_rank_channels_as_calibration_does(index, least):
    """Deeper blocks also see channels that stand out in the residual stream, which the modulation does not know."""
    model = jobs.pipeline().transformer
    site, probe = sites(model)[index], AbsMax(16)
    jobs.job(model).observe("", {site.readers[0]: (probe,)})
    pair = torch.stack([modulated_peaks(model, site.modulation, LEVELS).log(), probe.value[0].log()])
    assert torch.corrcoef(pair)[0, 1] > least


@torch.no_grad()
def test_tokens_have_the_moments_of_the_modulation():
    """One level; mean over classes and tokens of x is E[shift], and x - shift has variance (1 + scale)^2."""
    model = jobs.pipeline().transformer
    site, level = sites(model)[0], 0.3
    tokens = modulated_tokens(model, site.modulation, torch.tensor([level]), 8000, seed=0)
    assert tokens.shape == (8000, 16)
    shifts, scales = (torch.stack([modulation(model, 0, level, c)[i] for c in range(11)]) for i in (0, 1))
    second = shifts.square().mean(0) + (1 + scales).square().mean(0)  # E[x^2]
    torch.testing.assert_close(tokens.square().mean(0), second, rtol=0.15, atol=0.01)
    error = (tokens.mean(0) - shifts.mean(0)).abs() / second.sqrt()
    assert error.max() < 0.06  # five standard deviations of a mean of 8,000


@torch.no_grad()
def test_tokens_are_seeded_and_of_the_number_asked_for():
    model = jobs.pipeline().transformer
    modulation = sites(model)[0].modulation
    one, same, other = (modulated_tokens(model, modulation, LEVELS, 13, seed=s) for s in (0, 0, 1))
    assert one.shape == (13, 16)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@torch.no_grad()
def test_a_model_in_half_precision_gives_nearly_the_same_peaks():
    full, half = jobs.pipeline().transformer, jobs.pipeline().transformer.to(torch.bfloat16)
    want, got = (modulated_peaks(m, sites(m)[0].modulation, LEVELS) for m in (full, half))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0.1, atol=0.1)
