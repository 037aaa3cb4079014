"""Whatever is killed, whenever: what is resumed is bit-identical to what was never disturbed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.kills import Trial, contents, steady, workers_of

DRIVER = Path(__file__).with_name("driver.py")
JOBS = 80


def command(work):
    return [sys.executable, str(DRIVER), str(work / "store"), str(work / "log"), str(JOBS)]


@pytest.fixture
def path(bare, monkeypatch):
    """Drivers find the room and the chores, and start without torch."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(bare), str(DRIVER.parents[1])]))


def test_twenty_kills_of_a_worker_and_then_of_the_run(path, tmp_path):
    trial = Trial(command, lambda work: None, longest_s=0.4)
    wanted = trial.finish(tmp_path)
    assert len(wanted[0]) == JOBS
    found = trial.disturbed(tmp_path / "disturbed", 20, 0, wanted)
    assert found["driver_kills"] == 20
    assert found["identical"] == found["results"] >= 1
    assert found["orphans"] == 0
    assert found["worker_kills"] >= 20
    assert any(0 < r["stored"] < JOBS for r in found["rounds"])  # kills struck in the midst of work


def test_ctrl_c_stops_the_workers_and_keeps_what_is_done(path, tmp_path):
    with subprocess.Popen(
        [*command(tmp_path)[:-1], "100000"], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        while not contents(tmp_path / "store"):
            time.sleep(0.01)
        workers = workers_of(psutil.Process(run.pid))
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to all of them
        _, errors = run.communicate()
    assert run.returncode == -signal.SIGINT
    assert len(workers) == 2
    assert psutil.wait_procs(workers, 60)[1] == []
    assert errors.count("Traceback") == 1  # the driver's own
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert contents(tmp_path / "store")


def test_two_runs_may_share_a_store(path, tmp_path):
    runs = [subprocess.Popen(command(tmp_path), stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert len(contents(tmp_path / "store")) == JOBS
    assert list((tmp_path / "store" / ".half").iterdir()) == []
    again = subprocess.run(command(tmp_path), stdout=subprocess.PIPE, text=True, check=True)
    assert again.stdout == "0\n"  # every file is whole


def test_steady_results_have_no_times():
    assert steady({"a": [{"date": 1, "b": 2}], "speed": {"ratio": 3}}) == {"a": [{"b": 2}]}
