"""Measurements of videos, uint8 (N, F, H, W, C): steadiness, change against full precision, consistency, Frechet.

Dimensions named as VBench's (arXiv 2311.17982) follow its formulas, over the frames f = 1..F of a video:

    temporal flickering  (255 - mean_f mean |frame_f+1 - frame_f|) / 255
    consistency          mean_{f >= 2} (max(0, cos(z_f, z_1)) + max(0, cos(z_f, z_f-1))) / 2

with z_f the features of a frame: DINO's give VBench's subject consistency, CLIP's its background consistency. VBench itself
needs an environment of its own; `read_vbench` reads what its `--mode=custom_input` wrote there.

FVD (arXiv 1812.01717) is the Frechet distance over features of a *video* network (I3D). A mean over the frames of picture
features sees no motion: `FrameMean` makes such an extractor, and says so in its name.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dither.errors import BadValue
from dither.evaluation import frechet, image
from dither.evaluation.checks import feature_rows
from dither.evaluation.protocol import FeatureExtractor, Float64, Pictures
from dither.evaluation.text import cosine

__all__ = [
    "VBENCH_DIMENSIONS",
    "FrameMean",
    "VideoDistance",
    "VideoExtractor",
    "consistency",
    "flicker",
    "frame_features",
    "frame_psnr",
    "frame_ssim",
    "read_vbench",
    "video_frechet",
]

VBENCH_DIMENSIONS = frozenset(
    (
        "subject_consistency",
        "background_consistency",
        "temporal_flickering",
        "motion_smoothness",
        "dynamic_degree",
        "aesthetic_quality",
        "imaging_quality",
        "object_class",
        "multiple_objects",
        "human_action",
        "color",
        "spatial_relationship",
        "scene",
        "temporal_style",
        "appearance_style",
        "overall_consistency",
    )
)
VBENCH_BYTES = 256 * 2**20  # a result names every video, but no honest one is larger


class VideoExtractor(Protocol):
    """Maps videos to the features whose Gaussian fit a Frechet distance compares."""

    @property
    def name(self) -> str:
        """Name that is printed beside every distance; only I3D's may be called FVD."""
        ...

    def __call__(self, videos: Pictures) -> npt.NDArray[np.floating]:
        """Map uint8 (N, F, H, W, C) to features (N, D)."""
        ...


@dataclass(frozen=True)
class FrameMean:
    """A video extractor that averages picture features over frames. It is blind to motion: its distance is not FVD."""

    pictures: FeatureExtractor

    @property
    def name(self) -> str:
        """Says what it is."""
        return f"{self.pictures.name}, mean over frames (not FVD)"

    def __call__(self, videos: Pictures) -> npt.NDArray[np.floating]:
        """Map uint8 (N, F, H, W, C) to features (N, D)."""
        return np.asarray(frame_features(videos, self.pictures).mean(axis=1), dtype=np.float64)


@dataclass(frozen=True)
class VideoDistance:
    """Frechet distance between two sets of videos from the same seeds, and its standard error."""

    features: str
    n: int
    value: float
    se: float


def flicker(videos: Pictures) -> Float64:
    """Temporal flickering (N,) as VBench counts it: 1 is a still video, lower flickers or moves more."""
    _check_videos(videos, 2)
    steps = np.empty((len(videos), videos.shape[1] - 1))
    for f in range(videos.shape[1] - 1):  # one step at a time: int16 copies of a whole set would not fit
        change = videos[:, f + 1].astype(np.int16) - videos[:, f]
        steps[:, f] = np.abs(change).reshape(len(videos), -1).mean(axis=1)
    return np.asarray((255 - steps.mean(axis=1)) / 255, dtype=np.float64)


def frame_psnr(quantized: Pictures, full: Pictures) -> Float64:
    """PSNR in dB (N, F) of each frame against the same frame in full precision, at most 60."""
    _check_pair(quantized, full)
    return np.stack(
        [image.psnr(image.mean_squared_error(a, b)) for a, b in zip(quantized, full, strict=True)], dtype=np.float64
    )


def frame_ssim(quantized: Pictures, full: Pictures) -> Float64:
    """SSIM (N, F) of each frame against the same frame in full precision."""
    _check_pair(quantized, full)
    return np.stack([image.ssim(a, b) for a, b in zip(quantized, full, strict=True)], dtype=np.float64)


def frame_features(videos: Pictures, extractor: FeatureExtractor) -> Float64:
    """Features (N, F, D) of every frame, one video at a time."""
    _check_videos(videos, 1)
    return np.stack(
        [feature_rows(extractor(frames)[0], f"features {extractor.name!r}", len(frames)) for frames in videos],
        dtype=np.float64,
    )


def consistency(features: npt.NDArray[Any]) -> Float64:
    """Consistency (N,) of frame features (N, F, D): how near each frame stays to the first and to the one before."""
    if features.ndim != 3 or features.shape[1] < 2:
        raise BadValue(f"consistency needs frame features of shape (N, F >= 2, D), got {features.shape}.")
    to_first = np.maximum(cosine(features[:, 1:], features[:, :1]), 0)
    to_previous = np.maximum(cosine(features[:, 1:], features[:, :-1]), 0)
    return np.asarray(((to_first + to_previous) / 2).mean(axis=1), dtype=np.float64)


def video_frechet(quantized: Pictures, full: Pictures, extractor: VideoExtractor) -> VideoDistance:
    """Frechet distance between both sets of videos in the extractor's features; row i of both from the same seed."""
    _check_pair(quantized, full)
    metric = f"a Frechet distance of features {extractor.name!r}"
    a, b = (feature_rows(extractor(videos), metric, 2) for videos in (quantized, full))
    value = frechet.frechet_distance(*frechet.fit_gaussian(a), *frechet.fit_gaussian(b))
    return VideoDistance(extractor.name, len(a), value, frechet.standard_error(frechet.paired_influence(a, b)))


def read_vbench(path: str | Path) -> dict[str, float]:
    """Dimension to value from the results that VBench wrote: ``{"dimension": [value, [per video, ...]], ...}``.

    Raises:
        BadValue: a file that cannot be read, is not such JSON, or names a dimension that VBench does not have.
    """
    path = Path(path)
    try:
        if path.stat().st_size > VBENCH_BYTES:
            raise BadValue(f"{path} is too large to be a result of VBench.")
        content = json.loads(path.read_bytes(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except OSError as error:
        raise BadValue(f"cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, NaN, a key twice
        raise BadValue(f"{path} is not a JSON result of VBench: {error}.") from error
    if not isinstance(content, Mapping) or not content:
        raise BadValue(f"{path} is not a JSON result of VBench: it holds no dimensions.")
    return {name: _vbench_value(path, name, value) for name, value in content.items()}


def _vbench_value(path: Path, name: str, value: Any) -> float:
    if name not in VBENCH_DIMENSIONS:
        raise BadValue(f"{path} names {name!r}, which is not a dimension of VBench.")
    number = value[0] if isinstance(value, list) and value else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise BadValue(f"{path} gives no number for {name!r}.")
    try:
        result = float(number)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise BadValue(f"{path} gives a number for {name!r} that is too large.")
    return result


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key stands there twice")
    return content


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _check_videos(videos: Pictures, frames: int) -> None:
    if videos.ndim != 5 or videos.dtype != np.uint8 or videos.shape[0] < 1 or videos.shape[1] < frames:
        raise BadValue(f"videos must be uint8 (N, F >= {frames}, H, W, C), got {videos.dtype} of shape {videos.shape}.")


def _check_pair(quantized: Pictures, full: Pictures) -> None:
    _check_videos(full, 1)
    _check_videos(quantized, 1)
    if quantized.shape != full.shape:
        raise BadValue(f"videos of shape {quantized.shape} and {full.shape} cannot be compared.")
