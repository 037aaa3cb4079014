"""What is shipped: metadata, a wheel that lacks nothing, pins that cover everything, and the two commands."""

import importlib.metadata
import itertools
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dither

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/dither"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
MEGABYTES = 10**6


def pins(python: str) -> dict[str, str]:
    """Package to exact version, for one version of Python on Linux."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"python_version": python}):
            continue
        (only,) = requirement.specifier
        assert only.operator == "==", line
        name = canonicalize_name(requirement.name)
        assert name not in found, f"{name} is pinned twice for Python {python}"
        found[name] = only.version
    return found


def test_one_version():
    assert dither.__version__ == PROJECT["version"] == importlib.metadata.version("dither")


def test_licence():
    assert PROJECT["license"] == "Apache-2.0"
    assert all((ROOT / name).is_file() for name in PROJECT["license-files"])
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_console_script():
    assert PROJECT["scripts"] == {"dither": "dither.cli:main"}
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="dither")
    assert callable(entry.load())
    script = Path(sys.executable).with_name("dither")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"dither {dither.__version__}"


def test_the_wheel_lacks_nothing(tmp_path):
    """Built apart from the working tree, so that nothing there is reused or left behind."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "src/dither", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("dither/")}
    assert inside == {
        path.relative_to(tmp_path / "src").as_posix() for path in (tmp_path / "src/dither").rglob("*") if path.is_file()
    }
    assert {"dither/py.typed", "dither/report/templates/page.html", "dither/report/static/base.css"} <= inside
    assert "dither/zoo/weights/fashion/transformer/diffusion_pytorch_model.safetensors" in inside


def test_the_zoo_stays_small():
    files = [path for path in (PACKAGE / "zoo/weights").rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) <= 20 * MEGABYTES


UNPINNED = {"fid", "lpips"}
"""They need a torchvision built for the user's own torch, which no pin can know; the README's commands install neither."""


@pytest.mark.parametrize("python", PYTHONS)
def test_pins_cover_what_is_asked_for(python):
    pinned = pins(python)
    extras = (lines for name, lines in PROJECT["optional-dependencies"].items() if name not in UNPINNED)
    for line in itertools.chain(PROJECT["dependencies"], *extras):
        asked = Requirement(line)
        if asked.marker is None or asked.marker.evaluate({"python_version": python}):
            assert asked.specifier.contains(pinned[canonicalize_name(asked.name)]), line


def test_pins_cover_what_that_asks_for():
    """Everything that our requirements need here in turn. What torch pins exactly itself is left to it."""
    pinned = pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    asked = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]]
    open_names = [canonicalize_name(r.name) for r in asked if r.marker is None or r.marker.evaluate()]
    seen: set[str] = set()
    while open_names:
        name = open_names.pop()
        if name in seen:
            continue
        seen.add(name)
        assert name in pinned, f"{name} is installed for dither, and constraints.txt does not pin it"
        for line in importlib.metadata.requires(name) or ():
            needed = Requirement(line)
            wanted = needed.marker is None or needed.marker.evaluate({"extra": ""})
            exact = name == "torch" and any(part.operator == "==" for part in needed.specifier)
            if wanted and not exact and not needed.name.startswith(("nvidia", "cuda", "triton")):
                open_names.append(canonicalize_name(needed.name))


def test_pre_commit_runs_the_pinned_ruff():
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.search(r"rev: v(\S+)", text).group(1) == pins("3.12")["ruff"]


def test_the_two_commands_of_the_readme_exist_and_ci_runs_them():
    readme, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
    ci = ROOT / ".ci/run"
    assert os.access(ci, os.X_OK)
    for target in ("demo", "test"):
        assert re.search(rf"^make {target}\b", readme, re.MULTILINE)
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
        assert re.search(rf"^\s*make {target}\b", ci.read_text(encoding="utf-8"), re.MULTILINE)
