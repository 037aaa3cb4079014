"""Jobs in this process, one after the other: nothing to start, nothing to ship, and a debugger sees all."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from dither.scale.jobs import Abort, Arrays, Failure, Job, Ledger, MakeWorker, attempt, build, check_count

__all__ = ["InProcess"]


@dataclass(frozen=True)
class InProcess:
    """The executor without workers. A job that kills its process kills the run; what is stored stays.

    Args:
        attempts: how often a job that raises is tried in all.
    """

    attempts: int = 2

    def __post_init__(self) -> None:
        check_count("attempts", self.attempts)

    def map(self, make: MakeWorker, jobs: Sequence[Job]) -> Generator[tuple[Job, Arrays | Failure], None, None]:
        """As ``Executor.map``."""
        ledger = Ledger(jobs, self.attempts)
        if not ledger.open:
            return
        worker = build(make)
        if isinstance(worker, Abort):
            raise worker.error
        while (index := ledger.take()) is not None:
            result = ledger.settle(index, attempt(worker, jobs[index]))
            if result is not None:
                yield result
