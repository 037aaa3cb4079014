"""Judging videos: the judge of pictures with another medium, and every network that sees pictures sees the frames.

    psnr_db, ssim, lpips     a video's value is the mean over its frames
    fd                       of features averaged over frames, which is not FVD and says so in its name
    temporal_flickering      always; closer to full precision is better: a video that stands still flickers least
    subject_consistency      in DINOv2's features; VBench's formula (arXiv 2311.17982) with the network that is named
    background_consistency   in CLIP's features; the same
    clipsim, clip_temp       with a CLIP scorer, where labels are prompts
    other scorers            mean over frames

The numbers that VBench itself found in its own environment are read from its result files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dither.errors import BadValue
from dither.evaluation.features import View
from dither.evaluation.guards import Crowd
from dither.evaluation.judge import Judge, PairMetric, Score
from dither.evaluation.protocol import FeatureExtractor, Float64, Pictures
from dither.evaluation.text import clip_temp, clipsim
from dither.evaluation.video import FrameMean, Videos, consistency, flicker, frame_features, read_vbench
from dither.extractors import ClipScore, named
from dither.measure.judges import Judging

__all__ = ["VBENCH", "read_vbench_rows", "video_judge"]

VBENCH = "vbench:"
FLICKERING, SUBJECT, BACKGROUND = "temporal_flickering", "subject_consistency", "background_consistency"
CONSISTENCY = {"dinov2:": SUBJECT, "clip:": BACKGROUND}
"""How the names of a network's features begin -> VBench's dimension that takes such features."""
CLOSER = (FLICKERING, "dynamic_degree")
"""More is not better: a model that moves less than full precision is no better than it."""
ONE_NUMBER = "VBench gives one number a set of videos, so there is no interval"


def video_judge(how: Judging) -> Judge:
    """A judge of videos by the same networks and metrics; it has seen nothing yet.

    Raises:
        BadValue: two of the networks would give one guard.
    """
    scores: dict[str, Score] = {FLICKERING: _Trait("pixels", flicker)}
    views = []
    for view in how.views:
        frames = _Frames(named(_features(view), view.name))
        views.append(View(FrameMean(frames.extractor).name, _frame_mean(frames)))
        for start, dimension in CONSISTENCY.items():
            if view.name.startswith(start):
                _add(scores, dimension, _Trait(view.name, _after(frames, consistency)))
    for name, score in how.scores.items():
        if isinstance(score, ClipScore):
            frames = _Frames(named(_embeddings(score), score.name))
            _add(scores, "clipsim", _Clipsim(frames, score))
            _add(scores, "clip_temp", _Trait(score.name, _after(frames, clip_temp)))
        else:
            _add(scores, name, _MeanScore(score))
    distances = {name: _mean_distance(distance) for name, distance in how.distances.items()}
    better = dict.fromkeys(CLOSER, "closer")
    return Judge(views, None, distances, scores, how.images, floor=0, medium=Videos(), better=better)


def read_vbench_rows(metrics: Sequence[str], files: int) -> list[list[dict[str, Any]]]:
    """Guards from VBench's result files, a list for each of the compared files.

    Args:
        metrics: texts ``vbench:A.json,...,FULL.json``: a result of each compared file in turn, and last full precision's.
        files: how many files are compared.

    Raises:
        BadValue: another number of results, one that cannot be read, or two without a common dimension.
    """
    rows: list[list[dict[str, Any]]] = [[] for _ in range(files)]
    for text in metrics:
        paths = text.removeprefix(VBENCH).split(",")
        if len(paths) != files + 1 or not all(paths):
            wanted = "two results of VBench" if files == 1 else f"{files + 1} results of VBench"
            raise BadValue(f"'{text}' must name {wanted}, with commas between and full precision's last")
        *small, full = map(read_vbench, paths)
        for i, values in enumerate(small):
            shared = [dimension for dimension in values if dimension in full]
            if not shared:
                raise BadValue(f"'{paths[i]}' and '{paths[-1]}' have no dimension of VBench in common")
            rows[i] += [_vbench_row(dimension, values[dimension], full[dimension]) for dimension in shared]
    return rows


def _vbench_row(dimension: str, ours: float, theirs: float) -> dict[str, Any]:
    return {
        "metric": dimension,
        "features": "VBench",
        "n": None,
        "quantized": ours,
        "full_precision": theirs,
        "difference": ours - theirs,
        "difference_ci95": None,
        "detectable": None,
        "better": "closer" if dimension in CLOSER else "higher",
        "reason": ONE_NUMBER,
    }


@dataclass
class _Frames:
    """Features (N, F, D) of the frames of videos; both batches of a pair are looked at once, whoever asks for them."""

    extractor: FeatureExtractor
    _seen: list[tuple[Pictures, Float64]] = field(default_factory=list)

    def __call__(self, videos: Pictures) -> Float64:
        for known, features in self._seen:
            if known is videos:
                return features
        features = frame_features(videos, self.extractor)
        self._seen = [*self._seen[-1:], (videos, features)]
        return features


@dataclass(frozen=True)
class _Trait:
    """A number of each video that no prompt is needed for."""

    name: str
    measure: Callable[[Pictures], Float64]

    def __call__(self, videos: Pictures, prompts: Sequence[str]) -> Float64:
        return self.measure(videos)


@dataclass(frozen=True)
class _Clipsim:
    """CLIPSIM of each video and its prompt."""

    frames: _Frames
    clip: ClipScore

    @property
    def name(self) -> str:
        return self.clip.name

    def __call__(self, videos: Pictures, prompts: Sequence[str]) -> Float64:
        return clipsim(self.frames(videos), self.clip.embed_prompts(prompts))


@dataclass(frozen=True)
class _MeanScore:
    """A score of pictures, averaged over frames."""

    score: Score

    @property
    def name(self) -> str:
        return f"{self.score.name}, mean over frames"

    def __call__(self, videos: Pictures, prompts: Sequence[str]) -> Float64:
        repeated = [prompt for prompt in prompts for _ in range(videos.shape[1])]
        return _mean_over_frames(self.score(_all_frames(videos), repeated), videos)


def _mean_distance(distance: PairMetric) -> PairMetric:
    def measure(full: Pictures, quantized: Pictures) -> Float64:
        return _mean_over_frames(distance(_all_frames(full), _all_frames(quantized)), full)

    return measure


def _all_frames(videos: Pictures) -> Pictures:
    return videos.reshape(-1, *videos.shape[2:])  # (N*F, H, W, C)


def _mean_over_frames(values: Float64, videos: Pictures) -> Float64:
    return np.asarray(values.reshape(videos.shape[:2]).mean(axis=1), dtype=np.float64)


def _features(view: View) -> Callable[[Pictures], tuple[Any, None]]:
    return lambda pictures: (view.see(pictures).features, None)


def _embeddings(clip: ClipScore) -> Callable[[Pictures], tuple[Any, None]]:
    return lambda pictures: (clip.embed_pictures(pictures), None)


def _frame_mean(frames: _Frames) -> Callable[[Pictures], Crowd]:
    return lambda videos: Crowd(frames(videos).mean(axis=1))


def _after(frames: _Frames, measure: Callable[[Float64], Float64]) -> Callable[[Pictures], Float64]:
    return lambda videos: measure(frames(videos))


def _add(scores: dict[str, Score], name: str, score: Score) -> None:
    if name in scores:
        raise BadValue(f"{name} would be measured by {scores[name].name!r} and by {score.name!r}: name one of them")
    scores[name] = score
