"""WEIGHT: learned rounding, block by block (AdaRound, arXiv 2004.10568; BRECQ, 2102.05426), as PTQ4DiT (2405.16005) and
Q-Diffusion (2302.04304) use it.

    W^ = s (clip(floor(W / s) + h + z) - z)     min over h, steps   E / E0  +  lambda mean(1 - |2h - 1|^b)

See ``soft_rounding`` for h, ``learned_steps`` for steps of static inputs, ``reconstruct`` for the loss. The full-precision
model and the one that is being quantized are walked in lockstep: a block's targets are what full precision gives there, and
its inputs what the blocks before it, already rounded and with quantized inputs, give it. Layers outside the blocks come last,
each against its own full-precision weight.

Memory beyond the model, on the CPU: for ``samples`` samples, a block's inputs in both models and its targets. Where the model
is: what one block's training takes, eight times its integer weights in float32, and the activations of ``batch`` samples;
with more ``rounds`` than one (see ``alignment``) also a full-precision copy of the whole model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from dither import memory
from dither.calibrate import observe
from dither.errors import BadModel, BadRecipe
from dither.models.base import linear_at
from dither.nn import QLinear
from dither.numerics import Table, dynamic_grid, unpack_int
from dither.spec import Int
from dither.stages.alignment import drawn, provisional
from dither.stages.base import MEASURED, Job, Phase
from dither.stages.bounds import check_bounds
from dither.stages.building import dense_of
from dither.stages.effects import alike, row_weights
from dither.stages.known import check_some
from dither.stages.learned_steps import LearnedSteps
from dither.stages.meanwhile import instead
from dither.stages.minibatches import Samples
from dither.stages.parts import Drawn, Part, full_precision, parts_of, some_calls, walked
from dither.stages.reconstruct import Schedule, Unit
from dither.stages.soft_rounding import SoftRounding
from dither.stages.stand_in import StandIn
from dither.stages.table_probe import TableProbe

__all__ = ["AdaRound"]

WHAT = "learning roundings"
NOTES = ("before", "after", "moved")
STRIDE = 1_000_003
"""Apart, so that the batches of different seeds and parts do not overlap."""


@dataclass(frozen=True)
class AdaRound:
    """Learns the rounding of every integer weight; other formats are left to other stages.

    Ranges of weights are those of ``clip`` where it stands before, else min-max. The defaults are those of a
    short training: the papers take 20,000 iterations of 32 samples at a rate of 0.001, with b from 20 on.

    Args:
        blocks: reconstruct whole blocks; otherwise one linear after the other (AdaRound without BRECQ).
        iterations: of training, for each block.
        batch: samples in each.
        lr: of the roundings.
        regularizer: lambda.
        warm_up: share of the iterations without the regularizer.
        begin: b at its begin.
        end: b at its end.
        power: p of the loss |y^ - y|^p.
        act: learn the steps of static inputs too; otherwise they are rounded by min-max here, and ``ranges`` decides.
        act_lr: of the logarithms of these steps, falling to 0.
        act_after: iterations of a second pass in each block, for the steps alone, after a first one with static inputs in
            full precision (Q-Diffusion); 0 learns both at once (PTQ4DiT).
        act_power: p of the second pass.
        samples: of all calls together that are kept for training, spread evenly over the calls.
        rounds: over the whole model; from the second on, with calls that the quantized model draws itself (TCAQ-DM).
        again: iterations for each block in rounds after the first, which begin with what the one before has left.
        trajectory: an error counts as much as it changes the final picture at its noise level, see ``effects``; otherwise
            alike at all of them.
    """

    tag: ClassVar[str] = "adaround"
    phase: ClassVar[Phase] = Phase.WEIGHT
    paper: ClassVar[str] = "2004.10568"
    blocks: bool = True
    iterations: int = 400
    batch: int = 16
    lr: float = 0.2
    regularizer: float = 10.0
    warm_up: float = 0.2
    begin: float = 8.0
    end: float = 2.0
    power: float = 2.0
    act: bool = True
    act_lr: float = 1e-3
    act_after: int = 0
    act_power: float = 2.4
    samples: int = 1024
    rounds: int = 1
    again: int = 200
    trajectory: bool = False

    def run(self, job: Job) -> None:
        """Commit every layer whose weight is to be integers, and switch learned static inputs on."""
        self._check()
        parts = parts_of(job, _chosen(job), self.blocks)
        if not parts:
            return
        job.calls  # noqa: B018, recorded before anything changes, also where an interrupted run goes on
        last, done = self.rounds - 1, not any(_lacking(job, part) for part in parts)
        exact = job.model if done or not last else full_precision(job, job.model)
        for turn in range(last if done else 0, self.rounds):
            draw = partial(self._calls, job, turn)
            lacking = partial(_lacking, job, turn=None if turn == last else turn)
            for i, (part, samples) in enumerate(walked(job, parts, exact, draw, lacking)):
                seed = (job.seed * self.rounds + turn) * STRIDE + i
                made = {} if samples is None else self._reconstructed(job, part, exact, samples, turn, seed)
                (_finish if turn == last else partial(_install, turn=turn))(job, part, made)
                job.progress(WHAT, turn * len(parts) + i + 1, self.rounds * len(parts))

    def _check(self) -> None:
        bounds: dict[str, tuple[float, float]] = {
            "iterations": (1, 10**7), "batch": (1, 1 << 20), "lr": (1e-9, 10), "regularizer": (0, 1e6),
            "warm_up": (0, 1), "begin": (1, 1000), "end": (1, 1000), "power": (1, 10), "act_lr": (1e-9, 10),
            "act_after": (0, 10**7), "act_power": (1, 10), "samples": (1, 10**9), "rounds": (1, 100),
            "again": (1, 10**7),
        }  # fmt: skip
        check_bounds(self.tag, self, bounds)
        if self.act_after and not self.act:
            raise BadRecipe(f"adaround.act_after {self.act_after}: adaround.act false learns no steps")

    def _calls(self, job: Job, turn: int) -> Drawn:
        """What a round is trained on."""
        every = drawn(job, f"{self.tag}.rounds {self.rounds}") if turn else job.calls
        return some_calls(job, every, self.samples, row_weights if self.trajectory else alike)

    def _reconstructed(
        self, job: Job, part: Part, exact: nn.Module, samples: Samples, turn: int, seed: int
    ) -> Mapping[str, Tensor]:
        """Stored tensors of a part, which is as it was before, by ``LAYER.NAME``; and its notes."""
        standins = self._standins(job, part, exact, samples)
        with instead(job.model, standins):
            module = job.model.get_submodule(part.name)
            unit = Unit(part.name, module, tuple(standins.values()), samples, job.clock.tell)
            result = unit.reconstruct(self._schedules(turn), torch.Generator().manual_seed(seed))
        made = {key: torch.tensor([value], dtype=torch.float64) for key, value in vars(result).items()}
        for name, standin in standins.items():
            made |= {f"{name}.{key}": tensor for key, tensor in standin.rounding.stored().items()}
            if standin.steps is not None and self.act:
                made |= {f"{name}.act_{key}": tensor for key, tensor in standin.steps.table().items()}
            memory.set_aside(standin.dense)
        return made

    def _schedules(self, turn: int) -> tuple[Schedule, ...]:
        """One pass for roundings and steps, or one for each."""
        both = Schedule(
            self.again if turn else self.iterations, self.batch, self.lr, self.act_lr if self.act else 0.0,
            self.regularizer, self.warm_up, self.begin, self.end, self.power,
        )  # fmt: skip
        if not self.act_after:
            return (both,)
        steps = replace(both, iterations=self.act_after, lr=0.0, power=self.act_power)
        return replace(both, act_lr=0.0, static=False), steps

    def _standins(self, job: Job, part: Part, exact: nn.Module, samples: Samples) -> dict[str, StandIn]:
        """At the start: of weights in full precision and min-max ranges, or of what an earlier round has left."""
        now = {name: linear_at(job.model, name) for name in part.layers}
        tables = _first_tables(job, part, now, samples)
        made = {}
        for name, layer in now.items():
            spec, old = job.specs[name], linear_at(exact, name)
            assert isinstance(spec.weight, Int)
            w = dense_of(old).float()
            scale, zero = job.grids[name] if name in job.grids else dynamic_grid(w, spec.weight)
            codes = None
            if isinstance(layer, QLinear) and layer.spec.weight is not None:
                codes = unpack_int(layer.stored(), spec.weight, layer.in_features)
            steps = None
            if name in tables:
                assert spec.act is not None
                assert isinstance(spec.act.grid, Int)
                steps = LearnedSteps(tables[name], spec.act.grid, job.clock)
            made[name] = StandIn(old, spec, SoftRounding(w, scale, zero, spec.weight, codes), steps)
        return made


def _first_tables(job: Job, part: Part, now: Mapping[str, nn.Linear], samples: Samples) -> dict[str, Table]:
    """Of static inputs: the min-max of the samples, or what an earlier round has learned."""
    probes, tables = dict[str, TableProbe](), dict[str, Table]()
    for name, layer in now.items():
        act = job.specs[name].act
        if act is not None and act.static:
            if isinstance(layer, QLinear) and (learned := layer.stored("act")):
                tables[name] = learned
            else:
                probes[name] = TableProbe(act, layer.in_features, layer)
    if probes:
        inside = {n.removeprefix(part.name).removeprefix("."): (probe,) for n, probe in probes.items()}
        observe(job.model.get_submodule(part.name), samples.calls, inside, samples.rows, job.clock.tell)
    return tables | {name: probe.table() for name, probe in probes.items()}


def _chosen(job: Job) -> list[str]:
    """Layers to round; BadRecipe names one that cannot be, or shows that the full-precision model is gone."""
    names = [n for n, s in job.specs.items() if isinstance(s.weight, Int)]
    check_some(AdaRound.tag, "integers", names, job.specs)
    if names and job.done:
        raise BadRecipe(
            f"adaround: an earlier stage has finished layer '{min(job.done)}', so that the full precision to learn from is "
            "gone: put 'adaround' before it"
        )
    for name in names:
        if name in job.varied:
            raise BadRecipe(f"adaround: layer '{name}' changes its width over time, and only 'rtn' rounds for several")
        act = job.specs[name].act
        if act is not None and not isinstance(act.grid, Int):
            raise BadRecipe(
                f"adaround: the input of layer '{name}' is {act.grid}, and only steps of integers are learned"
            )
    if names and (wrong := [name for name, module in job.model.named_modules() if module.training]):
        raise BadModel(
            f"adaround: module '{wrong[0]}' is in training mode, so that it may drop what it should learn from"
        )
    return names


def _record(part: Part, turn: int | None = None) -> str:
    """Where the notes and tables of a part are kept; of an earlier round, all its tensors."""
    return f"{AdaRound.tag}.{part.name}" if turn is None else f"{AdaRound.tag}.{turn}.{part.name}"


def _lacking(job: Job, part: Part, turn: int | None = None) -> bool:
    """Whether a part must be trained: in an earlier round, or for good."""
    return job.lacks((MEASURED + _record(part, turn), *(part.layers if turn is None else ())))


def _install(job: Job, part: Part, made: Mapping[str, Tensor], turn: int) -> None:
    """Let a part run by what was made, or by what an interrupted run has kept, until the next round."""
    kept = job.kept(_record(part, turn), lambda: made)
    for name in part.layers:
        provisional(job, name, _of_weight(kept, name), _of_inputs(kept, name))


def _finish(job: Job, part: Part, made: Mapping[str, Tensor]) -> None:
    """Commit a part from what was made, or from what an interrupted run has kept; learned inputs are rounded from now on."""
    weights = {name: _of_weight(made, name) for name in part.layers}
    own = {f"{name}.{key}" for name, tensors in weights.items() for key in tensors}
    kept = job.kept(_record(part), lambda: {key: tensor for key, tensor in made.items() if key not in own})
    for name in part.layers:
        job.commit(name, partial(weights.__getitem__, name))
        if table := _of_inputs(kept, name):
            job.tables[name] = table
            job.activate(name, table)
    job.note(part.name, {AdaRound.tag: {key: float(f"{float(kept[key]):.4g}") for key in NOTES}})


def _of_weight(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: t for key in ("codes", "scale", "zero") if (t := tensors.get(f"{name}.{key}")) is not None}


def _of_inputs(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: t for key in ("act_scale", "act_zero") if (t := tensors.get(f"{name}.{key}")) is not None}
