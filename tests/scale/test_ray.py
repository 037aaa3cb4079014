"""What is particular to Ray. What it shares with the others is in ``test_every_executor.py``."""

import os
import subprocess
import sys

import pytest
from chores import Chores

from dither.errors import DitherError
from dither.scale import RayActors


def test_ray_is_optional_and_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DitherError, match=r"needs the extra 'ray': pip install 'dither\[ray\]'"):
        list(RayActors(1, 1).map(Chores(""), [{"seed": 0}]))


def test_a_ray_that_was_there_stays(ray, tmp_path):
    [(_, arrays)] = RayActors(1, 1).map(Chores(str(tmp_path)), [{"seed": 0}])
    assert arrays["scalar"] == 0
    assert ray.is_initialized()


ALONE = """
import os, sys
from chores import Chores
from dither.scale import RayActors
[(job, arrays)] = RayActors(1, 1).map(Chores(sys.argv[1]), [{"seed": 7}])
import ray
print(arrays["scalar"], ray.is_initialized(), "RAY_USAGE_STATS_ENABLED" in os.environ)
"""


def test_a_ray_of_its_own_is_started_and_shut_down(ray_settings, tmp_path):
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    unset = ("RAY_USAGE_STATS_ENABLED", "RAY_ADDRESS")
    settings = {k: v for k, v in (os.environ | ray_settings).items() if k not in unset}
    command = [sys.executable, "-W", "error", "-c", ALONE, str(tmp_path)]
    run = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert run.stdout == "7 False False\n", run.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999", "nonsense"])
def test_a_cluster_that_does_not_answer_is_named(address, monkeypatch):
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # the one of the other tests would be used
    with pytest.raises(DitherError, match=f"^cannot use Ray at '{address}': "):
        list(RayActors(1, 1, address=address).map(Chores(""), [{"seed": 0}]))


def test_no_place_for_a_worker_is_said_and_not_waited_for(ray, tmp_path):
    with pytest.raises(DitherError, match=r"no place for a worker within 0\.1 s: the cluster has 3 CPU and 0 GPU"):
        list(RayActors(1, 1, gpus=64, patience_s=0.1).map(Chores(str(tmp_path)), [{"seed": 0}]))
