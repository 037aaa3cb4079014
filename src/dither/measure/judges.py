"""Which networks and statistics judge a model's pictures: the zoo's own for zoo models, and those that the user names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias

import numpy as np

from dither.errors import BadValue
from dither.evaluation import FeatureExtractor, RealStats
from dither.evaluation.admfile import ReferenceStats, read_reference
from dither.evaluation.features import View, view_of
from dither.evaluation.guards import ADM_GUARDS, Crowd, RealCrowd
from dither.evaluation.judge import Judge, PairMetric, Score
from dither.evaluation.protocol import Pictures
from dither.extractors import InceptionFeatures, open_extractor, open_lpips, open_scorer
from dither.scale.jobs import Job
from dither.scale.shards import ShardStore
from dither.sources import Source

__all__ = ["Judging", "judging_for", "zoo_judges"]

REFERENCE_BATCH = 256
LPIPS, CLIP_SCORE = "lpips", "clip-score"
Features: TypeAlias = FeatureExtractor | InceptionFeatures


@dataclass(frozen=True)
class Judging:
    """How pictures are judged.

    Args:
        views: networks; the first one's Frechet distance is the main one.
        real: statistics of real pictures in the first one's features.
        distances, scores: further metrics, by name.
        images: pairs kept in the results.
    """

    views: tuple[View, ...] = ()
    real: RealStats | None = None
    distances: Mapping[str, PairMetric] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)
    images: int = 24

    def judge(self, floor: int, store: ShardStore | None = None) -> Judge:
        """A judge with nothing seen yet; features are kept in the store, if one is given."""
        views = self.views if store is None else tuple(_remembered(view, store) for view in self.views)
        return Judge(views, self.real, self.distances, self.scores, self.images, floor)


def zoo_judges(name: str) -> tuple[FeatureExtractor, RealStats]:
    """Feature network and statistics of real pictures of a zoo model."""
    from dither import zoo

    _, stats = zoo.load_features(name)
    return open_extractor(f"zoo:{name}"), RealStats(stats.mu, stats.sigma, stats.n, stats.accuracy)


def judging_for(
    full: Source | None, features: Sequence[str], metrics: Sequence[str], reference: Path | None, images: int
) -> Judging:
    """Open all that the request names, so that a missing extra is known before any picture is drawn.

    Args:
        full: the full-precision model, whose own features come first where it is of the zoo; None for files of samples.
        features: names for ``extractors.open_extractor``.
        metrics: ``lpips[:NET]``, ``clip-score[:MODEL]``, ``image-reward``, ``external:COMMAND``.
        reference: real pictures, or their statistics in Inception's features, in ADM's layout.
        images: pairs to keep.

    Raises:
        DitherError: an extractor is unknown, or its extra is missing.
        BadValue: the reference cannot be read, or nothing here can use it.
    """
    real = None if reference is None else read_reference(reference)
    if real is not None and not features:
        raise BadValue(f"the reference '{reference}' needs features to be seen with, such as --features inception")
    views = [_view(open_extractor(text), real) for text in features]
    stats = None
    if full is not None and full.zoo is not None:
        own, stats = zoo_judges(full.zoo)
        views.insert(0, view_of(own))
    names = [view.name for view in views]
    if len(set(names)) < len(names):
        raise BadValue(f"the features {max(names, key=names.count)!r} are named twice")
    distances: dict[str, PairMetric] = {}
    scores: dict[str, Score] = {}
    for text in metrics:
        kind, _, rest = text.partition(":")
        if kind.replace("-", "_") in {*distances, *scores}:
            raise BadValue(f"the metric {kind!r} is asked for twice: its results would have one name")
        if kind == LPIPS:
            distances[LPIPS] = open_lpips(rest or "alex")
        else:
            scores[kind.replace("-", "_")] = open_scorer(text.replace(CLIP_SCORE, "clip", 1))
    return Judging(tuple(views), stats, distances, scores, images)


def _view(extractor: Features, reference: ReferenceStats | None) -> View:
    """The view of an extractor, with the guards that it and the reference allow."""
    if isinstance(extractor, InceptionFeatures):
        return _inception_view(extractor, reference)
    plain = view_of(extractor)
    if reference is None or reference.pictures is None:
        return plain
    real = RealCrowd(features=_features(plain, reference))
    return View(plain.name, plain.see, ("cmmd",) if plain.name.startswith("clip") else ("fd", "kid"), real)


def _inception_view(extractor: InceptionFeatures, reference: ReferenceStats | None) -> View:
    def see(pictures: Pictures) -> Crowd:
        return Crowd(*extractor.both(pictures))

    if reference is None:
        return View(extractor.name, see, ("inception_score",))
    plain = View(extractor.name, see)
    spatial = None
    if reference.mu_s is not None and reference.sigma_s is not None:
        spatial = (reference.mu_s, reference.sigma_s)
    features = None if reference.pictures is None else _features(plain, reference)
    real = RealCrowd(features, (reference.mu, reference.sigma), spatial)
    guards = (*ADM_GUARDS, "kid") if features is not None else tuple(g for g in ADM_GUARDS if g != "precision_recall")
    return View(extractor.name, see, guards, real)


def _features(view: View, reference: ReferenceStats) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Features (M, D) of the reference's pictures."""
    assert reference.pictures is not None
    parts = [view.see(batch).features for batch in reference.pictures.batches(REFERENCE_BATCH)]
    return np.concatenate(parts).astype(np.float64)


def _remembered(view: View, store: ShardStore) -> View:
    """The same view, which looks at each batch of pictures once, however often a run is repeated."""

    def see(pictures: Pictures) -> Crowd:
        seen = blake2b(f"{pictures.shape}".encode() + np.ascontiguousarray(pictures).tobytes(), digest_size=16)
        job: Job = {"kind": "features", "by": view.name, "pictures": seen.hexdigest()}
        known = store.get(job)
        if known is not None:
            return Crowd(known["features"], known.get("logits"), known.get("spatial"))
        crowd = view.see(pictures)
        arrays = {"features": crowd.features, "logits": crowd.logits, "spatial": crowd.spatial}
        store.put(job, {name: np.ascontiguousarray(rows) for name, rows in arrays.items() if rows is not None})
        return crowd

    return View(view.name, see, view.guards, view.real)
