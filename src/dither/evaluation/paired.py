"""Draw the same pictures twice, in full precision and quantized, and measure what changed.

Same labels, same seeds, same batches: every number is a difference of pairs, not of two crowds. Beside each number
stands what makes it readable: an interval, the noise floor (full precision against itself with another batch size),
and the ceiling (full precision against itself with other seeds).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dither.errors import BadValue
from dither.evaluation import image
from dither.evaluation.drift import DriftMeter
from dither.evaluation.features import FeatureTable, measure_accuracy, measure_frechet
from dither.evaluation.intervals import bootstrap_mean_interval
from dither.evaluation.protocol import FeatureExtractor, Float64, Label, OnStep, Pictures, RealStats, Sampler

__all__ = ["NOISE_FLOOR_PICTURES", "WORST_PICTURES", "evaluate"]

NOISE_FLOOR_PICTURES = 32
WORST_PICTURES = 8

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _Pair:
    index: int
    mse: float
    full: Pictures  # (H, W, C)
    quantized: Pictures


@dataclass
class _Pairs:
    """What remains of the pictures after a batch: one row of numbers each, the first pictures, and the worst."""

    keep_first: int
    keep_worst: int
    mse: list[Float64] = field(default_factory=list)
    ssim: list[Float64] = field(default_factory=list)
    first: list[_Pair] = field(default_factory=list)
    worst: list[_Pair] = field(default_factory=list)

    def add(self, start: int, full: Pictures, quantized: Pictures) -> None:
        mse = image.mean_squared_error(full, quantized)
        self.mse.append(mse)
        self.ssim.append(image.ssim(full, quantized))
        pairs = [_Pair(start + i, float(mse[i]), full[i], quantized[i]) for i in range(len(full))]
        self.first += pairs[: max(0, self.keep_first - start)]
        changed = [pair for pair in pairs if pair.mse > 0]
        self.worst = sorted(self.worst + changed, key=lambda pair: (-pair.mse, pair.index))[: self.keep_worst]


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
    _check_request(labels, seeds, batch_size, images)
    n = len(labels)
    floor = min(n, NOISE_FLOOR_PICTURES) if noise_floor else 0
    counter = _Counter(2 * n + 2 * floor, progress)
    worst = min(WORST_PICTURES, images // 3)
    pairs, meter = _Pairs(max(images, floor), worst), DriftMeter()
    table = FeatureTable(features)
    for batch in _batches(n, batch_size):
        x = _draw(full, labels[batch], seeds[batch], "full-precision", meter.full_precision)
        counter.add(len(x), "full precision")
        y = _draw(quantized, labels[batch], seeds[batch], "quantized", meter.quantized)
        counter.add(len(y), "quantized")
        meter.end_batch()
        pairs.add(batch.start, x, y)
        table.add(x, y)
    return {
        "n": n,
        "seeds": [int(seed) for seed in seeds],
        "psnr_db": _summarize_psnr(np.concatenate(pairs.mse)),
        "ssim": _summarize(np.concatenate(pairs.ssim)),
        "fd": measure_frechet(table, real),
        "class_accuracy": measure_accuracy(table, labels, real),
        "noise_floor": _noise_floor(
            full, labels, seeds, batch_size=batch_size, drawn=pairs.first[:floor], counter=counter
        ),
        "drift": meter.result(),
        "images": _show(pairs, images, labels, seeds),
    }


def _check_request(labels: Sequence[Label], seeds: Sequence[int], batch_size: int, images: int) -> None:
    if len(labels) != len(seeds):
        raise BadValue(f"{len(labels)} labels and {len(seeds)} seeds were given: each picture needs one of both.")
    if len(labels) < 2:
        raise BadValue(f"an evaluation needs at least 2 pictures, got {len(labels)}.")
    if batch_size < 1 or images < 0:
        raise BadValue(f"batch_size must be at least 1 and images at least 0, got {batch_size} and {images}.")


def _batches(n: int, batch_size: int) -> Iterator[slice]:
    for start in range(0, n, batch_size):
        yield slice(start, min(start + batch_size, n))


def _draw(
    sampler: Sampler, labels: Sequence[Label], seeds: Sequence[int], whose: str, on_step: OnStep | None = None
) -> Pictures:
    pictures = sampler(labels, seeds, on_step)
    image.check_pictures(pictures, len(labels), whose)
    return pictures


def _summarize(values: Float64) -> dict[str, Any]:
    return {"mean": float(values.mean()), "ci95": list(bootstrap_mean_interval(values))}


def _summarize_psnr(mse: Float64) -> dict[str, Any]:
    values = image.psnr(mse)
    return {
        **_summarize(values),
        "pooled": float(image.psnr(mse.mean())),
        "median": float(np.median(values)),
        "worst": float(values.min()),
        "identical": int(np.sum(mse == 0)),
        "per_image": [round(float(value), 3) for value in values],
    }


def _noise_floor(
    full: Sampler,
    labels: Sequence[Label],
    seeds: Sequence[int],
    *,
    batch_size: int,
    drawn: Sequence[_Pair],
    counter: _Counter,
) -> dict[str, Any] | None:
    """Full precision against itself: the same seeds in batches of another size, and the same labels, other seeds."""
    if not drawn:
        return None
    n = len(drawn)
    used = min(batch_size, n)
    other_size = used // 2 if used > 1 else 2
    other_seeds = [max(seeds) + 1 + i for i in range(n)]
    rerun, other = [], []
    for batch in _batches(n, other_size):
        x = np.stack([pair.full for pair in drawn[batch]])
        again = _draw(full, labels[batch], seeds[batch], "full-precision")
        rerun.append(image.mean_squared_error(x, again))
        counter.add(len(x), "noise floor")
        different = _draw(full, labels[batch], other_seeds[batch], "full-precision")
        other.append(image.mean_squared_error(x, different))
        counter.add(len(x), "other seeds")
    return {
        "psnr_db": float(image.psnr(np.concatenate(rerun)).mean()),
        "identical": int(np.sum(np.concatenate(rerun) == 0)),
        "other_seeds_psnr_db": float(image.psnr(np.concatenate(other)).mean()),
        "n": n,
        "batch_sizes": [used, other_size],
    }


def _plain(label: Label) -> Label:
    """Label as JSON can hold it: numpy's integers cannot be dumped."""
    return label if isinstance(label, str) else int(label)


def _show(pairs: _Pairs, count: int, labels: Sequence[Label], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The worst pairs and as many of the first as fill `count`, in the order they were drawn."""
    worst = {pair.index for pair in pairs.worst}
    first = [pair for pair in pairs.first if pair.index not in worst][: max(0, count - len(worst))]
    return [
        {
            "index": pair.index,
            "seed": int(seeds[pair.index]),
            "label": _plain(labels[pair.index]),
            "full_precision": image.png_data_uri(pair.full),
            "quantized": image.png_data_uri(pair.quantized),
            "psnr_db": float(image.psnr(np.asarray(pair.mse, dtype=np.float64))),
            "worst": pair.index in worst,
        }
        for pair in sorted([*first, *pairs.worst], key=lambda pair: pair.index)
    ]
