"""What is particular to processes of this machine."""

import os
import sys
from contextlib import closing
from types import SimpleNamespace

import pytest
from chores import Chores, Stillborn, Threads

from dither.errors import DitherError
from dither.scale import Processes


def test_processes_that_die_at_birth_end_the_run(light_workers):
    with pytest.raises(DitherError, match=r"^3 workers in a row died before they began to work: exit code 3$"):
        list(Processes(1, 1).map(Stillborn(), [{"seed": 0}]))


def test_a_worker_that_cannot_be_imported_ends_the_run(light_workers, monkeypatch):
    lost = type("Lost", (), {"__module__": "nowhere"})
    monkeypatch.setitem(sys.modules, "nowhere", SimpleNamespace(Lost=lost))  # here only
    with pytest.raises(DitherError, match="a worker could not start: ModuleNotFoundError: No module named 'nowhere'"):
        list(Processes(1, 1).map(lost(), [{"seed": 0}]))


def test_threads_reach_torch_and_the_environment_stays(monkeypatch):
    """With the whole package, as users have it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    [(_, arrays)] = Processes(1, 1).map(Threads(), [{"seed": 0}])
    assert arrays["threads"] == 1
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert "MKL_NUM_THREADS" not in os.environ


def test_large_arrays_arrive(light_workers, tmp_path):
    with closing(Processes(2, 1).map(Chores(str(tmp_path)), [{"seed": 3_000_000}])) as results:
        [(_, arrays)] = results
    assert arrays["big-endian"].nbytes == 12_000_000
    assert arrays["big-endian"][-1] == 2_999_999
