import json

import numpy as np
import pytest

from dither.errors import BadValue
from dither.evaluation import frechet, mmd
from dither.evaluation.guards import ADM_GUARDS, GUARDS, Crowd, RealCrowd, frechet_needs, quality_guards, score_guard
from dither.evaluation.inception_score import inception_score, inception_score_difference
from dither.evaluation.intervals import bootstrap_mean_interval
from dither.evaluation.manifold import precision_recall

D, CLASSES = 6, 5
HEAD = np.random.default_rng(1).normal(size=(D, CLASSES))
ALL = tuple(GUARDS)


def sample(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, D))


def crowd(features: np.ndarray) -> Crowd:
    return Crowd(features, features @ HEAD, features[:, :3] ** 2)


def pair(n: int, seed: int = 0, effect: float = 0.3) -> tuple[Crowd, Crowd]:
    """Full precision and quantized."""
    full = 1.05 * sample(n, seed)
    return crowd(full), crowd((1 + effect) * full + effect * sample(n, 10_000 + seed))


def real(m: int = 400, seed: int = 99) -> RealCrowd:
    features = sample(m, seed)
    return RealCrowd(
        features, frechet.fit_gaussian(sample(20_000, 5)), frechet.fit_gaussian(sample(20_000, 5)[:, :3] ** 2)
    )


def measured(full: Crowd, quantized: Crowd, reference: RealCrowd, guards: tuple[str, ...] = ALL) -> dict[str, dict]:
    rows = quality_guards(full, quantized, reference, features="test", guards=guards)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    return {row["metric"]: row for row in rows}


def test_measures_every_metric_of_both_sets():
    (full, quantized), truth = pair(200), real()
    rows = measured(full, quantized, truth)
    assert list(rows) == ["fid", "fd", "sfid", "inception_score", "precision", "recall", "kid", "cmmd"]
    for name, crowd_ in (("quantized", quantized), ("full_precision", full)):
        fd = frechet.frechet_distance(*frechet.fit_gaussian(crowd_.features), *truth.fit)
        sfd = frechet.frechet_distance(*frechet.fit_gaussian(crowd_.spatial), *truth.spatial_fit)
        shares = precision_recall(crowd_.features, truth.features)
        expected = {
            "fid": fd,
            "fd": fd,
            "sfid": sfd,
            "inception_score": inception_score(crowd_.logits).mean,
            "precision": shares.precision,
            "recall": shares.recall,
            "kid": mmd.kid(crowd_.features, truth.features)[0],
            "cmmd": mmd.cmmd(crowd_.features, truth.features)[0],
        }
        assert {metric: row[name] for metric, row in rows.items()} == pytest.approx(expected)
    for row in rows.values():
        low, high = row["difference_ci95"]
        assert low < row["difference"] < high
        assert row["detectable"] == pytest.approx(2.8016 * (high - low) / (2 * 1.96), rel=0.01)
        assert (row["n"], row["features"], row["reason"]) == (200, "test", None)
    assert {metric for metric, row in rows.items() if row["better"] == "higher"} == {
        "inception_score",
        "precision",
        "recall",
    }


def test_differences_are_those_of_the_metrics_own_files():
    (full, quantized), truth = pair(200), real()
    rows = measured(full, quantized, truth)
    assert rows["kid"]["difference"] == mmd.kid_difference(quantized.features, full.features, truth.features)[0]
    assert rows["cmmd"]["difference"] == mmd.cmmd_difference(quantized.features, full.features, truth.features)[0]
    difference = inception_score_difference(quantized.logits, full.logits)[0]
    assert rows["inception_score"]["difference"] == difference
    # Every set is 1.3 to 1.05 times as wide: all of these see that it left the data.
    for metric in ("fid", "fd", "sfid", "kid", "cmmd"):
        assert rows[metric]["difference_ci95"][0] > 0
    assert rows["precision"]["difference_ci95"][1] < 0


def test_a_set_does_not_differ_from_itself():
    full, _ = pair(200)
    for row in measured(full, full, real()).values():
        assert row["difference"] == 0
        assert row["difference_ci95"][0] <= 0 <= row["difference_ci95"][1]


def test_the_fit_is_taken_from_real_features_where_none_is_given():
    (full, quantized), truth = pair(100), real()
    alone = measured(full, quantized, RealCrowd(features=truth.features), ("fd",))
    given = measured(full, quantized, RealCrowd(fit=frechet.fit_gaussian(truth.features)), ("fd",))
    assert alone == given


def test_labels_that_come_in_turn_do_not_bias_the_difference():
    def cyclic(n: int, seed: int, effect: float) -> np.ndarray:
        return (1 + effect) * sample(n, seed) + 4 * (np.arange(n)[:, None] % 2)

    fit = frechet.fit_gaussian(cyclic(100_000, 5, 0.0))
    sets = [Crowd(cyclic(200, 3, effect)) for effect in (0.0, 0.1)]
    row = measured(sets[0], sets[1], RealCrowd(fit=fit), ("fd",))["fd"]
    # Even and odd rows are two classes: halves taken so would be as far from the data as one class is.
    plain = row["quantized"] - row["full_precision"]
    assert abs(row["difference"] - plain) < 0.3 * abs(plain)


def test_too_few_samples_are_refused_with_the_number_needed():
    truth = real()
    rows = measured(*pair(6), truth)
    reasons = {metric: row["reason"] for metric, row in rows.items()}
    assert reasons["fd"] == "fd with 6 features needs at least 7 samples, got 6."
    assert reasons["fid"] == "fid with 6 features needs at least 7 samples, got 6."
    assert reasons["inception_score"] == "the Inception Score needs at least 50 samples, got 6."
    assert reasons["precision"] == reasons["recall"] == "precision or recall needs at least 80 samples, got 6."
    assert reasons["kid"] == "kid needs at least 50 samples, got 6."
    assert reasons["cmmd"] == "cmmd needs at least 50 samples, got 6."
    for metric in set(rows) - {"sfid"}:
        values = ("quantized", "full_precision", "difference", "difference_ci95", "detectable")
        assert [rows[metric][value] for value in values] == [None] * 5


def test_too_few_real_pictures_are_refused_too():
    rows = measured(*pair(100), RealCrowd(features=sample(5, 0)))
    assert rows["fd"]["reason"] == "fd (real pictures) needs at least 7 samples, got 5."
    assert rows["kid"]["reason"] == "kid (real pictures) needs at least 50 samples, got 5."
    assert rows["recall"]["reason"] == "precision or recall (real pictures) needs at least 80 samples, got 5."


def test_a_frechet_difference_has_an_interval_from_twice_as_many():
    assert frechet_needs(D) == (7, 12)
    assert frechet_needs(2048) == (2049, 4096)
    assert frechet_needs(1) == (2, 4)
    truth = real()
    short, enough = (measured(*pair(n), truth, ("fd",))["fd"] for n in (11, 12))
    assert short["quantized"] > 0
    assert short["difference"] == short["quantized"] - short["full_precision"]
    assert short["difference_ci95"] is short["detectable"] is None
    assert short["reason"] == "the interval of a fd difference needs at least 12 samples, got 11."
    assert enough["reason"] is None
    assert enough["difference_ci95"][0] < enough["difference_ci95"][1]


def test_says_what_is_missing():
    plain, fit_only = [Crowd(x.features) for x in pair(100)], RealCrowd(fit=frechet.fit_gaussian(sample(100, 0)))
    rows = measured(*plain, fit_only)
    assert rows["fd"]["reason"] is None
    assert "spatial features" in rows["sfid"]["reason"]
    assert "class logits" in rows["inception_score"]["reason"]
    assert "features of real pictures" in rows["kid"]["reason"]
    assert rows["precision"]["reason"] == rows["recall"]["reason"]
    nothing = measured(*pair(100), RealCrowd())
    assert "features of real pictures or their mean" in nothing["fd"]["reason"]
    assert "features of real pictures or their mean" in nothing["sfid"]["reason"]
    assert nothing["inception_score"]["quantized"] > 1


@pytest.mark.parametrize(
    ("guards", "metrics"), [(ADM_GUARDS, ["fid", "sfid", "inception_score", "precision", "recall"]), ((), [])]
)
def test_measures_what_is_asked_for(guards, metrics):
    assert list(measured(*pair(100), real(), guards)) == metrics


@pytest.mark.parametrize("metric", ["fd", "inception_score", "precision", "recall", "kid", "cmmd"])
def test_intervals_cover(metric):
    guard = "precision_recall" if metric in ("precision", "recall") else metric
    fit, fixed = frechet.fit_gaussian(sample(50_000, 5)), sample(120, 99)

    def row(n: int, seed: int, m: int) -> dict:
        # Precision takes the real pictures as fixed; recall, KID and CMMD as one more sample.
        features = fixed if metric == "precision" else sample(m, 50_000 + seed)
        return measured(*pair(n, seed, 0.1), RealCrowd(features, fit), (guard,))[metric]

    repeats = 60
    rows = [row(80, seed, 120) for seed in range(repeats)]
    differences = [row["difference"] for row in rows]
    truth = np.mean(differences)  # of itself for recall, whose value depends on the counts
    if metric not in ("recall", "precision"):
        large = [row(1500, 1_000_000 + seed, 1500)["difference"] for seed in range(4)]
        assert np.mean(large) == pytest.approx(truth, abs=5 * np.std(differences) / np.sqrt(repeats))
        truth = np.mean(large)
    covered = np.mean([row["difference_ci95"][0] <= truth <= row["difference_ci95"][1] for row in rows])
    assert covered >= 0.87  # 95 % of 60 is 57; 52 or fewer happen once in 60 such tests at 95 %


def test_a_score_per_picture_is_a_guard():
    rng = np.random.default_rng(0)
    full = rng.normal(30, 5, 100)
    quantized = full - 1 + rng.normal(0, 1, 100)
    row = score_guard("clip_score", quantized, full, features="clip", better="higher")
    assert row["difference"] == pytest.approx(quantized.mean() - full.mean())
    assert row["difference_ci95"] == list(bootstrap_mean_interval(quantized - full))
    assert row["detectable"] == pytest.approx(2.8016 * (quantized - full).std(ddof=1) / 10, rel=1e-3)
    assert list(row) == list(measured(*pair(100), real(), ("kid",))["kid"])
    assert "at least 2 samples" in score_guard("x", full[:1], full[:1], features="clip", better="closer")["reason"]


def test_refuses_what_makes_no_sense():
    full, quantized = pair(100)
    with pytest.raises(BadValue, match="unknown guard 'fvd': choose from cmmd, fd"):
        quality_guards(full, quantized, real(), features="test", guards=("fvd",))
    with pytest.raises(BadValue, match="features of the quantized and the full-precision pictures cannot be paired"):
        quality_guards(full, pair(99)[1], real(), features="test", guards=())
    with pytest.raises(BadValue, match="logits of the quantized"):
        quality_guards(full, Crowd(quantized.features), real(), features="test", guards=())
    with pytest.raises(BadValue, match="the real ones 3 dimensions"):
        quality_guards(full, quantized, RealCrowd(fit=(np.zeros(3), np.eye(3))), features="test", guards=("fd",))
    broken = crowd(np.full((100, D), np.nan))
    with pytest.raises(BadValue, match="NaN"):
        quality_guards(broken, broken, real(), features="test", guards=("kid",))
    with pytest.raises(BadValue, match="better must be"):
        score_guard("x", np.ones(3), np.ones(3), features="clip", better="up")
    with pytest.raises(BadValue, match="one number per picture"):
        score_guard("x", np.ones(3), np.ones(4), features="clip", better="lower")
