"""Who works on what, for every executor whose workers are processes, here or far away.

A worker has one job in flight. When it dies, its job is booked as tried, another worker is started, and the neighbours
never notice; so a job that kills its worker cannot take innocent jobs with it.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from dither.errors import DitherError
from dither.scale.jobs import DIED, Abort, Arrays, Failed, Failure, Job, Ledger, Reply

__all__ = ["FALSE_STARTS", "Member", "conduct"]

FALSE_STARTS = 3
"""Deaths in a row of workers that were not at work yet, before the run is given up."""


class Member(Protocol):
    """A worker process, just started and building its model."""

    def give(self, job: Job) -> bool:
        """Hand it a job. False: it is dead already."""

    def hear(self) -> Reply | None:
        """What it says, or None when it is dead. Its first word is of its model: ``Abort``, or ``Done`` with nothing."""

    def end(self) -> str:
        """Stop it at once and for good. How it ended, as far as is known."""


M = TypeVar("M", bound=Member)


def conduct(
    hire: Callable[[], M], wait: Callable[[Sequence[M]], Sequence[M]], size: int, jobs: Sequence[Job], attempts: int
) -> Generator[tuple[Job, Arrays | Failure], None, None]:
    """``Executor.map`` with at most ``size`` workers.

    Args:
        hire: starts a worker.
        wait: gives those that have something to say, or died, as soon as there is one.
        size: number of workers.
        jobs: what to do.
        attempts: how often a job is tried in all.
    """
    ledger = Ledger(jobs, attempts)
    team = _Team(hire)
    try:
        while ledger.open:
            team.grow(min(size, ledger.open))
            team.hand_out(ledger, jobs)
            for member in wait(team.members()):
                index, reply = team.hear(member)
                if index is None:
                    continue
                result = ledger.settle(index, reply)
                team.hand_out(ledger, jobs)  # before the caller takes its time over the result
                if result is not None:
                    yield result
    finally:
        team.dismiss()


@dataclass
class _Seat(Generic[M]):
    """A worker, whether its model is built, and the job that it works on."""

    member: M
    ready: bool = False
    index: int | None = None


class _Team(Generic[M]):
    def __init__(self, hire: Callable[[], M]) -> None:
        self._hire = hire
        self._seats: list[_Seat[M]] = []
        self._false_starts = 0

    def members(self) -> list[M]:
        return [seat.member for seat in self._seats]

    def grow(self, size: int) -> None:
        """Start workers until there are ``size``."""
        while len(self._seats) < size:
            self._seats.append(_Seat(self._hire()))

    def hand_out(self, ledger: Ledger, jobs: Sequence[Job]) -> None:
        """A job for everyone who has none."""
        for seat in self._seats:
            if not seat.ready or seat.index is not None or (index := ledger.take()) is None:
                continue
            if seat.member.give(jobs[index]):
                seat.index = index
            else:
                ledger.give_back(index)

    def hear(self, member: M) -> tuple[int | None, Reply]:
        """What a worker says, and of which job; None when it was at no job.

        Raises:
            DitherError: it could not build its model; or one after the other died before that.
        """
        seat = next(s for s in self._seats if s.member is member)
        index, seat.index = seat.index, None
        reply = member.hear()
        if reply is None:
            self._seats.remove(seat)
            how = member.end()
            if not seat.ready:
                self._count_false_start(how)
            return index, Failed(f"{DIED} ({how})" if how else DIED)
        if not seat.ready:
            if isinstance(reply, Abort):
                raise reply.error
            seat.ready = True
            self._false_starts = 0
        return index, reply

    def _count_false_start(self, how: str) -> None:
        self._false_starts += 1
        if self._false_starts == FALSE_STARTS:
            text = f"{FALSE_STARTS} workers in a row died before they began to work"
            raise DitherError(f"{text}: {how}" if how else text)

    def dismiss(self) -> None:
        while self._seats:
            self._seats.pop().member.end()
