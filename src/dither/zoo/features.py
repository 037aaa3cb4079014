"""Small classifiers whose penultimate features measure the distance between sets of images.

Used for a Frechet distance in their own feature space (Heusel et al., arXiv 1706.08500, with this network in place of
Inception; never called FID) and for class accuracy. A ``features/`` folder beside each model holds

    config.json            the layers' sizes
    network.safetensors    the weights
    real.safetensors       mu (D,) and sigma (D, D) in float64 of the real test images; n and accuracy as metadata
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dither.errors import BadModel
from dither.zoo.registry import path


@dataclass(frozen=True)
class FeatureConfig:
    """Sizes of a feature network.

    Attributes:
        in_channels: of the images.
        widths: channels after each stage; every stage but the last halves the picture.
        features: dimension D of the penultimate layer.
        classes: number of logits.
    """

    in_channels: int
    widths: tuple[int, ...]
    features: int
    classes: int


class FeatureModule(nn.Module):
    """Convolutional stages, average pooling, a linear layer to the features and one to the logits."""

    def __init__(self, config: FeatureConfig):
        super().__init__()
        stages: list[nn.Module] = []
        channels = config.in_channels
        for i, width in enumerate(config.widths):
            stages += [*_convolution(channels, width), *_convolution(width, width)]
            if i + 1 < len(config.widths):
                stages.append(nn.MaxPool2d(2))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.to_features = nn.Linear(channels, config.features)
        self.to_logits = nn.Linear(config.features, config.classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) in [-1, 1] to features (N, D) and logits (N, classes)."""
        features = self.to_features(self.stages(x).mean((2, 3)))
        return features, self.to_logits(nn.functional.gelu(features))


@dataclass(frozen=True)
class FeatureNetwork:
    """A trained feature network as a function of uint8 images."""

    module: FeatureModule

    @torch.no_grad()
    def __call__(self, images: npt.NDArray[Any], batch: int = 256) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """uint8 (N, H, W, C) to features (N, D) and logits (N, classes), both float32."""
        parts = [self.module(_to_unit(images[i : i + batch])) for i in range(0, len(images), batch)]
        features, logits = (torch.cat(side).numpy() for side in zip(*parts, strict=True))
        return features, logits


@dataclass(frozen=True)
class RealStats:
    """Features of real test images: mean (D,), covariance (D, D), count, and the network's accuracy on them."""

    mu: npt.NDArray[Any]
    sigma: npt.NDArray[Any]
    n: int
    accuracy: float


def load_features(name: str) -> tuple[FeatureNetwork, RealStats]:
    """The feature network of the zoo model ``name`` and the statistics of its data set's test images.

    Raises:
        BadModel: no such model, or one without a feature network.
    """
    folder = path(name) / "features"
    if not folder.is_dir():
        raise BadModel(f"The zoo model {name!r} has no feature network.")
    return read_network(folder), read_stats(folder)


def read_network(folder: Path) -> FeatureNetwork:
    """Rebuilds the network in ``folder`` from its config and weights."""
    raw = json.loads((folder / "config.json").read_text())
    module = FeatureModule(FeatureConfig(**{**raw, "widths": tuple(raw["widths"])}))
    module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in _weights(folder).items()})
    return FeatureNetwork(module.eval())


def read_stats(folder: Path) -> RealStats:
    """Reads ``real.safetensors`` in ``folder``."""
    with safe_open(folder / "real.safetensors", framework="np") as f:
        facts = f.metadata()
        return RealStats(f.get_tensor("mu"), f.get_tensor("sigma"), int(facts["n"]), float(facts["accuracy"]))


def _weights(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = load_file(folder / "network.safetensors")
    return weights


def _convolution(channels: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.GELU()


def _to_unit(images: npt.NDArray[Any]) -> Tensor:
    """uint8 (N, H, W, C) to float32 (N, C, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
