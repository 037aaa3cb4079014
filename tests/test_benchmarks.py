"""The harnesses that make committed results: rows are resumed and their failures kept, and orders are found by rule."""

import csv
import io
import json
import shlex

import numpy as np
import pytest
import torch

from benchmarks import ranking
from benchmarks.quality.__main__ import as_csv, command, parsed, rows
from benchmarks.quality.plan import MODELS, SWITCHES, Asked, product, switched
from benchmarks.quality.row import Pictures, measure, measurements, numbers
from benchmarks.ranking_subsets import MEASURES, Drawn, find_order, separation, share_interval, shuffled
from dither.errors import BadValue
from dither.evaluation.protocol import RealStats

FEW = Pictures(n=4)
PLAIN = Asked("zoo:digits", "rtn", "w8a8")
FOUND = {
    "n": 4,
    "psnr_db": {"mean": 30.0, "ci95": [29.0, 31.0], "worst": 20.0, "per_image": [30.0]},
    "ssim": {"mean": 0.9, "ci95": [0.8, 1.0]},
    "fd": {
        "to_full_precision": 0.1,
        "to_full_precision_se": 0.01,
        "to_real": 3.0,
        "full_precision_to_real": 2.0,
        "noise_floor": 5.0,
    },
    "class_accuracy": None,
    "noise_floor": {"psnr_db": 60.0, "other_seeds_psnr_db": 10.0, "n": 4},
    "size": {"ratio": 2.0, "bits_per_weight": 8.3},
    "layers": {"quantized": 1, "total": 2, "simulated": 0, "rows": []},
    "quantize": {"cpu_minutes": 0.5},
    "kernels": {"int8_mm": 1},
}


def without_cost(found):
    """A row but for what its quantization took, which is that of this machine."""
    return {key: value for key, value in found.items() if key != "quantize"}


def test_rows_are_a_product_and_settings_name_them():
    asked = product(["zoo:digits", "mine"], ["rtn", "rtn-clip"], ["w8a8"], ["assign.adaln.bits=8"])
    assert [(a.model, a.recipe) for a in asked] == [
        ("zoo:digits", "rtn"),
        ("zoo:digits", "rtn-clip"),
        ("mine", "rtn"),
        ("mine", "rtn-clip"),
    ]
    assert {(a.settings, a.switch) for a in asked} == {(("assign.adaln.bits=8",), "assign.adaln.bits=8")}
    assert [a.switch for a in switched(["mine"], SWITCHES)] == [s.name for s in SWITCHES]


@pytest.mark.parametrize(
    "words",
    ["", "-n 64", "--models zoo:digits --recipes rtn --bits w4 w3 --set a.b=1 --set 'a.c=[1, 2]' --seed 3 --switches"],
)
def test_the_command_of_a_result_repeats_it(words):
    given = parsed([*shlex.split(words), "--work", "here", "-o", "there.json"])
    again = shlex.split(command(given))
    assert again[:3] == ["python", "-m", "benchmarks.quality"]
    assert not {"here", "there.json"} & set(again)
    for name in ("models", "recipes", "bits", "settings", "switches", "n", "seed"):
        assert getattr(parsed(again[3:]), name) == getattr(given, name)


def test_a_row_is_measured_once_with_a_saved_checkpoint(tmp_path):
    seen = []

    def evaluate(checkpoint, asked, pictures, work):
        seen.append(sorted(path.name for path in checkpoint.iterdir()))
        return FOUND

    assert without_cost(measure(PLAIN, FEW, tmp_path, evaluate)) == without_cost(FOUND)
    assert without_cost(measure(PLAIN, FEW, tmp_path, evaluate)) == without_cost(FOUND)
    assert len(seen) == 1
    assert "model_index.json" in seen[0]
    (cost,) = tmp_path.glob("packed/*/cost.json")
    made = cost.stat().st_mtime_ns
    assert without_cost(measure(PLAIN, Pictures(n=5), tmp_path, evaluate)) == without_cost(FOUND)
    assert len(seen) == 2
    assert cost.stat().st_mtime_ns == made, "other pictures come from the same checkpoint"
    assert without_cost(measure(PLAIN, Pictures(seed=1), tmp_path, evaluate)) == without_cost(FOUND)
    assert len(list(tmp_path.glob("packed/*/cost.json"))) == 2


def test_an_interrupted_row_keeps_its_checkpoint_and_a_failed_one_its_sentence(tmp_path):
    def interrupted(checkpoint, asked, pictures, work):
        raise KeyboardInterrupt

    def failing(checkpoint, asked, pictures, work):
        assert checkpoint.is_dir()
        raise BadValue("pictures hold NaN")

    with pytest.raises(KeyboardInterrupt):
        measure(PLAIN, FEW, tmp_path, interrupted)
    assert len(list(tmp_path.glob("packed/*/checkpoint"))) == 1
    assert measure(PLAIN, FEW, tmp_path, failing) == {"failed": "BadValue: pictures hold NaN"}
    assert without_cost(measure(PLAIN, FEW, tmp_path, lambda *_: FOUND)) == without_cost(FOUND)


def test_a_failed_row_stays_in_the_result_and_full_precision_comes_from_one_that_did_not(tmp_path):
    asked = [Asked("zoo:digits", "no-such", "w8a8"), PLAIN]
    made = rows(asked, [measure(asked[0], FEW, tmp_path), FOUND])
    assert [row["recipe"] for row in made] == ["full precision", "no-such", "rtn"]
    assert made[1]["failed"].startswith("BadRecipe: unknown recipe 'no-such'")
    assert made[0]["psnr_db"] == {"other_batch_size": 60.0, "other_seeds": 10.0}
    json.dumps(made, allow_nan=False)


def test_rows_as_csv_are_told_apart_by_their_settings_and_failed_ones_stay():
    asked = [PLAIN, Asked("zoo:digits", "rtn", "w8a8", ("assign.adaln.bits=8",)), Asked("zoo:digits", "no-such", "w4")]
    found = [{**FOUND, "checkpoint": "packed"}] * 2 + [{"failed": "BadRecipe: unknown"}]
    lines = list(csv.DictReader(io.StringIO(as_csv(asked, found))))
    assert [line["checkpoint"] for line in lines] == ["", "assign.adaln.bits=8", ""]
    assert [line["psnr_db"] for line in lines] == ["30.0", "30.0", ""]
    assert lines[2]["recipe"] == "no-such"


def test_a_row_keeps_no_list_of_pictures():
    kept = numbers(PLAIN, FOUND)
    assert "per_image" not in kept["psnr_db"]
    assert "rows" not in kept["layers"]
    assert kept["quantize"] == {"cpu_minutes": 0.5}
    assert kept["search"] is None


def test_models_are_named_as_commands_take_them():
    assert all(model.startswith("zoo:") for model in MODELS)


def test_labels_still_take_turns_after_shuffling():
    labels = np.arange(25) % 10
    order = shuffled(labels, np.random.default_rng(0))
    assert sorted(order) == list(range(25))
    assert (labels[order] == labels).all()
    assert (order != np.arange(25)).any()


@pytest.mark.parametrize(
    ("share", "trials", "ends"), [(1.0, 4, (0.3976, 1.0)), (0.0, 4, (0.0, 0.6024)), (0.5, 10, (0.1871, 0.8129))]
)
def test_intervals_of_shares_are_clopper_and_pearsons(share, trials, ends):
    assert share_interval(share, trials) == pytest.approx(ends, abs=1e-4)


def made_up(total=80, worse=(0.02, 0.1, 0.3)):
    """Features that move further away with every width."""
    rng = np.random.default_rng(1)
    full = rng.standard_normal((total, 3))
    moved = [full + by + 0.05 * by * rng.standard_normal(full.shape) for by in worse]
    fall = [40 - 20 * by + rng.standard_normal(total) * 0.01 for by in worse]
    real = RealStats(np.full(3, 10.0), np.eye(3), 100)  # far away, where the worse widths are nearer
    return Drawn(np.arange(total) % 10, full, moved, fall, [values / 100 for values in fall], real)


def test_measures_find_the_order_or_its_reverse():
    found = {name: find_order(made_up(), measure, 20, 30, 0) for name, measure in MEASURES.items()}
    for name in ("fd_paired", "psnr", "ssim"):
        assert found[name]["order"] == {
            "share": 1.0,
            "ci95": [pytest.approx(0.3976, abs=1e-4), 1.0],
            "disjoint": [4, 4],
        }
        assert found[name]["kendall_tau"]["mean"] == pytest.approx(1)
        assert all(pair["separation"]["mean"] > 3 for pair in found[name]["pairs"])
    assert found["fd_to_real"]["order"]["share"] == 0
    assert found["fd_to_real"]["kendall_tau"]["mean"] == pytest.approx(-1)
    assert all(pair["separation"]["mean"] < -3 for pair in found["fd_to_real"]["pairs"])
    assert found["fd_unpaired"]["pairs"][0]["separation"]["mean"] < found["fd_paired"]["pairs"][0]["separation"]["mean"]


def test_separation_is_that_of_new_pictures_though_subsets_overlap():
    rng = np.random.default_rng(2)
    n, total, truth = 100, 400, 2.0
    found = []
    for _ in range(200):
        pictures = rng.standard_normal(total) + truth / np.sqrt(n)
        gaps = np.array([rng.choice(pictures, n, replace=False).mean() for _ in range(100)])
        found.append(separation(gaps, n, total))
    assert np.mean([one["mean"] for one in found]) == pytest.approx(truth, rel=0.1)
    assert np.mean([one["ci95"][0] <= truth <= one["ci95"][1] for one in found]) > 0.9


def test_pictures_are_drawn_once_and_prefixes_are_shared(tmp_path, monkeypatch):
    asked = []

    def opened(model, bits, seed):
        def sampler(labels, seeds, on_step=None):
            asked.append((bits, len(seeds)))
            return np.stack([np.full((8, 8, 1), (seed + len(bits)) % 256, np.uint8) for seed in seeds])

        return sampler

    monkeypatch.setattr(ranking, "opened", opened)
    first = ranking.draw("digits", 64, 0, tmp_path)
    assert asked == [(bits, 64) for bits in ("", *ranking.WIDTHS)]
    more = ranking.draw("digits", 96, 0, tmp_path)
    assert asked[6:] == [(bits, 32) for bits in ("", *ranking.WIDTHS)]
    assert (more["w3"][0]["features"] == first["w3"][0]["features"]).all()
    assert not list(tmp_path.glob("*.writing"))


def test_rows_share_measurements_if_they_only_spend_them_otherwise(tmp_path):
    def folder(recipe, bits="w4a8", *settings):
        return measurements(Asked("zoo:digits", recipe, bits, settings), 0, tmp_path).inner.folder

    assert folder("vidit-q-mp") == folder("vidit-q-mp", "w4a8", "mixed.weight=5.5")
    others = [folder("vidit-q-mp", "w4a4"), folder("vidit-q-mp-stored"), folder("vidit-q-ilp")]
    assert len({folder("vidit-q-mp"), folder("vidit-q-mp", "w4a8", "mixed.nested=false"), *others}) == 5


def test_a_store_of_measurements_keeps_no_layer(tmp_path):
    store = measurements(Asked("zoo:digits", "vidit-q-mp", "w4a8"), 0, tmp_path)
    store.put("sensitivity.unit.0.w4", {"mse": torch.tensor([0.5])})
    store.put("layer", {"codes": torch.tensor([1])})
    assert store.get("sensitivity.unit.0.w4") == {"mse": torch.tensor([0.5])}
    assert store.get("layer") is None
