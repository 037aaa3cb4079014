"""Measurements that need a feature network: Frechet distances and class accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dither.errors import BadValue
from dither.evaluation import frechet
from dither.evaluation.intervals import bootstrap_mean_interval
from dither.evaluation.protocol import FeatureExtractor, Float64, Label, Pictures, RealStats

__all__ = ["FeatureTable", "measure_accuracy", "measure_frechet"]


@dataclass
class FeatureTable:
    """Features and predicted classes of both sets of pictures, filled batch by batch. No extractor: stays empty."""

    extractor: FeatureExtractor | None
    _full: list[Float64] = field(default_factory=list)
    _quantized: list[Float64] = field(default_factory=list)
    _full_class: list[npt.NDArray[Any]] = field(default_factory=list)
    _quantized_class: list[npt.NDArray[Any]] = field(default_factory=list)

    def add(self, full: Pictures, quantized: Pictures) -> None:
        """Extract the features of one batch of each."""
        if self.extractor is None:
            return
        pairs = ((full, self._full, self._full_class), (quantized, self._quantized, self._quantized_class))
        for pictures, rows, classes in pairs:
            values, logits = self.extractor(pictures)
            if values.ndim != 2 or len(values) != len(pictures) or not np.isfinite(values).all():
                raise BadValue(
                    f"features {self.extractor.name!r} of {len(pictures)} pictures have shape {values.shape} or are "
                    f"not finite."
                )
            rows.append(values.astype(np.float64))
            if logits is not None:
                classes.append(logits.argmax(axis=1))

    def features(self) -> tuple[Float64, Float64]:
        """Features (N, D) of the full-precision and of the quantized pictures."""
        return np.concatenate(self._full), np.concatenate(self._quantized)

    def classes(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
        """Predicted class (N,) of each picture of both sets; None where the network predicts none."""
        if not self._full_class:
            return None
        return np.concatenate(self._full_class), np.concatenate(self._quantized_class)


def measure_frechet(table: FeatureTable, real: RealStats | None) -> dict[str, Any]:
    """All Frechet distances, with standard errors from influence functions.

    `noise_floor` is what two independent sets of full-precision pictures of this size would show. The paired
    `to_full_precision` lies far below it when little changed. `difference_to_real` has the 1/n bias removed, so it is
    not quite the difference of the two distances beside it.
    """
    empty = {
        "features": None,
        "n": None,
        "to_full_precision": None,
        "to_full_precision_se": None,
        "noise_floor": None,
        "to_real": None,
        "full_precision_to_real": None,
        "difference_to_real": None,
        "difference_se": None,
    }
    if table.extractor is None:
        return empty
    full, quantized = table.features()
    fit_full, fit_quantized = frechet.fit_gaussian(full), frechet.fit_gaussian(quantized)
    paired = {
        "features": table.extractor.name,
        "n": len(full),
        "to_full_precision": frechet.frechet_distance(*fit_full, *fit_quantized),
        "to_full_precision_se": frechet.standard_error(frechet.paired_influence(full, quantized)),
        "noise_floor": frechet.null_bias(fit_full[1], len(full), len(full)),
    }
    if real is None:
        return {**empty, **paired}
    if real.mu.shape != fit_full[0].shape:
        raise BadValue(f"real statistics have {real.mu.shape[0]} features, the pictures have {full.shape[1]}.")
    difference = None
    if len(full) >= 4:
        unbiased = [frechet.richardson(features, real.mu, real.sigma) for features in (quantized, full)]
        difference = unbiased[0] - unbiased[1]
    influences = [frechet.influence(features, real.mu, real.sigma) for features in (quantized, full)]
    return {
        **paired,
        "to_real": frechet.frechet_distance(*fit_quantized, real.mu, real.sigma),
        "full_precision_to_real": frechet.frechet_distance(*fit_full, real.mu, real.sigma),
        "difference_to_real": difference,
        "difference_se": frechet.standard_error(influences[0] - influences[1]),
    }


def measure_accuracy(table: FeatureTable, labels: Sequence[Label], real: RealStats | None) -> dict[str, Any] | None:
    """How often the feature network sees the class that was asked for; None without logits or with named labels."""
    classes = table.classes()
    if classes is None or not all(isinstance(label, int | np.integer) for label in labels):
        return None
    wanted = np.asarray(labels)
    full, quantized = [(predicted == wanted).astype(np.float64) for predicted in classes]
    return {
        "quantized": float(quantized.mean()),
        "full_precision": float(full.mean()),
        "real": None if real is None else real.accuracy,
        "difference": float((quantized - full).mean()),
        "ci95": list(bootstrap_mean_interval(quantized - full)),
    }
