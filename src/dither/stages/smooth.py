"""TRANSFORM: move the range of channels from activations into weights (SmoothQuant, arXiv 2211.10438).

For a site with input x and readers W, channel j gets ``s_j = a_j^alpha / w_j^(1 - alpha)``, w_j = max |W_j| over all readers;
then ``x' = x / s``, ``W' = W s``. See ``balance`` for the two ways to count alpha.

``1 / s`` is absorbed where it costs nothing: in adaLN rows or V rows (see ``models.base``), else it is an online multiply.

``a_j`` is the largest ``|x_j|`` over all calibration calls, or, where adaLN makes the site, what the modulation alone says
(see ``data_free``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from dither.calibrate import AbsMax, RowSample
from dither.errors import BadModel, BadRecipe
from dither.models.base import AdaLN, Fold, Rows, Site, linear_at
from dither.spec import Act, Int
from dither.stages.balance import best_scale, column_peaks, judge_of, share, shares, smoothing_scale
from dither.stages.base import Job, Phase
from dither.stages.data_free import known, levels_between, modulated_peaks, modulated_tokens

__all__ = ["Smooth", "absorb", "apply_scale"]

MOST_LEVELS = 1000


@dataclass(frozen=True)
class Smooth:
    """Channel balancing by scales.

    Args:
        alpha: share of the activation's range that moves into the weight, SmoothQuant's way; one half if neither
            this nor ``vidit_alpha`` is given.
        vidit_alpha: the same as ViDiT-Q counts it, ``1 - alpha``; give one of the two.
        search: candidates of alpha (SmoothQuant's; and no scale) to choose from for each site by its output error.
        online: also scale sites that cannot absorb it, at the price of one multiply (the input of fc2).
        rows: tokens kept for each site to search with.
        weight: the format that the search judges with; None is symmetric, per channel, of the bits asked for.
        act: the same of activations; None is symmetric, dynamic, per token, of the bits asked for.
        rotation: block of a rotation that a later stage puts behind the scale, for the search to judge with; 0: none.
        data_free: take the statistics of sites made by adaLN from noise level and class alone.
        calibrate: measure all other sites on calibration calls; otherwise they stay unscaled.
        levels: noise levels that ``data_free`` looks at.
    """

    tag: ClassVar[str] = "smooth"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    paper: ClassVar[str] = "2211.10438"
    alpha: float | None = None
    vidit_alpha: float | None = None
    search: tuple[float, ...] = ()
    online: bool = False
    rows: int = 1024
    weight: Int | None = None
    act: Act | None = None
    rotation: int = 0
    data_free: bool = False
    calibrate: bool = True
    levels: int = 16

    def run(self, job: Job) -> None:
        """Scale every site; the model's function stays the same."""
        alpha = self._check()
        sites, free = self._sites(job)
        measured = [s for s in sites if s not in free]
        peaks = {s.name: AbsMax(job.dense(s.readers[0]).shape[1]) for s in measured}
        samples = {s.name: RowSample(self.rows, seed=job.seed) for s in measured} if self.search else {}
        if measured:
            job.observe("measuring channels", {s.readers[0]: _probes(s, peaks, samples) for s in measured})
        levels = levels_between(0, 1, self.levels)
        for i, site in enumerate(sites):
            weights = [job.dense(r) for r in site.readers]
            w = column_peaks(weights)  # (K,)
            a = _modulated(job, site, levels) if site in free else peaks[site.name].value[0]  # (K,)
            if self.search:
                x = self._tokens(job, site, levels) if site in free else samples[site.name].value  # (n, K)
                judge = judge_of(job.bits, self.weight, self.act, self.rotation, job, len(w))
                scale = best_scale(judge, self.search, a, w, x, torch.cat([m.float() for m in weights]))
            else:
                scale = smoothing_scale(a, w, alpha)
            apply_scale(job, site, scale)
            job.progress("smoothing", i + 1, len(sites))

    def _check(self) -> float:
        """SmoothQuant's alpha."""
        given = [() if a is None else (a,) for a in (self.alpha, self.vidit_alpha)]
        alpha = shares(self.tag, given[0], given[1])[0]
        for candidate in self.search:
            share(self.tag, "search", candidate)
        if self.rows < 1:
            raise BadRecipe(f"smooth.rows {self.rows}: must be at least 1")
        if self.rotation < 0:
            raise BadRecipe(f"smooth.rotation {self.rotation}: must be 0 or the width of a block")
        if not 1 <= self.levels <= MOST_LEVELS:
            raise BadRecipe(f"smooth.levels {self.levels}: must be 1 to {MOST_LEVELS}")
        if not (self.data_free or self.calibrate):
            raise BadRecipe("smooth.calibrate false: without smooth.data_free there are no statistics to scale by")
        return alpha

    def _sites(self, job: Job) -> tuple[list[Site], list[Site]]:
        """Sites to scale, and those among them that need no data. What is left out for want of data is said."""
        layers = job.layers
        could = [
            s
            for s in job.adapter.sites(job.model)
            if (s.fold is not None or self.online)
            and not any(layers[r].kind == "adaln" or layers[r].keep for r in s.readers)
        ]
        free = [s for s in could if self.data_free and known(s.fold)]
        if self.data_free and not free:
            raise BadModel(
                f"smooth.data_free: in {type(job.model).__name__} no site's channels follow from noise level and "
                "class alone; leave it out to measure them"
            )
        if self.calibrate or len(free) == len(could):
            return could, free
        job.progress(f"leaving {len(could) - len(free)} sites unscaled: adaLN does not make them", len(free), len(could))
        return free, free

    def _tokens(self, job: Job, site: Site, levels: Tensor) -> Tensor:
        return modulated_tokens(job.model, cast(AdaLN, site.fold), levels, self.rows, job.seed)


def _modulated(job: Job, site: Site, levels: Tensor) -> Tensor:
    return modulated_peaks(job.model, cast(AdaLN, site.fold), levels)


def _probes(site: Site, peaks: dict[str, AbsMax], samples: dict[str, RowSample]) -> tuple[AbsMax | RowSample, ...]:
    return (peaks[site.name], samples[site.name]) if site.name in samples else (peaks[site.name],)


def apply_scale(job: Job, site: Site, s: Tensor) -> None:
    """Divide the site by s (K,) where it comes from, or online, and multiply its readers' columns by s."""
    for reader in site.readers:
        weight = job.dense(reader)
        weight.copy_(weight.float() * s)
    if site.fold is not None:
        absorb(job.model, site.fold, 1.0 / s)
        return
    for reader in site.readers:
        job.online(reader, pre_scale=(1.0 / s)[None])


def absorb(model: nn.Module, fold: Fold, c: Tensor) -> None:
    """Multiply a site by c (K,) in the rows of the linear that produces it. Exact; see ``models.base`` for the formulas."""
    linear = linear_at(model, fold.linear)
    match fold:
        case AdaLN(shift=shift, scale=scale):
            _multiply_rows(linear, shift, c)
            _multiply_rows(linear, scale, c)
            linear.bias.data[scale[0] : scale[1]] += (c - 1).to(linear.bias.dtype)
        case Rows(rows=rows):
            _multiply_rows(linear, rows, c)


def _multiply_rows(linear: nn.Linear, rows: Sequence[int], c: Tensor) -> None:
    weight = linear.weight.data[rows[0] : rows[1]]
    weight.copy_(weight.float() * c[:, None])
    if linear.bias is not None:
        bias = linear.bias.data[rows[0] : rows[1]]
        bias.copy_(bias.float() * c)
