"""Draw the same pictures twice with two samplers, in full precision and quantized, and measure what changed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dither.errors import BadValue
from dither.evaluation import image
from dither.evaluation.drift import DriftMeter
from dither.evaluation.features import view_of
from dither.evaluation.judge import FLOOR_PICTURES, Judge, floor_batches
from dither.evaluation.protocol import FeatureExtractor, Label, OnStep, Pictures, RealStats, Sampler

__all__ = ["evaluate"]

Progress = Callable[[int, int, str], None]


@dataclass
class _Counter:
    """Counts pictures for the caller's progress display."""

    total: int
    report: Progress | None
    done: int = 0

    def add(self, count: int, what: str) -> None:
        self.done += count
        if self.report is not None:
            self.report(self.done, self.total, what)


def evaluate(
    full: Sampler,
    quantized: Sampler,
    *,
    labels: Sequence[Label],
    seeds: Sequence[int],
    batch_size: int,
    features: FeatureExtractor | None = None,
    real: RealStats | None = None,
    noise_floor: bool = True,
    images: int = 24,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare two samplers on `labels[i]`, `seeds[i]` and return results that `json.dump` can write.

    Args:
        full, quantized: samplers of the same pipeline before and after quantization.
        labels, seeds: one of each per picture; at least two pictures.
        batch_size: pictures drawn at a time. Memory is bounded by it, not by the number of pictures.
        features: for the Frechet distance and class accuracy; without it those results are None.
        real: feature statistics of real pictures, for distances to them; without it those are None.
        noise_floor: also draw up to 32 pictures again with another batch size, and with other seeds.
        images: how many pairs to put into the results as PNG, the 8 worst among them (at most a third).
        progress: called as `progress(pictures drawn, of total, what)`.

    Raises:
        BadValue: NaN or infinite pictures or latents, shapes that differ, or a request that makes no sense.
    """
    check_request(labels, seeds, batch_size, images)
    n = len(labels)
    floor = min(n, FLOOR_PICTURES) if noise_floor else 0
    counter = _Counter(2 * n + 2 * floor, progress)
    meter = DriftMeter()
    judge = Judge([] if features is None else [view_of(features)], real, show=images, floor=floor)
    for batch in _batches(n, batch_size):
        x = _draw(full, labels[batch], seeds[batch], "full-precision", meter.full_precision)
        counter.add(len(x), "full precision")
        y = _draw(quantized, labels[batch], seeds[batch], "quantized", meter.quantized)
        counter.add(len(y), "quantized")
        meter.end_batch()
        judge.add(range(batch.start, batch.stop), labels[batch], seeds[batch], x, y)
    batches = floor_batches(n, floor, batch_size)
    for batch in batches:
        again = _draw(full, labels[batch], seeds[batch], "full-precision")
        counter.add(len(again), "noise floor")
        other = _draw(full, labels[batch], other_seeds(seeds)[batch], "full-precision")
        counter.add(len(other), "other seeds")
        judge.add_floor(range(batch.start, batch.stop), again, other)
    results = judge.results()
    if results["noise_floor"] is not None:
        results["noise_floor"]["batch_sizes"] = [min(batch_size, n), batches[0].stop]
    return {**results, "drift": meter.result()}


def check_request(labels: Sequence[Label], seeds: Sequence[int], batch_size: int, images: int) -> None:
    """Refuse a request that makes no sense, before any picture is drawn."""
    if len(labels) != len(seeds):
        raise BadValue(f"{len(labels)} labels and {len(seeds)} seeds were given: each picture needs one of both.")
    if len(labels) < 2:
        raise BadValue(f"an evaluation needs at least 2 pictures, got {len(labels)}.")
    if batch_size < 1 or images < 0:
        raise BadValue(f"batch_size must be at least 1 and images at least 0, got {batch_size} and {images}.")


def other_seeds(seeds: Sequence[int]) -> list[int]:
    """As many seeds, none of them among these."""
    return [max(seeds) + 1 + i for i in range(len(seeds))]


def _batches(n: int, batch_size: int) -> Iterator[slice]:
    for start in range(0, n, batch_size):
        yield slice(start, min(start + batch_size, n))


def _draw(
    sampler: Sampler, labels: Sequence[Label], seeds: Sequence[int], whose: str, on_step: OnStep | None = None
) -> Pictures:
    pictures = sampler(labels, seeds, on_step)
    image.check_pictures(pictures, len(labels), whose)
    return np.asarray(pictures)
