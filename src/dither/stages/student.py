"""A linear's place holder while what it will store is learned along trajectories, and what an interrupted run keeps of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dither.clock import Clock
from dither.errors import BadCheckpoint
from dither.spec import LinearSpec
from dither.stages.base import MEASURED, Job
from dither.stages.given_weight import GivenWeight

__all__ = ["Diary", "Learned", "Student"]

COUNTS, OPTIMIZER = "counts", "optimizer"
BIASES = ("bias", "time_bias")


class Learned(Protocol):
    """A weight in the making."""

    def value(self) -> Tensor:
        """(N, K) float32, differentiable."""

    def stored(self) -> dict[str, Tensor]:
        """What a layer stores of it as it now is, by the format's names."""

    def state(self) -> dict[str, Tensor]:
        """All that a run needs to go on."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""


class Student(nn.Module):
    """In a linear's place, whose bias is learned too.

    Args:
        old: the linear so far.
        spec: what it is to become. Static inputs stay in full precision: their ranges are found when weights are ready.
        learned: its weight.
        bias: (N,) that it begins with, or None.
        clock: whose every row gets a bias of its own besides, which begins at 0; None: none does.
    """

    def __init__(
        self, old: nn.Linear, spec: LinearSpec, learned: Learned, bias: Tensor | None, clock: Clock | None = None
    ) -> None:
        super().__init__()
        self.learned, self.given, self.clock = learned, GivenWeight(old, spec), clock
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone())
        table = None if clock is None else old.weight.new_zeros(clock.size, old.out_features, dtype=torch.float32)
        self.time_bias = None if table is None else nn.Parameter(table)
        self._rounds = spec.act is not None and not spec.act.static
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N), in the dtype of x."""
        y = self.given(x, self.learned.value(), self.bias, self.given.dynamic if self._rounds else None)
        if self.clock is None or self.time_bias is None:
            return y
        return y + self.clock.pick(self.time_bias, x).to(y.dtype)

    @property
    def biases(self) -> dict[str, nn.Parameter]:
        """``bias`` (N,) and ``time_bias`` (R, N), as far as there are any."""
        found = dict(zip(BIASES, (self.bias, self.time_bias), strict=True))
        return {key: tensor for key, tensor in found.items() if tensor is not None}

    def tensors(self) -> dict[str, Tensor]:
        """What the layer is committed with."""
        return {name: tensor.detach() for name, tensor in {**self.learned.stored(), **self.biases}.items()}


@dataclass(frozen=True)
class Diary:
    """The state that an interrupted run goes on from, in the job's store.

    Args:
        job: whose store it is in; a job without one keeps nothing.
        stage: its tag.
        students: which learn.
        optimizer: of all that they learn.
    """

    job: Job
    stage: str
    students: Mapping[str, Student]
    optimizer: torch.optim.Optimizer

    def read(self) -> list[int] | None:
        """Go on from what is kept; the counts that were kept with it. None: there is nothing."""
        kept = None if self.job.store is None else self.job.store.get(self._name)
        if kept is None:
            return None
        _restore(kept, self.students, self.optimizer)
        counts: list[int] = kept[COUNTS].tolist()
        return counts

    def write(self, *counts: int) -> None:
        """Keep the state as it now is, and some numbers."""
        if self.job.store is not None:
            state = _snapshot(self.students, self.optimizer)
            self.job.store.put(self._name, {**state, COUNTS: torch.tensor(counts)})

    @property
    def _name(self) -> str:
        return f"{MEASURED}{self.stage}.state"


def _snapshot(students: Mapping[str, Student], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that an interrupted run needs to go on, copied."""
    out: dict[str, Tensor] = {}
    for name, student in students.items():
        out |= {f"{name}/{key}": tensor for key, tensor in student.learned.state().items()}
        out |= {f"{name}/{key}": bias for key, bias in student.biases.items()}
    for i, parameter in enumerate(_parameters(optimizer)):
        out |= {f"{OPTIMIZER}/{i}/{key}": torch.as_tensor(v) for key, v in optimizer.state.get(parameter, {}).items()}
    return {key: tensor.detach().cpu().clone() for key, tensor in out.items()}


def _restore(kept: Mapping[str, Tensor], students: Mapping[str, Student], optimizer: torch.optim.Optimizer) -> None:
    """Go on from a snapshot. BadCheckpoint if it is one of other layers."""
    for name, student in students.items():
        head = f"{name}/"
        mine = {key.removeprefix(head): tensor for key, tensor in kept.items() if key.startswith(head)}
        biases = {key: mine.pop(key) for key in BIASES if key in mine}
        if set(biases) != set(student.biases) or not mine:
            raise BadCheckpoint(f"what an interrupted run has kept of layer '{name}' does not fit it: begin anew")
        student.learned.load(mine)
        for key, tensor in student.biases.items():
            tensor.data.copy_(biases[key])
    for i, parameter in enumerate(_parameters(optimizer)):
        head = f"{OPTIMIZER}/{i}/"
        found = {key.removeprefix(head): tensor for key, tensor in kept.items() if key.startswith(head)}
        if found:
            at = {key: t if key == "step" else t.to(parameter.device) for key, t in found.items()}
            optimizer.state[parameter] = at


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
