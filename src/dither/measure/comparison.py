"""``compare``: several quantized models beside one full-precision original, all on the same labels and seeds.

The work is a list of jobs (``measure.drawing``) for any executor, whose shards lie in a store: an interrupted run goes on
where it stopped, full precision is drawn once, and what is judged is read from the shards, so every executor gives the same
results.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from dither.errors import BadValue
from dither.evaluation.paired import check_request
from dither.evaluation.protocol import Label
from dither.measure.drawing import Drawing, MakeHere, MakeWorker, device_name, drawings, floor_jobs, trajectory_jobs
from dither.measure.gather import Finished, gather
from dither.measure.judges import judging_for
from dither.measure.ranks import compared
from dither.measure.speed import speed
from dither.measure.subjects import Subject, check_pair, header, open_subject
from dither.quantization import sample_seeds
from dither.sampling import default_labels
from dither.scale import Executor, InProcess, Job, Outcome, Processes, RayActors, ShardStore, run
from dither.sources import Source

__all__ = ["Asked", "Model", "Progress", "Running", "compare", "draw_shard"]

Model: TypeAlias = "str | Path | Source"
Progress: TypeAlias = Callable[[str, int, int], None]
SPEED_PICTURES = 8


@dataclass(frozen=True)
class Asked:
    """What to draw and how to judge it.

    Args:
        n, seed, steps, guidance, labels: of the pictures; labels take turns, all classes by default.
        batch_size: pictures at a time; a batch is also what is stored and resumed.
        noise_floor: full-precision pictures drawn again in another batch size, and with other seeds.
        trajectory: pictures whose way from noise is followed step by step.
        images: pairs kept in the results.
        features: names of feature extractors besides the zoo's own, such as ``inception`` or ``dinov2:FOLDER``.
        metrics: further metrics: ``lpips``, ``clip-score:FOLDER``, ``external:COMMAND``.
        reference: statistics or pictures of real data in ADM's layout (.npz).
        speed: also time the denoisers by turns.
    """

    n: int = 256
    seed: int = 0
    steps: int = 25
    guidance: float = 1.5
    batch_size: int = 64
    labels: tuple[Label, ...] = ()
    noise_floor: int = 32
    trajectory: int = 16
    images: int = 24
    features: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    reference: Path | None = None
    speed: bool = True


@dataclass(frozen=True)
class Running:
    """Where the work is done and kept.

    Args:
        executor: in this process by default.
        store: folder of shards, made when absent; a temporary one by default.
        progress: told (what, done, total).
        say: told sentences that matter to people, such as a damaged shard.
    """

    executor: Executor = field(default_factory=InProcess)
    store: Path | None = None
    progress: Progress = lambda what, done, total: None
    say: Callable[[str], None] = lambda sentence: None


def compare(
    quantized: Sequence[Model],
    against: Model,
    asked: Asked | None = None,
    running: Running | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Draw the same pictures with all models and compare each quantized one with full precision.

    Args:
        quantized: checkpoints of dither: folders, or opened Sources.
        against: the full-precision model.
        asked: what to draw and how to judge it.
        running: where the work is done and kept.
        command: what to repeat to get these results.

    Returns:
        The contents of a comparison file: ``results``, one as ``eval.json`` for each model, and how they rank.

    Raises:
        BadModel: a model cannot be opened or sampled, or two cannot be compared.
        BadValue: pictures hold NaN, too few were drawn, or the request makes no sense.
        DitherError: a missing extra, a full disk.
    """
    asked, running = asked or Asked(), running or Running()
    started = time.perf_counter()
    work = _plan(quantized, against, asked)
    how = judging_for(work.full.source, asked.features, asked.metrics, asked.reference, asked.images)  # before any work
    if how.scores and not all(isinstance(label, str) for label in work.what.labels):
        raise BadValue(
            f"'{next(iter(how.scores))}' needs prompts, and '{work.full.source.name}' draws from class numbers"
        )
    with _store(running) as store:
        outcome = _run(work, running, store)
        done = Finished(store, outcome.failures)
        results, judged = [], []
        for i, small in enumerate(work.small):
            running.progress("comparing pictures", i, len(work.small))
            found, judge = gather(small, work.full, work.what, how, done)
            results.append(found)
            judged.append(judge)
        running.progress("comparing pictures", len(work.small), len(work.small))
    for small, found in zip(work.small, results, strict=True):
        found.update(_circumstances(asked, running, command))
        found["commands"]["eval"] = command
        if asked.speed:
            found["speed"] = _speed(work, small, asked)
        found["seconds"] = {"total": time.perf_counter() - started}
    for reason in _refused(results):
        running.say(reason)
    return compared(work.full.source.name, results, judged, command)


def draw_shard(
    quantized: Sequence[Model], against: Model, asked: Asked, running: Running, shard: tuple[int, int]
) -> Outcome:
    """Do one machine's share of the jobs and store them; ``compare`` with the same store finds them done.

    Args:
        shard: (i, n), counted from 0.

    Raises:
        BadValue: no store is named, so nothing would be kept.
    """
    if running.store is None:
        raise BadValue("a shard of the work needs a store that all machines share")
    return _run(_plan(quantized, against, asked), running, ShardStore(running.store), shard)


@dataclass(frozen=True)
class _Work:
    small: tuple[Subject, ...]
    full: Subject
    what: Drawing

    def jobs(self) -> list[Job]:
        """All of them, model by model, so that a worker seldom opens another one."""
        drawn = [job for _, job in drawings(self.full, self.what)]
        again = [job for _, *jobs in floor_jobs(self.full, self.what) for job in jobs]
        for small in self.small:
            drawn += [job for _, job in drawings(small, self.what)]
            again += trajectory_jobs(small, self.full, self.what)
        return drawn + again


def _plan(quantized: Sequence[Model], against: Model, asked: Asked) -> _Work:
    """Open and check everything before any work."""
    if not quantized:
        raise BadValue("there is nothing to compare: name at least one quantized model")
    small = tuple(open_subject(model) for model in quantized)
    for subject in small:
        header(subject.source)
    full = open_subject(against)
    for subject in small:
        check_pair(subject.source, full.source)
    labels = default_labels(full.source.pipeline, asked.n, asked.labels)
    seeds = sample_seeds(asked.seed, asked.n)
    check_request(labels, seeds, asked.batch_size, asked.images)
    what = Drawing(
        tuple(labels), tuple(seeds), asked.steps, asked.guidance, asked.batch_size, asked.noise_floor, asked.trajectory
    )
    return _Work(small, full, what)


def _run(work: _Work, running: Running, store: ShardStore, shard: tuple[int, int] | None = None) -> Outcome:
    subjects = {subject.digest: subject for subject in (work.full, *work.small)}
    make: MakeHere | MakeWorker = MakeHere(subjects)
    if not isinstance(running.executor, InProcess):
        make = MakeWorker({digest: _text(subject) for digest, subject in subjects.items()})

    def tell(done: int, total: int, what: str) -> None:
        running.progress("drawing batches", done, total)
        if what != "stored":
            running.say(what)

    return run(work.jobs(), make, running.executor, store, shard=shard, tell=tell)


def _text(subject: Subject) -> str:
    if subject.text is None:
        raise BadValue(
            f"'{subject.source.name}' is open in this process only: other processes need its folder, so give that"
        )
    return subject.text


@contextmanager
def _store(running: Running) -> Iterator[ShardStore]:
    if running.store is not None:
        yield ShardStore(running.store)
        return
    with tempfile.TemporaryDirectory(prefix="dither-") as folder:
        yield ShardStore(Path(folder))


def _circumstances(asked: Asked, running: Running, command: str) -> dict[str, Any]:
    where = running.executor
    return {
        "seed": asked.seed,
        "device": device_name(),
        "threads": where.threads if isinstance(where, Processes | RayActors) else torch.get_num_threads(),
        "executor": type(where).__name__,
        "command": command,
        "speed": None,
    }


def _refused(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each reason once why something that was asked for is not there."""
    reasons = [result["fd"]["reason"] for result in results if result["fd"]["features"] is not None]
    reasons += [f"{row['metric']}: {row['reason']}" for result in results for row in result["guards"]]
    reasons += [result["speed"]["reason"] for result in results if result["speed"]]
    return [reason for reason in dict.fromkeys(reasons) if reason and not reason.endswith(": None")]


def _speed(work: _Work, small: Subject, asked: Asked) -> dict[str, Any]:
    count = min(SPEED_PICTURES, asked.n)
    labels, seeds = work.what.labels[:count], work.what.seeds[:count]
    return speed(small.source, work.full.source, labels, seeds, asked.guidance)
