"""That Q-DiT and DiTAS earn their place on trained models: paired seeds, beside rounding to nearest."""

import pytest

import dither
from dither.sources import open_source

STEPS = 5


def psnr(folder, model, recipe, calibration, n, settings=()):
    """Mean PSNR to full precision at W4A8, of a saved checkpoint."""
    pipe = dither.quantize(open_source(model).pipeline, recipe, "w4a8", settings=settings, calibration=calibration)
    dither.save(pipe, folder)
    return dither.evaluate(folder, model, n=n, steps=STEPS, noise_floor=0)["psnr_db"]["mean"]


@pytest.mark.parametrize(("recipe", "off"), [("gptq", ()), ("q-dit", ("evolve=off",))])
def test_passing_errors_on_is_nearer_than_rounding_to_nearest(recipe, off, tmp_path):
    """In the same formats, so that the same bits are stored."""
    how = dither.Calibration(10, STEPS)
    nearest = psnr(tmp_path / "nearest", "zoo:digits", recipe, how, 16, (*off, "gptq=off"))
    compensated = psnr(tmp_path / "compensated", "zoo:digits", recipe, how, 16, off)
    assert compensated > nearest + 4, (compensated, nearest)


@pytest.mark.slow
def test_smoothing_branches_and_gptq_save_a_hard_model(tmp_path):
    how = dither.Calibration(4, 4)
    nearest = psnr(tmp_path / "nearest", "zoo:fashion-hard", "rtn", how, 6)
    saved = psnr(tmp_path / "saved", "zoo:fashion-hard", "ditas-gptq", how, 6, ("low-rank.rounds=3",))
    assert saved > nearest + 15, (saved, nearest)
