"""The whole path on trained models: quantize, reload, compare; and that a method earns its place on hard ones."""

import json

import numpy as np
import pytest
import tiny
from diffusers import DiffusionPipeline
from typer.testing import CliRunner

import dither
from dither.cli import app
from dither.inspection import stored_dtype
from dither.quantization import sample_seeds
from dither.sampling import sampler_for
from dither.sources import open_source

N, STEPS = 10, 8


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "digits-w8a8"
    run("quantize", "zoo:digits", "-o", folder, "--recipe", "rtn", "--bits", "w8a8")
    return folder


def test_pictures_stay_the_same(packed, tmp_path):
    files = [tmp_path / f"{i}.json" for i in range(2)]
    options = ("--against", "zoo:digits", "-n", N, "--steps", STEPS)
    verdict = run(
        "eval", packed, *options, "--json", files[0], "--html", tmp_path / "page.html", "--fail-if", "psnr<25"
    )
    run("eval", packed, *options, "--json", files[1])
    first, again = (json.loads(f.read_text()) for f in files)
    assert first["psnr_db"] == again["psnr_db"]
    assert first["fd"] == again["fd"]
    assert first["psnr_db"]["mean"] > first["noise_floor"]["other_seeds_psnr_db"] + 10
    assert 8 < first["size"]["bits_per_weight"] < 8.5
    assert first["size"]["ratio"] > 1.4  # the original is stored in float16
    assert first["layers"]["simulated"] == 0
    assert tiny.INTEGER in first["kernels"]
    assert f"n={N}" in verdict
    page = (tmp_path / "page.html").read_text()
    assert f"{first['psnr_db']['mean']:.1f}" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_diffusers_draws_the_same_pictures(packed):
    source = open_source("zoo:digits")
    pipe = dither.quantize(source.pipeline, "rtn", "w8a8", storage=stored_dtype(source.weight_files))
    loaded = DiffusionPipeline.from_pretrained(packed)
    labels, seeds = list(range(N)), sample_seeds(0, N)
    ours, theirs = (sampler_for(p, STEPS, 1.5)(labels, seeds) for p in (pipe, loaded))
    assert np.array_equal(ours, theirs)


def test_smoothing_saves_a_hard_model(tmp_path):
    """Channel outliers ruin rounding to nearest; folding scales away brings most of the loss back. Paired seeds."""
    psnr = {}
    for recipe in ("rtn", "smoothquant"):
        pipe = dither.quantize(
            open_source("zoo:digits-hard").pipeline, recipe, "w8a8", calibration=dither.Calibration(10, 10)
        )
        dither.save(pipe, tmp_path / recipe)
        results = dither.evaluate(tmp_path / recipe, "zoo:digits-hard", n=N, steps=STEPS, noise_floor=0)
        psnr[recipe] = results["psnr_db"]["mean"]
    assert psnr["smoothquant"] > psnr["rtn"] + 5, psnr


def test_four_bits_are_smaller_and_worse(packed, tmp_path):
    small = tmp_path / "digits-w4a8"
    run("quantize", "zoo:digits", "-o", small, "--recipe", "rtn", "--bits", "w4a8")
    eight, four = (dither.evaluate(p, "zoo:digits", n=N, steps=STEPS, noise_floor=0) for p in (packed, small))
    assert four["size"]["file_bytes"] < 0.75 * eight["size"]["file_bytes"]
    assert four["psnr_db"]["mean"] < eight["psnr_db"]["mean"]
    assert four["layers"]["quantized"] == eight["layers"]["quantized"]


def test_demo(tmp_path):
    """What ``make demo`` runs, on fewer pictures; an older demo is replaced."""
    (tmp_path / "demo/checkpoint").mkdir(parents=True)
    (tmp_path / "demo/checkpoint/model_index.json").write_text("{}")
    (tmp_path / "demo/checkpoint.partial").mkdir()
    said = run("demo", "-o", tmp_path / "demo", "-n", 2).splitlines()
    results = json.loads((tmp_path / "demo/results.json").read_text())
    assert results["n"] == 2
    for word in ("x smaller", "bits per weight", "dB, 95% ", "n=2", "layers quantized", "kernels: "):
        assert word in said[-1]
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == ["checkpoint", "report.html", "results.json"]
    assert dither.load(tmp_path / "demo/checkpoint").transformer.is_quantized
