"""Reconstruction of a unit, a block or a linear, by learned roundings and steps (BRECQ, arXiv 2102.05426).

    min   E / E0  +  lambda mean(1 - |2h - 1|^b)        E = mean |y^ - y|^p

y is what the full-precision model gives, y^ what the unit with soft weights makes of the inputs that its already quantized
predecessors leave it. After a warm-up without the regularizer its b falls linearly, and every h goes to 0 or 1.

Both terms are means, and E0 is the error that rounding the unit's weights to nearest makes alone: lambda is counted in that
error, and neither the number of tokens, nor resolution, width, depth or bits change the balance. (The papers add up over
tokens and over weights.) Their sum counts once for each weight: gradients of weights must not become so small in large units
that Adam takes them for nothing.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dither.calibrate import replay
from dither.errors import BadModel, BadValue
from dither.stages.minibatches import Batch, Samples, leaves
from dither.stages.stand_in import StandIn

__all__ = ["Result", "Schedule", "Unit"]

FEW = 4
"""Calls, at least, that E0 is measured on."""
SQUARE = 2.0
APART = 0.02
"""What a sample's output may change by in the company of others, as a share of the largest output."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast; the fields are those of the stage.

    Args:
        iterations: of training.
        batch: samples in each.
        lr: of the roundings (Adam); 0: they stay as they are.
        act_lr: of the logarithms of steps, falling to 0 by a cosine; 0: they stay as they are.
        regularizer: lambda.
        warm_up: share of the iterations without the regularizer.
        begin, end: b at its begin and end.
        power: p.
        static: static inputs are rounded; otherwise they are in full precision.
    """

    iterations: int
    batch: int
    lr: float
    act_lr: float
    regularizer: float
    warm_up: float
    begin: float
    end: float
    power: float
    static: bool = True

    def exponent(self, i: int) -> float | None:
        """b at iteration i; None during the warm-up."""
        first = self.warm_up * self.iterations
        if i < first:
            return None
        return self.end + (self.begin - self.end) * (1 - (i - first) / max(self.iterations - first, 1))


@dataclass(frozen=True)
class Result:
    """What a reconstruction came to, on all samples, with every choice made.

    Args:
        before: E with the codes and steps that it began with, such as those of rounding to nearest; as a share of mean |y|^p.
        after: the same of what is kept: what was learned, or what it began with where that is better.
        moved: share of the weights that are not rounded to nearest.
    """

    before: float
    after: float
    moved: float


@dataclass(frozen=True)
class Unit:
    """What is reconstructed together.

    Args:
        name: of the block or linear.
        module: it, with stand-ins in place.
        standins: of the linears whose rounding is learned.
        samples: what it receives and is to give.
        tell: sets the clock to the rows of samples.
    """

    name: str
    module: nn.Module
    standins: Sequence[StandIn]
    samples: Samples
    tell: Callable[[Tensor], None]

    def reconstruct(self, schedules: Sequence[Schedule], generator: torch.Generator) -> Result:
        """Train by one schedule after the other; what is kept is in the stand-ins' roundings and steps.

        Raises:
            BadValue: a loss is no number.
        """
        power = schedules[0].power
        unit = self._weights_alone(power)
        for standin in self.standins:
            standin.decide(standin.rounding.first)
        before = self._error(power)
        for schedule in schedules:
            self._train(schedule, unit, generator)
            for standin in self.standins:
                standin.decide(standin.rounding.codes())
                standin.rounds_inputs = True
        after = self._error(power)
        if not after <= before:
            for standin in self.standins:
                standin.restart()
        size = self._size(power)
        return Result(before / size, min(after, before) / size, self._moved())

    def _train(self, schedule: Schedule, unit: float, generator: torch.Generator) -> None:
        roundings = [s.rounding.alpha for s in self.standins] if schedule.lr else []
        steps = [s.steps.log for s in self.standins if s.steps is not None] if schedule.act_lr else []
        chosen = [(roundings, schedule.lr), (steps, schedule.act_lr)]
        groups = [{"params": tensors, "lr": lr} for tensors, lr in chosen if tensors]
        if not groups:
            return
        for standin in self.standins:
            standin.rounds_inputs = schedule.static or standin.steps is None
        optimizer = torch.optim.Adam(groups)
        count = sum(s.rounding.alpha.numel() for s in self.standins)
        for i in range(schedule.iterations):
            batch = self.samples.draw(schedule.batch, generator)
            if steps:
                optimizer.param_groups[-1]["lr"] = (
                    schedule.act_lr * (1 + math.cos(math.pi * i / schedule.iterations)) / 2
                )
            with torch.enable_grad():
                penalty = self._soften(schedule.exponent(i)) if roundings else None
                loss = self._loss(batch, schedule.power, gradients=True) / unit
                if penalty is not None:
                    loss = loss + schedule.regularizer * penalty
                loss = loss * count
            if not bool(torch.isfinite(loss)):
                raise BadValue(
                    f"reconstruction of '{self.name}': the loss is {float(loss.detach())} after {i} iterations"
                )
            learned = [*roundings, *steps]
            for tensor, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
                tensor.grad = gradient
            optimizer.step()

    def _soften(self, exponent: float | None) -> Tensor | None:
        """Give every stand-in its soft weight; the mean of 1 - |2h - 1|^b over all weights, or None without b."""
        total, count = None, 0
        for standin in self.standins:
            h = standin.rounding.choice()
            standin.weight = standin.rounding.soft(h)
            if exponent is not None:
                far = (2 * h - 1).abs().pow(exponent).sum()
                total, count = far if total is None else total + far, count + h.numel()
        return None if total is None else 1 - total / count

    def _run(self, batch: Batch, *, gradients: bool = False) -> list[Tensor]:
        self.tell(batch.rows)
        return leaves(replay(self.module, batch.call, gradients=gradients))

    def _loss(self, batch: Batch, power: float, *, gradients: bool = False) -> Tensor:
        """E on a batch."""
        errors = _errors(self._run(batch, gradients=gradients), leaves(batch.target), len(batch.rows), power)
        return (errors * batch.weights.to(errors.device)).mean()

    def _error(self, power: float) -> float:
        """E on all samples."""
        return _mean((self._loss(batch, power), batch) for batch in self.samples.whole())

    def _weights_alone(self, power: float) -> float:
        """E0, on a few calls, with inputs as they are; 1 where weights need no rounding."""
        few = list(self.samples.whole())[:: max(1, len(self.samples.calls) // FEW)]
        for standin in self.standins:
            standin.rounds_inputs = False
        exact = [self._run(batch) for batch in few]
        self._check_apart(exact[0])
        for standin in self.standins:
            standin.decide(standin.rounding.nearest)
        errors = [_errors(self._run(batch), y, len(batch.rows), power) for batch, y in zip(few, exact, strict=True)]
        for standin in self.standins:
            standin.rounds_inputs = True
        return _mean((e.mean(), batch) for e, batch in zip(errors, few, strict=True)) or 1.0

    def _check_apart(self, whole: Sequence[Tensor]) -> None:
        """BadModel if the first sample's output is another one without its company: batches could not be put together."""
        alone = self._run(self.samples.of([(0, 0)]))
        for together, y in zip(whole, alone, strict=True):
            if bool((together[: len(y)] - y).abs().max() > APART * together.abs().max()):
                raise BadModel(
                    f"'{self.name}' does not treat the samples of its batch apart: it cannot be reconstructed"
                )

    def _size(self, power: float) -> float:
        """mean |y|^p; 1 where y is 0."""
        found = ((leaves(batch.target), batch) for batch in self.samples.whole())
        nothing = torch.zeros(())
        return _mean((_errors(y, [nothing] * len(y), len(b.rows), power).mean(), b) for y, b in found) or 1.0

    def _moved(self) -> float:
        moved = sum(int((s.rounding.codes() != s.rounding.nearest).sum()) for s in self.standins)
        return moved / sum(s.rounding.nearest.numel() for s in self.standins)


def _errors(outputs: Sequence[Tensor], targets: Sequence[Tensor], batch: int, power: float) -> Tensor:
    """mean |y^ - y|^p of each sample, (b,)."""
    total, count = torch.zeros((), device=outputs[0].device), 0
    for output, target in zip(outputs, targets, strict=True):
        gap = (output.float() - target.to(output.device).float()).reshape(batch, -1)
        size = gap.square() if power == SQUARE else gap.abs().pow(power)
        total, count = total + size.sum(1), count + size.shape[1]
    return total / count


def _mean(found: Iterable[tuple[Tensor, Batch]]) -> float:
    """Over all samples, of values that are means over those of a batch."""
    pairs = [(float(value), len(batch.rows)) for value, batch in found]
    return sum(value * count for value, count in pairs) / sum(count for _, count in pairs)
