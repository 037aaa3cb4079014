"""A run of its own process, for tests that kill it: ``python driver.py STORE LOG JOBS``."""

import sys
from pathlib import Path

from chores import Chores

from dither.scale.pool import Processes
from dither.scale.run import run
from dither.scale.shards import ShardStore


def main(store: str, log: str, jobs: str) -> None:
    Path(log).mkdir(exist_ok=True)
    many = [{"seed": i, "sleep": 0.02} for i in range(int(jobs))]
    outcome = run(many, Chores(log), Processes(2, 1, attempts=100), ShardStore(Path(store)), tell=lambda *_: None)
    assert not outcome.failures
    assert not outcome.damaged
    print(outcome.computed)


if __name__ == "__main__":
    main(*sys.argv[1:])
