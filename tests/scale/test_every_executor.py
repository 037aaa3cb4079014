"""What every executor owes, in one table. A new one is one more row."""

import os
import signal
import threading
import time
from contextlib import closing

import numpy as np
import pytest
from chores import Chores, Refusing, Unbuildable, attempts, drawn

from dither.errors import BadFormat, BadModel, DitherError
from dither.scale import Failure, InProcess, Outcome, Processes, RayActors, ShardStore, key_of, run

ROWS = {"in process": InProcess(), "processes": Processes(2, 1), "ray": RayActors(2, 1)}
OUTLIVE_WORKERS = ["processes", "ray"]


@pytest.fixture
def executor(request, light_workers):
    if request.param == "ray":
        request.getfixturevalue("ray")
    return ROWS[request.param]


def results(executor, make, jobs):
    found = {key_of(job): result for job, result in executor.map(make, jobs)}
    return [found[key_of(job)] for job in jobs]


def same(arrays, seed):
    wanted = drawn(seed)
    assert arrays.keys() == wanted.keys()
    for name, array in wanted.items():
        assert arrays[name].shape == array.shape
        assert arrays[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(arrays[name], array)


def stored(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("executor", ROWS, indirect=True)
def test_all_jobs_arrive_once_and_are_stored_as_by_one_process(executor, tmp_path):
    jobs = [{"seed": i} for i in range(6)]
    jobs[2]["do"] = "raise"
    jobs[4]["do"] = "raise once"
    for name, one in (("here", InProcess()), ("there", executor)):
        log, store = tmp_path / f"log {name}", tmp_path / name
        log.mkdir()
        outcome = run(jobs, Chores(str(log)), one, ShardStore(store), tell=lambda *_: None)
        assert outcome == Outcome(0, 5, ((jobs[2], Failure("ValueError: no luck with 2", 2)),), (), 0)
        assert [len(attempts(log, job)) for job in jobs] == [1, 1, 2, 1, 2, 1]
    assert len(stored(tmp_path / "here")) == 5
    assert stored(tmp_path / "there") == stored(tmp_path / "here")


@pytest.mark.parametrize("executor", ROWS, indirect=True)
def test_bad_input_ends_the_run_with_its_type_and_sentence(executor, tmp_path):
    jobs = [{"seed": 0, "do": "refuse"}, *({"seed": i, "do": "hang once"} for i in (1, 2))]
    with pytest.raises(BadFormat, match=r"^group 32 does not divide 48$"):
        list(executor.map(Chores(str(tmp_path)), jobs))


@pytest.mark.parametrize("executor", ROWS, indirect=True)
@pytest.mark.parametrize(
    ("raised", "error", "sentence"),
    [
        (BadModel, BadModel, "^no such model: 'nowhere'$"),
        (OSError, DitherError, r"^a worker could not start: OSError: no such model: 'nowhere'$"),
    ],
)
def test_a_model_that_cannot_be_built_ends_the_run(executor, raised, error, sentence):
    with pytest.raises(error, match=sentence) as found:
        list(executor.map(Unbuildable(raised), [{"seed": 0}]))
    assert found.type is error


@pytest.mark.parametrize("executor", ROWS, indirect=True)
def test_errors_with_constructors_of_their_own_keep_their_sentence(executor):
    with pytest.raises(DitherError, match=r"^layer 'blocks\.0' cannot have 5 bits$"):
        list(executor.map(Refusing(), [{"bits": 5}]))


@pytest.mark.parametrize("executor", OUTLIVE_WORKERS, indirect=True)
def test_the_death_of_a_worker_costs_its_own_job_an_attempt_and_harms_no_other(executor, tmp_path):
    jobs = [{"seed": i, "do": {1: "die", 3: "die once", 5: "hang once"}.get(i, "draw")} for i in range(8)]

    def kill():  # from outside, in the midst of job 5
        while not (pids := attempts(tmp_path, jobs[5])):
            time.sleep(0.01)
        os.kill(int(pids[0]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    found = results(executor, Chores(str(tmp_path)), jobs)
    killer.join()
    assert found[1].attempts == 2
    assert found[1].error.startswith("its worker died")
    for seed in (0, 2, 3, 4, 5, 6, 7):
        same(found[seed], seed)
    assert [len(attempts(tmp_path, job)) for job in jobs] == [1, 2, 1, 2, 1, 2, 1, 1]


@pytest.mark.parametrize("executor", OUTLIVE_WORKERS, indirect=True)
def test_closing_the_map_stops_the_workers(executor, tmp_path):
    jobs = [{"seed": 0}, {"seed": 1, "do": "hang once"}]
    with closing(executor.map(Chores(str(tmp_path)), jobs)) as found:
        assert next(found)[0] == jobs[0]
        while not (pids := attempts(tmp_path, jobs[1])):
            time.sleep(0.01)
    gone(int(pids[0]))


def gone(pid):
    """Wait for a process to end; pytest's patience is the limit."""
    for _ in range(6000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} still runs")


@pytest.mark.parametrize("name", ROWS)
def test_no_jobs_need_no_worker(name):
    assert list(ROWS[name].map(Unbuildable(OSError), [])) == []


@pytest.mark.parametrize(
    "make", [InProcess, lambda attempts: Processes(1, 1, attempts), lambda attempts: RayActors(1, attempts)]
)
def test_counts_below_one_are_refused(make):
    with pytest.raises(DitherError, match="is 0: it must be at least 1"):
        make(0)
