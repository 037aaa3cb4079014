"""TRANSFORM: move the range of channels from activations into weights (SmoothQuant, arXiv 2211.10438).

For a site with input x and readers W, channel j gets ``s_j = a_j^alpha / w_j^(1 - alpha)``, w_j = max |W_j| over all readers;
then ``x' = x / s``, ``W' = W s``. See ``balance`` for the two ways to count alpha.

``1 / s`` is absorbed where it costs nothing: in adaLN rows or V rows (see ``models.base``), else it is an online multiply.

``a_j`` is the largest ``|x_j|`` over all calibration calls, or, where adaLN makes the site, what the modulation alone says
(see ``data_free``). Or it is made of the largest ``|x_j|`` in each of several ranges of the noise level (see ``aggregate``):

    PTQ4DiT (arXiv 2405.16005)    alpha = 1/2, ``spearman``: its B^X is diag(1 / s), its B^W diag(s)    (equations 4 to 6, 10)
    TCAQ-DM (arXiv 2412.16700)    alpha = 1, ``self-weighted``: s_j = a_j, all of the range goes into the weight

A factor common to all s of a site, such as TCAQ-DM's normalizer, changes no code, as grids follow it: here there is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dither import memory
from dither.errors import BadModel, BadRecipe
from dither.models.base import AdaLN, Fold, Rows, Site, linear_at
from dither.nn import QLinear
from dither.spec import Act, Float8, Int, LinearSpec
from dither.stages.aggregate import AGGREGATES
from dither.stages.balance import best_scale, column_peaks, judge_of, share, shares, smoothing_scale
from dither.stages.base import Job, Phase
from dither.stages.building import dense_of
from dither.stages.channels import Channels, Source, Times, equal_edges

__all__ = ["Smooth", "absorb", "apply_scale", "scalable"]

MOST_RANGES = 1000


@dataclass(frozen=True)
class Smooth:
    """Channel balancing by scales.

    Args:
        alpha: share of the activation's range that moves into the weight, SmoothQuant's way; one half if neither
            this nor ``vidit_alpha`` is given.
        vidit_alpha: the same as ViDiT-Q counts it, ``1 - alpha``; give one of the two.
        search: candidates of alpha (SmoothQuant's; and no scale) to choose from for each site by its output error;
            the choice is noted with the result.
        online: also scale sites that cannot absorb it, at the price of one multiply (the input of fc2).
        rows: tokens kept for each site to search with, as many from each range.
        weight: the format that the search judges with; None is symmetric, per channel, of the bits asked for.
        act: the same of activations; None is symmetric, dynamic, per token, of the bits asked for.
        rotation: block of a rotation that a later stage puts behind the scale, for the search to judge with, as
            ``Rotate`` has it (0: the whole width); None: none.
        data_free: take the statistics of sites made by adaLN from noise level and class alone.
        calibrate: measure all other sites on calibration calls; otherwise they stay unscaled.
        levels: noise levels that ``data_free`` looks at, in each range.
        aggregate: how a channel's peaks at different times become one: ``max``, or over equal ranges of the noise level
            ``mean``, ``spearman`` or ``self-weighted``. The formulas are those of the file ``aggregate``.
        ranges: how many; those that no calibration call falls into are left out. ``max`` is the same for any number.
    """

    tag: ClassVar[str] = "smooth"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    paper: ClassVar[str] = "2211.10438"
    alpha: float | None = None
    vidit_alpha: float | None = None
    search: tuple[float, ...] = ()
    online: bool = False
    rows: int = 1024
    weight: Int | Float8 | None = None
    act: Act | None = None
    rotation: int | None = None
    data_free: bool = False
    calibrate: bool = True
    levels: int = 16
    aggregate: str = "max"
    ranges: int = 10

    def run(self, job: Job) -> None:
        """Scale every site; the model's function stays the same."""
        alpha = self._check()
        count = 1 if self.aggregate == "max" else self.ranges
        rows = -(-self.rows // count) if self.search else 0  # in each range
        source = Source(self.tag, self.data_free, self.calibrate, self.levels, rows, gaps=True)
        source.check()
        sites = {s.name: s for s in scalable(job, self.online)}
        if not sites:
            raise BadModel(
                f"smooth: nothing in {type(job.model).__name__} can absorb a channel scale; smooth.online=true multiplies "
                "inputs while the model runs instead"
            )
        for reader in (r for s in sites.values() for r in s.readers):
            if job.specs.get(reader, LinearSpec()).rotation is not None:
                raise BadRecipe(f"smooth must come before rotate: the input of layer '{reader}' is rotated already")
        found = source.gather(job, list(sites.values()), Times.off_clock(equal_edges(count)))
        for i, (name, channels) in enumerate(found.items()):
            apply_scale(job, sites[name], self._scale(job, sites[name].readers, channels, alpha))
            job.progress("smoothing", i + 1, len(found))

    def _scale(self, job: Job, readers: Sequence[str], channels: Channels, alpha: float) -> Tensor:
        """s (K,)."""
        weights = [job.dense(r) for r in readers]
        w = column_peaks(weights)  # (K,)
        a = AGGREGATES[self.aggregate](channels.peaks, w)  # (K,)
        if not self.search:
            return smoothing_scale(a, w, alpha)
        judge = judge_of(job.bits, self.weight, self.act, self.rotation, job.seed, len(w))
        parts = [(judge, torch.cat([m.float() for m in weights]))]
        chosen, scale = best_scale(parts, self.search, a, w, torch.cat(channels.tokens))
        for reader in readers:
            job.note(reader, {"smooth_alpha": chosen})
        return scale

    def _check(self) -> float:
        """SmoothQuant's alpha, if all fields make sense."""
        given = [() if a is None else (a,) for a in (self.alpha, self.vidit_alpha)]
        alpha = shares(self.tag, given[0], given[1])[0]
        for candidate in self.search:
            share(self.tag, "search", candidate)
        if self.rows < 1:
            raise BadRecipe(f"smooth.rows {self.rows}: must be at least 1")
        if self.rotation is not None and self.rotation < 0:
            raise BadRecipe(f"smooth.rotation {self.rotation}: must be the width of a block, or 0 for the whole width")
        if self.aggregate not in AGGREGATES:
            raise BadRecipe(f"smooth.aggregate '{self.aggregate}': must be one of {', '.join(AGGREGATES)}")
        if not 1 <= self.ranges <= MOST_RANGES:
            raise BadRecipe(f"smooth.ranges {self.ranges}: must be 1 to {MOST_RANGES}")
        return alpha


def scalable(job: Job, online: bool) -> list[Site]:
    """Sites whose readers are all to be quantized; those that cannot absorb a scale only if ``online``."""
    layers = job.layers
    return [
        s
        for s in job.adapter.sites(job.model)
        if (s.fold is not None or online) and not any(layers[r].kind == "adaln" or layers[r].keep for r in s.readers)
    ]


def apply_scale(job: Job, site: Site, s: Tensor) -> None:
    """Divide the site by s (K,) where it comes from, or online, and multiply its readers' columns by s."""
    for reader in site.readers:
        _rewrite(linear_at(job.model, reader), job.dense(reader).float() * s)
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
            _multiply_rows(linear, (shift, scale), c)
            linear.bias.data[scale[0] : scale[1]] += (c - 1).to(linear.bias.dtype)
        case Rows(rows=rows):
            _multiply_rows(linear, (rows,), c)


def _multiply_rows(linear: nn.Linear, parts: Sequence[tuple[int, int]], c: Tensor) -> None:
    weight = dense_of(linear).to(torch.float32, copy=True)
    for first, last in parts:
        weight[first:last] *= c[:, None]
        if linear.bias is not None:
            bias = linear.bias.data[first:last]
            bias.copy_(bias.float() * c)
    _rewrite(linear, weight)


def _rewrite(linear: nn.Linear, weight: Tensor) -> None:
    """Give a layer another weight (N, K).

    Not in place: where it is mapped from a file, pages that were written to stay in memory as long as any tensor of the file.
    """
    old = dense_of(linear)
    if isinstance(linear, QLinear):
        linear.load({"weight_dense": weight.to(old.dtype)})
    else:
        linear.weight.data = weight.to(old.dtype)
    memory.set_aside(old)
