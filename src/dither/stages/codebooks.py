"""WEIGHT: codebooks whose assignments are calibrated without data (VQ4DiT, arXiv 2408.17131).

    k-means++ and Lloyd for each layer, n candidates for each sub-vector, then along trajectories (see ``following``)

    L = L_d             where the ratios get firmer by themselves: L_r is no larger than ever before in this trajectory
    L = L_d + L_r       otherwise        L_r: see ``SoftCodes.penalty``

RMSprop, one step a call. Two ways to the end: assignments are settled one by one, each layer is hardened when most of its
are, and only then its words learn (``progressive``, the release); or words and ratios learn together until L_r falls below a
threshold, when all are hardened at once (the paper). What is left of the trajectories then tunes words and biases.

Memory beyond the model and the copy that it learns from, for V sub-vectors: n (4 + 4 + 1) bytes a sub-vector of logits, their
squared gradients and candidates (up to 256 words), and of the graph a weight in float32 for each layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from dither import memory
from dither.errors import BadRecipe
from dither.models.base import linear_at
from dither.numerics import encode_codebook
from dither.spec import Codebook
from dither.stages.base import Job, Phase
from dither.stages.bounds import check_bounds
from dither.stages.following import Course
from dither.stages.meanwhile import instead, still
from dither.stages.parts import full_precision
from dither.stages.soft_codes import SoftCodes
from dither.stages.student import Diary, Student

__all__ = ["Codebooks"]

DECAY = 0.9
"""Of RMSprop's squared gradients, as released."""


@dataclass(frozen=True)
class Codebooks:
    """Learns assignments, words and biases of every weight with a codebook; other formats are left to other stages.

    The defaults are the release's, but for the length: 1000 trajectories at most, and for guidance, there 4.

    Args:
        candidates: n; 1 keeps the assignments of k-means and learns words and biases alone.
        inverse: ratios begin in proportion to 1 / distance (the release); otherwise all alike (the paper).
        iterations: of k-means.
        trajectories: at most.
        finish: trajectories, at most, after every assignment is made.
        samples, steps, guidance: of each trajectory.
        progressive: settle assignments one by one; otherwise all at once below ``threshold``.
        settled: ratio beyond which an assignment is settled.
        share: of a layer's assignments that must be settled before the rest is made, and its words learn.
        threshold: of L_r, per candidate pair in [0, 1], below which all assignments are made.
        absolute: L_r of 1 - |2r - 1| (the paper); otherwise of r (1 - r) (the release).
        conditional: leave L_r out while it falls by itself.
        block_weight, ratio_weight: of L_d and L_r.
        lr_words, lr_bias, lr_ratios: of RMSprop.
        keep: trajectories between two states that an interrupted run can go on from.
    """

    tag: ClassVar[str] = "codebooks"
    phase: ClassVar[Phase] = Phase.WEIGHT
    paper: ClassVar[str] = "2408.17131"
    candidates: int = 2
    inverse: bool = True
    iterations: int = 100
    trajectories: int = 100
    finish: int = 40
    samples: int = 4
    steps: int = 50
    guidance: float = 1.5
    progressive: bool = True
    settled: float = 0.99
    share: float = 0.99
    threshold: float = 0.01
    absolute: bool = False
    conditional: bool = True
    block_weight: float = 1.0
    ratio_weight: float = 1.0
    lr_words: float = 1e-4
    lr_bias: float = 1e-4
    lr_ratios: float = 5e-2
    keep: int = 1

    def run(self, job: Job) -> None:
        """Commit every layer whose weight is to be codewords."""
        course = self._check()
        names = [n for n, s in job.specs.items() if isinstance(s.weight, Codebook) and n not in job.done]
        if not names:
            return
        if job.done and job.exact is None:
            raise BadRecipe(
                f"{self.tag}: an earlier stage has finished layer '{min(job.done)}', so that the full precision to learn "
                f"from is gone: put '{self.tag}' before it"
            )
        made: dict[str, Mapping[str, Tensor]] = {}
        if job.lacks(names):
            exact = full_precision(job, job.model) if job.exact is None else job.exact
            students = {name: self._student(job, name) for name in names}
            with still(job.model), instead(job.model, students):
                self._learn(job, course, exact, students)
            made = {name: student.tensors() for name, student in students.items()}
        for name in names:
            dense = job.dense(name)
            job.commit(name, partial(made.__getitem__, name))
            memory.set_aside(dense)

    def _check(self) -> Course:
        bounds: dict[str, tuple[float, float]] = {
            "candidates": (1, 65536), "iterations": (1, 10**6), "trajectories": (1, 10**6), "finish": (0, 10**6),
            "settled": (0.5, 1), "share": (0, 1), "threshold": (0, 1), "block_weight": (0, 1e9),
            "ratio_weight": (0, 1e9), "lr_words": (0, 10), "lr_bias": (0, 10), "lr_ratios": (0, 10),
            "keep": (1, 10**6),
        }  # fmt: skip
        check_bounds(self.tag, self, bounds)
        course = Course(self.tag, self.samples, self.steps, self.guidance)
        course.check()
        return course

    def _student(self, job: Job, name: str) -> Student:
        """With the words of k-means, which an interrupted run has kept."""
        spec, old = job.specs[name], linear_at(job.model, name)
        assert isinstance(spec.weight, Codebook)
        fmt, w = spec.weight, job.dense(name).float()
        if self.candidates > fmt.size:
            raise BadRecipe(f"{self.tag}.candidates {self.candidates}: layer '{name}' has only {fmt.size} words")
        begin = partial(encode_codebook, w, fmt, None, job.seed, self.iterations, sampled=False)
        tensors = job.kept(f"{self.tag}.{name}", begin)
        return Student(old, spec, SoftCodes(w, fmt, tensors, self.candidates, self.inverse), old.bias)

    def _learn(self, job: Job, course: Course, exact: nn.Module, students: Mapping[str, Student]) -> None:
        """Until all is made and finished, or trajectories are at an end."""
        lesson = _Lesson(self, job, students)
        first = lesson.resume()
        over = first > 0 and lesson.finished(first - 1)
        for number in range(first, first if over else self.trajectories):
            lesson.begin()
            course.follow(job, exact, number, lesson.learn)
            job.progress("calibrating assignments", number + 1, self.trajectories)
            last = number + 1 == self.trajectories or lesson.finished(number)
            if last or (number + 1) % self.keep == 0:
                lesson.keep(number + 1)
            if last:
                break
        lesson.harden(list(students))


class _Lesson:
    """What is learned at each call."""

    def __init__(self, stage: Codebooks, job: Job, students: Mapping[str, Student]) -> None:
        self.stage, self.job, self.students = stage, job, students
        self.codes: dict[str, SoftCodes] = {}
        for name, student in students.items():
            assert isinstance(student.learned, SoftCodes)
            self.codes[name] = student.learned
        self.optimizer = torch.optim.RMSprop(self._groups(), alpha=DECAY)
        self.diary = Diary(job, stage.tag, students, self.optimizer)
        self.least = float("inf")
        self.hard_since: int | None = None
        self._own_words()

    def _groups(self) -> list[dict[str, object]]:
        codes = self.codes.values()
        groups = [
            ([c.words for c in codes], self.stage.lr_words),
            ([s.bias for s in self.students.values() if s.bias is not None], self.stage.lr_bias),
            ([c.logits for c in codes if c.logits is not None], self.stage.lr_ratios),
        ]
        return [{"params": parameters, "lr": lr} for parameters, lr in groups if parameters]

    def begin(self) -> None:
        """A trajectory begins."""
        self.least = float("inf")

    def learn(self, error: Tensor) -> None:
        """One step."""
        penalties = [p for c in self.codes.values() if (p := c.penalty(self.stage.absolute)) is not None]
        loss = self.stage.block_weight * error
        firmness = 0.0
        if penalties:
            penalty = torch.stack(penalties).mean()
            firmness = float(penalty.detach())
            if not self.stage.conditional or firmness > self.least:
                loss = loss + self.stage.ratio_weight * penalty
            self.least = min(self.least, firmness)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if not penalties:
            return
        if self.stage.progressive:
            shares = {n: c.settle(self.stage.settled) for n, c in self.codes.items() if not c.hard}
            self.harden([n for n, share in shares.items() if share > self.stage.share])
        elif firmness < self.stage.threshold:
            self.harden(list(self.codes))

    def harden(self, names: list[str]) -> None:
        """Make what assignments these layers have left to make, and note whose candidates won."""
        for name in names:
            if (places := self.codes[name].harden()) is not None:
                self.job.note(
                    name, {self.stage.tag: {"winners": [round(v, 4) for v in (places / places.sum()).tolist()]}}
                )
        self._own_words()

    def finished(self, number: int) -> bool:
        """Whether enough trajectories came after the one that made the last assignment."""
        if not all(c.hard for c in self.codes.values()):
            return False
        if self.hard_since is None:
            self.hard_since = number
        return number - self.hard_since >= self.stage.finish

    def keep(self, trajectories: int) -> None:
        """Keep a state that an interrupted run can go on from."""
        self.diary.write(trajectories, -1 if self.hard_since is None else self.hard_since)

    def resume(self) -> int:
        """Go on from what is kept; how many trajectories came before."""
        done, since = self.diary.read() or (0, -1)
        self.hard_since = None if since < 0 else since
        self._own_words()
        return done

    def _own_words(self) -> None:
        """Words learn from the beginning, or when their layer's assignments are made."""
        for codes in self.codes.values():
            codes.words.requires_grad_(not self.stage.progressive or codes.hard)
