"""ALLOCATE: group sizes by evolution (Q-DiT, arXiv 2406.17343, Algorithm 1).

    first        N allocations that keep the limits: the uniform one and random ones
    repeat       judge the new ones by the pictures they give; the best K of all so far become parents
                 N/2 children by crossover: two parents, each unit's size from either with chance 1/2
                 N/2 children by mutation: one parent, each unit with chance 0.1 gets any of its sizes
    in the end   judge the last children too; the best of all is taken

A child that costs more than the limits is brought back to them (``allocations``), and one that was there before is drawn
again; where nothing new is found, less are judged. Unlike the code that the authors released, which cannot run to its end,
the last generation is ranked, and what is limited is bits and bit operations, not the mean group size. They judge 550
allocations by 800 pictures of 50 steps each; here it is 16 of 5 steps, in pairs with full precision's (``candidates``).

Crossover, mutation and selection are DEAP's. Those use Python's global random numbers, which follow from the job's seed
while children are made, and go on as before afterwards; drawing pictures has no part in them, so that a search that was
interrupted takes the same way again.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from dither.errors import BadRecipe
from dither.stages.allocations import TRIES, brought_back, population
from dither.stages.base import Job, Phase
from dither.stages.candidates import candidates_of, finite
from dither.stages.granularity import SIZES, Genome, Limits, Problem, problem_of, settle
from dither.stages.widths import check_drawing

__all__ = ["Evolve"]


@dataclass(frozen=True)
class Evolve:
    """Group sizes from an evolutionary search.

    Args:
        population: allocations judged at first, and in each round.
        keep: the best so far, whose children are judged next.
        rounds: generations after the first.
        chance: of a unit's size to be drawn anew in a mutation.
        sizes: to choose from; those that divide a layer's width are its choices.
        bits: stored bits per weight at most; None: what the assigned size takes.
        bitops: bit operations per multiply-accumulate at most; None: what the assigned size takes.
        samples: pictures a drawing.
        steps: of the sampler.
        guidance: of the sampler.
        judge: network in whose features the Frechet distance to full precision's pictures is the loss, such as
            ``zoo:fashion`` or ``inception``; "" for the mean squared error of the final states.
    """

    tag: ClassVar[str] = "evolve"
    phase: ClassVar[Phase] = Phase.ALLOCATE
    paper: ClassVar[str] = "2406.17343"
    population: int = 50
    keep: int = 10
    rounds: int = 10
    chance: float = 0.1
    sizes: tuple[int, ...] = SIZES
    bits: float | None = None
    bitops: float | None = None
    samples: int = 16
    steps: int = 5
    guidance: float = 1.5
    judge: str = ""

    def run(self, job: Job) -> None:
        """Search, and promise the best sizes."""
        self._check()
        problem = problem_of(job, self.tag, self.sizes, Limits(self.bits, self.bitops))
        judged = candidates_of(job, self.tag, problem, self.samples, self.steps, self.guidance, self.judge)
        history: list[float] = []
        most = self.population * (self.rounds + 1)
        for i in range(self.rounds + 1):
            with _seeded(f"{self.tag} {job.seed} {i}") as rng:
                new = self._next(problem, judged.known, rng)
            for genome in new:
                job.progress("searching group sizes", len(judged.known), most)
                judged.loss(genome)
            history.append(min(judged.known.values()))
        job.progress("searching group sizes", most, most)
        best = judged.best(judged.known)
        found = {
            "judge": judged.judge,
            "loss": judged.loss(best),
            "uniform_loss": finite(judged.known[problem.uniform]) if problem.uniform in judged.known else None,
            "history": [finite(loss) for loss in history],
            "evaluations": len(judged.known),
            "model_samples": judged.model_samples,
        }
        settle(job, self.tag, problem, best, found)

    def _check(self) -> None:
        check_drawing(self.tag, self.samples, self.steps)
        if self.judge and self.samples < 2:
            raise BadRecipe(f"{self.tag}.samples {self.samples}: a Frechet distance needs at least 2 pictures")
        if self.population < 2:
            raise BadRecipe(f"{self.tag}.population {self.population}: must be at least 2")
        if not 1 <= self.keep <= self.population:
            raise BadRecipe(f"{self.tag}.keep {self.keep}: must be 1 to {self.population}, the population")
        if self.rounds < 0:
            raise BadRecipe(f"{self.tag}.rounds {self.rounds}: must be at least 0")
        if not 0 <= self.chance <= 1:
            raise BadRecipe(f"{self.tag}.chance {self.chance:g}: must be 0 to 1")

    def _next(self, problem: Problem, known: Mapping[Genome, float], rng: random.Random) -> tuple[Genome, ...]:
        """What is judged next: the first population, or children of the best."""
        if not known:
            return population(problem, self.population, rng)
        from deap import tools  # it brings a compiled library, which nothing else needs

        parents = tools.selBest([_Ranked(genome, -loss) for genome, loss in known.items()], self.keep)
        genomes = [parent.genome for parent in parents]
        found: dict[Genome, None] = {}  # in order of their making

        def add(make: Callable[[Sequence[Genome]], Genome], until: int) -> None:
            for _ in range(TRIES * (until - len(found))):
                if len(found) == until:
                    break
                child = make(genomes)
                if child not in known:
                    found[child] = None

        add(lambda parents: _crossed(problem, parents, rng), self.population // 2)
        add(lambda parents: _mutated(problem, parents, self.chance, rng), self.population)
        return tuple(found)


@dataclass(frozen=True)
class _Ranked:
    """A genome as DEAP selects it: the fitter the better."""

    genome: Genome
    fitness: float


def _crossed(problem: Problem, parents: Sequence[Genome], rng: random.Random) -> Genome:
    from deap import tools

    a, b = rng.choice(parents), rng.choice(parents)
    child, _ = tools.cxUniform(list(a), list(b), 0.5)
    return brought_back(problem, tuple(child), rng)


def _mutated(problem: Problem, parents: Sequence[Genome], chance: float, rng: random.Random) -> Genome:
    from deap import tools

    parent = rng.choice(parents)
    (child,) = tools.mutUniformInt(list(parent), 0, [len(unit.sizes) - 1 for unit in problem.units], chance)
    changed = {i for i, (now, before) in enumerate(zip(child, parent, strict=True)) if now != before}
    return brought_back(problem, tuple(child), rng, changed)


@contextmanager
def _seeded(text: str) -> Iterator[random.Random]:
    """While inside, Python's global random numbers and those given follow from a text; then the global ones go on."""
    before = random.getstate()
    random.seed(text)
    try:
        yield random.Random(f"{text} apart")
    finally:
        random.setstate(before)
