import json

import numpy as np
import pytest

from dither.errors import BadValue
from dither.evaluation.features import View
from dither.evaluation.guards import Crowd, RealCrowd
from dither.evaluation.judge import Judge, floor_batches

RNG = np.random.default_rng(0)
FULL = RNG.integers(0, 256, (30, 12, 12, 3), dtype=np.uint8)
NEAR = np.clip(FULL.astype(int) + RNG.integers(-9, 10, FULL.shape), 0, 255).astype(np.uint8)
LABELS = [f"prompt {i}" for i in range(30)]


def fed(judge, batch=7, quantized=NEAR):
    for start in range(0, 30, batch):
        rows = range(start, min(start + batch, 30))
        judge.add(rows, LABELS[start : rows.stop], rows, FULL[start : rows.stop], quantized[start : rows.stop])
    return judge


def results(judge):
    return json.loads(json.dumps(judge.results(), allow_nan=False))


@pytest.mark.parametrize("batch", [1, 4, 30])
def test_batches_do_not_matter(batch):
    assert results(fed(Judge(), batch)) == results(fed(Judge()))


def test_more_distances_of_partners():
    def mean_gap(a, b):
        return np.abs(a.astype(int) - b).mean(axis=(1, 2, 3))

    found = results(fed(Judge(distances={"gap": mean_gap})))["gap"]
    assert found["mean"] == pytest.approx(mean_gap(FULL, NEAR).mean())
    assert found["ci95"][0] < found["mean"] < found["ci95"][1]
    assert found["detectable"] == pytest.approx(2.8016 * mean_gap(FULL, NEAR).std(ddof=1) / 30**0.5, rel=1e-4)


class Brightness:
    name = "brightness"

    def __call__(self, pictures, prompts):
        assert all(prompt.startswith("prompt ") for prompt in prompts)
        return pictures.mean(axis=(1, 2, 3)) / 255


def test_scores_of_prompts_are_guards():
    darker = (FULL * 0.9).astype(np.uint8)
    (row,) = results(fed(Judge(scores={"bright_score": Brightness()}), quantized=darker))["guards"]
    assert (row["metric"], row["features"], row["better"], row["n"]) == ("bright_score", "brightness", "higher", 30)
    assert row["difference"] == pytest.approx(row["quantized"] - row["full_precision"])
    assert row["difference_ci95"][1] < 0


def see(pictures):
    flat = pictures.reshape(len(pictures), -1)[:, :3].astype(np.float64)
    return Crowd(flat, flat, None)


def test_every_view_has_its_distance_and_its_guards():
    real = RealCrowd(features=see(RNG.integers(0, 256, FULL.shape, dtype=np.uint8)).features)
    found = results(fed(Judge([View("first", see), View("second", see, ("fd", "sfid"), real)])))
    assert [fd["features"] for fd in found["fds"]] == ["first", "second"]
    assert found["fd"] == found["fds"][0]
    assert [(row["metric"], row["features"]) for row in found["guards"]] == [("fd", "second"), ("sfid", "second")]
    assert found["guards"][0]["difference"] is not None
    assert "spatial" in found["guards"][1]["reason"]


def test_few_pictures_have_a_distance_and_a_reason_instead_of_an_interval():
    wide = View("wide", lambda p: Crowd(p.reshape(len(p), -1)[:, :40].astype(np.float64), None, None))
    fd = results(fed(Judge([wide])))["fd"]
    assert fd["to_full_precision"] > 0
    assert fd["ci95"] is None
    assert fd["reason"] == "an interval in 40 features needs at least 80 pictures, got 30"


def test_the_floor_is_of_the_pictures_that_were_kept():
    judge = fed(Judge(show=0, floor=5))
    judge.add_floor(range(0, 5), FULL[:5], NEAR[:5])
    judge.add_floor(range(5, 9), FULL[5:9], NEAR[5:9])  # beyond the floor: not kept, not counted
    floor = judge.results()["noise_floor"]
    assert (floor["n"], floor["identical"], floor["psnr_db"], floor["ssim"]) == (5, 5, 60.0, 1.0)
    assert floor["other_seeds_psnr_db"] < 40
    half = fed(Judge(show=0, floor=5))
    half.add_floor(range(5), FULL[:5], None)
    assert half.results()["noise_floor"] is None


@pytest.mark.parametrize(
    ("n", "floor", "batch", "expected"),
    [(20, 20, 8, [(0, 4), (4, 8), (8, 12), (12, 16), (16, 20)]), (6, 32, 64, [(0, 3), (3, 6)]), (3, 3, 1, [(0, 2), (2, 3)]),
     (9, 0, 4, [])],
)  # fmt: skip
def test_floor_batches(n, floor, batch, expected):
    assert [(s.start, s.stop) for s in floor_batches(n, floor, batch)] == expected


def test_one_picture_is_no_evaluation():
    judge = Judge()
    judge.add([0], ["a"], [0], FULL[:1], NEAR[:1])
    with pytest.raises(BadValue, match="at least 2 pictures, got 1"):
        judge.results()
