"""Run the jobs that are not stored yet, and store each as it arrives.

This is all of resuming: the store is the only memory, so a run that was stopped in any way, on any executor, goes on when
the same jobs are given again. Several machines with one store share the work: machine i of n takes the jobs whose
position in the list is i modulo n.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from dither.errors import BadValue
from dither.scale.jobs import Executor, Failure, Job, MakeWorker, canonical, key_of
from dither.scale.shards import ShardStore

__all__ = ["Outcome", "Tell", "run"]

Tell = Callable[[int, int, str], None]
"""Told after each job: how many are settled, how many there are, and what happened."""


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    Args:
        reused: jobs that were stored already.
        computed: jobs that were computed now.
        failures: jobs that were given up; a later run tries them again.
        damaged: files that could not be trusted (path and reason) and were computed again.
        left: jobs of other shards that are still absent.
    """

    reused: int
    computed: int
    failures: tuple[tuple[Job, Failure], ...]
    damaged: tuple[str, ...]
    left: int


def run(
    jobs: Sequence[Job],
    make: MakeWorker,
    executor: Executor,
    store: ShardStore,
    *,
    shard: tuple[int, int] | None = None,
    tell: Tell,
) -> Outcome:
    """Bring the store to hold every job's result.

    Args:
        jobs: the same list on every machine and in every run; equal jobs are run once.
        make: builds the worker, once in each process; not called when nothing is absent.
        executor: where the jobs run.
        store: where results are and go.
        shard: (i, n), do only the jobs at positions i, i + n, i + 2n, ...; i counts from 0.
        tell: progress.

    Raises:
        DitherError: bad input found by a worker, or a full disk. What is stored stays.
        KeyboardInterrupt: likewise.
    """
    mine, others = _shares(jobs, shard)
    seen = len(store.damaged)
    absent = [job for job in mine if store.get(job) is None]
    damaged = tuple(store.damaged[seen:])
    done = reused = len(mine) - len(absent)
    for text in damaged:
        tell(done, len(mine), f"damaged, computed again: {text}")
    if reused:
        tell(done, len(mine), f"{reused} of {len(mine)} are stored already")
    failures: list[tuple[Job, Failure]] = []
    with closing(executor.map(make, absent)) as results:
        for job, result in results:
            done += 1
            if isinstance(result, Failure):
                failures.append((job, result))
                tell(done, len(mine), f"given up after {result.attempts} attempts: {result.error} ({_short(job)})")
            else:
                store.put(job, result)
                tell(done, len(mine), "stored")
    left = sum(store.get(job) is None for job in others)
    return Outcome(reused, len(absent) - len(failures), tuple(failures), damaged, left)


def _shares(jobs: Sequence[Job], shard: tuple[int, int] | None) -> tuple[list[Job], list[Job]]:
    """The jobs of this shard, and those of the others."""
    i, n = (0, 1) if shard is None else shard
    if not 0 <= i < n:
        raise BadValue(f"there is no shard {i} of {n}: shards count from 0 to {n - 1}")
    unique = list({key_of(job): job for job in jobs}.values())
    return unique[i::n], [job for k, job in enumerate(unique) if k % n != i]


def _short(job: Job) -> str:
    text = canonical(job)
    return text if len(text) <= 100 else text[:97] + "..."
