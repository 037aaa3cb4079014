"""Measurements that need a network: Frechet distances, class accuracy, and guards of quality against real pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dither.errors import BadValue
from dither.evaluation import frechet, frechet_pairs
from dither.evaluation.guards import Crowd, RealCrowd, quality_guards
from dither.evaluation.intervals import paired_proportion_interval
from dither.evaluation.planning import detectable_difference
from dither.evaluation.protocol import FeatureExtractor, Label, Pictures, RealStats

__all__ = ["FeatureTable", "View", "measure_accuracy", "measure_frechet", "measure_guards", "view_of"]

Guard: TypeAlias = str

FRECHET = (
    "features",
    "n",
    "to_full_precision",
    "unbiased",
    "to_full_precision_se",
    "ci95",
    "detectable",
    "noise_floor",
    "to_real",
    "full_precision_to_real",
    "difference_to_real",
    "difference_se",
    "difference_ci95",
    "difference_detectable",
    "reason",
)


@dataclass(frozen=True)
class View:
    """A network's look at pictures.

    Args:
        name: printed beside every number of these features.
        see: pictures (N, H, W, C) to what the network says of each.
        guards: metrics against real pictures to take of these features, names in ``guards.GUARDS``.
        real: what is known of the real pictures in these features.
    """

    name: str
    see: Callable[[Pictures], Crowd]
    guards: tuple[Guard, ...] = ()
    real: RealCrowd = field(default_factory=RealCrowd)


def view_of(extractor: FeatureExtractor) -> View:
    """A plain extractor as a view without guards."""

    def see(pictures: Pictures) -> Crowd:
        features, logits = extractor(pictures)
        return Crowd(features, logits)

    return View(extractor.name, see)


@dataclass
class FeatureTable:
    """What one network saw in both sets of pictures, filled batch by batch."""

    view: View
    _full: list[Crowd] = field(default_factory=list)
    _quantized: list[Crowd] = field(default_factory=list)

    def add(self, full: Pictures, quantized: Pictures) -> None:
        """Look at one batch of each."""
        for pictures, seen in ((full, self._full), (quantized, self._quantized)):
            crowd = self.view.see(pictures)
            for what, rows in (("features", crowd.features), ("logits", crowd.logits), ("features", crowd.spatial)):
                if rows is not None and (rows.ndim != 2 or len(rows) != len(pictures) or not np.isfinite(rows).all()):
                    raise BadValue(
                        f"{what} {self.view.name!r} of {len(pictures)} pictures have shape {rows.shape} or are not "
                        f"finite."
                    )
            seen.append(crowd)

    def full(self) -> Crowd:
        """Of all full-precision pictures so far."""
        return _joined(self._full)

    def quantized(self) -> Crowd:
        """Of all quantized pictures so far."""
        return _joined(self._quantized)


def _joined(parts: Sequence[Crowd]) -> Crowd:
    return Crowd(
        np.concatenate([part.features for part in parts]).astype(np.float64),
        _rows([part.logits for part in parts]),
        _rows([part.spatial for part in parts]),
    )


def _rows(parts: Sequence[npt.NDArray[Any] | None]) -> npt.NDArray[Any] | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None


def measure_guards(table: FeatureTable) -> list[dict[str, Any]]:
    """Rows of the view's guards; see ``guards``."""
    view = table.view
    if not view.guards:
        return []
    return quality_guards(table.full(), table.quantized(), view.real, features=view.name, guards=view.guards)


def measure_frechet(table: FeatureTable | None, real: RealStats | None) -> dict[str, Any]:
    """All Frechet distances in one network's features, with intervals.

    `to_full_precision` is the distance as it is defined, which few pictures make too high; `unbiased` is without that
    bias, and `ci95` and `detectable` are about it. `noise_floor` is what two independent sets of full-precision pictures
    of this size would show: the paired distance lies far below it when little changed. `difference_to_real` has the bias
    removed too, so it is not quite the difference of the two distances beside it. `reason` says why something is null.
    """
    found: dict[str, Any] = dict.fromkeys(FRECHET)
    if table is None:
        return {**found, "reason": "no feature network is known for this model"}
    full, quantized = table.full().features, table.quantized().features
    if real is not None and real.mu.shape != full.shape[1:]:
        raise BadValue(f"real statistics have {real.mu.shape[0]} features, the pictures have {full.shape[1]}.")
    n, dimension = full.shape
    found |= {
        "features": table.view.name,
        "n": n,
        "to_full_precision": frechet.sample_distance(full, quantized),
        "noise_floor": frechet.null_bias(frechet.fit_gaussian(full)[1], n, n),
    }
    if real is not None:
        for name, rows in (("to_real", quantized), ("full_precision_to_real", full)):
            found[name] = frechet.frechet_distance(*frechet.fit_gaussian(rows), real.mu, real.sigma)
    needed = frechet_pairs.needed_samples(dimension)
    if n < needed:
        return found | {"reason": f"an interval in {dimension} features needs at least {needed} pictures, got {n}"}
    estimate = frechet_pairs.estimate_distance(full, quantized)
    found |= {
        "unbiased": estimate.unbiased,
        "to_full_precision_se": estimate.standard_error,
        "ci95": list(estimate.interval()),
        "detectable": detectable_difference(estimate.standard_error),
    }
    if real is not None:
        change = frechet_pairs.reference_change(full, quantized, real.mu, real.sigma)
        found |= {
            "difference_to_real": change.difference,
            "difference_se": change.standard_error,
            "difference_ci95": list(change.interval()),
            "difference_detectable": detectable_difference(change.standard_error),
        }
    return found


def measure_accuracy(
    table: FeatureTable | None, labels: Sequence[Label], real: RealStats | None
) -> dict[str, Any] | None:
    """How often the feature network sees the class that was asked for; None without logits or with named labels."""
    if table is None or not all(isinstance(label, int | np.integer) for label in labels):
        return None
    logits = table.full().logits, table.quantized().logits
    if logits[0] is None or logits[1] is None:
        return None
    wanted = np.asarray(labels)
    full, quantized = [(rows.argmax(axis=1) == wanted).astype(np.float64) for rows in logits if rows is not None]
    return {
        "quantized": float(quantized.mean()),
        "full_precision": float(full.mean()),
        "real": None if real is None else real.accuracy,
        "difference": float((quantized - full).mean()),
        "ci95": list(
            paired_proportion_interval(int((quantized > full).sum()), int((quantized < full).sum()), len(wanted))
        ),
    }
