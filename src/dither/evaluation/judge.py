"""Compare two sets of pictures that were drawn in pairs, batch by batch, and keep only numbers and the few pictures to show.

Row i of both sets has the same label and the same seed, so every number is a difference of pairs, not of two crowds.
Beside each stands what makes it readable: an interval, the smallest difference that this many pictures can tell, the noise
floor (full precision against itself, drawn in another batch size), and the ceiling (full precision with other seeds).

Where the pictures come from is not asked: a sampler that runs now, shards on a disk, or two files of samples. Nor what they
are: a `Medium` knows how two of them compare, still pictures by default, or videos (``video.Videos``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from dither.errors import BadValue
from dither.evaluation import image
from dither.evaluation.features import FeatureTable, View, measure_accuracy, measure_frechet, measure_guards
from dither.evaluation.guards import score_guard
from dither.evaluation.intervals import bootstrap_mean_interval
from dither.evaluation.planning import detectable_difference
from dither.evaluation.protocol import Float64, Label, Pictures, RealStats

__all__ = ["FLOOR_PICTURES", "WORST_PICTURES", "Judge", "Medium", "PairMetric", "Score", "Stills", "floor_batches"]

FLOOR_PICTURES = 32
WORST_PICTURES = 8

PairMetric: TypeAlias = Callable[[Pictures, Pictures], Float64]
"""A distance of each picture to its partner (N,), such as LPIPS."""


class Score(Protocol):
    """How well each picture shows its prompt, such as CLIPScore; higher is better."""

    @property
    def name(self) -> str:
        """Of the network, printed beside each number."""
        ...

    def __call__(self, pictures: Pictures, prompts: Sequence[str], /) -> Float64:
        """One number a picture (N,)."""
        ...


class Medium(Protocol):
    """What samples (N, ...) are: how two of them compare, and how one is shown."""

    def check(self, samples: Pictures, count: int, whose: str) -> None:
        """Raise BadValue unless these are `count` such samples in uint8."""
        ...

    def compare(self, full: Pictures, quantized: Pictures) -> tuple[Float64, Float64, Float64]:
        """Mean squared error, PSNR in dB, and SSIM of each pair (N,)."""
        ...

    def shown(self, samples: Pictures) -> Pictures:
        """One picture (N, H, W, C) for each."""
        ...


@dataclass(frozen=True)
class Stills:
    """Pictures (N, H, W, C)."""

    def check(self, samples: Pictures, count: int, whose: str) -> None:
        """Raise BadValue unless these are `count` pictures in uint8."""
        image.check_pictures(samples, count, whose)

    def compare(self, full: Pictures, quantized: Pictures) -> tuple[Float64, Float64, Float64]:
        """Mean squared error, PSNR in dB, and SSIM of each pair (N,)."""
        mse = image.mean_squared_error(full, quantized)
        return mse, image.psnr(mse), image.ssim(full, quantized)

    def shown(self, samples: Pictures) -> Pictures:
        """Themselves."""
        return samples


@dataclass(frozen=True)
class _Pair:
    index: int
    label: Label
    seed: int
    mse: float
    psnr: float
    full: Pictures  # (H, W, C)
    quantized: Pictures


@dataclass
class _Floor:
    """Full precision against itself: drawn again in another batch size, and with other seeds."""

    again: list[Float64] = field(default_factory=list)
    again_ssim: list[Float64] = field(default_factory=list)
    other: list[Float64] = field(default_factory=list)
    other_ssim: list[Float64] = field(default_factory=list)


@dataclass
class Judge:
    """Fed with pairs in the order of their index; memory holds one row of numbers a picture, and the pictures to show.

    Args:
        views: networks whose Frechet distance is taken; the first one's is the main one.
        real: statistics of real pictures in the first one's features.
        distances: further distances between partners, by name.
        scores: of each picture and its prompt, by the metric's name.
        show: pairs kept as pictures, a third of them the worst.
        floor: full-precision pictures kept until ``add_floor`` has seen them.
        medium: what the samples are.
        better: which way a score is better, by its name: ``lower`` or ``closer``; ``higher`` where none is said.
    """

    views: Sequence[View] = ()
    real: RealStats | None = None
    distances: Mapping[str, PairMetric] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)
    show: int = 24
    floor: int = FLOOR_PICTURES
    medium: Medium = field(default_factory=Stills)
    better: Mapping[str, str] = field(default_factory=dict)
    _psnr: list[Float64] = field(default_factory=list)
    _mse: list[Float64] = field(default_factory=list)
    _ssim: list[Float64] = field(default_factory=list)
    _more: dict[str, list[Float64]] = field(default_factory=dict)
    _scored: dict[str, tuple[list[Float64], list[Float64]]] = field(default_factory=dict)
    labels: list[Label] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    _first: list[_Pair] = field(default_factory=list)
    _worst: list[_Pair] = field(default_factory=list)
    _tables: list[FeatureTable] = field(default_factory=list)
    _floor: _Floor = field(default_factory=_Floor)

    def __post_init__(self) -> None:
        self._tables = [FeatureTable(view) for view in self.views]
        self._more = {name: [] for name in self.distances}
        self._scored = {name: ([], []) for name in self.scores}

    def add(
        self,
        indices: Sequence[int],
        labels: Sequence[Label],
        seeds: Sequence[int],
        full: Pictures,
        quantized: Pictures,
    ) -> None:
        """One batch of pairs; ``indices`` are places in the whole list of pictures, ascending over all batches."""
        self.medium.check(full, len(indices), "full-precision")
        self.medium.check(quantized, len(indices), "quantized")
        compared = self.medium.compare(full, quantized)
        for seen, values in zip((self._mse, self._psnr, self._ssim), compared, strict=True):
            seen.append(values)
        for name, distance in self.distances.items():
            self._more[name].append(np.asarray(distance(full, quantized), dtype=np.float64))
        for name, score in self.scores.items():
            prompts = [str(label) for label in labels]
            for pictures, seen in zip((quantized, full), self._scored[name], strict=True):
                seen.append(np.asarray(score(pictures, prompts), dtype=np.float64))
        for table in self._tables:
            table.add(full, quantized)
        self.labels += [label if isinstance(label, str) else int(label) for label in labels]
        self.seeds += [int(seed) for seed in seeds]
        shown = self.medium.shown(full), self.medium.shown(quantized)
        pairs = [
            _Pair(int(index), label, int(seed), float(mse), float(psnr), x, y)
            for index, label, seed, mse, psnr, x, y in zip(indices, labels, seeds, *compared[:2], *shown, strict=True)
        ]
        self._first += pairs[: max(0, max(self.show, self.floor) - len(self._first))]
        changed = [pair for pair in pairs if pair.mse > 0]
        keep = min(WORST_PICTURES, self.show // 3)
        self._worst = sorted(self._worst + changed, key=lambda pair: (pair.psnr, -pair.mse, pair.index))[:keep]

    def add_floor(self, indices: Sequence[int], again: Pictures | None, other: Pictures | None) -> None:
        """Full-precision pictures of the same indices: drawn again, and drawn with other seeds."""
        known = {pair.index: pair.full for pair in self._first}
        for pictures, errors, similar in (
            (again, self._floor.again, self._floor.again_ssim),
            (other, self._floor.other, self._floor.other_ssim),
        ):
            rows = [row for row, index in enumerate(indices) if index in known]
            if pictures is not None and rows:
                image.check_pictures(pictures, len(indices), "full-precision")
                x = np.stack([known[indices[row]] for row in rows])
                errors.append(image.mean_squared_error(x, pictures[rows]))
                similar.append(image.ssim(x, pictures[rows]))

    def results(self) -> dict[str, Any]:
        """All numbers, ready for JSON.

        Raises:
            BadValue: fewer than two pairs were added.
        """
        if len(self.labels) < 2:
            raise BadValue(f"an evaluation needs at least 2 pictures, got {len(self.labels)}.")
        frechet = [measure_frechet(table, self.real if i == 0 else None) for i, table in enumerate(self._tables)]
        first = self._tables[0] if self._tables else None
        return {
            "n": len(self.labels),
            "seeds": self.seeds,
            "psnr_db": _summarize_psnr(self.psnr(), np.concatenate(self._mse)),
            "ssim": _summarize(self.ssim()),
            **{name: _summarize(np.concatenate(parts)) for name, parts in self._more.items()},
            "fd": frechet[0] if frechet else measure_frechet(None, None),
            "fds": frechet,
            "class_accuracy": measure_accuracy(first, self.labels, self.real),
            "guards": [row for table in self._tables for row in measure_guards(table)] + self._score_rows(),
            "noise_floor": self._noise_floor(),
            "images": self._show(),
        }

    def tables(self) -> Sequence[FeatureTable]:
        """The features of all pictures so far, an extractor a table."""
        return self._tables

    def psnr(self) -> Float64:
        """Of each pair (N,), dB."""
        return np.concatenate(self._psnr)

    def ssim(self) -> Float64:
        """Of each pair (N,)."""
        return np.concatenate(self._ssim)

    def _score_rows(self) -> list[dict[str, Any]]:
        return [
            score_guard(
                metric,
                *(np.concatenate(seen) for seen in self._scored[metric]),
                features=score.name,
                better=self.better.get(metric, "higher"),
            )
            for metric, score in self.scores.items()
        ]

    def _noise_floor(self) -> dict[str, Any] | None:
        floor = self._floor
        if not floor.again or not floor.other:
            return None
        again, other = np.concatenate(floor.again), np.concatenate(floor.other)
        return {
            "psnr_db": float(image.psnr(again).mean()),
            "ssim": float(np.concatenate(floor.again_ssim).mean()),
            "identical": int(np.sum(again == 0)),
            "n": len(again),
            "other_seeds_psnr_db": float(image.psnr(other).mean()),
            "other_seeds_ssim": float(np.concatenate(floor.other_ssim).mean()),
        }

    def _show(self) -> list[dict[str, Any]]:
        """The worst pairs and as many of the first as fill the page, in the order they were drawn."""
        worst = {pair.index for pair in self._worst}
        first = [pair for pair in self._first if pair.index not in worst][: max(0, self.show - len(worst))]
        return [
            {
                "index": pair.index,
                "seed": pair.seed,
                "label": pair.label if isinstance(pair.label, str) else int(pair.label),
                "full_precision": image.png_data_uri(pair.full),
                "quantized": image.png_data_uri(pair.quantized),
                "psnr_db": pair.psnr,
                "worst": pair.index in worst,
            }
            for pair in sorted([*first, *self._worst], key=lambda pair: pair.index)
        ]


def floor_batches(n: int, floor: int, batch_size: int) -> list[slice]:
    """Batches of the first ``floor`` of ``n`` pictures in another batch size than ``batch_size``: half of it, or 2."""
    used = min(batch_size, n)
    other = used // 2 if used > 1 else 2
    count = min(n, floor)
    return [slice(start, min(start + other, count)) for start in range(0, count, other)]


def _summarize(values: Float64) -> dict[str, Any]:
    return {
        "mean": float(values.mean()),
        "ci95": list(bootstrap_mean_interval(values)),
        "detectable": detectable_difference(float(values.std(ddof=1)) / len(values) ** 0.5),
    }


def _summarize_psnr(values: Float64, mse: Float64) -> dict[str, Any]:
    return {
        **_summarize(values),
        "pooled": float(image.psnr(mse.mean())),
        "median": float(np.median(values)),
        "worst": float(values.min()),
        "identical": int(np.sum(mse == 0)),
        "per_image": [round(float(value), 3) for value in values],
    }
