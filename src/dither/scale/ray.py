"""Jobs on Ray, which knows the machines, their GPUs, and how to move arrays between them.

Only what Ray is good at is left to it. It would try a job again by itself, but takes the actor's neighbours along, and it
waits silently for ever for a machine that is not there; so actors are never restarted by it, attempts are booked here as
for every other executor, and a run that finds no place for a single worker ends with a sentence.

Ray is optional: ``pip install 'dither[ray]'``. On a cluster every machine needs dither.
"""

import os
import socket
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from dither.errors import DitherError
from dither.scale.jobs import (
    Abort,
    Arrays,
    Done,
    Failed,
    Failure,
    Job,
    MakeWorker,
    Reply,
    attempt,
    build,
    check_count,
    portable,
)
from dither.scale.team import conduct

__all__ = ["RayActors"]

_LOOK_S = 1.0
_KNOCK_S = 10.0


@dataclass(frozen=True)
class RayActors:
    """The executor for a cluster, or for this machine's Ray.

    A Ray that the caller started is used as it is. Otherwise one is started or joined for the time of the map.

    Args:
        workers: actors; each builds its own model.
        threads: of each, for OpenMP, BLAS and torch.
        address: of a running cluster ("auto", "10.0.0.1:6379", "ray://..."); None starts Ray on this machine.
        attempts: how often a job is tried in all when it raises or its worker dies.
        gpus: GPUs of each worker, or its share of one.
        patience_s: how long to wait until the first worker has a place.
    """

    workers: int
    threads: int
    address: str | None = None
    attempts: int = 2
    gpus: float = 0.0
    patience_s: float = 120.0

    def __post_init__(self) -> None:
        check_count("workers", self.workers)
        check_count("threads", self.threads)
        check_count("attempts", self.attempts)

    def map(self, make: MakeWorker, jobs: Sequence[Job]) -> Generator[tuple[Job, Arrays | Failure], None, None]:
        """As ``Executor.map``."""
        if not jobs:
            return
        with _connected(self.address, self.workers) as ray:
            place = _Place(ray, make, self.threads, self.gpus, self.patience_s)
            yield from conduct(place.hire, place.wait, self.workers, jobs, self.attempts)


class _Actor:
    """What lives on Ray. It answers with a ``Reply``, never with an exception that Ray would wrap."""

    def here(self) -> None:
        """The answer shows that Ray has found a place."""

    def build(self, make: MakeWorker) -> Reply:
        worker = build(make)
        if isinstance(worker, Abort):
            return portable(worker)
        self.worker = worker
        return Done({})

    def work(self, job: Job) -> Reply:
        return portable(attempt(self.worker, job))


@dataclass(eq=False)
class _Hand:
    """An actor, and the answer that it owes: of its model first, then of a job, or None."""

    ray: Any
    actor: Any
    here: Any
    owed: Any
    ready: bool = False

    def give(self, job: Job) -> bool:
        """As ``Member.give``. Ray tells of a death with the answer only."""
        self.owed = self.actor.work.remote(dict(job))
        return True

    def hear(self) -> Reply | None:
        """As ``Member.hear``."""
        errors = self.ray.exceptions
        try:
            reply: Reply = self.ray.get(self.owed)
        except errors.RayTaskError as e:  # what could not be shipped there or back
            error = " ".join(str(e.cause or e).split())
            return Failed(error) if self.ready else Abort(DitherError(f"a worker could not start: {error}"))
        except errors.RayError:  # its process, its machine, or the memory that held the answer is gone
            return None
        finally:
            self.owed = None
        self.ready = True
        if isinstance(reply, Done):  # Ray's arrays are views of its own memory, which ends with it
            return Done({name: np.array(a) for name, a in reply.arrays.items()})
        return reply

    def end(self) -> str:
        """As ``Member.end``."""
        self.ray.kill(self.actor)
        return ""


class _Place:
    """Where actors are started."""

    def __init__(self, ray: Any, make: MakeWorker, threads: int, gpus: float, patience_s: float) -> None:
        self._ray = ray
        self._make = ray.put(make)  # once, for all workers
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self._actor = ray.remote(_Actor).options(
            num_cpus=1,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": dict.fromkeys(names, str(threads))},
        )
        self._deadline = time.monotonic() + patience_s
        self._patience_s = patience_s
        self._placed = False

    def hire(self) -> _Hand:
        actor = self._actor.remote()
        return _Hand(self._ray, actor, actor.here.remote(), actor.build.remote(self._make))

    def wait(self, members: Sequence[_Hand]) -> Sequence[_Hand]:
        """As ``conduct`` asks.

        Raises:
            DitherError: Ray has had no place for any worker for a long time.
        """
        busy = [m for m in members if m.owed is not None]
        while True:
            ready, _ = self._ray.wait([m.owed for m in busy], timeout=_LOOK_S)
            if ready:
                return [m for m in busy if m.owed in ready]
            if not self._placed:
                self._placed = bool(self._ray.wait([m.here for m in members], timeout=0)[0])
            if not self._placed and time.monotonic() > self._deadline:
                raise DitherError(
                    f"Ray found no place for a worker within {self._patience_s:g} s: the cluster has "
                    f"{_short(self._ray.cluster_resources())}, of which {_short(self._ray.available_resources())} are free"
                )


@contextmanager
def _connected(address: str | None, workers: int) -> Iterator[Any]:
    """The module ``ray``, connected."""
    ray = _module()
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    try:
        if address is None:
            with _no_usage_statistics():
                ray.init("local", num_cpus=workers, include_dashboard=False, **quiet)
        else:
            _knock(address)
            ray.init(address, **quiet)
    except (OSError, OverflowError, RuntimeError, ValueError) as e:
        where = "on this machine" if address is None else f"at '{address}'"
        raise DitherError(f"cannot use Ray {where}: {' '.join(str(e).split())}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Ray would try a machine that does not answer for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def _module() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise DitherError("running on Ray needs the extra 'ray': pip install 'dither[ray]'") from None
    return ray


@contextmanager
def _no_usage_statistics() -> Iterator[None]:
    """A Ray that we start tells nobody of it, unless the user has decided otherwise."""
    name = "RAY_USAGE_STATS_ENABLED"
    if name in os.environ:
        yield
        return
    os.environ[name] = "0"
    try:
        yield
    finally:
        del os.environ[name]


def _short(resources: Mapping[str, float]) -> str:
    """CPUs and GPUs."""
    return f"{resources.get('CPU', 0):g} CPU and {resources.get('GPU', 0):g} GPU"
