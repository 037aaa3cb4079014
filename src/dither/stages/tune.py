"""WEIGHT: tune what rounding left, along trajectories, for any format of weights: codes, scales, words and biases.

    min   mean over blocks of E |y^ - y|^2 / var y   +   output * E |eps^ - eps|^2 / var eps

Straight through the rounding (PV-tuning, arXiv 2405.14852, is the thorough treatment), see ``straight``; Adam, with rates
that fall to 0 by a cosine, one step a call. Comes after the stage that rounds, and needs ``teacher`` before it. Layers whose
codes change over time are left alone.

Memory beyond both models, in float32 for each weight: what is rounded and a gradient; where codes are tuned also u, where it
began, and Adam's two.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from dither.errors import BadRecipe
from dither.models.base import linear_at
from dither.nn import QLinear
from dither.stages.alignment import provisional
from dither.stages.base import MEASURED, Job, Phase
from dither.stages.bounds import check_bounds
from dither.stages.following import Course
from dither.stages.incoherence import named
from dither.stages.meanwhile import instead, still
from dither.stages.straight import Straight
from dither.stages.student import Diary, Student

__all__ = ["Tune"]


@dataclass(frozen=True)
class Tune:
    """Tunes every rounded weight and its bias.

    Args:
        trajectories: how many are followed.
        samples, steps, guidance: of each trajectory.
        output: what the error of the model's answer counts beside the mean of its blocks'.
        own: share of the trajectories whose latents are those of the quantized model.
        lr: of the weights, in root mean squares of a row; 0 leaves codes as they are.
        lr_scale: of the logarithms of scales.
        lr_words: of the words of codebooks.
        lr_bias: of biases.
        time_bias: regular expression of layers that get a bias for each row of the clock as well (``assign.time_groups``);
            empty: none does.
        trust: how far weights may go, in root mean squares of a row.
        refresh: steps between two roundings.
        keep: trajectories between two states that an interrupted run can go on from.
    """

    tag: ClassVar[str] = "tune"
    phase: ClassVar[Phase] = Phase.WEIGHT
    paper: ClassVar[str] = "2405.14852"
    trajectories: int = 40
    samples: int = 4
    steps: int = 25
    guidance: float = 1.5
    output: float = 1.0
    own: float = 0.0
    lr: float = 1e-3
    lr_scale: float = 5e-4
    lr_words: float = 1e-4
    lr_bias: float = 5e-4
    time_bias: str = ""
    trust: float = 1.0
    refresh: int = 5
    keep: int = 5

    def run(self, job: Job) -> None:
        """Exchange the tensors of all finished layers for tuned ones."""
        course = self._check()
        layers = {name: linear_at(job.model, name) for name in job.specs if name in job.done and name not in job.varied}
        rounded = {n: m for n, m in layers.items() if isinstance(m, QLinear) and m.spec.weight is not None}
        if not rounded:
            return
        if job.exact is None:
            raise BadRecipe(
                "tune: nothing keeps the full-precision model to learn from: put 'teacher' first in the recipe"
            )
        keys = {name: MEASURED + f"{self.tag}.{name}" for name in rounded}
        made: dict[str, Mapping[str, Tensor]] = {}
        if job.lacks(keys.values()):
            timed = self._timed(job, list(rounded))
            students = {name: self._student(job, name, m, name in timed) for name, m in rounded.items()}
            with still(job.model), instead(job.model, students):
                self._learn(job, course, job.exact, students)
            made = {name: student.tensors() for name, student in students.items()}
        for name, layer in rounded.items():
            kept = dict(job.kept(f"{self.tag}.{name}", partial(made.__getitem__, name)))
            if (bias := kept.pop("bias", None)) is not None:
                layer.bias.data = bias.to(layer.bias.device, layer.bias.dtype)
            if (table := kept.get("time_bias")) is not None:
                job.specs[name] = replace(job.specs[name], time_bias=len(table))
            provisional(job, name, kept, {f"act_{key}": tensor for key, tensor in layer.stored("act").items()})

    def _check(self) -> Course:
        bounds: dict[str, tuple[float, float]] = {
            "trajectories": (1, 10**6), "lr": (0, 10), "lr_scale": (0, 10), "lr_words": (0, 10),
            "lr_bias": (0, 10), "trust": (0, 1e6), "refresh": (1, 10**6), "keep": (1, 10**6),
        }  # fmt: skip
        check_bounds(self.tag, self, bounds)
        course = Course(self.tag, self.samples, self.steps, self.guidance, self.output, True, self.own)
        course.check()
        return course

    def _timed(self, job: Job, names: Sequence[str]) -> set[str]:
        """Layers that get a bias for each row of the clock."""
        if not self.time_bias:
            return set()
        if job.clock.size == 1:
            raise BadRecipe("tune.time_bias: this recipe tells no noise levels apart: set assign.time_groups")
        return named("tune.time_bias", self.time_bias, names)

    def _student(self, job: Job, name: str, layer: QLinear, timed: bool) -> Student:
        fmt = layer.spec.weight
        assert fmt is not None
        learned = Straight(fmt, layer.stored(), layer.shape, self.trust, codes=self.lr > 0)
        return Student(layer, job.specs[name], learned, layer.bias, job.clock if timed else None)

    def _learn(self, job: Job, course: Course, exact: nn.Module, students: Mapping[str, Student]) -> None:
        learned = [s.learned for s in students.values() if isinstance(s.learned, Straight)]
        chosen = (
            ([w.moved for w in learned if w.moved is not None], self.lr),
            ([w.log for w in learned if w.log is not None], self.lr_scale),
            ([w.words for w in learned if w.words is not None], self.lr_words),
            ([bias for s in students.values() for bias in s.biases.values()], self.lr_bias),
        )
        optimizer = torch.optim.Adam(
            [{"params": tensors, "lr": lr, "first": lr} for tensors, lr in chosen if tensors and lr]
        )
        diary = Diary(job, self.tag, students, optimizer)
        first, step = diary.read() or (0, 0)
        total = self.trajectories * self.steps

        def refresh() -> None:
            for weight in learned:
                weight.refresh()

        def learn(error: Tensor) -> None:
            nonlocal step
            for group in optimizer.param_groups:
                group["lr"] = group["first"] * (1 + math.cos(math.pi * min(step / total, 1))) / 2
            optimizer.zero_grad()
            error.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            if step % self.refresh == 0:
                refresh()

        for number in range(first, self.trajectories):
            course.follow(job, exact, number, learn)
            job.progress("tuning", number + 1, self.trajectories)
            if (number + 1) % self.keep == 0:
                diary.write(number + 1, step)
        refresh()
