"""What the evaluation asks of the world: two callables and one small record.

Nothing here knows what a pipeline, a quantizer or a feature network is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["FeatureExtractor", "Float64", "Label", "OnStep", "Pictures", "RealStats", "Sampler"]

Pictures: TypeAlias = npt.NDArray[np.uint8]  # (N, H, W, C), 0..255
Float64: TypeAlias = npt.NDArray[np.float64]
Label: TypeAlias = int | str
OnStep: TypeAlias = Callable[[int, float, torch.Tensor], None]


class Sampler(Protocol):
    """Draws one picture per label. Picture `i` depends on `labels[i]` and `seeds[i]` only, never on its neighbours."""

    def __call__(self, labels: Sequence[Label], seeds: Sequence[int], on_step: OnStep | None = None) -> Pictures:
        """Return uint8 pictures (N, H, W, C).

        `on_step(step_index, timestep, latents)` is called after each sampling step with latents (N, ...).
        """
        ...


class FeatureExtractor(Protocol):
    """Maps pictures to the features whose Gaussian fit the Frechet distance compares."""

    @property
    def name(self) -> str:
        """Name that is printed beside every distance, since distances of different features cannot be compared."""
        ...

    def __call__(self, images: Pictures) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating] | None]:
        """Map uint8 (N, H, W, C) to features (N, D) and class logits (N, K), or None where it classifies nothing."""
        ...


@dataclass(frozen=True)
class RealStats:
    """Gaussian fit of the features of `n` real pictures, and how often the feature network classifies those right."""

    mu: Float64  # (D,)
    sigma: Float64  # (D, D), ddof=1
    n: int
    accuracy: float | None = None
