"""What `evaluate` returns is what the page reads: no section may vanish because a key was renamed on one side."""

import json

import jobs
import numpy as np
import tiny
import torch

import dither
from dither.evaluation import RealStats, evaluate, layer_snr
from dither.inspection import describe, summary
from dither.models import adapter_for
from dither.quantization import Calibration
from dither.report import render
from dither.report.form import significant
from dither.spec import Act, AttentionSpec, Int, LinearSpec, Plan


def sampler(noise):
    def sample(labels, seeds, on_step=None):
        pictures = np.stack([np.random.default_rng(seed).normal(size=(8, 8, 1)) for seed in seeds])
        pictures = pictures + noise * np.random.default_rng(1).normal(size=(8, 8, 1))
        for step in range(3):
            if on_step is not None:
                on_step(step, 3.0 - step, torch.from_numpy(pictures))
        return np.clip(128 + 40 * pictures, 0, 255).astype(np.uint8)

    return sample


def features(images):
    flat = images.reshape(len(images), -1)[:, :4] / 255
    return flat, flat


features.name = "first four pixels"


def test_page_shows_all_that_evaluate_measures(result):
    measured = evaluate(
        sampler(0.0), sampler(0.1), labels=[0, 1] * 4, seeds=range(8), batch_size=4, features=features,
        real=RealStats(np.full(4, 0.5), np.eye(4) / 50, 100, 0.9),
    )  # fmt: skip
    full, quantized = torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.nn.Sequential(torch.nn.Linear(2, 2))
    snr = layer_snr(full, quantized, [((torch.ones(1, 2),), {}, 9.0), ((torch.ones(1, 2),), {}, 1.0)], ["0"])
    del result["trajectory"]  # else its drift is shown, not the measured one
    frame = {key: value for key, value in result.items() if key not in measured}
    page = render([json.loads(json.dumps({**frame, **measured, "layer_snr": snr.to_json()}))])
    for title in ("Pictures", "Size and quality", "How close is every picture", "Along the trajectory",
                  "Layers over timesteps", "The plan", "How to reproduce"):  # fmt: skip
        assert f"<h2>{title}" in page
    for shown in (
        f"{measured['psnr_db']['mean']:.2f}",
        f"{measured['psnr_db']['ci95'][0]:.2f} to",
        f"{measured['ssim']['mean']:.4f}",
        significant(measured["fd"]["to_full_precision"]),
        f"{measured['noise_floor']['psnr_db']:.2f}",
        f"{measured['noise_floor']['other_seeds_psnr_db']:.2f}",
        f"{100 * measured['class_accuracy']['quantized']:.1f} %",
        "first four pixels",
        f"picture 7: {measured['psnr_db']['per_image'][7]:.2f} dB",
        f"ends at {significant(100 * measured['drift']['relative'][-1])}%",
    ):
        assert shown in page, shown
    assert page.count('class="thumb"') == 8


def test_page_shows_what_runs_when(result):
    pipe = dither.quantize(jobs.pipeline(), "vidit-q-shipped-mp", "w4a8", calibration=Calibration(samples=2, steps=2))
    rows = describe(pipe.transformer, adapter_for(pipe.transformer))
    page = render([json.loads(json.dumps(result | summary(rows)))])
    assert "<h2>Allocation" in page
    assert "Time ranges cost no bytes" in page
    for shown in ("4/8 bits", "int4/8 asym per row, by noise level", ">0.75–0</th>"):
        assert shown in page, shown


def test_page_shows_quantized_attentions(result):
    name = "transformer_blocks.0.attn1"
    side = Act(Int(4, False, group=8))
    model = tiny.stamped_dit(
        Plan({f"{name}.to_q": LinearSpec(Int(8))}, attention={name: AttentionSpec(side, side, side)})
    )
    rows = describe(model, adapter_for(model))
    page = render([json.loads(json.dumps(result | summary(rows)))])
    for shown in (
        "attention, q k v int4 asym per token, group 8 dynamic",
        "1 of 2 quantized layers compute in full precision",
        "transformer_blocks.0.attn1<",
    ):
        assert shown in page, shown
    assert "no reason was recorded" not in page
