"""What attentions multiply, and how the denoiser's output depends on what they give: whole pictures, sampled in one pass.

    L = v . eps,  v of independent +-1        as in ``gradients``

A score depends on all keys, so that tokens cannot be sampled one by one. Of each picture q, k, v and the gradient of the
output are kept; scores, probabilities and their gradients follow from these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dither.errors import BadValue
from dither.nn import QAttention, detach, widths_of
from dither.spec import AttentionSpec
from dither.stages.base import Job
from dither.stages.watching import Piece, answer, pieces, signs, spread, watched

__all__ = ["AttentionSample", "attention_samples", "picked"]


@dataclass(frozen=True)
class AttentionSample:
    """What one picture's attention multiplied, and how the denoiser's output depends on what it gave.

    Args:
        q, k, v: (H, N, d), (H, M, d) and (H, M, e) float32.
        mask: what is added to scores, broadcasting to (H, N, M), or None.
        scale: of the scores.
        gradient: of Y, (H, N, e).
        row: of the clock.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scale: float
    gradient: Tensor
    row: int


class _Watched(QAttention):
    """Computes the products as they are and keeps them; its output is where gradients begin."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """``scaled_dot_product_attention``."""
        y = F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        if not y.requires_grad:
            y.requires_grad_()
        self.seen = (query, key, value, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale, y)
        return y


def picked(job: Job, chosen: Sequence[int], most: int) -> dict[int, list[int]]:
    """Samples of the chosen calls, as many of each clock row, evenly spread."""
    by_row: dict[int, list[tuple[int, int]]] = {}
    for index in chosen:
        for i, row in enumerate(job.rows(job.calls[index]).tolist()):
            by_row.setdefault(row, []).append((index, i))
    found: dict[int, list[int]] = {}
    for here in by_row.values():
        for index, i in (here[j] for j in spread(len(here), most)):
            found.setdefault(index, []).append(i)
    return found


def attention_samples(
    job: Job, names: Sequence[str], chosen: Mapping[int, Sequence[int]], stage: str
) -> dict[str, list[AttentionSample]]:
    """One pass over the chosen samples. The model computes full precision, but for what a stage has finished."""
    found: dict[str, list[AttentionSample]] = {name: [] for name in names}
    modules = {name: job.model.get_submodule(name) for name in names}
    watchers = {name: _Watched(AttentionSpec(), widths_of(m), job.clock) for name, m in modules.items()}
    try:
        for name, watcher in watchers.items():
            watcher.attach(modules[name])
        for done, (index, wanted) in enumerate(chosen.items(), 1):
            for piece in pieces(job, index):
                here = [i - piece.part.start for i in wanted if piece.part.start <= i < piece.part.stop]
                if here:
                    _take(job, piece, here, watchers, found, stage)
            job.progress("measuring gradients of attention", done, len(chosen))
    finally:
        for module in modules.values():
            detach(module)
    return found


def _take(
    job: Job,
    piece: Piece,
    here: Sequence[int],
    watchers: Mapping[str, _Watched],
    found: dict[str, list[AttentionSample]],
    stage: str,
) -> None:
    """Some samples of a piece, by their places in it."""
    make = torch.Generator().manual_seed((job.seed * 1_000_003 + piece.index) * 1009 + piece.part.start)
    with watched(job.model, []) as seen:
        y = answer(job.model, piece, seen)
        outputs = [watcher.seen[-1] for watcher in watchers.values()]
        gradients = torch.autograd.grad((signs(y, make) * y).sum(), outputs, allow_unused=True)
    for (name, watcher), g in zip(watchers.items(), gradients, strict=True):
        q, k, v, mask, scale, _ = watcher.seen
        if g is None or not bool(g.isfinite().all()) or not bool(g.any()):
            what = "hold NaN or infinity" if g is not None and not bool(g.isfinite().all()) else "are 0"
            raise BadValue(f"{stage}: the gradients at attention '{name}' {what}: leave it out by attention.layers")
        for i in here:
            a, b, c, e = (t[i].detach().float().cpu() for t in (q, k, v, g))
            added = None if mask is None else _added(mask, q)[i].cpu()
            found[name].append(AttentionSample(a, b, c, added, scale, e, int(piece.rows[i])))


def _added(mask: Tensor, q: Tensor) -> Tensor:
    """What a mask adds to scores, for each sample."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -torch.inf)
    return mask.detach().float().expand(len(q), *mask.shape[1:])
