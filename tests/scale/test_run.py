"""Resuming, sharing the work, and what is said meanwhile."""

from dataclasses import dataclass

import pytest
from chores import Chores, Unbuildable, attempts, drawn

from dither.errors import BadFormat, BadValue, DitherError
from dither.scale import Failure, InProcess, ShardStore, run

JOBS = [{"seed": i} for i in range(7)]


def quiet(done, total, text):
    pass


def work(jobs, folder, executor=None, shard=None, tell=quiet):
    (folder / "log").mkdir(exist_ok=True)
    store = ShardStore(folder / "store")
    return run(jobs, Chores(str(folder / "log")), executor or InProcess(), store, shard=shard, tell=tell)


def tried(folder, jobs=JOBS):
    return [len(attempts(folder / "log", job)) for job in jobs]


def test_what_is_stored_is_not_computed_again(tmp_path):
    first = work(JOBS[:3], tmp_path)
    assert (first.reused, first.computed, first.failures, first.damaged, first.left) == (0, 3, (), (), 0)
    second = work(JOBS, tmp_path)
    assert (second.reused, second.computed) == (3, 4)
    assert tried(tmp_path) == [1] * 7
    store = ShardStore(tmp_path / "store")
    assert all((store.get(job)["pictures"] == drawn(job["seed"])["pictures"]).all() for job in JOBS)


def test_a_finished_run_starts_no_worker(tmp_path):
    work(JOBS, tmp_path)
    outcome = run(JOBS, Unbuildable(OSError), InProcess(), ShardStore(tmp_path / "store"), tell=quiet)
    assert (outcome.reused, outcome.computed) == (7, 0)


def test_equal_jobs_are_run_once(tmp_path):
    assert work([{"seed": 0, "do": "draw"}, {"do": "draw", "seed": 0}], tmp_path).computed == 1
    assert tried(tmp_path, JOBS[:1]) == [1]


def test_machines_share_the_work_and_know_what_is_left(tmp_path):
    first = work(JOBS, tmp_path, shard=(0, 3))
    assert (first.computed, first.left) == (3, 4)
    assert tried(tmp_path) == [1, 0, 0, 1, 0, 0, 1]
    assert work(JOBS, tmp_path, shard=(2, 3)).left == 2
    last = work(JOBS, tmp_path, shard=(1, 3))
    assert (last.computed, last.left) == (2, 0)
    assert tried(tmp_path) == [1] * 7
    assert work(JOBS, tmp_path).reused == 7


@pytest.mark.parametrize("shard", [(3, 3), (-1, 3), (0, 0)])
def test_a_shard_that_does_not_exist_is_refused(tmp_path, shard):
    with pytest.raises(BadValue, match=f"no shard {shard[0]} of {shard[1]}"):
        work(JOBS, tmp_path, shard=shard)


def test_damaged_files_are_named_and_computed_again(tmp_path):
    work(JOBS, tmp_path)
    store = ShardStore(tmp_path / "store")
    path = store.path(JOBS[2])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")
    said = []
    outcome = work(JOBS, tmp_path, tell=lambda *args: said.append(args))
    assert (outcome.reused, outcome.computed) == (6, 1)
    assert outcome.damaged == (f"{path}: its contents were changed",)
    assert said[0] == (6, 7, f"damaged, computed again: {path}: its contents were changed")
    assert path.read_bytes() == whole


def test_a_job_that_fails_is_reported_and_tried_again_next_time(tmp_path):
    jobs = [{"seed": 0}, {"seed": 1, "do": "raise"}, {"seed": 2}]
    said = []
    outcome = work(jobs, tmp_path, tell=lambda *args: said.append(args))
    assert outcome.computed == 2
    assert outcome.failures == ((jobs[1], Failure("ValueError: no luck with 1", 2)),)
    assert said == [
        (1, 3, "stored"),
        (2, 3, "stored"),
        (3, 3, 'given up after 2 attempts: ValueError: no luck with 1 ({"do":"raise","seed":1})'),
    ]
    again = work(jobs, tmp_path)
    assert (again.reused, len(again.failures)) == (2, 1)
    assert tried(tmp_path, jobs) == [1, 4, 1]


def test_bad_input_ends_the_run_and_keeps_what_is_done(tmp_path):
    with pytest.raises(BadFormat, match="does not divide"):
        work([{"seed": 0}, {"seed": 1, "do": "refuse"}, {"seed": 2}], tmp_path)
    assert work([{"seed": 0}], tmp_path).reused == 1


@dataclass(frozen=True)
class Watched:
    """An executor of two results, that says when it was closed."""

    closed: list[bool]

    def map(self, make, jobs):
        try:
            yield jobs[0], drawn(0)
            yield jobs[1], drawn(1)
        finally:
            self.closed.append(True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, DitherError])
def test_whatever_ends_the_run_stops_the_workers_first(tmp_path, error):
    closed = []

    def tell(done, total, text):
        raise error

    with pytest.raises(error) as caught:
        work(JOBS, tmp_path, Watched(closed), tell=tell)
    assert caught.traceback  # it still holds the frames: nothing was closed by being forgotten
    assert closed == [True]
    assert work(JOBS[:2], tmp_path).reused == 1
