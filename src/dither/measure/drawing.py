"""The work of an evaluation as jobs: small JSON that says what to draw with which model, and the worker that does them.

    draw        one batch of pictures of one model: labels, seeds -> pictures, uint8 (N, H, W, C)
    trajectory  one batch through a pair of models -> what ``measure.trajectory`` collects

A job names models by their digests, so equal jobs have equal results wherever they run, and full precision is drawn once for
any number of quantized models. A batch is the unit: the batch size changes last bits, so it is part of the job.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import torch

from dither.errors import BadValue
from dither.evaluation.judge import floor_batches
from dither.evaluation.paired import other_seeds
from dither.evaluation.protocol import Label
from dither.measure.subjects import Subject, code_versions, open_subject
from dither.measure.trajectory import observe_pair
from dither.sampling import sampler_for
from dither.scale.jobs import Arrays, Job

__all__ = ["Drawing", "MakeHere", "MakeWorker", "Worker", "device_name", "drawings", "floor_jobs", "trajectory_jobs"]

TRAJECTORY_BATCH = 8


@dataclass(frozen=True)
class Drawing:
    """What to draw, the same for every model.

    Args:
        labels, seeds: one of each a picture.
        steps, guidance: of the sampler.
        batch_size: pictures at a time.
        floor: full-precision pictures that are drawn again, and with other seeds.
        trajectory: pictures whose way from noise is followed step by step.
    """

    labels: tuple[Label, ...]
    seeds: tuple[int, ...]
    steps: int = 25
    guidance: float = 1.5
    batch_size: int = 64
    floor: int = 32
    trajectory: int = 16


def drawings(of: Subject, what: Drawing) -> list[tuple[slice, Job]]:
    """Jobs that draw all pictures of a model, with the places of their pictures in the whole list."""
    n = len(what.labels)
    places = [slice(start, min(start + what.batch_size, n)) for start in range(0, n, what.batch_size)]
    return [(place, _draw(of, what, place, what.seeds)) for place in places]


def floor_jobs(of: Subject, what: Drawing) -> list[tuple[slice, Job, Job]]:
    """Jobs that draw the first pictures once more in another batch size, and with other seeds."""
    places = floor_batches(len(what.labels), what.floor, what.batch_size)
    others = other_seeds(what.seeds)
    return [(place, _draw(of, what, place, what.seeds), _draw(of, what, place, others)) for place in places]


def trajectory_jobs(small: Subject, full: Subject, what: Drawing) -> list[Job]:
    """Jobs that follow the first pictures through both models."""
    count = min(what.trajectory, len(what.labels))
    places = [slice(start, min(start + TRAJECTORY_BATCH, count)) for start in range(0, count, TRAJECTORY_BATCH)]
    return [{**_draw(small, what, place, what.seeds), "kind": "trajectory", "full": full.digest} for place in places]


def _draw(of: Subject, what: Drawing, place: slice, seeds: Sequence[int]) -> Job:
    return {
        "kind": "draw",
        "model": of.digest,
        "steps": what.steps,
        "guidance": what.guidance,
        "labels": [label if isinstance(label, str) else int(label) for label in what.labels[place]],
        "seeds": [int(seed) for seed in seeds[place]],
        "dtype": str(next(of.source.model.parameters()).dtype).removeprefix("torch."),
        "versions": code_versions(),
    }


class Opened(Protocol):
    """Finds the model that a digest names."""

    def __call__(self, digest: str, /) -> Subject:
        """The opened model."""


@dataclass
class Worker:
    """Does jobs, one at a time."""

    opened: Opened

    def __call__(self, job: Job) -> Arrays:
        """The arrays of a job.

        Raises:
            DitherError: the model or the request is at fault; the same job would fail anywhere.
        """
        small = self.opened(job["model"]).source
        labels, seeds = job["labels"], job["seeds"]
        if job["kind"] == "trajectory":
            full = self.opened(job["full"]).source
            return observe_pair(small, full, labels, seeds, job["steps"], job["guidance"])
        sampler = sampler_for(small.pipeline, job["steps"], job["guidance"], len(labels))
        return {"pictures": sampler(labels, seeds)}


@dataclass(frozen=True)
class MakeHere:
    """Makes a worker of this process from models that are open already."""

    subjects: Mapping[str, Subject]

    def __call__(self) -> Worker:
        """A worker that shares these models."""
        return Worker(self.subjects.__getitem__)


@dataclass(frozen=True)
class MakeWorker:
    """Makes a worker in another process, which opens each model when a job first names it.

    Args:
        places: digest to the text that opens the model there.
        keep: models open at a time.
    """

    places: Mapping[str, str]
    keep: int = 2

    def __call__(self) -> Worker:
        """A worker without a model yet."""
        return Worker(_Shelf(self.places, self.keep))


@dataclass
class _Shelf:
    places: Mapping[str, str]
    keep: int
    subjects: dict[str, Subject] = field(default_factory=dict)

    def __call__(self, digest: str) -> Subject:
        if digest not in self.subjects:
            for oldest in list(islice(self.subjects, max(0, len(self.subjects) + 1 - self.keep))):
                del self.subjects[oldest]
            found = open_subject(self.places[digest])
            if found.digest != digest:
                raise BadValue(f"'{self.places[digest]}' changed while it was being evaluated: start again")
            self.subjects[digest] = found
        self.subjects[digest] = self.subjects.pop(digest)  # the last used is the last to go
        return self.subjects[digest]


def device_name() -> str:
    """The device that runs the models here."""
    return f"CPU {platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
