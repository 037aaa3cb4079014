"""The data sets of the zoo: images in [-1, 1] with integer labels, in a training and a test split.

``digits`` is scikit-learn's ``load_digits`` (1,797 images of 8x8, values 0..16); every fifth is held out for testing.
Anything else is the path of an ``.npz`` with ``xtr, ytr, xte, yte``: uint8 images (N, H, W) or (N, H, W, C).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, C) uint8 and labels (N,) int64."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """One data set and what its provenance says about it."""

    name: str
    source: str
    licence: str
    train: Split
    test: Split

    @property
    def classes(self) -> int:
        return int(self.train.labels.max()) + 1


SOURCES = {
    "fashion_mnist": ("Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist", "MIT"),
    "noto_emoji32": ("Noto Emoji at 32x32, https://github.com/googlefonts/noto-emoji", "Apache-2.0"),
}


def load(name: str) -> Dataset:
    """The data set ``digits``, or the one in the ``.npz`` file at the path ``name``."""
    return _digits() if name == "digits" else _npz(Path(name))


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images / 16 * 255).astype(np.uint8)[..., None]  # (1797, 8, 8, 1)
    held_out = np.arange(len(images)) % 5 == 4
    train = Split(images[~held_out], bunch.target[~held_out].astype(np.int64))
    test = Split(images[held_out], bunch.target[held_out].astype(np.int64))
    source = "scikit-learn load_digits (UCI optical recognition of handwritten digits)"
    return Dataset("digits", source, "CC BY 4.0", train, test)


def _npz(path: Path) -> Dataset:
    with np.load(path, allow_pickle=False) as z:
        train, test = (Split(_channels_last(z[f"x{s}"]), z[f"y{s}"].astype(np.int64).reshape(-1)) for s in ("tr", "te"))
    source, licence = SOURCES.get(path.stem, (path.name, "unknown"))
    return Dataset(path.stem, source, licence, train, test)


def _channels_last(images: np.ndarray) -> np.ndarray:
    return images[..., None] if images.ndim == 3 else images


def to_model(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, C) to float32 (N, C, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
