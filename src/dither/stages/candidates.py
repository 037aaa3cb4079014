"""What whole allocations of group sizes do to pictures: the loss that searches minimize.

Every layer that is promised something is replaced by its imitation (weight rounded to nearest, input quantized as the model
runs), pictures are drawn of the same labels and noise as always, and the layers are put back.

    loss    mean squared difference of the final states to those of full precision, of the same noise; or
            the Frechet distance of the pictures to those of full precision in the features of a network

Q-DiT (arXiv 2406.17343) takes the second one to ImageNet's statistics. Pairs say more with few pictures: both sets share
their labels and noise, so that only what quantization did is left between them.

A candidate whose pictures are not finite has an infinite loss, and the search goes on. Each loss is kept in the job's store
as soon as it is known, under a name that says all it depends on. What candidates in a row have in common is not rounded
again: beside the model there is one copy of its layers, that of the last candidate.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from math import inf, isfinite

import numpy as np

from dither.errors import BadRecipe, BadValue
from dither.nn import QLinear
from dither.spec import LinearSpec, to_json
from dither.stages.base import Job, Study, StudySettings
from dither.stages.granularity import Genome, Problem, check_dynamic, resized
from dither.stages.meanwhile import attending, clocked, instead
from dither.stages.needs import DISTANCE

__all__ = ["Candidates", "candidates_of", "finite"]

ERROR = "mse"


@dataclass
class Candidates:
    """Losses of allocations, each measured once; ``candidates_of`` makes them.

    Args:
        job: whose model computes what it did in full precision.
        tag: of the stage that searches.
        problem: whose genomes are judged.
        settings: of the pictures.
        study: draws and judges them.
        known: the losses so far, in the order in which they were asked for.
    """

    job: Job
    tag: str
    problem: Problem
    settings: StudySettings
    study: Study
    known: dict[Genome, float] = field(default_factory=dict)
    _twins: dict[str, tuple[LinearSpec, QLinear]] = field(default_factory=dict)

    @property
    def judge(self) -> str:
        """What the loss is, in words."""
        return self.study.metrics.get(DISTANCE, "mean squared error of the final states")

    @property
    def model_samples(self) -> int:
        """Times that the model answered for one sample: all drawings, full precision's too, whatever was resumed."""
        passes = 2 if self.settings.guidance > 1 else 1
        return self.settings.samples * self.settings.steps * passes * (1 + len(self.known))

    def loss(self, genome: Genome) -> float:
        """The loss of a genome, infinity if its pictures are not finite."""
        if genome not in self.known:
            specs = self._specs(genome)
            self.known[genome] = self.job.measured(self._name(specs), partial(self._drawn, specs))["loss"]
        return self.known[genome]

    def best(self, genomes: Iterable[Genome]) -> Genome:
        """The one of least loss, the first of several. BadValue if no loss is finite."""
        found = min(genomes, key=self.loss)
        if not isfinite(self.loss(found)):
            raise BadValue(f"{self.tag}: the pictures of all {len(self.known)} allocations hold NaN or infinity")
        return found

    def forget(self) -> None:
        """Let go of the copy of the model's layers."""
        self._twins.clear()

    def _specs(self, genome: Genome) -> dict[str, LinearSpec]:
        """What every promised layer is to be imitated as."""
        sizes = self.problem.sizes(genome)
        return {n: resized(s, sizes[n]) if n in sizes else s for n, s in self.job.specs.items() if _changes(s)}

    def _name(self, specs: Mapping[str, LinearSpec]) -> str:
        """Of a measurement: it depends on nothing else."""
        judged = {**specs, **self.job.attention}
        depends = (self.settings.guidance, dict(self.settings.judges), {n: to_json(s) for n, s in judged.items()})
        digest = blake2b(json.dumps(depends, sort_keys=True).encode(), digest_size=12).hexdigest()
        kind = DISTANCE if self.settings.judges else ERROR
        return f"{self.tag}.{kind}.{self.settings.samples}x{self.settings.steps}.{digest}"

    def _drawn(self, specs: Mapping[str, LinearSpec]) -> Mapping[str, float]:
        with clocked(self.job):
            self.study.begin()
            with instead(self.job.model, self._imitations(specs)), attending(self.job, self.job.attention):
                return {"loss": self._judged()}

    def _judged(self) -> float:
        try:
            with np.errstate(all="ignore"):  # of pictures that overflow
                losses = self.study.losses()
        except BadValue:  # how pipelines refuse pictures that are not finite; full precision's were accepted
            return inf
        loss = losses[DISTANCE if self.settings.judges else ERROR]
        return loss if isfinite(loss) and isfinite(losses[ERROR]) else inf

    def _imitations(self, specs: Mapping[str, LinearSpec]) -> dict[str, QLinear]:
        self._twins = {n: (s, twin) for n, (s, twin) in self._twins.items() if specs[n] == s}  # frees the others first
        for name, spec in specs.items():
            if name not in self._twins:
                self._twins[name] = (spec, self.job.imitation(name, spec.weight, spec.act))
        return {name: self._twins[name][1] for name in specs}


def candidates_of(
    job: Job, tag: str, problem: Problem, samples: int, steps: int, guidance: float, judge: str = ""
) -> Candidates:
    """The candidates of a problem.

    Args:
        job: after ``assign``.
        tag: of the stage.
        problem: of this job.
        samples: pictures a drawing.
        steps: of the sampler.
        guidance: of the sampler.
        judge: in whose features the Frechet distance is taken, such as ``zoo:fashion``; "" for the error of final states.

    Raises:
        BadRecipe: a layer that cannot be imitated is named.
        BadValue: no pictures can be drawn, or the judge cannot be opened.
    """
    for name in job.varied:
        raise BadRecipe(f"{tag}: layer '{name}' changes over time, which cannot be imitated: put '{tag}' before that")
    for name, spec in job.specs.items():
        check_dynamic(tag, name, spec)
    for name, attention in job.attention.items():
        if attention.static:
            raise BadRecipe(
                f"{tag}: attention '{name}' has static ranges, which no search can imitate: make them dynamic"
            )
    settings = StudySettings(samples, steps, guidance, {DISTANCE: judge} if judge else {})
    return Candidates(job, tag, problem, settings, job.study(settings))


def finite(loss: float) -> float | None:
    """A loss for JSON, which knows no infinity."""
    return loss if isfinite(loss) else None


def _changes(spec: LinearSpec) -> bool:
    """Whether a layer with this spec computes anything but full precision."""
    return any(part is not None for part in (spec.weight, spec.act))
