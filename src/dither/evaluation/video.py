"""Measurements of videos, uint8 (N, F, H, W, C): steadiness, change against full precision, consistency, Frechet.

PSNR and SSIM of a video are the means over its frames of those against the same frames in full precision; `Videos` gives
them to a ``judge.Judge``, and shows a video as a strip of a few frames.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

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
    "Videos",
    "consistency",
    "film_strips",
    "flicker",
    "frame_errors",
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
CHUNK_BYTES = 2**21  # of frames at a time: SSIM takes a hundred times as much
STRIP_FRAMES = 5
STRIP_WIDTH = 1600  # pixels at most, so that a page of many strips stays small
GAP = 2


PictureMetric: TypeAlias = Callable[[Pictures, Pictures], Float64]
"""Two sets of pictures (N, H, W, C) to one number a pair (N,)."""


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


@dataclass(frozen=True)
class Videos:
    """Videos as the medium of a judge (``judge.Medium``): a video's number is the mean over its frames."""

    def check(self, samples: Pictures, count: int, whose: str) -> None:
        """Raise BadValue unless these are `count` videos in uint8."""
        if samples.dtype != np.uint8 or samples.ndim != 5 or len(samples) != count or min(samples.shape) < 1:
            raise BadValue(
                f"{whose} videos are {samples.dtype} of shape {samples.shape} where uint8 ({count}, F, H, W, C) is needed."
            )

    def compare(self, full: Pictures, quantized: Pictures) -> tuple[Float64, Float64, Float64]:
        """Mean squared error, PSNR in dB, and SSIM of each pair (N,)."""
        mse = frame_errors(quantized, full)
        return mse.mean(axis=1), image.psnr(mse).mean(axis=1), frame_ssim(quantized, full).mean(axis=1)

    def shown(self, samples: Pictures) -> Pictures:
        """Film strips (N, H, W, C)."""
        return film_strips(samples)


def flicker(videos: Pictures) -> Float64:
    """Temporal flickering (N,) as VBench counts it: 1 is a still video, lower flickers or moves more."""
    _check_videos(videos, 2)
    steps = np.empty((len(videos), videos.shape[1] - 1))
    for f in range(videos.shape[1] - 1):  # one step at a time: int16 copies of a whole set would not fit
        change = videos[:, f + 1].astype(np.int16) - videos[:, f]
        steps[:, f] = np.abs(change).reshape(len(videos), -1).mean(axis=1)
    return np.asarray((255 - steps.mean(axis=1)) / 255, dtype=np.float64)


def frame_errors(quantized: Pictures, full: Pictures) -> Float64:
    """Mean squared error (N, F) of each frame against the same frame in full precision."""
    return _frame_by_frame(image.mean_squared_error, quantized, full)


def frame_psnr(quantized: Pictures, full: Pictures) -> Float64:
    """PSNR in dB (N, F) of each frame against the same frame in full precision, at most 60."""
    return image.psnr(frame_errors(quantized, full))


def frame_ssim(quantized: Pictures, full: Pictures) -> Float64:
    """SSIM (N, F) of each frame against the same frame in full precision."""
    return _frame_by_frame(image.ssim, quantized, full)


def film_strips(videos: Pictures) -> Pictures:
    """One picture (N, h, w, C) of each video: up to 5 frames from the first to the last side by side, white between.

    Wide strips are made smaller by a whole factor, each pixel the mean of a square.
    """
    _check_videos(videos, 1)
    n, frames, height, width, channels = videos.shape
    places = np.unique(np.linspace(0, frames - 1, min(frames, STRIP_FRAMES)).round().astype(int))
    factor = min(max(1, -(-len(places) * width // STRIP_WIDTH)), height, width)
    h, w = height // factor, width // factor
    strips = np.full((n, h, len(places) * (w + GAP) - GAP, channels), 255, np.uint8)
    for i, place in enumerate(places):
        squares = videos[:, place, : h * factor, : w * factor].reshape(n, h, factor, w, factor, channels)
        strips[:, :, i * (w + GAP) : i * (w + GAP) + w] = squares.mean(axis=(2, 4)).round()
    return strips


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


def _frame_by_frame(metric: PictureMetric, quantized: Pictures, full: Pictures) -> Float64:
    """A metric of pictures for each frame (N, F), a few frames at a time: those of a long video would not fit."""
    _check_pair(quantized, full)
    n, frames, *shape = full.shape
    a, b = (videos.reshape(n * frames, *shape) for videos in (quantized, full))
    step = max(1, CHUNK_BYTES // math.prod(shape))
    parts = [metric(a[i : i + step], b[i : i + step]) for i in range(0, len(a), step)]
    return np.concatenate(parts).reshape(n, frames)


def _check_videos(videos: Pictures, frames: int) -> None:
    if videos.ndim != 5 or videos.dtype != np.uint8 or videos.shape[0] < 1 or videos.shape[1] < frames:
        raise BadValue(f"videos must be uint8 (N, F >= {frames}, H, W, C), got {videos.dtype} of shape {videos.shape}.")


def _check_pair(quantized: Pictures, full: Pictures) -> None:
    _check_videos(full, 1)
    _check_videos(quantized, 1)
    if quantized.shape != full.shape:
        raise BadValue(f"videos of shape {quantized.shape} and {full.shape} cannot be compared.")
