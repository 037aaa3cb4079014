"""WEIGHT: channel balancing that changes with the noise level (ViDiT-Q, arXiv 2406.02540, first version).

The channels of a diffusion transformer change their magnitudes while it denoises, and one scale must fit them all. Here the
noise level is cut into ranges, and each range r has activation peaks, an alpha and a scale of its own:

    s_r = a_r^alpha_r / w^(1 - alpha_r)        y = Q_a(x / s_r) Q_w(W s_r)^T + b

The price: W s_r is another weight for each r, so that every layer stores as many banks of codes as there are ranges
(rounded to nearest), and the scale is an online multiply. Bits per weight count all banks.

A scale or rotation that the layer has from an earlier stage is kept in what is computed: the scale here replaces an online
one, and the rotation follows it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from dither import memory
from dither.errors import BadRecipe
from dither.models.base import Site, linear_at
from dither.nn import QLinear
from dither.numerics import encode, rotate
from dither.spec import LinearSpec, Timed
from dither.stages.balance import Judge, best_scale, column_peaks, share, shares, smoothing_scale
from dither.stages.base import Job, Phase
from dither.stages.channels import Channels, Source, Times
from dither.stages.incoherence import named
from dither.stages.smooth import scalable

__all__ = ["TimedSmooth"]


@dataclass(frozen=True)
class TimedSmooth:
    """A scale and a weight bank for each range of the noise level.

    Args:
        edges: inner edges of the ranges, ascending in (0, 1); 1 is pure noise.
        alpha: one for all ranges, or one for each from the least noise up; SmoothQuant's, as ``Smooth`` has it.
        vidit_alpha: the same as ViDiT-Q counts it, ``1 - alpha``; give one of the two; one half if neither.
        search: candidates of alpha (SmoothQuant's; and no scale) to choose from for each site and range by its output
            error, under the formats that the layer is to have.
        only: regular expression; layers whose name it does not find keep one bank.
        rows: tokens kept for each site and range to search with.
        data_free: take the statistics of sites made by adaLN from noise level and class alone.
        calibrate: measure all other sites on calibration calls; otherwise they keep one bank.
        levels: noise levels that ``data_free`` looks at in each range.
    """

    tag: ClassVar[str] = "timed-smooth"
    phase: ClassVar[Phase] = Phase.WEIGHT
    paper: ClassVar[str] = "2406.02540"
    edges: tuple[float, ...] = (0.5,)
    alpha: tuple[float, ...] = ()
    vidit_alpha: tuple[float, ...] = ()
    search: tuple[float, ...] = ()
    only: str = ""
    rows: int = 512
    data_free: bool = False
    calibrate: bool = True
    levels: int = 16

    def run(self, job: Job) -> None:
        """Commit every chosen layer with a bank for each range."""
        alphas = self._check()
        source = Source(self.tag, self.data_free, self.calibrate, self.levels, self.rows if self.search else 0)
        source.check()
        sites = self._sites(job)
        times = Times.on_clock(job, "timed-smooth.edges", self.edges)
        found = source.gather(job, list(sites.values()), times)
        for i, (name, channels) in enumerate(found.items()):
            readers = sites[name].readers
            scales = self._scales(job, readers, channels, alphas)  # (R, K)
            for reader in readers:
                spec = replace(job.specs[reader], pre_scale=1)
                timed = Timed((spec,) * len(scales), times.select)
                job.commit_timed(reader, timed, partial(_banks, linear_at(job.model, reader), spec, scales))
            job.progress("making banks", i + 1, len(found))

    def _check(self) -> tuple[float, ...]:
        """SmoothQuant's alpha of each range, if all fields make sense."""
        edges = self.edges
        if not edges or not all(0 < e < 1 for e in edges) or any(a >= b for a, b in pairwise(edges)):
            raise BadRecipe(f"timed-smooth.edges {list(edges)}: need at least one, ascending strictly inside (0, 1)")
        alphas = shares(self.tag, self.alpha, self.vidit_alpha)
        if len(alphas) not in (1, len(edges) + 1):
            field = "alpha" if self.alpha else "vidit_alpha"
            raise BadRecipe(
                f"timed-smooth.{field}: {len(alphas)} values for {len(edges) + 1} ranges; give one for all or one for each"
            )
        for candidate in self.search:
            share(self.tag, "search", candidate)
        if self.rows < 1:
            raise BadRecipe(f"timed-smooth.rows {self.rows}: must be at least 1")
        return alphas if len(alphas) > 1 else alphas * (len(edges) + 1)

    def _sites(self, job: Job) -> dict[str, Site]:
        """Sites with the readers that are to have banks."""
        wanted = named("timed-smooth.only", self.only, list(job.layers))
        found = {}
        for site in scalable(job, online=True):
            specs = {r: job.specs.get(r, LinearSpec()) for r in site.readers if r in wanted}
            readers = tuple(r for r, spec in specs.items() if spec.weight is not None)
            for reader in readers:
                _check_layer(job, reader, specs[reader])
            if readers:
                found[site.name] = replace(site, readers=readers)
        if not found:
            raise BadRecipe(f"timed-smooth.only '{self.only}' finds no layer that is to be quantized and can be scaled")
        return found

    def _scales(self, job: Job, readers: Sequence[str], channels: Channels, alphas: tuple[float, ...]) -> Tensor:
        """s (R, K)."""
        weights = [_plain(linear_at(job.model, r)) for r in readers]
        w = column_peaks(weights)
        if not self.search:
            return torch.stack([smoothing_scale(a, w, x) for a, x in zip(channels.peaks, alphas, strict=True)])
        judges = [_judge(linear_at(job.model, r), job.specs[r]) for r in readers]
        parts = list(zip(judges, weights, strict=True))
        pairs = zip(channels.peaks, channels.tokens, strict=True)
        chosen = [best_scale(parts, self.search, a, w, x) for a, x in pairs]
        for reader in readers:
            job.note(reader, {"timed_smooth_alpha": [alpha for alpha, _ in chosen]})
        return torch.stack([s for _, s in chosen])


def _check_layer(job: Job, name: str, spec: LinearSpec) -> None:
    """Refuse what banks cannot have."""
    if spec.act is not None and spec.act.static:
        raise BadRecipe(f"timed-smooth: layer '{name}' has static activations, and only dynamic ones follow the scale")
    if spec.lowrank is not None:
        raise BadRecipe(f"timed-smooth: layer '{name}' has a low-rank branch, which cannot be scaled by range")
    if name in job.grids:
        raise BadRecipe(f"timed-smooth: layer '{name}' has a searched range already: put 'timed-smooth' before 'clip'")


def _plain(linear: nn.Linear) -> Tensor:
    """The weight (N, K) float32 that multiplies the layer's own input: online scale and rotation undone."""
    return linear.dequantized() if isinstance(linear, QLinear) else linear.weight.data.float()


def _signs(linear: nn.Linear, spec: LinearSpec) -> Tensor | None:
    return None if spec.rotation is None else linear.get_buffer("rotation_signs")


def _judge(linear: nn.Linear, spec: LinearSpec) -> Judge:
    block = 1 if spec.rotation is None else spec.rotation.block
    return Judge(spec.weight, spec.act, _signs(linear, spec), block)


def _banks(linear: nn.Linear, spec: LinearSpec, scales: Tensor) -> Mapping[str, Tensor]:
    """Stored tensors of all ranges, ``I.NAME``, for scales (R, K)."""
    plain, signs, tensors = _plain(linear), _signs(linear, spec), dict[str, Tensor]()
    assert spec.weight is not None
    for i, s in enumerate(scales):
        w = plain * s
        if spec.rotation is not None and signs is not None:
            w = rotate(w, signs, spec.rotation.block)
        made = {**encode(w, spec.weight), "pre_scale": (1 / s)[None]}
        tensors |= {f"{i}.{k}": v for k, v in made.items()}
    if not isinstance(linear, QLinear):
        memory.set_aside(linear.weight.data)
    return tensors
