"""Jobs in processes of this machine, where a worker's death costs no more than an attempt of its own job.

``concurrent.futures`` breaks the whole pool when one process dies, so each worker here has a pipe of its own, and
``connection.wait`` over the pipes tells who speaks. A pipe that ends is a death: ``kill -9``, a crash, no memory.

Arrays travel as raw bytes from the worker's memory into the driver's. Workers follow the driver: they leave Ctrl-C to it,
and exit when it is gone.
"""

import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pickle import PicklingError

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
    Worker,
    attempt,
    build,
    check_count,
    portable,
)
from dither.scale.shards import bytes_of
from dither.scale.team import conduct

__all__ = ["Processes"]

_JOIN_S = 5.0
_IDLE_S = 0.5
_LAST_BREATH_S = 0.2


@dataclass(frozen=True)
class Processes:
    """The executor for one machine.

    Args:
        workers: processes; each builds its own model.
        threads: of each process, for OpenMP, BLAS and torch.
        attempts: how often a job is tried in all when it raises or its worker dies.
    """

    workers: int
    threads: int
    attempts: int = 2

    def __post_init__(self) -> None:
        check_count("workers", self.workers)
        check_count("threads", self.threads)
        check_count("attempts", self.attempts)

    def map(self, make: MakeWorker, jobs: Sequence[Job]) -> Generator[tuple[Job, Arrays | Failure], None, None]:
        """As ``Executor.map``."""
        return conduct(lambda: _hire(make, self.threads), _wait, self.workers, jobs, self.attempts)


@dataclass(eq=False, frozen=True)
class _Process:
    """A worker process and the driver's end of its pipe."""

    process: SpawnProcess
    pipe: Connection

    def give(self, job: Job) -> bool:
        """As ``Member.give``."""
        try:
            self.pipe.send(dict(job))
        except OSError:
            return False
        return True

    def hear(self) -> Reply | None:
        """As ``Member.hear``."""
        try:
            return _receive(self.pipe)
        except (EOFError, OSError):  # before a message, or in the midst of one
            self.process.join(_LAST_BREATH_S)  # its pipe ends an instant before it
            return None

    def end(self) -> str:
        """As ``Member.end``."""
        self.pipe.close()
        self.process.join(_IDLE_S)  # one that waits for a job leaves by itself
        self.process.terminate()
        self.process.join(_JOIN_S)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        code = self.process.exitcode
        self.process.close()
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _hire(make: MakeWorker, threads: int) -> _Process:
    """Start a process that builds a worker."""
    context = get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    with _environment(threads), _deaf_to_ctrl_c():
        process.start()
    theirs.close()  # or its end would never be seen
    with suppress(OSError):  # dead already: ``hear`` will tell
        mine.send(make)
    return _Process(process, mine)


def _wait(members: Sequence[_Process]) -> Sequence[_Process]:
    ready = connection.wait([m.pipe for m in members])
    return [m for m in members if m.pipe in ready]


def _receive(pipe: Connection) -> Reply:
    """A reply; arrays follow their names, kinds and shapes as bytes."""
    reply = pipe.recv()
    if not isinstance(reply, list):
        return reply  # type: ignore[no-any-return]
    arrays = {name: np.empty(shape, dtype) for name, dtype, shape in reply}
    for array in arrays.values():
        if array.nbytes:
            pipe.recv_bytes_into(bytes_of(array))
    return Done(arrays)


def _send(pipe: Connection, reply: Reply) -> None:
    """Say it to the driver."""
    if isinstance(reply, Abort):
        try:
            pipe.send(portable(reply))
        except (AttributeError, PicklingError):  # a class that only this process knows
            pipe.send(Abort(DitherError(str(reply.error))))
        return
    if isinstance(reply, Failed):
        pipe.send(reply)
        return
    pipe.send([(name, a.dtype.str, a.shape) for name, a in reply.arrays.items()])
    for array in reply.arrays.values():
        if array.nbytes:
            pipe.send_bytes(bytes_of(array))


def _serve(pipe: Connection) -> None:
    """The life of a worker process: build the model, then answer each job."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # an orderly end: libraries release their semaphores
    threading.Thread(target=_follow_the_driver, daemon=True).start()
    try:
        worker = build(partial(_unpack, pipe))
        _send(pipe, worker if isinstance(worker, Abort) else Done({}))
        while not isinstance(worker, Abort):
            _send(pipe, attempt(worker, pipe.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the driver is gone, or needs this worker no more
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # on its way out: a second farewell would interrupt the first


def _unpack(pipe: Connection) -> Worker:
    """The driver's worker, built here: what cannot be imported or built is told alike."""
    make: MakeWorker = pipe.recv()
    return make()


def _follow_the_driver() -> None:
    """Exit as soon as the driver is gone, in the midst of a job too."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """What processes started here inherit: they read it when they load their libraries."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """What processes started here inherit: a terminal's Ctrl-C reaches them too, but the driver alone decides."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # started later, it would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
