import pytest
import torch

from dither.errors import BadValue
from dither.evaluation.drift import DriftMeter, drift


def test_relative_and_cosine_over_uneven_batches():
    meter = DriftMeter()
    for count, factor in ((3, 1.1), (1, 1.5)):
        x = torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(count))
        for step, timestep in enumerate((900.0, 100.0)):
            meter.full_precision(step, timestep, x)
        meter.quantized(0, 900.0, x)
        meter.quantized(1, 100.0, factor * x)
        meter.end_batch()
    result = meter.result()
    assert result["steps"] == [0, 1]
    assert result["timesteps"] == [900.0, 100.0]
    assert result["relative"] == pytest.approx([0.0, (3 * 0.1 + 0.5) / 4], abs=1e-6)
    assert result["cosine"] == pytest.approx([1.0, 1.0])


def test_drift_of_each_picture():
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    relative, cosine = drift(x, x * torch.tensor([1.0, 1.5, -1.0])[:, None, None])
    assert relative == pytest.approx([0, 0.5, 2], abs=1e-6)
    assert cosine == pytest.approx([1, 1, -1])


def test_latents_that_are_overwritten_later_are_kept():
    meter = DriftMeter()
    x = torch.ones(1, 4)
    meter.full_precision(0, 1.0, x)
    x.zero_()
    meter.quantized(0, 1.0, torch.ones(1, 4))
    meter.end_batch()
    assert meter.result()["relative"] == [0.0]


def test_a_sampler_may_split_the_batch():
    meter = DriftMeter()
    for see, factor in ((meter.full_precision, 1.0), (meter.quantized, 1.2)):
        for count in (2, 1):
            for step, timestep in enumerate((9.0, 1.0)):
                see(step, timestep, factor * torch.ones(count, 4))
    meter.end_batch()
    assert meter.result()["timesteps"] == [9.0, 1.0]
    assert meter.result()["relative"] == pytest.approx([0.2, 0.2])


def test_no_steps_no_result():
    meter = DriftMeter()
    meter.end_batch()
    assert meter.result() is None


def test_refuses_what_cannot_be_compared():
    x = torch.ones(1, 4)
    with pytest.raises(BadValue, match=r"full-precision model produced NaN.*step 3"):
        DriftMeter().full_precision(3, 1.0, x * torch.nan)
    with pytest.raises(BadValue, match="more steps"):
        DriftMeter().quantized(0, 1.0, x)
    meter = DriftMeter()
    meter.full_precision(0, 1.0, x)
    with pytest.raises(BadValue, match=r"timestep 1 .* against .* at 2"):
        meter.quantized(0, 2.0, x)
    with pytest.raises(BadValue, match="took 0 steps"):
        meter.end_batch()
