"""What users call a feature extractor or a scorer of prompts: one text that becomes a callable with a name.

clip[:FOLDER or HUB_ID]     CLIP image embeddings, for CMMD and Frechet distances
dinov2[:FOLDER or HUB_ID]   DINOv2 class tokens, for FD-DINOv2
inception[:WEIGHTS]         Inception by ADM's conventions, for FID, sFID, IS, precision and recall
zoo:NAME                    the small network that ships with a zoo model

clip[:FOLDER or HUB_ID]     CLIPScore
image-reward:PYTHON         ImageReward in an environment of its own
external:COMMAND            any program
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dither.errors import BadValue
from dither.evaluation.protocol import FeatureExtractor, Pictures
from dither.extractors.external import open_image_reward, scores_from_command
from dither.extractors.inception import open_inception
from dither.extractors.preprocess import check_pictures
from dither.extractors.text import CLIP_TEXT, PromptScorer, open_clip_text
from dither.extractors.vision import CLIP, DINOV2, open_clip, open_dinov2

__all__ = ["EXTRACTORS", "SCORERS", "named", "open_extractor", "open_scorer"]

Floats = npt.NDArray[np.floating]
Extract = Callable[[Pictures], tuple[Floats, Floats | None]]

EXTRACTORS = ("clip[:MODEL]", "dinov2[:MODEL]", "inception[:WEIGHTS]", "zoo:NAME")
SCORERS = ("clip[:MODEL]", "image-reward:PYTHON", "external:COMMAND")


@dataclass(frozen=True)
class Named:
    """Any callable as a feature extractor."""

    extract: Extract
    name: str

    def __call__(self, images: Pictures) -> tuple[Floats, Floats | None]:
        """Features (N, D) and logits (N, K), or None, of uint8 pictures (N, H, W, C)."""
        return self.extract(images)


@dataclass(frozen=True)
class ZooFeatures:
    """The feature network of a zoo model, which runs on the CPU."""

    network: Extract
    channels: int
    name: str

    def __call__(self, images: Pictures) -> tuple[Floats, Floats | None]:
        """Features (N, D) and logits (N, K) of uint8 pictures (N, H, W, C)."""
        check_pictures(images, self.name)
        if images.shape[-1] != self.channels:
            raise BadValue(f"'{self.name}' takes pictures of {self.channels} channels, not {images.shape[-1]}.")
        return self.network(images)


def named(extract: Extract, name: str) -> FeatureExtractor:
    """A function of pictures under the name that is printed beside its distances.

    Args:
        extract: uint8 (N, H, W, C) to features (N, D) and class logits (N, K) or None.
        name: of the features and their preprocessing; distances of one name are compared.

    Raises:
        BadValue: the name is empty.
    """
    if not name.strip():
        raise BadValue("A feature extractor needs a name, since distances of different features cannot be compared.")
    return Named(extract, name)


def open_extractor(text: str, device: str = "cpu", batch: int = 32) -> FeatureExtractor:
    """Opens what ``text`` means; see above.

    Args:
        text: the kind, and after a colon which one.
        device: of torch that runs the network; the zoo's run on the CPU.
        batch: pictures at a time. Features do not depend on it but for rounding.

    Raises:
        DitherError: there is no such extractor, its model cannot be loaded, or an optional package is missing.
    """
    kind, rest = _split(text)
    match kind:
        case "clip":
            return open_clip(CLIP if rest is None else rest, device, batch)
        case "dinov2":
            return open_dinov2(DINOV2 if rest is None else rest, device, batch)
        case "inception":
            return open_inception(rest or "", device, batch)
        case "zoo" if rest is not None:
            return _open_zoo(rest)
    raise BadValue(f"There is no feature extractor {text[:200]!r}: choose {', '.join(EXTRACTORS)}.")


def open_scorer(text: str, device: str = "cpu", batch: int = 32) -> PromptScorer:
    """Opens a scorer of pictures and prompts; see above.

    Raises:
        DitherError: there is no such scorer, its model cannot be loaded, or an environment is missing.
    """
    kind, rest = _split(text)
    match kind:
        case "clip":
            return open_clip_text(CLIP_TEXT if rest is None else rest, device, batch)
        case "image-reward":
            return open_image_reward(rest or "")
        case "external" if rest is not None:
            return scores_from_command(rest)
    raise BadValue(f"There is no prompt scorer {text[:200]!r}: choose {', '.join(SCORERS)}.")


def _split(text: str) -> tuple[str, str | None]:
    """``kind:rest``, or ``kind`` and None. A colon with nothing after it leaves no kind."""
    kind, colon, rest = text.partition(":")
    if not colon:
        return kind, None
    return (kind, rest) if rest.strip() else ("", None)


def _open_zoo(name: str) -> FeatureExtractor:
    from dither import zoo  # its weights and classes are needed by few

    network, _ = zoo.load_features(name)
    channels = next(network.module.parameters()).shape[1]  # of the first convolution (out, in, 3, 3)
    return ZooFeatures(network, channels, f"zoo:{name.removesuffix('-hard')}")
