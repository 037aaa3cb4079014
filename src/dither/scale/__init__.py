"""One map over many jobs: on any executor, resumable after any interruption, with the same result bit for bit.

    store = ShardStore(Path("results"))
    run(jobs, make, Processes(workers=4, threads=2), store, tell=print)
    arrays = store.get(jobs[0])

``jobs`` the nouns; ``shards`` the store; ``run`` resumes; ``local``, ``pool`` and ``ray`` the executors, of which the last
two share ``team``. Nothing here knows what a job computes.
"""

from dither.scale.jobs import Arrays, Executor, Failure, Job, MakeWorker, Worker, key_of
from dither.scale.local import InProcess
from dither.scale.pool import Processes
from dither.scale.ray import RayActors
from dither.scale.run import Outcome, run
from dither.scale.shards import ShardStore

__all__ = [
    "Arrays",
    "Executor",
    "Failure",
    "InProcess",
    "Job",
    "MakeWorker",
    "Outcome",
    "Processes",
    "RayActors",
    "ShardStore",
    "Worker",
    "key_of",
    "run",
]
