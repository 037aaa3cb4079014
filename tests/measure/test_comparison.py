"""``dither.evaluate`` on tiny pipelines; the metrics themselves are tested with ``dither.evaluation``."""

import json

import jobs
import pytest
import tiny

import dither
from dither.cli.work import inspect_model
from dither.errors import BadModel
from dither.measure import MEASURED, evaluate
from dither.recipes import get, recipe_from
from dither.sources import open_source


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Folders of a w8a8 checkpoint and its original."""
    folder = tmp_path_factory.mktemp("pair")
    jobs.pipeline().save_pretrained(folder / "full")
    dither.save(dither.quantize(jobs.pipeline(), "rtn", "w8a8"), folder / "small")
    return folder / "small", folder / "full"


@pytest.fixture(scope="module")
def results(pair):
    return evaluate(*pair, n=5, steps=3, batch_size=2, command="how")


def without(results, *keys):
    return {k: v for k, v in results.items() if k not in keys}


def test_results_are_json_and_hold_what_is_promised(results):
    json.dumps(results, allow_nan=False)
    assert set(MEASURED) - {"lpips"} < set(results)
    assert (results["schema"], results["kind"], results["n"], results["seed"]) == (2, "eval", 5, 0)
    assert results["command"] == "how"
    assert results["fd"]["to_full_precision"] is None  # no feature network is known for this model
    low, high = results["psnr_db"]["ci95"]
    assert low <= results["psnr_db"]["mean"] <= high
    assert set(results["versions"]) == {"dither", "torch", "diffusers", "numpy", "python"}


def test_the_same_numbers_again(pair, results):
    again = evaluate(*map(open_source, map(str, pair)), n=5, steps=3, batch_size=2, command="how")
    assert without(again, "seconds", "speed") == without(results, "seconds", "speed")


def test_another_seed_gives_other_pictures(pair, results):
    other = evaluate(*pair, n=5, steps=3, seed=1, images=2)
    assert other["seeds"] != results["seeds"]
    assert other["psnr_db"]["per_image"] != results["psnr_db"]["per_image"]


def test_sizes_are_those_on_the_disk(pair, results):
    small, full = (sum(f.stat().st_size for f in (p / "transformer").glob("*.safetensors")) for p in pair)
    size = results["size"]
    assert (size["file_bytes"], size["full_precision_bytes"], size["ratio"]) == (small, full, full / small)
    assert 8 < size["bits_per_weight"] < size["model_bits_per_weight"]


def test_layers(results):
    layers = results["layers"]
    assert (layers["quantized"], layers["total"], layers["simulated"]) == (14, 20, 0)
    assert results["kernels"] == {tiny.WEIGHT_ONLY: 2, tiny.INTEGER: 12}
    snr = results["layer_snr"]
    assert len(snr["db"]) == len(snr["layers"]) == 14 + 2  # and the blocks
    assert all(len(row) == 3 for row in snr["db"])
    assert min(min(row) for row in snr["db"]) > 15


def test_layers_that_absorbed_a_scale_are_not_compared(tmp_path, pair):
    how = dither.Calibration(samples=2, steps=2)
    dither.save(dither.quantize(jobs.pipeline(), "smoothquant", calibration=how), tmp_path / "small")
    names = evaluate(tmp_path / "small", pair[1], n=2, steps=2, noise_floor=0)["layer_snr"]["layers"]
    assert "transformer_blocks.0.norm1.linear" not in names
    assert "transformer_blocks.0.attn1.to_v" not in names
    assert {"transformer_blocks.0.attn1.to_q", "transformer_blocks.0"} < set(names)


def test_what_stages_noted_is_shown_beside_a_recipe_that_can_be_run_again(tmp_path, pair):
    how = dither.Calibration(samples=2, steps=2)
    dither.save(dither.quantize(jobs.pipeline(), "vidit-q", calibration=how), tmp_path / "small")
    found = evaluate(tmp_path / "small", pair[1], n=2, steps=2, noise_floor=0)
    facts = found["notes"]["transformer_blocks.0.attn1.to_q"]
    assert facts["rotated"] is True
    assert len(facts["incoherence"]) == len(facts["incoherence_rotated"]) > 0
    assert recipe_from(found["recipe"]) == get("vidit-q")
    assert inspect_model(str(tmp_path / "small"))["notes"] == found["notes"]


def test_progress_is_told_to_the_end(pair):
    told = []
    evaluate(*pair, n=4, steps=2, batch_size=2, progress=lambda *step: told.append(step))
    assert ("drawing batches", 13, 13) in told  # 2 + 2 batches of 2, 4 + 4 of 1 for the floor, 1 trajectory
    assert told[-1] == ("comparing pictures", 1, 1)


def test_zoo_models_are_measured_with_their_features(tmp_path):
    pipe = dither.quantize(open_source("zoo:digits").pipeline, "rtn", "w4a8")
    dither.save(pipe, tmp_path / "small")
    results = evaluate(tmp_path / "small", "zoo:digits", n=10, steps=2, noise_floor=0)
    assert all(results["fd"][key] >= 0 for key in ("to_full_precision", "to_real", "full_precision_to_real"))


def test_what_cannot_be_compared(pair):
    small, full = pair
    with pytest.raises(BadModel, match="'full' is not quantized by dither"):
        evaluate(full, full, n=2)
    with pytest.raises(BadModel, match="differ in shape at"):
        evaluate(small, "zoo:digits", n=2)


def test_a_transformer_alone_is_sampled_too(tmp_path, pair):
    dither.save(dither.quantize(jobs.pipeline().transformer, "rtn"), tmp_path / "network")
    assert evaluate(tmp_path / "network", pair[1], n=2, steps=1)["n"] == 2
