"""The nouns of one map over many jobs: a job, what it yields, who runs it, and what is said when it fails.

A job is small JSON, and its key is ``blake2b(canonical JSON)``: equal JSON is the same work and gives the same result. So
a result can be kept under its key, found again after any interruption, and computed by any machine.

Two kinds of error are told apart. A ``DitherError`` is bad input: it would fail every job, so it ends the whole run, with
its type and sentence. Anything else, a worker's death included, may be bad luck: the job is tried again, up to a number of
attempts, then reported as a ``Failure``, and the run goes on.
"""

import json
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from dither.errors import BadValue, DitherError

__all__ = [
    "DIED",
    "Abort",
    "Arrays",
    "Done",
    "Executor",
    "Failed",
    "Failure",
    "Job",
    "Ledger",
    "MakeWorker",
    "Reply",
    "Worker",
    "attempt",
    "build",
    "canonical",
    "check_count",
    "key_of",
    "portable",
    "tidy",
]

Job: TypeAlias = Mapping[str, Any]
"""Small JSON that says all that the result depends on."""
Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""What a job yields."""
Worker: TypeAlias = Callable[[Job], Arrays]
MakeWorker: TypeAlias = Callable[[], Worker]
"""Called once in each process, to build the model. It must be picklable: a frozen dataclass with ``__call__``."""

DIED = "its worker died"
_INTEGERS = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)
_DTYPES = frozenset(np.dtype(t) for t in (np.bool_, *_INTEGERS, np.float16, np.float32, np.float64, np.complex64))
"""What both numpy and safetensors know."""


@dataclass(frozen=True)
class Failure:
    """A job that was given up.

    Args:
        error: of the last attempt: the exception's type and message, or that the worker died.
        attempts: how often it was tried.
    """

    error: str
    attempts: int


class Executor(Protocol):
    """Runs jobs somewhere."""

    def map(self, make: MakeWorker, jobs: Sequence[Job]) -> Generator[tuple[Job, Arrays | Failure], None, None]:
        """Every job once, in order of completion. Closing the generator stops the workers.

        Raises:
            DitherError: a worker raised it, or no worker could be started.
        """


@dataclass(frozen=True)
class Done:
    """The job's arrays."""

    arrays: Arrays


@dataclass(frozen=True)
class Failed:
    """The job raised."""

    error: str


@dataclass(frozen=True)
class Abort:
    """Bad input: the run must end."""

    error: DitherError


Reply: TypeAlias = Done | Failed | Abort
"""What a worker answers."""


def canonical(job: Job) -> str:
    """The one text of a job: JSON with sorted keys and no spaces.

    Raises:
        BadValue: it holds a NaN or an infinity, which JSON has no word for.
    """
    try:
        return json.dumps(dict(job), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise BadValue(f"a job must be plain JSON with finite numbers: {dict(job)!r:.200}") from None


def key_of(job: Job) -> str:
    """32 hexadecimal digits that name a job."""
    return blake2b(canonical(job).encode(), digest_size=16).hexdigest()


def build(make: MakeWorker) -> Worker | Abort:
    """The worker of this process. One that cannot be built would fail every job, so any error ends the run."""
    try:
        return make()
    except DitherError as e:
        return Abort(e)
    except Exception as e:
        return Abort(DitherError(f"a worker could not start: {_sentence(e)}"))


def attempt(worker: Worker, job: Job) -> Reply:
    """Run one job."""
    try:
        return Done(tidy(worker(job)))
    except DitherError as e:
        return Abort(e)
    except Exception as e:
        return Failed(_sentence(e))


def portable(reply: Reply) -> Reply:
    """A reply that another process can read: an exception is rebuilt there from its sentence alone."""
    if not isinstance(reply, Abort):
        return reply
    try:
        return Abort(type(reply.error)(str(reply.error)))
    except TypeError:  # its constructor asks for more
        return Abort(DitherError(str(reply.error)))


def check_count(name: str, value: int) -> None:
    """Refuse a number of workers, threads or attempts below one."""
    if value < 1:
        raise BadValue(f"'{name}' is {value}: it must be at least 1")


def _sentence(e: Exception) -> str:
    return f"{type(e).__name__}: {e}" if str(e) else type(e).__name__


def tidy(arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
    """The arrays in the one layout that is stored and sent: row by row, little-endian; copied only if they are not so.

    Raises:
        TypeError: something is no array, or of a kind that numpy and safetensors do not both know.
    """
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.newbyteorder("=") not in _DTYPES:
            kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise TypeError(f"the worker's '{name}' is no array of numbers that can be stored, but {kind}")
    return {name: np.asarray(a, a.dtype.newbyteorder("<"), order="C") for name, a in arrays.items()}


class Ledger:
    """Which jobs wait, and how often each was tried. A job that failed goes to the end of the queue."""

    def __init__(self, jobs: Sequence[Job], attempts: int) -> None:
        self._jobs = jobs
        self._attempts = attempts
        self._waiting = deque(range(len(jobs)))
        self._tried = [0] * len(jobs)
        self.open = len(jobs)
        """How many jobs wait or are at work."""

    def take(self) -> int | None:
        """The index of the next job, or None."""
        return self._waiting.popleft() if self._waiting else None

    def give_back(self, index: int) -> None:
        """The job was never begun: it goes first, and this was no attempt."""
        self._waiting.appendleft(index)

    def settle(self, index: int, reply: Reply) -> tuple[Job, Arrays | Failure] | None:
        """Book an attempt: the job with its result, or None when it will be tried again.

        Raises:
            DitherError: the worker says that the run must end.
        """
        if isinstance(reply, Abort):
            raise reply.error
        self._tried[index] += 1
        if isinstance(reply, Failed) and self._tried[index] < self._attempts:
            self._waiting.append(index)
            return None
        self.open -= 1
        result = reply.arrays if isinstance(reply, Done) else Failure(reply.error, self._tried[index])
        return self._jobs[index], result
