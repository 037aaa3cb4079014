"""Populations to draw samples from again and again, with truths that are known or come from a very large sample.

Pictures' features are a random ReLU network of a latent code with ten clusters, as those of a classifier are: 64 numbers
above zero whose covariance has a handful of large eigenvalues. "Quantization" moves the code: noise of a size that differs
between pictures (log-normal, so that few pictures change much), a shift, a scale. Where the noise mixes a second code in
without changing the distribution, nothing differs and the true distance is zero.

The intervals were chosen on other populations: those of networks 3 and 4, with changes of other sizes. What is measured
here is out of their sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dither.evaluation import frechet
from dither.evaluation.frechet_pairs import estimate_distance

Rows = npt.NDArray[np.float64]  # (N, D)
Rng = np.random.Generator

DIMENSION, CODE, HIDDEN, CLUSTERS = 64, 12, 48, 10
TRUTH_SAMPLES, CHUNK = 200_000, 10_000


@dataclass(frozen=True)
class Change:
    """What happens to the code of a picture: mixed or added noise, a scale, a shift."""

    noise: float = 0.0
    tail: float = 0.0  # of the noise's size over pictures: sigma of its logarithm
    mixed: bool = False  # noise replaces a part of the code, so that its distribution stays
    scale: float = 0.0
    shift: float = 0.0


CHANGES: Mapping[str, Change] = {
    "nothing": Change(noise=0.06, tail=0.6, mixed=True),
    "slight": Change(noise=0.04, tail=0.8, scale=0.025, shift=0.04),
    "moderate": Change(noise=0.12, tail=0.6, scale=-0.06, shift=0.08),
    "strong": Change(noise=0.25, tail=0.8, scale=-0.12, shift=0.25),
    "broken": Change(noise=0.7, tail=0.4, scale=0.25, shift=0.4),
}


@dataclass(frozen=True)
class _Network:
    """Random, the same for all populations."""

    seed: int = 11

    @cached_property
    def parts(self) -> tuple[npt.NDArray[np.float64], ...]:
        rng = np.random.default_rng(self.seed)
        return (
            rng.normal(size=(CODE, HIDDEN)) * 1.5 / np.sqrt(CODE),
            rng.normal(size=HIDDEN) * 0.5,
            rng.normal(size=(HIDDEN, DIMENSION)) * 2 / np.sqrt(HIDDEN),
            rng.normal(size=DIMENSION) * 0.7 - 0.3,
            rng.normal(size=(CLUSTERS, CODE)) * 1.2,
            rng.normal(size=CODE),
        )

    def __call__(self, code: npt.NDArray[np.float64]) -> Rows:
        first, bias, second, offset = self.parts[:4]
        return np.maximum(np.maximum(code @ first + bias, 0) @ second + offset, 0)


NETWORK = _Network()


def draw(change: Change, n: int, rng: Rng) -> tuple[Rows, Rows]:
    """Features (n, D) of full precision and of its quantized pairs."""
    full, quantized = draw_recipes(change, 1, n, rng)
    return full, quantized[0]


def draw_recipes(change: Change, recipes: int, n: int, rng: Rng) -> tuple[Rows, list[Rows]]:
    """Features (n, D) of full precision, and of several recipes that change the same pictures as much, each its own way."""
    centres, direction = NETWORK.parts[4:]
    centre = centres[rng.integers(0, CLUSTERS, n)]
    code = rng.normal(size=(n, CODE))
    quantized = []
    for _ in range(recipes):
        other = rng.normal(size=(n, CODE))
        size = np.minimum(change.noise * np.exp(change.tail * rng.normal(size=(n, 1)) - change.tail**2 / 2), 1)
        moved = np.sqrt(1 - size**2) * code + size * other if change.mixed else code + size * other
        moved = moved * (1 + change.scale) + change.shift * direction / np.linalg.norm(direction)
        quantized.append(NETWORK(centre + moved))
    return NETWORK(centre + code), quantized


def draw_real(n: int, rng: Rng) -> Rows:
    """Features (n, D) of the "real" pictures, which full precision is near."""
    centres = NETWORK.parts[4]
    return NETWORK(centres[rng.integers(0, CLUSTERS, n)] + 1.1 * rng.normal(size=(n, CODE)))


def moments(change: Change, rng: Rng) -> tuple[tuple[Rows, Rows], ...]:
    """Mean and covariance of full precision, quantized and real pictures, of a very large sample."""
    first, second = np.zeros((3, DIMENSION)), np.zeros((3, DIMENSION, DIMENSION))
    for _ in range(TRUTH_SAMPLES // CHUNK):
        for i, x in enumerate((*draw(change, CHUNK, rng), draw_real(CHUNK, rng))):
            first[i] += x.sum(axis=0)
            second[i] += x.T @ x
    means = first / TRUTH_SAMPLES
    fits = [(mean, square / TRUTH_SAMPLES - np.outer(mean, mean)) for mean, square in zip(means, second, strict=True)]
    return tuple(fits)


def paired_truth(change: Change, rng: Rng) -> float:
    """Frechet distance between both, free of the bias that even the large sample leaves."""
    if change.mixed and not (change.scale or change.shift):
        return 0.0
    full, quantized, _ = moments(change, rng)
    some = estimate_distance(*draw(change, 2000, rng))
    return frechet.frechet_distance(*full, *quantized) - some.bias * 2000 / TRUTH_SAMPLES


def normal_logits(features: Rows) -> Rows:
    """Class logits (n, 10) of features, of a fixed random layer."""
    weights = np.random.default_rng(5).normal(size=(DIMENSION, CLUSTERS)) / 4
    return np.asarray(features @ weights, dtype=np.float64)
