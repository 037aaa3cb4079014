"""Studies of pictures: how far those of a half-quantized model are from full precision's, as mixed precision asks.

    mse       of the sampler's last states, before they become bytes
    content   classes: mean |log p(label) - log p_full(label)| of a classifier; prompts: mean |CLIPScore - CLIPScore_full|
    visual    mean |f - f_full|^2 / mean |f_full|^2 of a network's features of each picture
    temporal  mean |CLIP-Temp - CLIP-Temp_full| of videos: cosines of neighbouring frames' embeddings
    distance  Frechet distance of a network's features of all pictures to those of full precision; of frames, for videos

The same labels and noise each time, apart from calibration's and from every evaluation's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax
from torch import Tensor

from dither.errors import BadValue
from dither.evaluation.frechet import sample_distance
from dither.evaluation.protocol import FeatureExtractor, Float64, Label, Pictures
from dither.evaluation.text import clip_temp
from dither.extractors import open_extractor, open_scorer
from dither.pictures import PIXELS
from dither.sampling import default_labels, sampler_for
from dither.stages import Study, StudySettings
from dither.stages.needs import DISTANCE
from dither.stages.roles import CONTENT, TEMPORAL, VISUAL

__all__ = ["Drawn", "PictureStudy", "RoleJudge", "study_of"]

CLIP = "clip"
LEAST_LOG = -50.0
"""Log-probabilities below this all count as it: a classifier's doubts there mean nothing."""


@dataclass(frozen=True)
class Drawn:
    """One drawing: final states (N, ...), pictures uint8 (N, H, W, C) or videos (N, F, H, W, C)."""

    states: Tensor
    pictures: Pictures


class RoleJudge(Protocol):
    """Says how far pictures are from others, in one respect."""

    @property
    def name(self) -> str:
        """What it measures, and with which network."""
        ...

    def see(self, pictures: Pictures) -> Float64:
        """What it looks at, one row a picture (N, ...)."""

    def loss(self, seen: Float64, full: Float64) -> float:
        """0 where both are the same."""


@dataclass
class PictureStudy:
    """A ``stages.Study``.

    Args:
        draw: with the model as it is.
        judges: by role.
    """

    draw: Callable[[], Drawn]
    judges: Mapping[str, RoleJudge]
    _full: Drawn | None = None
    _seen: dict[str, Float64] = field(default_factory=dict)

    @property
    def metrics(self) -> Mapping[str, str]:
        """Role -> what judges it."""
        return {role: judge.name for role, judge in self.judges.items()}

    def begin(self) -> None:
        """Draw full precision, once."""
        if self._full is None:
            full = self.draw()
            self._seen = {role: judge.see(full.pictures) for role, judge in self.judges.items()}
            self._full = full

    def losses(self) -> Mapping[str, float]:
        """Of the model as it is."""
        if self._full is None:
            raise RuntimeError("a study begins with full precision: call begin() first")
        now = self.draw()
        found = {"mse": float((now.states - self._full.states).double().square().mean())}
        for role, judge in self.judges.items():
            found[role] = judge.loss(judge.see(now.pictures), self._seen[role])
        return found


@dataclass(frozen=True)
class Features:
    """Squared distance of features, relative to their size."""

    extractor: FeatureExtractor
    name: str

    def see(self, pictures: Pictures) -> Float64:
        """(N, D); frames of videos side by side (N, F D)."""
        return _by_frame(pictures, lambda flat: self.extractor(flat)[0]).reshape(len(pictures), -1)

    def loss(self, seen: Float64, full: Float64) -> float:
        """Mean squared distance over mean squared length."""
        return float(np.square(seen - full).sum() / max(np.square(full).sum(), np.finfo(np.float64).tiny))


@dataclass(frozen=True)
class Likelihood:
    """A classifier's log-probability of each picture's own label."""

    extractor: FeatureExtractor
    labels: tuple[int, ...]
    name: str

    def see(self, pictures: Pictures) -> Float64:
        """(N,)"""
        _, logits = self.extractor(pictures)
        if logits is None:
            raise BadValue(f"'{self.name}' classifies nothing, so it cannot judge whether pictures show their class")
        if max(self.labels) >= logits.shape[1]:
            raise BadValue(f"'{self.name}' knows {logits.shape[1]} classes, and class {max(self.labels)} is drawn")
        logs = log_softmax(np.asarray(logits, dtype=np.float64), axis=1)  # (N, K)
        return np.asarray(logs[np.arange(len(logs)), list(self.labels)].clip(min=LEAST_LOG))

    def loss(self, seen: Float64, full: Float64) -> float:
        """Mean absolute difference."""
        return float(np.abs(seen - full).mean())


@dataclass(frozen=True)
class Alignment:
    """A scorer of pictures and prompts; frames of a video are scored each."""

    scorer: Any
    prompts: tuple[str, ...]
    name: str

    def see(self, pictures: Pictures) -> Float64:
        """(N,) or (N, F)."""
        frames = 1 if pictures.ndim == 4 else pictures.shape[1]
        prompts = [prompt for prompt in self.prompts for _ in range(frames)]
        return _by_frame(pictures, lambda flat: self.scorer(flat, prompts))

    def loss(self, seen: Float64, full: Float64) -> float:
        """Mean absolute difference of each picture's (each video's mean) score."""
        n = len(full)
        return float(np.abs(seen.reshape(n, -1).mean(1) - full.reshape(n, -1).mean(1)).mean())


@dataclass(frozen=True)
class Consistency:
    """Cosines of neighbouring frames' embeddings."""

    extractor: FeatureExtractor
    name: str

    def see(self, pictures: Pictures) -> Float64:
        """(N,)"""
        if pictures.ndim != 5:
            raise BadValue("the temporal role needs videos (N, F, H, W, C), and this pipeline draws single pictures")
        return clip_temp(_by_frame(pictures, lambda flat: self.extractor(flat)[0]))

    def loss(self, seen: Float64, full: Float64) -> float:
        """Mean absolute difference."""
        return float(np.abs(seen - full).mean())


@dataclass(frozen=True)
class Distance:
    """The Frechet distance of two sets of pictures, as Q-DiT (arXiv 2406.17343) judges allocations by.

    Gaussians that are fitted to fewer pictures than features have no full rank, and the distance comes out too high. By
    how much depends on how many there are, and both sets share their noise: of one number of pictures, distances can be
    compared with each other, and with no others.
    """

    extractor: FeatureExtractor
    name: str

    def see(self, pictures: Pictures) -> Float64:
        """(N, D); of videos, a row for each frame."""
        seen = _by_frame(pictures, lambda flat: self.extractor(flat)[0])
        return seen.reshape(-1, seen.shape[-1])

    def loss(self, seen: Float64, full: Float64) -> float:
        """The distance as it is defined, without rounding errors where both are the same. BadValue of one picture."""
        if len(full) < 2:
            raise BadValue(f"'{self.name}' needs at least 2 pictures")
        return 0.0 if np.array_equal(seen, full) else sample_distance(seen, full)


def study_of(
    pipeline: Any, settings: StudySettings, prompts: Sequence[str], seeds: Sequence[int], stage: str = "mixed"
) -> Study:
    """A study of a diffusers pipeline.

    Args:
        pipeline: any that ``sampling`` knows.
        settings: of the study.
        prompts: for text-to-image pipelines.
        seeds: at least one for each picture.
        stage: whose fields name the judges, for messages.

    Raises:
        BadValue: a judge must be named, or cannot judge these pictures.
        DitherError: a judge cannot be opened: its package or weights are missing.
    """
    labels = default_labels(pipeline, settings.samples, tuple(prompts))
    judges = {role: _judge(pipeline, role, text, labels, stage) for role, text in settings.judges.items()}
    sampler = sampler_for(pipeline, settings.steps, settings.guidance)
    noise = list(seeds[: settings.samples])
    clamp = _draws_pixels(pipeline)

    def draw() -> Drawn:
        last: dict[int, Tensor] = {}
        batch = -1

        def watch(step: int, timestep: float, latents: Tensor) -> None:
            nonlocal batch
            batch += step == 0
            last[batch] = latents

        pictures = sampler(labels, noise, watch)
        states = torch.cat([x.detach().float().cpu() for x in last.values()])
        return Drawn(states.clamp(-1, 1) if clamp else states, pictures)

    return PictureStudy(draw, judges)


def _draws_pixels(pipeline: Any) -> bool:
    """Whether final states are pictures in [-1, 1], of which nobody sees what lies outside."""
    return type(pipeline).__name__ == "PixelDiTPipeline" and pipeline.transformer.config.in_channels in PIXELS


def _judge(pipeline: Any, role: str, text: str, labels: Sequence[Label], stage: str) -> RoleJudge:
    field = f"{stage}.{role}"
    prompts = tuple(str(label) for label in labels) if isinstance(labels[0], str) else ()
    chosen = text or (CLIP if prompts or role == TEMPORAL else _own_network(pipeline, field))
    if role == CONTENT and prompts:
        scorer = open_scorer(chosen)
        return Alignment(scorer, prompts, f"|score difference| of {scorer.name}")
    extractor: Any = open_extractor(chosen)
    if role == CONTENT:
        return Likelihood(extractor, tuple(int(x) for x in labels), f"|log-likelihood difference| of {extractor.name}")
    if role == VISUAL:
        return Features(extractor, f"relative squared feature distance of {extractor.name}")
    if role == DISTANCE:
        return Distance(extractor, f"Frechet distance of {extractor.name}")
    return Consistency(extractor, f"|CLIP-Temp difference| of {extractor.name}")


def _own_network(pipeline: Any, field: str) -> str:
    """The network that ships with a zoo model, as ``open_extractor`` calls it."""
    from dither import zoo  # its weights and classes are needed by few

    folder = Path(str(pipeline.name_or_path or "")).resolve()
    for name in zoo.names():
        if folder == zoo.path(name).resolve():
            return f"zoo:{name}"
    raise BadValue(
        f"{field}: no network is known that judges what {type(pipeline).__name__} draws; name one, such as "
        f"--set {field}=zoo:{zoo.names()[0]} or dinov2"
    )


def _by_frame(pictures: Pictures, see: Callable[[Pictures], npt.NDArray[Any]]) -> Float64:
    """``see`` of pictures (N, ...), or of every frame of videos, as (N, F, ...)."""
    if pictures.ndim == 4:
        return np.asarray(see(pictures), dtype=np.float64)
    n, f = pictures.shape[:2]
    flat = np.asarray(see(pictures.reshape(n * f, *pictures.shape[2:])), dtype=np.float64)
    return flat.reshape(n, f, *flat.shape[1:])
