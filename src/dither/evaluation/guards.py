"""Quality guards: did the quantized pictures move away from the data, by the numbers that papers report?

A paired distance to full precision measures change, not quality. Beside it stand the metrics to data, each for both sets
and as a paired difference (quantized minus full precision, row i of both from one seed) with a 95 % interval and the
difference that such a sample detects with 80 % power at the 5 % level, 2.8 standard errors. Full precision itself is
only near the data, so a metric to data may well improve by accident: a guard warns, it does not rank.

The difference of Frechet distances and of Inception Scores has their 1/n bias removed, and that of CMMD its diagonal:
it is not quite the difference of the two values beside it. The real pictures of a Frechet distance and of precision are
taken as fixed; those of recall, KID and CMMD count as a sample too.

**Too few.** What would mislead is refused, with the number needed:
- Frechet distances in D dimensions need D + 1 pictures, since the covariance of fewer is singular: the transport map has no
  inverse and the distance is mostly the dimensions that were never seen. Features of 2048 and more dimensions are the
  ones that papers print, so they need at least the 2048 that the field calls the least (D + 1 says the same). The
  interval of a difference needs 2 D: its bias is taken off by halves, which need about D each for the same reason.
- The Inception Score needs 10 pictures a class (at most 5000), see `inception_score`.
- Precision and recall need 80 of both sets, and KID and CMMD 50: so many that their intervals hold in simulation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from dither.errors import BadValue
from dither.evaluation import frechet, frechet_pairs, mmd
from dither.evaluation.checks import TooFewSamples, feature_rows
from dither.evaluation.inception_score import inception_score, inception_score_difference
from dither.evaluation.intervals import bootstrap_mean_interval
from dither.evaluation.manifold import FEWEST, manifold_change
from dither.evaluation.planning import detectable_difference
from dither.evaluation.protocol import Float64

__all__ = [
    "ADM_GUARDS",
    "GUARDS",
    "Crowd",
    "RealCrowd",
    "frechet_needs",
    "quality_guards",
    "score_guard",
]

Fit: TypeAlias = tuple[Float64, Float64]  # mean (D,), covariance (D, D)
Row: TypeAlias = dict[str, Any]

Z95 = float(stats.norm.ppf(0.975))
FEWEST_MMD = 50


@dataclass(frozen=True)
class Crowd:
    """What a network saw in one set of pictures: features (N, D), and where it has them logits (N, K), spatial (N, S)."""

    features: npt.NDArray[Any]
    logits: npt.NDArray[Any] | None = None
    spatial: npt.NDArray[Any] | None = None


@dataclass(frozen=True)
class RealCrowd:
    """What is known of the data: features (M, D) of some pictures, or only Gaussian fits (mu, sigma) of many."""

    features: npt.NDArray[Any] | None = None
    fit: Fit | None = None
    spatial_fit: Fit | None = None


@dataclass(frozen=True)
class _Measured:
    """One metric: the two values, and their difference with its standard error where a sample this small gives one."""

    metric: str
    better: str
    quantized: float
    full: float
    difference: float
    se: float | None
    ci95: tuple[float, float] | None
    reason: str | None = None


Measure: TypeAlias = Callable[[Crowd, Crowd, RealCrowd], Sequence[_Measured]]


def frechet_needs(dimensions: int) -> tuple[int, int]:
    """Fewest pictures for a Frechet distance to data, and for the interval of a difference of two."""
    fewest = dimensions + 1
    return fewest, max(fewest, 4, frechet_pairs.needed_samples(dimensions))


def quality_guards(
    full: Crowd, quantized: Crowd, real: RealCrowd, *, features: str, guards: Sequence[str]
) -> list[Row]:
    """Measure each of `guards` for both sets, and their paired difference, as rows that `json.dump` can write.

    Args:
        full, quantized: both sets; row i of both comes from the same seed.
        real: what is known of the data.
        features: name of the network, printed beside each number.
        guards: names in `GUARDS`. A metric that lacks its data or samples gives a row of nulls with a `reason`.

    Raises:
        BadValue: an unknown guard, sets that cannot be paired, NaN or infinite values.
    """
    unknown = [name for name in guards if name not in GUARDS]
    if unknown:
        raise BadValue(f"unknown guard {unknown[0]!r}: choose from {', '.join(sorted(GUARDS))}.")
    for name, a, b in _pairs(full, quantized):
        if (a is None) != (b is None) or (a is not None and b is not None and a.shape != b.shape):
            raise BadValue(f"the {name} of the quantized and the full-precision pictures cannot be paired.")
    n, rows = len(full.features), []
    for name in guards:
        metrics, better, measure = GUARDS[name]
        try:
            rows += [_row(measured, features, n) for measured in measure(full, quantized, real)]
        except (TooFewSamples, _Missing) as reason:
            rows += [_refused(metric, features, n, better, str(reason)) for metric in metrics]
    return rows


def score_guard(metric: str, quantized: npt.NDArray[Any], full: npt.NDArray[Any], *, features: str, better: str) -> Row:
    """Row of a metric that is a mean of one number per picture, such as CLIPScore; rows (N,) of the same seeds."""
    a, b = np.asarray(quantized, dtype=np.float64), np.asarray(full, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise BadValue(f"{metric} needs one number per picture of both sets, got shapes {a.shape} and {b.shape}.")
    if better not in ("lower", "higher", "closer"):
        raise BadValue(f"better must be lower, higher or closer, got {better!r}.")
    if len(a) < 2:
        return _refused(metric, features, len(a), better, f"{metric} needs at least 2 samples, got {len(a)}.")
    se = frechet.standard_error(a - b)
    ours, theirs, change = (float(x.mean()) for x in (a, b, a - b))
    return _row(_Measured(metric, better, ours, theirs, change, se, bootstrap_mean_interval(a - b)), features, len(a))


class _Missing(Exception):
    """A guard lacks something other than samples."""


def _frechet(metric: str) -> Measure:
    def measure(full: Crowd, quantized: Crowd, real: RealCrowd) -> Sequence[_Measured]:
        fit = real.fit
        if fit is None and real.features is not None:
            needed = frechet_needs(real.features.shape[1])[0]
            fit = frechet.fit_gaussian(feature_rows(real.features, f"{metric} (real pictures)", needed))
        return [_frechet_change(metric, quantized.features, full.features, fit)]

    return measure


def _spatial(full: Crowd, quantized: Crowd, real: RealCrowd) -> Sequence[_Measured]:
    if full.spatial is None or quantized.spatial is None:
        raise _Missing("sfid needs spatial features, which this network does not give.")
    return [_frechet_change("sfid", quantized.spatial, full.spatial, real.spatial_fit)]


def _frechet_change(metric: str, quantized: npt.NDArray[Any], full: npt.NDArray[Any], fit: Fit | None) -> _Measured:
    if fit is None:
        raise _Missing(f"{metric} needs features of real pictures or their mean and covariance.")
    dimensions = len(fit[0])
    if quantized.ndim != 2 or quantized.shape[1] != dimensions:
        raise BadValue(
            f"{metric}: the pictures have features {quantized.shape}, the real ones {dimensions} dimensions."
        )
    for_value, for_interval = frechet_needs(dimensions)
    a, b = (feature_rows(x, f"{metric} with {dimensions} features", for_value) for x in (quantized, full))
    ours, theirs = (frechet.frechet_distance(*frechet.fit_gaussian(x), *fit) for x in (a, b))
    if len(a) < for_interval:
        reason = f"the interval of a {metric} difference needs at least {for_interval} samples, got {len(a)}."
        return _Measured(metric, "lower", ours, theirs, ours - theirs, None, None, reason)
    change = frechet_pairs.reference_change(b, a, *fit)
    return _Measured(metric, "lower", ours, theirs, change.difference, change.standard_error, change.interval())


def _inception(full: Crowd, quantized: Crowd, real: RealCrowd) -> Sequence[_Measured]:
    if full.logits is None or quantized.logits is None:
        raise _Missing("inception_score needs class logits, which this network does not give.")
    values = [inception_score(logits).mean for logits in (quantized.logits, full.logits)]
    difference, se = inception_score_difference(quantized.logits, full.logits)
    return [_normal("inception_score", "higher", values, difference, se)]


def _manifold(full: Crowd, quantized: Crowd, real: RealCrowd) -> Sequence[_Measured]:
    truth = _real_features(real, "precision or recall", FEWEST)
    feature_rows(full.features, "precision or recall", FEWEST)
    change = manifold_change(quantized.features, full.features, truth)
    p = change.quantized.precision, change.full.precision
    r = change.quantized.recall, change.full.recall
    return [
        _Measured("precision", "higher", *p, p[0] - p[1], change.precision_se, change.precision_ci95),
        _Measured("recall", "higher", *r, r[0] - r[1], change.recall_se, change.recall_ci95),
    ]


def _kid(full: Crowd, quantized: Crowd, real: RealCrowd) -> Sequence[_Measured]:
    a, b, truth = _for_mmd(full, quantized, real, "kid")
    values = [mmd.kid(x, truth)[0] for x in (a, b)]
    return [_normal("kid", "lower", values, *mmd.kid_difference(a, b, truth))]


def _cmmd(full: Crowd, quantized: Crowd, real: RealCrowd) -> Sequence[_Measured]:
    a, b, truth = _for_mmd(full, quantized, real, "cmmd")
    values = [mmd.cmmd(x, truth)[0] for x in (a, b)]
    return [_normal("cmmd", "lower", values, *mmd.cmmd_difference(a, b, truth))]


def _for_mmd(full: Crowd, quantized: Crowd, real: RealCrowd, metric: str) -> tuple[Float64, Float64, Float64]:
    truth = _real_features(real, metric, FEWEST_MMD)
    a, b = (feature_rows(x.features, metric, FEWEST_MMD) for x in (quantized, full))
    return a, b, truth


def _real_features(real: RealCrowd, metric: str, at_least: int) -> Float64:
    if real.features is None:
        raise _Missing(f"{metric} needs features of real pictures: their mean and covariance are not enough.")
    return feature_rows(real.features, f"{metric} (real pictures)", at_least)


GUARDS: Mapping[str, tuple[tuple[str, ...], str, Measure]] = {
    "fid": (("fid",), "lower", _frechet("fid")),  # with Inception's pooled features only
    "fd": (("fd",), "lower", _frechet("fd")),
    "sfid": (("sfid",), "lower", _spatial),
    "inception_score": (("inception_score",), "higher", _inception),
    "precision_recall": (("precision", "recall"), "higher", _manifold),
    "kid": (("kid",), "lower", _kid),
    "cmmd": (("cmmd",), "lower", _cmmd),  # with CLIP's embeddings only
}
"""Guard -> the metrics of its rows, which way is better, and how it is measured."""

ADM_GUARDS = ("fid", "sfid", "inception_score", "precision_recall")
"""What papers of class-conditional models report, with Inception's features."""


def _pairs(full: Crowd, quantized: Crowd) -> Sequence[tuple[str, npt.NDArray[Any] | None, npt.NDArray[Any] | None]]:
    return (
        ("features", full.features, quantized.features),
        ("logits", full.logits, quantized.logits),
        ("spatial features", full.spatial, quantized.spatial),
    )


def _normal(metric: str, better: str, values: Sequence[float], difference: float, se: float) -> _Measured:
    interval = difference - Z95 * se, difference + Z95 * se
    return _Measured(metric, better, values[0], values[1], difference, se, interval)


def _row(measured: _Measured, features: str, n: int) -> Row:
    return {
        "metric": measured.metric,
        "features": features,
        "n": n,
        "quantized": measured.quantized,
        "full_precision": measured.full,
        "difference": measured.difference,
        "difference_ci95": None if measured.ci95 is None else list(measured.ci95),
        "detectable": None if measured.se is None else detectable_difference(measured.se),
        "better": measured.better,
        "reason": measured.reason,
    }


def _refused(metric: str, features: str, n: int, better: str, reason: str) -> Row:
    numbers = ("quantized", "full_precision", "difference", "difference_ci95", "detectable")
    return {
        "metric": metric,
        "features": features,
        "n": n,
        **dict.fromkeys(numbers),
        "better": better,
        "reason": reason,
    }
