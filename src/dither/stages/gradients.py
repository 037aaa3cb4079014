"""What layers multiply, and how the denoiser's output depends on what they give: sampled for all layers in one set of passes.

With z = x W^T of a layer, the loss L of each sample by itself and g = dL/dz:

    L = v . eps,  v of independent +-1      E_v g_a^2 = (J^T J)_aa with J = d eps / dz: the curvature of the squared error of
                                            the noise prediction, where nothing is quantized yet (Hutchinson, Gauss-Newton)
    L = ||eps^ - eps||^2                    at the quantized point: eps^ of the model with all that it is promised

In full precision the squared error itself has no gradient: what floating point leaves there is rounding noise. So gradients
that vanish are refused. Of each layer ``rows`` tokens are held, (K + N) float32 each, and the graph of a few samples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from dither.errors import BadRecipe, BadValue
from dither.models.base import linear_at
from dither.probes import MinMax
from dither.stages.base import Job
from dither.stages.effects import Weigh, alike
from dither.stages.meanwhile import instead
from dither.stages.quantized_point import SquaredError, twins
from dither.stages.watching import Piece, answer, gradients, inputs, pieces, signs, spread, watched

__all__ = ["Passes", "Sample"]

VANISHED = 1e-12
"""Mean squared gradients below this share of the largest layer's: float32 rounds amplitudes at 6e-8."""

Losses: TypeAlias = Callable[[Piece, Tensor], list[Tensor]]
"""Scalars to take gradients of, from a piece and the denoiser's answer; squared gradients are averaged over them."""


@dataclass(frozen=True)
class Sample:
    """Some tokens of one layer, equally many from each clock row that calls fell into.

    Args:
        x: what the weight multiplies, (n, K) float32; (0, K) where gradients are kept themselves.
        weight: the squared gradient by each output, times what the sample counts, (n, N) float32; or the gradient itself,
            times the root of that, (draws n, N).
        rows: clock rows, (n,) int64.
        lo, hi: range of each input channel over all tokens of the passes, by clock row, (R, K); infinite in a row that no
            call fell into.
    """

    x: Tensor
    weight: Tensor
    rows: Tensor
    lo: Tensor
    hi: Tensor


@dataclass(frozen=True)
class Passes:
    """How gradients are sampled; the fields are those of a stage.

    Args:
        stage: its tag, for messages.
        calls: calibration calls that are looked at, at most, evenly spread over those that were recorded.
        rows: tokens kept of each layer, at most.
        probes: draws of v.
        quantized: gradients at the quantized point.
        weigh: what each sample counts.
        signed: keep gradients themselves, and neither their squares nor what goes in; they may vanish.
    """

    stage: str
    calls: int
    rows: int
    probes: int = 1
    quantized: bool = False
    weigh: Weigh = alike
    signed: bool = False

    def check(self) -> None:
        """BadRecipe names a field that makes no sense."""
        for field, value in (("calls", self.calls), ("rows", self.rows), ("probes", self.probes)):
            if value < 1:
                raise BadRecipe(f"{self.stage}.{field} {value}: must be at least 1")

    def samples(self, job: Job, names: Sequence[str]) -> dict[str, Sample]:
        """Tokens of these layers. The model computes full precision, but for layers that a stage has finished.

        Raises:
            BadModel: a call did not reach a layer.
            BadValue: gradients vanish, or hold NaN or infinity.
        """
        shares = self._shares(job)
        unfinished = {n: s.act for n, s in job.specs.items() if n not in job.done} if self.quantized else {}
        static = [n for n, act in unfinished.items() if act is not None and act.static]
        layers = dict.fromkeys((*names, *static))
        held = {name: _Tokens(linear_at(job.model, name).in_features, job.clock.size, self.signed) for name in layers}
        if not self.quantized:
            self._pass(job, held, shares, "measuring gradients", lambda piece, y: _draws(job, piece, y, self.probes))
        else:
            error = SquaredError(self.stage)
            self._pass(job, held, shares, "sampling inputs", error.remember)
            ranges = {name: (tokens.range.lo, tokens.range.hi) for name, tokens in held.items()}
            with instead(job.model, twins(job, ranges)):
                self._pass(job, held, shares, "measuring gradients", error.losses)
            error.check()
        found = {name: held[name].sample() for name in names}
        if not self.signed:
            _check_alive(self.stage, found)
        return found

    def _shares(self, job: Job) -> dict[int, Tensor]:
        """Tokens that each sample of each chosen call gives, (B,) int64: alike for clock rows, and for samples of one."""
        chosen = spread(len(job.calls), self.calls)
        rows = torch.cat([job.rows(job.calls[i]) for i in chosen])
        seen = torch.unique(rows)
        if self.rows < len(seen):
            raise BadRecipe(f"{self.stage}.rows {self.rows}: fewer than one for each of {len(seen)} clock rows")
        make = torch.Generator().manual_seed(job.seed)
        counts = torch.zeros_like(rows)
        for row in seen.tolist():
            mine = torch.nonzero(rows == row)[:, 0]
            whole, rest = divmod(self.rows // len(seen), len(mine))
            counts[mine] = whole
            counts[mine[torch.randperm(len(mine), generator=make)[:rest]]] += 1
        return dict(zip(chosen, torch.split(counts, [len(job.rows(job.calls[i])) for i in chosen]), strict=True))

    def _pass(
        self, job: Job, held: Mapping[str, "_Tokens"], shares: Mapping[int, Tensor], what: str, losses: Losses
    ) -> None:
        """One pass over the chosen calls; inputs are taken where there are none yet."""
        fresh = {name: tokens for name, tokens in held.items() if not tokens.x}
        weights = self._weights(job)
        for done, (index, counts) in enumerate(shares.items(), 1):
            for piece in pieces(job, index):
                take = _Take(piece, counts[piece.part], weights[index][piece.part], job.seed)
                with watched(job.model, list(held)) as seen:
                    scalars = losses(piece, answer(job.model, piece, seen))
                    for name, x in inputs(seen, len(piece.rows)) if fresh else ():
                        fresh[name].see(x, take)
                    for i, loss in enumerate(scalars, 1):
                        for name, e in gradients(loss, seen, len(piece.rows), last=i == len(scalars)):
                            held[name].weigh(name, e, take, first=i == 1, share=1 / len(scalars))
            job.progress(what, done, len(shares))

    def _weights(self, job: Job) -> Sequence[Tensor]:
        found = self.weigh(job, job.calls)
        for index, weights in enumerate(found):
            if not bool((weights.isfinite() & (weights >= 0)).all()):
                raise BadValue(f"{self.stage}: samples of denoiser call {index} count {weights.tolist()}")
        return found


@dataclass(frozen=True)
class _Take:
    """Which tokens of a piece are kept: the same in every layer of as many tokens, and in every pass."""

    piece: Piece
    counts: Tensor
    weights: Tensor
    seed: int

    def tokens(self, samples: int, each: int) -> tuple[Tensor, Tensor]:
        """Indices among ``samples * each`` tokens, and whose they are. What all samples share goes by the first."""
        counts = self.counts if samples == len(self.counts) else self.counts.sum()[None]
        seed = (self.seed * 1_000_003 + self.piece.index) * 1009 + self.piece.part.start
        make = torch.Generator().manual_seed(seed)
        found = [torch.randperm(each, generator=make)[:n] + i * each for i, n in enumerate(counts.tolist())]
        picked = torch.cat(found)
        return picked, picked // each


class _Tokens:
    """Of one layer, while calls run."""

    def __init__(self, channels: int, rows: int, signed: bool) -> None:
        self.signed, self.channels = signed, channels
        self.x: list[Tensor] = []
        self.rows: list[Tensor] = []
        self.weight: list[Tensor] = []
        self.range = MinMax(channels, rows)

    def see(self, x: Tensor, take: _Take) -> None:
        """Keep some of a piece's inputs (B, T, K), and the range of all."""
        self.range.update(x, take.piece.rows.to(x.device))
        picked, owner = take.tokens(*x.shape[:2])
        if not self.signed:
            self.x.append(x.flatten(0, 1)[picked.to(x.device)].cpu())
        self.rows.append(take.piece.rows[owner])

    def weigh(self, name: str, e: Tensor, take: _Take, *, first: bool, share: float) -> None:
        """Take in gradients (B, T, N) of the same piece."""
        if not bool(torch.isfinite(e).all()):
            raise BadValue(f"the gradient at layer '{name}' holds NaN or infinity")
        picked, owner = take.tokens(*e.shape[:2])
        counts = (take.weights[owner] * share)[:, None]
        found = e.flatten(0, 1)[picked.to(e.device)].cpu()
        if self.signed:
            self.weight.append(found * counts.sqrt())
        elif first:
            self.weight.append(found.square() * counts)
        else:
            self.weight[-1] += found.square() * counts

    def sample(self) -> Sample:
        """All that was kept."""
        lo, hi = self.range.lo.cpu(), self.range.hi.cpu()
        x = torch.empty(0, self.channels) if self.signed else torch.cat(self.x)
        return Sample(x, torch.cat(self.weight), torch.cat(self.rows), lo, hi)


def _draws(job: Job, piece: Piece, y: Tensor, probes: int) -> list[Tensor]:
    """v . eps of several v."""
    make = torch.Generator().manual_seed((job.seed * 1_000_003 + piece.index) * 1009 + piece.part.start)
    return [(signs(y, make) * y).sum() for _ in range(probes)]


def _check_alive(stage: str, found: Mapping[str, Sample]) -> None:
    """BadValue names a layer whose gradients vanish."""
    sizes = {name: float(sample.weight.mean(dtype=torch.float64)) for name, sample in found.items()}
    most = max(sizes, key=lambda name: sizes[name])
    for name, size in sizes.items():
        if size == 0 or size < VANISHED * sizes[most]:
            seen = (
                "are 0" if size == 0 else f"are {size / sizes[most]:.1e} of those at '{most}', which is rounding noise"
            )
            raise BadValue(
                f"{stage}: the squared gradients at layer '{name}' {seen}: what the denoiser answers does not depend on it; "
                "exclude it"
            )
