"""WEIGHT: GPTQ (arXiv 2210.17323), with the groups that each layer has, as Q-DiT (2406.17343) uses it.

    W' = round_columns(W, H)        see ``columns``; of trellis codes and words round_tiles, see ``tiles``
    b' = b + W m - W' m^            the mean output error is gone (``bias``), and H is taken about the mean

With ``outputs`` errors are passed on from output to output as well, see ``outputs``.

H and the means are those of ``hessian``. Blocks are walked in order: each sees what the blocks before
it, already rounded and with quantized inputs, really give it. A layer that no walk reaches comes last, in one pass.

Modulation linears see a small part of their input space: one row a picture, which noise level and class alone make. Their
moments are closed sums over all of them, so that all the freedom that is left goes into the directions that occur.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from dither import memory
from dither.calibrate import BlockStep
from dither.errors import BadModel, BadRecipe
from dither.models.base import linear_at
from dither.numerics import dynamic_grid, from_codes, pack_int
from dither.spec import PER_TENSOR, Gaussian, Int
from dither.stages.base import Job, Phase
from dither.stages.bounds import check_bounds
from dither.stages.clip import MOST_STEPS, search_range
from dither.stages.columns import Factor, factor, round_columns
from dither.stages.gradients import Passes
from dither.stages.hessian import Gather, Moments, chunks
from dither.stages.known import check_some
from dither.stages.outputs import Part, round_by_outputs
from dither.stages.tiles import Block, round_tiles

__all__ = ["Gptq"]

WHAT = "rounding by GPTQ"


@dataclass(frozen=True)
class Gptq:
    """Error-compensating rounding of every weight of integers, trellis codes or Gaussian words that is not finished yet.

    Args:
        damp: added to H's diagonal, as a share of its mean; more is taken, and noted, where it does not suffice.
        block: columns of integers at a time; changes speed alone.
        act_order: begin with the inputs of most energy; ranges stay those of neighbouring columns. Of integers alone.
        walk: block by block, behind rounded predecessors; otherwise one pass through the unrounded model.
        by_site: inside a block too, one site behind the other, at a pass each.
        quantized_inputs: H of inputs as the layer will see them, where their ranges are dynamic.
        bias: correct the bias.
        time_weights: of equal ranges of the noise level, from low to high; empty: all alike.
        levels: noise levels at which modulation is summed in closed form; 0: calibrate it like all others.
        clip: candidates of each group's range, from the full one down; 1: the full one.
        smallest: the tightest candidate, as a fraction of the full range.
        power: of the candidates' error sum |w - w'|^p.
        rows: calibration rows that a layer must have seen.
        memory: GiB of Hessians at a time where nothing is walked.
        outputs: how many outputs are rounded at a time before their errors are passed on to the others, which takes
            gradients; 0: each output by itself.
        calls: calibration calls that gradients are taken of, at most.
        tokens: of each layer whose gradients are kept.
        output_damp: added to the diagonal of the gradients' moments, as a share of its mean: they are of few tokens.
    """

    tag: ClassVar[str] = "gptq"
    phase: ClassVar[Phase] = Phase.WEIGHT
    paper: ClassVar[str] = "2210.17323"
    damp: float = 0.01
    block: int = 128
    act_order: bool = False
    walk: bool = True
    by_site: bool = False
    quantized_inputs: bool = True
    bias: bool = True
    time_weights: tuple[float, ...] = ()
    levels: int = 32
    clip: int = 1
    smallest: float = 0.6
    power: float = 2.4
    rows: int = 32
    memory: float = 2.0
    outputs: int = 0
    calls: int = 16
    tokens: int = 1024
    output_damp: float = 0.05

    def run(self, job: Job) -> None:
        """Commit every layer whose weight is to be integers, trellis codes or Gaussian words."""
        gather = self._check()
        integers = [n for n, s in job.specs.items() if isinstance(s.weight, Int | Block)]
        check_some(self.tag, "integers, trellis codes and Gaussian words", integers, job.specs)
        names = [n for n in integers if n not in job.done]
        if integers and not names:
            raise BadRecipe("gptq: an earlier stage has rounded every weight that it could; put 'gptq' before it")
        if varied := [n for n in names if n in job.varied]:
            raise BadRecipe(f"gptq: layer '{varied[0]}' changes its width over time, and only 'rtn' rounds for several")
        if ranged := [n for n in names if n in job.grids]:
            raise BadRecipe(
                f"gptq: layer '{ranged[0]}' has a range from 'clip', which holds for weights that no error was passed on "
                "to: leave 'clip' out, and set gptq.clip"
            )
        whole = [n for n in names if _per_tensor(job, n)]
        if self.clip > 1 and whole:
            raise BadRecipe(
                f"gptq.clip {self.clip}: layer '{whole[0]}' has one range for the whole tensor, which is not searched"
            )
        if self.outputs and whole:
            raise BadRecipe(
                f"gptq.outputs {self.outputs}: layer '{whole[0]}' has one range for the whole tensor, which is not known "
                "before all outputs are rounded"
            )
        done, gradients = 0, self._gradients(job, names)
        for part, found in self._parts(job, gather, names):
            for name in part:
                facts: dict[str, float] = {}
                job.commit(name, partial(self._tensors, job, name, found, gradients, facts))
                told = facts or job.measured(f"{self.tag}.{name}", dict)
                job.note(name, {"gptq": dict(sorted(told.items()))})
                done += 1
                job.progress(WHAT, done, len(names))

    def _check(self) -> Gather:
        bounds: dict[str, tuple[float, float]] = {
            "damp": (0, 1), "block": (1, 1 << 20), "clip": (1, MOST_STEPS), "smallest": (1e-6, 1),
            "power": (1e-6, 100), "memory": (1e-3, 1e6), "outputs": (0, 1 << 20), "output_damp": (0, 1e4),
        }  # fmt: skip
        check_bounds(self.tag, self, bounds)
        found = Gather(self.tag, self.quantized_inputs, self.time_weights, self.rows, self.levels)
        found.check()
        return found

    def _gradients(self, job: Job, names: Sequence[str]) -> dict[str, Tensor]:
        """By each layer's output, (n, N); none where none are needed."""
        if not self.outputs:
            return {}
        passes = Passes(self.tag, self.calls, self.tokens, signed=True)
        passes.check()
        if not job.lacks(names):
            return {}
        return {name: sample.weight for name, sample in passes.samples(job, names).items()}

    def _parts(
        self, job: Job, gather: Gather, names: Sequence[str]
    ) -> Iterator[tuple[Sequence[str], Mapping[str, Moments]]]:
        """Layers that are rounded with moments of one pass, in order; no moments where all of them are kept already."""
        rest = list(names)
        if self.walk and job.lacks(rest):
            for step in _walked(job):
                inside = [n for n in names if n.startswith(f"{step.name}.")]
                for part in self._passes(job, step, inside):
                    found = gather.observed(job, part, "", step) if job.lacks(part) else {}
                    yield part, found
                    found.clear()
                rest = [n for n in rest if n not in inside]
                if not job.lacks(rest):
                    break
        yield from chunks(job, gather, rest, self.memory, "measuring Hessians", job.lacks)

    def _passes(self, job: Job, step: BlockStep, inside: Sequence[str]) -> list[list[str]]:
        """Layers of a block by pass: modulation first, so that all others see it rounded; then all, or site by site."""
        layers = job.layers
        modulation = [n for n in inside if layers[n].kind == "adaln"]
        others = [n for n in inside if n not in modulation]
        parts = [modulation, others]
        if self.by_site:
            sites = [[r for r in s.readers if r in others] for s in job.adapter.sites(job.model)]
            alone = [[n] for n in others if not any(n in readers for readers in sites)]
            parts = [modulation, *sites, *alone]
        return [part for part in parts if part]

    def _tensors(
        self,
        job: Job,
        name: str,
        found: Mapping[str, Moments],
        gradients: dict[str, Tensor],
        facts: dict[str, float],
    ) -> Mapping[str, Tensor]:
        """Stored tensors of a layer, and its bias; ``facts`` is filled, and kept for a run that goes on from here."""
        linear, fmt, moments = linear_at(job.model, name), job.specs[name].weight, found[name]
        assert isinstance(fmt, Int | Block)
        dense = job.dense(name)
        w = dense.float()
        bias = linear.bias if self.bias else None
        h = moments.h if bias is None else moments.h - torch.outer(moments.seen, moments.seen)
        how = _Once(partial(factor, damp=self.damp, rows=moments.rows))
        if self.outputs:
            g = gradients.pop(name).to(w.device)
            u = factor(g.T @ g, self.output_damp, len(g)).u
            rows = self.outputs if isinstance(fmt, Int | Gaussian) else -(-self.outputs // fmt.rows) * fmt.rows
            made = round_by_outputs(w, u, rows, partial(self._rounded, h=h, fmt=fmt, how=how))
        else:
            made = self._rounded(w, h, fmt, how)
        gap, used = w - made.values, how(h)
        facts |= {"rows": float(moments.rows), "damp": used.damp, "error": _share(gap, w, h)}
        facts |= {"rank_deficient": 1.0} if used.rank_deficient else {}
        job.measured(f"{self.tag}.{name}", lambda: facts)
        out = dict(made.tensors)
        if bias is not None:
            out["bias"] = bias.detach().float() + w @ moments.plain - made.values @ moments.seen
        memory.set_aside(dense)
        return out

    def _rounded(self, w: Tensor, h: Tensor, fmt: Int | Block, how: "_Once") -> Part:
        """Rows of a weight, each by itself."""
        if not isinstance(fmt, Int):
            tiled, _ = round_tiles(w, h, fmt, how)
            return Part(tiled.tensors, tiled.values)
        made, _ = round_columns(w, h, fmt, how, self._grid, self.block, self.act_order)
        stored = pack_int(made.codes, made.scale, made.zero, fmt)
        return Part(stored, from_codes(made.codes, made.scale, made.zero, fmt))

    def _grid(self, w: Tensor, fmt: Int, diagonal: Tensor) -> tuple[Tensor, Tensor | None]:
        """A group's range (N, 1): the full one, or the best of the candidates."""
        if self.clip == 1:
            return dynamic_grid(w, fmt)
        ratios = torch.linspace(1.0, self.smallest, self.clip).tolist()
        return search_range(w, fmt, ratios, lambda gap: (gap.abs() / diagonal).pow(self.power).sum(-1))


def _per_tensor(job: Job, name: str) -> bool:
    fmt = job.specs[name].weight
    return isinstance(fmt, Int) and fmt.group == PER_TENSOR


class _Once:
    """Factors the first H, and knows it for all rows of a weight."""

    def __init__(self, how: Callable[[Tensor], Factor]) -> None:
        self.how = how
        self.found: Factor | None = None

    def __call__(self, h: Tensor) -> Factor:
        """The factor."""
        if self.found is None:
            self.found = self.how(h)
        return self.found


def _share(gap: Tensor, w: Tensor, h: Tensor) -> float:
    """The output's error as a share of its energy."""
    error, energy = (float((x @ h).mul_(x).sum()) for x in (gap, w))
    return float(f"{error / energy:.4g}") if energy > 0 else 0.0


def _walked(job: Job) -> Iterator[BlockStep]:
    try:
        yield from job.walk()
    except BadModel as e:
        raise BadModel(f"gptq: {e}; gptq.walk=false calibrates in one pass instead") from None
