"""From finished jobs to one results dict: read the shards of a pair of models, judge them, add sizes, layers and provenance.

Memory holds two batches of pictures at a time. A job that failed leaves its pictures out of the pair and is listed under
``skipped``; nothing is filled in.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch

from dither._version import __version__
from dither.errors import BadValue
from dither.evaluation.judge import Judge
from dither.inspection import describe, size_on_disk, summary
from dither.measure import trajectory
from dither.measure.drawing import Drawing, drawings, floor_jobs, trajectory_jobs
from dither.measure.judges import Judging
from dither.measure.speed import memory
from dither.measure.subjects import Subject, header, scheduler_settings
from dither.scale.jobs import Failure, Job
from dither.scale.shards import ShardStore

__all__ = ["Finished", "gather", "versions"]


@dataclass(frozen=True)
class Finished:
    """Shards of a run, and what failed in it."""

    store: ShardStore
    failures: Sequence[tuple[Job, Failure]]


def gather(small: Subject, full: Subject, what: Drawing, how: Judging, done: Finished) -> tuple[dict[str, Any], Judge]:
    """The contents of ``eval.json``, without what this run alone knows: speed, seconds, command; and who judged.

    Raises:
        BadValue: too few pictures were drawn, or pictures cannot be compared.
    """
    judge = how.judge(what.floor, done.store)
    mine, theirs = drawings(small, what), drawings(full, what)
    for (place, job), (_, reference) in zip(mine, theirs, strict=True):
        x, y = done.store.get(reference), done.store.get(job)
        if x is not None and y is not None:
            indices = range(place.start, place.stop)
            judge.add(indices, what.labels[place], what.seeds[place], x["pictures"], y["pictures"])
    floors = floor_jobs(full, what)
    for place, again, other in floors:
        drawn = [None if found is None else found["pictures"] for found in map(done.store.get, (again, other))]
        judge.add_floor(range(place.start, place.stop), *drawn)
    jobs = [*trajectory_jobs(small, full, what)]
    skipped = _skipped(done.failures, [*(job for _, job in (*mine, *theirs)), *jobs])
    if len(judge.labels) < 2 and skipped:
        raise BadValue(f"nothing can be compared, as all jobs failed: {skipped[0]['why']}")
    results = judge.results()
    if results["noise_floor"] is not None:
        results["noise_floor"]["batch_sizes"] = [min(what.batch_size, len(what.labels)), floors[0][0].stop]
    chunks = [found for found in map(done.store.get, jobs) if found is not None]
    followed = trajectory.summarize(chunks) if chunks else {}
    rows = describe(small.source.model, small.source.adapter)
    recipe = dict(header(small.source).recipe or {})
    made = {key: recipe.pop(key, None) for key in ("seed", "calibration", "notes")}
    found = {
        "schema": 2,
        "kind": "eval",
        "model": full.source.name,
        "checkpoint": small.source.name,
        "bits": recipe.get("bits"),
        "recipe": recipe,
        "notes": made["notes"],
        "commands": {"quantize": _quantize_command(full.source.name, small.source.name, made)},
        **results,
        "drift": _drift(followed),
        **followed,
        "size": size_on_disk(small.source.model, small.source.weight_files, full.source.weight_bytes),
        "memory": memory(small.source.model, full.source.model),
        **summary(rows),
        "steps": what.steps,
        "guidance": what.guidance,
        "batch_size": what.batch_size,
        "scheduler": scheduler_settings(full.source),
        "digests": {"quantized": small.digest, "full_precision": full.digest},
        "skipped": skipped,
        "versions": versions(),
    }
    return found, judge


def _quantize_command(model: str, checkpoint: str, made: Mapping[str, Any]) -> str | None:
    """What makes the checkpoint again from its recipe as a file; None where its data were of the user's own."""
    how = made["calibration"]
    if not isinstance(how, Mapping) or how.get("prompts") or "stored_calls" in how:
        return None
    options = " ".join(f"--{name} {how[name]}" for name in ("samples", "steps", "guidance", "calls") if name in how)
    return f"dither quantize {model} -o {checkpoint} --recipe-file recipe.json --seed {made['seed']} {options}"


def _drift(followed: Mapping[str, Any]) -> dict[str, Any] | None:
    """The drift of a trajectory in its place of old."""
    found = followed.get("trajectory")
    if not found or not found.get("drift"):
        return None
    return {**{key: found[key] for key in ("n", "steps", "timesteps")}, **found["drift"]}


def _skipped(failures: Sequence[tuple[Job, Failure]], jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """What failed of these jobs, for people."""
    return [
        {
            "what": f"{job['kind']} of {len(job['seeds'])} pictures from seed {job['seeds'][0]}",
            "why": failure.error,
            "attempts": failure.attempts,
            "pictures": len(job["seeds"]),
        }
        for job, failure in failures
        if job in jobs
    ]


def versions() -> dict[str, str]:
    """Of what produced the numbers."""
    return {
        "dither": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
