"""CLIP and DINOv2 image features through transformers, which needs no torchvision for them.

    clip     projected image embedding, divided by its length, as CMMD's code has it (arXiv 2401.09603)
    dinov2   normalised output of the class token, as FD-DINOv2 has it (arXiv 2306.04675)

transformers interpolates DINOv2's position embeddings to 224 pixels a little differently than the original code does, so
distances differ from dgm-eval's in the last digits. Pictures: see ``preprocess``.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dither.errors import BadModel
from dither.evaluation.protocol import Pictures
from dither.extractors.extras import transformers_class
from dither.extractors.hub import load_model, locate
from dither.extractors.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocess,
    in_batches,
    open_device,
)

__all__ = ["CLIP", "DINOV2", "ClipFeatures", "Dinov2Features", "open_clip", "open_dinov2"]

CLIP = "openai/clip-vit-large-patch14-336"
DINOV2 = "facebook/dinov2-large"
DINOV2_SIZE = 224

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ClipFeatures:
    """Unit-length projected embeddings of the image side of a ``CLIPModel``."""

    tower: nn.Module
    projection: nn.Module
    preprocess: Preprocess
    name: str
    device: torch.device
    batch: int = 32

    def __call__(self, images: Pictures) -> tuple[Floats, None]:
        """Uint8 (N, H, W, C) to features (N, D); no logits."""
        (features,) = in_batches(images, self.batch, self.name, self._embed)
        return features, None

    def _embed(self, images: Pictures) -> tuple[Tensor]:
        return (clip_embedding(self.tower, self.projection, self.preprocess(images).to(self.device)),)


@dataclass(frozen=True)
class Dinov2Features:
    """Class tokens of a ``Dinov2Model``, after its last LayerNorm."""

    tower: nn.Module
    preprocess: Preprocess
    name: str
    device: torch.device
    batch: int = 32

    def __call__(self, images: Pictures) -> tuple[Floats, None]:
        """Uint8 (N, H, W, C) to features (N, D); no logits."""
        (features,) = in_batches(images, self.batch, self.name, self._embed)
        return features, None

    def _embed(self, images: Pictures) -> tuple[Tensor]:
        return (self.tower(pixel_values=self.preprocess(images).to(self.device)).last_hidden_state[:, 0],)


def open_clip(model: str = CLIP, device: str = "cpu", batch: int = 32) -> ClipFeatures:
    """CLIP's image tower: ``model`` is a folder, or a Hub id.

    Raises:
        BadModel: it cannot be found or loaded, or is no CLIP.
    """
    where, (source, label) = open_device(device), locate(model, "clip")
    both = load_model(transformers_class("CLIPModel", "clip"), source, ("clip",), "clip")
    preprocess = clip_preprocess(both.config.vision_config.image_size, label)
    name = f"clip:{label} [{preprocess.label}, unit]"
    return ClipFeatures(both.vision_model.to(where), both.visual_projection.to(where), preprocess, name, where, batch)


def open_dinov2(model: str = DINOV2, device: str = "cpu", batch: int = 32) -> Dinov2Features:
    """DINOv2 on 224 x 224 pixels: ``model`` is a folder, or a Hub id.

    Raises:
        BadModel: it cannot be found or loaded, or is no DINOv2.
    """
    where, (source, label) = open_device(device), locate(model, "dinov2")
    tower = load_model(transformers_class("Dinov2Model", "dinov2"), source, ("dinov2",), "dinov2")
    preprocess = Preprocess(DINOV2_SIZE, IMAGENET_MEAN, IMAGENET_STD, crop=False)
    name = f"dinov2:{label} [{preprocess.label}, class token]"
    return Dinov2Features(tower.to(where), preprocess, name, where, batch)


def clip_preprocess(size: object, label: str) -> Preprocess:
    """What a CLIP for pictures of ``size`` takes.

    Raises:
        BadModel: the size is no whole number: the model is not for square pictures.
    """
    if not isinstance(size, int) or size < 1:
        raise BadModel(f"clip: {label!r} is for pictures of size {size!r}, not square ones.")
    return Preprocess(size, CLIP_MEAN, CLIP_STD, crop=True)


def clip_embedding(tower: nn.Module, projection: nn.Module, pixels: Tensor) -> Tensor:
    """Unit-length embeddings (N, D) of preprocessed pictures."""
    return unit(projection(tower(pixel_values=pixels).pooler_output))


def unit(x: Tensor) -> Tensor:
    """Rows (N, D) divided by their lengths."""
    return torch.nn.functional.normalize(x, dim=-1)
