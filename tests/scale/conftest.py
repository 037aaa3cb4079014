"""Workers that start fast, and one Ray for all tests."""

import os
from pathlib import Path

import pytest

import dither.scale

SRC = Path(dither.scale.__file__).parents[1]


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """A folder with a package ``dither`` that has all rooms but no ``__init__``: no torch, so processes start at once."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "dither").mkdir()
    (folder / "dither" / "__init__.py").write_text(f"__path__ = [{str(SRC)!r}]\n")
    return folder


@pytest.fixture
def light_workers(bare, monkeypatch):
    """Spawned processes inherit the path."""
    monkeypatch.syspath_prepend(str(bare))


@pytest.fixture(scope="session")
def ray_settings(bare):
    """The environment of Ray's processes: they find the tests, and write nothing into the home folder."""
    path = os.pathsep.join([str(bare), str(Path(__file__).parents[1])])
    return {"PYTHONPATH": path, "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="session")
def ray(ray_settings):
    """A running Ray with three CPUs."""
    ray = pytest.importorskip("ray", reason="needs the extra 'ray'")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_settings.items():
            patch.setenv(name, value)
        ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield ray
        ray.shutdown()
