"""ALLOCATE: group sizes by successive halving (Jamieson and Talwalkar, arXiv 1502.07943).

    judge     all candidates by a few pictures
    halve     the better half stays, and is judged by twice as many
    until     two are left, of which the better one is taken, or the pictures are as many as they may be

Candidates are the uniform allocation and random ones that keep the limits. Most of them are told from the best by very few
pictures, since all are judged by the same noise (``candidates``): the work goes to those that are hard to tell apart. A
rung's pictures contain those of the rung before.
"""

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from dither.errors import BadRecipe
from dither.stages.allocations import population
from dither.stages.base import Job, Phase
from dither.stages.candidates import Candidates, candidates_of, finite
from dither.stages.granularity import SIZES, Limits, problem_of, settle
from dither.stages.widths import check_drawing

__all__ = ["Halve"]


@dataclass(frozen=True)
class Halve:
    """The best of many random allocations.

    Args:
        candidates: to choose from.
        sizes: to choose from; those that divide a layer's width are its choices.
        bits: stored bits per weight at most; None: what the assigned size takes.
        bitops: bit operations per multiply-accumulate at most; None: what the assigned size takes.
        samples: pictures that all candidates are judged by.
        most: pictures that the last ones are judged by.
        steps: of the sampler.
        guidance: of the sampler.
    """

    tag: ClassVar[str] = "halve"
    phase: ClassVar[Phase] = Phase.ALLOCATE
    paper: ClassVar[str] = "1502.07943"
    candidates: int = 64
    sizes: tuple[int, ...] = SIZES
    bits: float | None = None
    bitops: float | None = None
    samples: int = 4
    most: int = 32
    steps: int = 5
    guidance: float = 1.5

    def run(self, job: Job) -> None:
        """Halve, and promise the sizes that are left."""
        self._check()
        problem = problem_of(job, self.tag, self.sizes, Limits(self.bits, self.bitops))
        alive = population(problem, self.candidates, Random(f"{self.tag} {job.seed}"))
        plan = rungs(len(alive), self.samples, self.most)
        done, total = 0, 1 + sum(count for count, _ in plan)
        judged: list[Candidates] = []
        for count, pictures in plan:
            rung = candidates_of(job, self.tag, problem, pictures, self.steps, self.guidance)
            for before in judged:
                before.forget()
            judged.append(rung)
            alive = alive[:count]
            if len(judged) == len(plan) and problem.allows(problem.uniform):  # what the choice is held against competes
                alive = tuple(dict.fromkeys((*alive, problem.uniform)))
            for genome in alive:
                job.progress("searching group sizes", done, total)
                rung.loss(genome)
                done += 1
            alive = tuple(sorted(alive, key=rung.loss))
        last = judged[-1]
        best = last.best(alive)
        uniform = finite(last.loss(problem.uniform)) if problem.allows(problem.uniform) else None
        job.progress("searching group sizes", total, total)
        found = {
            "judge": last.judge,
            "loss": last.loss(best),
            "uniform_loss": uniform,
            "rungs": [{"candidates": count, "samples": pictures} for count, pictures in plan],
            "history": [finite(min(rung.known.values())) for rung in judged],
            "evaluations": sum(len(rung.known) for rung in judged),
            "model_samples": sum(rung.model_samples for rung in judged),
        }
        settle(job, self.tag, problem, best, found)

    def _check(self) -> None:
        check_drawing(self.tag, self.samples, self.steps)
        if self.candidates < 2:
            raise BadRecipe(f"{self.tag}.candidates {self.candidates}: must be at least 2")
        if self.most < self.samples:
            raise BadRecipe(
                f"{self.tag}.most {self.most}: must be at least {self.samples}, the samples of the first rung"
            )


def rungs(count: int, samples: int, most: int) -> tuple[tuple[int, int], ...]:
    """Candidates and pictures of each rung."""
    found = [(count, samples)]
    while count > 2 and samples < most:
        count, samples = (count + 1) // 2, min(2 * samples, most)
        found.append((count, samples))
    return tuple(found)
