"""TRANSFORM: move the range of channels from activations into weights (SmoothQuant, arXiv 2211.10438, equation 4).

For a site with input x and readers W, channel j gets ``s_j = a_j^alpha / w_j^(1 - alpha)``, a_j = max |x_j| over all
calibration calls, w_j = max |W_j| over all readers; then ``x' = x / s``, ``W' = W s``. SmoothQuant's convention: alpha = 1
moves all of the activation's range. (ViDiT-Q's alpha is the reverse, one minus this.)

``1 / s`` is absorbed where it costs nothing: in adaLN rows or V rows (see ``models.base``), else it is an online multiply.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dither.calibrate import AbsMax, RowSample
from dither.errors import BadRecipe
from dither.models.base import AdaLN, Fold, Rows, Site, linear_at
from dither.numerics import decode, dynamic_grid, encode, fake_quantize
from dither.spec import Bits, Int
from dither.stages.base import Job, Phase

__all__ = ["Smooth", "absorb", "smoothing_scale"]


@dataclass(frozen=True)
class Smooth:
    """Channel balancing by scales.

    Args:
        alpha: share of the activation's range that moves into the weight.
        search: candidates of alpha (and no scale) to choose from for each site by its output error; empty: ``alpha``.
        online: also scale sites that cannot absorb it, at the price of one multiply (the input of fc2).
        rows: tokens kept for each site to search with.
    """

    tag: ClassVar[str] = "smooth"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    paper: ClassVar[str] = "2211.10438"
    alpha: float = 0.5
    search: tuple[float, ...] = ()
    online: bool = False
    rows: int = 1024

    def run(self, job: Job) -> None:
        """Scale every site; the model's function stays the same."""
        for alpha in (self.alpha, *self.search):
            if not 0 <= alpha <= 1:
                raise BadRecipe(f"smooth.alpha {alpha}: must lie in [0, 1]")
        if self.rows < 1:
            raise BadRecipe(f"smooth.rows {self.rows}: must be at least 1")
        layers = job.layers
        sites = [
            s
            for s in job.adapter.sites(job.model)
            if (s.fold is not None or self.online)
            and not any(layers[r].kind == "adaln" or layers[r].keep for r in s.readers)
        ]
        peaks = {s.name: AbsMax(job.dense(s.readers[0]).shape[1]) for s in sites}
        samples = {s.name: RowSample(self.rows, seed=job.seed) for s in sites} if self.search else {}
        job.observe("measuring channels", {s.readers[0]: _probes(s, peaks, samples) for s in sites})
        for i, site in enumerate(sites):
            a = peaks[site.name].value[0]  # (K,)
            w = _column_peaks(job, site)
            scale = (
                self._best(job, site, a, w, samples[site.name].value)
                if self.search
                else smoothing_scale(a, w, self.alpha)
            )
            apply_scale(job, site, scale)
            job.progress("smoothing", i + 1, len(sites))

    def _best(self, job: Job, site: Site, a: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """Of the candidates' scales, and of no scale at all, the one with the least output error on tokens x (n, K)."""
        weight = torch.cat([job.dense(r).float() for r in site.readers])  # (sum N, K)
        scales = [torch.ones_like(w), *(smoothing_scale(a, w, alpha) for alpha in self.search)]
        errors = [_output_error(x.to(w.device), weight, s, job.bits) for s in scales]
        return scales[min(range(len(errors)), key=errors.__getitem__)]


def _probes(site: Site, peaks: dict[str, AbsMax], samples: dict[str, RowSample]) -> tuple[AbsMax | RowSample, ...]:
    return (peaks[site.name], samples[site.name]) if site.name in samples else (peaks[site.name],)


def _column_peaks(job: Job, site: Site) -> Tensor:
    """(K,): largest weight magnitude of each input channel over all readers."""
    return torch.stack([job.dense(r).float().abs().amax(0) for r in site.readers]).amax(0)


def smoothing_scale(a: Tensor, w: Tensor, alpha: float) -> Tensor:
    """s (K,) of activation peaks a (K,) and weight peaks w (K,); 1 where a channel is dead on either side."""
    a = a.to(w.device)
    s = a.pow(alpha) / w.pow(1 - alpha)
    return torch.where((a > 0) & (w > 0) & torch.isfinite(s) & (s > 1e-5) & (s < 1e5), s, 1.0)


def _output_error(x: Tensor, w: Tensor, s: Tensor, bits: Bits) -> float:
    """Squared error of x W^T when x / s and W s are rounded to nearest at these widths."""
    fmt = Int(bits.weight)
    wq = decode(encode(w * s, fmt), fmt, (w.shape[0], w.shape[1]))
    xs = x / s
    if bits.act is not None:
        grid = Int(bits.act)
        xs = fake_quantize(xs, grid, *dynamic_grid(xs, grid))
    return float((F.linear(xs, wq) - F.linear(x, w)).square().sum())


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
