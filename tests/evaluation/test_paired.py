import json

import numpy as np
import pytest
import torch

from dither.errors import BadValue
from dither.evaluation import RealStats, evaluate
from dither.evaluation.image import mean_squared_error, psnr


def sampler(noise=0.0, steps=3, log=None, side=8):
    """Pictures of a seeded random pattern; `noise` stands for quantization."""

    def sample(labels, seeds, on_step=None):
        if log is not None:
            log.append(len(labels))
        rows = []
        for label, seed in zip(labels, seeds, strict=True):
            rng = np.random.default_rng(seed)
            base = rng.normal(size=(side, side, 1)) + 0.3 * hash(label)
            rows.append(base + noise * np.random.default_rng(seed + 1).normal(size=base.shape))
        x = np.stack(rows)
        if on_step is not None:
            for step in range(steps):
                on_step(step, 1000.0 - 100 * step, torch.from_numpy(x))
        return np.clip(128 + 20 * x, 0, 255).astype(np.uint8)

    return sample


class Features:
    name = "mean-and-spread"

    def __call__(self, images):
        flat = images.reshape(len(images), -1).astype(np.float64) / 255
        features = np.stack([flat.mean(1), flat.std(1), flat[:, 0]], axis=1)
        logits = -np.abs(flat.mean(1)[:, None] - np.array([0.50, 0.524, 0.547]))
        return features, logits


REAL = RealStats(np.array([0.5, 0.08, 0.5]), np.eye(3) * 0.01, 1000, accuracy=0.9)
LABELS = [i % 3 for i in range(20)]
SEEDS = list(range(100, 120))


def run(full=None, quantized=None, **changes):
    arguments = {"labels": LABELS, "seeds": SEEDS, "batch_size": 8, "features": Features(), "real": REAL, "images": 12}
    return evaluate(full or sampler(), quantized or sampler(0.2), **{**arguments, **changes})


def test_results_are_json_and_complete():
    results = json.loads(json.dumps(run(labels=np.array(LABELS), seeds=np.array(SEEDS)), allow_nan=False))
    assert set(results) == {
        "n", "seeds", "psnr_db", "ssim", "fd", "fds", "class_accuracy", "guards", "noise_floor", "drift", "images"
    }  # fmt: skip
    assert results["n"] == 20
    assert results["seeds"] == SEEDS
    assert [key for key, value in results["fd"].items() if value is None] == ["reason"]
    assert results["fd"]["features"] == "mean-and-spread"
    assert results["class_accuracy"]["real"] == 0.9
    assert results["drift"]["timesteps"] == [1000.0, 900.0, 800.0]


def test_psnr_is_that_of_the_pairs():
    results = run()["psnr_db"]
    mse = mean_squared_error(sampler()(LABELS, SEEDS), sampler(0.2)(LABELS, SEEDS))
    assert results["mean"] == pytest.approx(psnr(mse).mean())
    assert results["pooled"] == pytest.approx(float(psnr(mse.mean())))
    assert results["worst"] == pytest.approx(psnr(mse).min())
    assert results["ci95"][0] < results["mean"] < results["ci95"][1]
    assert results["identical"] == 0
    assert len(results["per_image"]) == 20


@pytest.mark.parametrize("batch_size", [1, 3, 20, 64])
def test_batch_size_changes_nothing(batch_size):
    whole, parts = run(), run(batch_size=batch_size)
    assert parts["psnr_db"] == whole["psnr_db"]
    assert parts["images"] == whole["images"]
    assert parts["fd"]["to_real"] == pytest.approx(whole["fd"]["to_real"])
    assert parts["drift"]["relative"] == pytest.approx(whole["drift"]["relative"])


def test_unchanged_sampler_has_no_distance():
    results = run(quantized=sampler())
    assert results["psnr_db"]["mean"] == 60.0
    assert results["psnr_db"]["identical"] == 20
    assert results["ssim"]["mean"] == pytest.approx(1.0)
    assert results["fd"]["to_full_precision"] == pytest.approx(0, abs=1e-9)
    assert results["fd"]["difference_to_real"] == 0
    assert results["fd"]["difference_se"] == pytest.approx(0, abs=1e-12)
    assert results["class_accuracy"]["difference"] == 0
    assert results["drift"]["relative"] == [0.0, 0.0, 0.0]
    assert not any(picture["worst"] for picture in results["images"])


def test_paired_distance_is_far_below_the_noise_floor():
    fd = run(quantized=sampler(0.05))["fd"]
    assert fd["to_full_precision"] < 0.2 * fd["noise_floor"]


def test_noise_floor_uses_another_batch_size_and_other_seeds():
    log = []
    floor = run(full=sampler(log=log))["noise_floor"]
    assert floor["psnr_db"] == 60.0
    assert floor["identical"] == 20
    assert floor["other_seeds_psnr_db"] < 25
    assert floor["batch_sizes"] == [8, 4]
    assert log[:3] == [8, 8, 4]
    assert log[3:] == [4] * 10


def test_noise_floor_can_be_left_out():
    log = []
    assert run(full=sampler(log=log), noise_floor=False)["noise_floor"] is None
    assert sum(log) == 20


def test_images_are_the_first_and_the_worst():
    results = run(images=12)
    shown = results["images"]
    assert len(shown) == 12
    worst = set(np.argsort(results["psnr_db"]["per_image"])[:4].tolist())
    assert {picture["index"] for picture in shown if picture["worst"]} == worst
    rest = [picture["index"] for picture in shown if not picture["worst"]]
    assert rest == [i for i in range(20) if i not in worst][:8]
    assert all(picture["full_precision"].startswith("data:image/png;base64,") for picture in shown)
    assert run(images=0)["images"] == []


def test_progress_counts_every_picture():
    seen = []
    run(progress=lambda done, total, what: seen.append((done, total, what)))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][:2] == (80, 80)
    assert {what for _, _, what in seen} == {"full precision", "quantized", "noise floor", "other seeds"}


def test_without_features_their_results_are_null():
    results = run(features=None)
    assert [key for key, value in results["fd"].items() if value is not None] == ["reason"]
    assert results["class_accuracy"] is None


def test_without_real_pictures_distances_to_them_are_null():
    fd = run(real=None)["fd"]
    assert fd["to_real"] is None
    assert fd["difference_to_real"] is None
    assert fd["to_full_precision"] > 0


def test_named_labels_have_no_accuracy():
    assert run(labels=["cat"] * 20)["class_accuracy"] is None


def test_bad_requests_are_named():
    with pytest.raises(BadValue, match="20 labels and 19 seeds"):
        run(seeds=SEEDS[:-1])
    with pytest.raises(BadValue, match="at least 2 pictures"):
        run(labels=[0], seeds=[1])
    with pytest.raises(BadValue, match="batch_size"):
        run(batch_size=0)
    with pytest.raises(BadValue, match=r"\(8, 8, 8, 1\) against .*\(8, 4, 4, 1\)"):
        run(quantized=sampler(side=4))
    with pytest.raises(BadValue, match="2 steps"):
        run(quantized=sampler(steps=2))
    with pytest.raises(BadValue, match="real statistics have 2"):
        run(real=RealStats(np.zeros(2), np.eye(2), 10))


def test_nan_is_named():
    def broken(labels, seeds, on_step=None):
        return np.full((len(labels), 8, 8, 1), np.nan)

    with pytest.raises(BadValue, match="quantized pictures contain NaN"):
        run(quantized=broken)

    def nan_features(images):
        return np.full((len(images), 3), np.nan), None

    nan_features.name = "broken"
    with pytest.raises(BadValue, match="features 'broken'"):
        run(features=nan_features)
