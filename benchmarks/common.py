"""What every benchmark shares: where numbers come from, memory of a fresh process, and timing by turns.

Clock times on a shared machine drift by factors, so nothing is timed alone: candidates take turns in one process, each
round in another order, and only ratios within a round are compared. Nothing here imports torch: the memory that a parent
has touched before ``exec`` counts into its child's peak.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("dither", "torch", "diffusers", "safetensors", "numpy")


def environment(command: str, threads: int) -> dict[str, Any]:
    """Provenance of a result: the command that repeats it, machine, versions, day."""
    return {
        "command": command,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "device": "CPU",
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def command_of(module: str, given: argparse.Namespace, usual: argparse.Namespace, names: Sequence[str]) -> str:
    """What repeats a result: of these options, the ones that are not as usual."""
    words = ["python", "-m", module]
    for name in names:
        if (value := getattr(given, name)) != getattr(usual, name):
            values = value if isinstance(value, list) else [value]
            words += [f"-{name}" if len(name) == 1 else f"--{name}", *map(str, values)]
    return shlex.join(words)


def cpu_model() -> str:
    """As the kernel names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Readable JSON, moved into place whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".writing")
    half.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(half, path)
    print(f"wrote {path.name}", file=sys.stderr)


def peak_memory() -> int:
    """Most resident bytes that this process has had; files mapped into memory count while they are resident."""
    return _status("VmHWM")


def resident_memory() -> int:
    """Resident bytes of this process now."""
    return _status("VmRSS")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


@dataclass(frozen=True)
class Resident:
    """Bytes of this process that are in memory.

    Args:
        rss: all of them.
        anonymous: its own.
        file: pages of mapped files, which the system can drop and read again, and share between processes.
        pss: as ``rss``, but pages that other processes have too count as this process's part of them.
        peak: most that ``rss`` has been.
    """

    rss: int
    anonymous: int
    file: int
    pss: int
    peak: int


def resident() -> Resident:
    """Of this process now, by Linux's own count."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    rss, anonymous = 1024 * kib["Rss"], 1024 * kib["Anonymous"]
    return Resident(rss, anonymous, rss - anonymous, 1024 * kib["Pss"], peak_memory())


def bytes_in(folder: Path) -> int:
    """Of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@dataclass(frozen=True)
class Finished:
    """A command that ran in a process of its own: wall seconds, peak resident bytes, standard output."""

    seconds: float
    peak_bytes: int
    output: str


def run(command: Sequence[str], threads: int) -> Finished:
    """Runs a command to its end. Raises CalledProcessError with what it printed when it fails."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    started = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    with process.stdout as stream:
        output = stream.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command), output)
    return Finished(time.perf_counter() - started, usage.ru_maxrss * 1024, output)


def by_turns(
    candidates: Mapping[str, Callable[[], object]], rounds: int, at_least: float = 0.02
) -> dict[str, list[float]]:
    """Seconds of one call of each candidate, once a round, in an order that alternates.

    Args:
        candidates: by name.
        rounds: how often each is timed, after one warm-up.
        at_least: seconds that one timing should take; short calls are repeated within it.
    """
    repeats = {name: max(1, round(at_least / max(seconds_of(call), 1e-6))) for name, call in candidates.items()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for i in range(rounds):
        for name in names if i % 2 == 0 else reversed(names):
            times[name].append(seconds_of(candidates[name], repeats[name]))
    return times


def seconds_of(call: Callable[[], object], repeats: int = 1) -> float:
    """Mean of some calls in a row."""
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


def speedup(times: Mapping[str, Sequence[float]], name: str, baseline: str) -> dict[str, float]:
    """How many times faster than the baseline: median and quartiles of the ratios within each round."""
    ratios = [b / t for b, t in zip(times[baseline], times[name], strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return {"median": round(median(ratios), 3), "q25": round(low, 3), "q75": round(high, 3)}


def milliseconds(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Medians."""
    return {name: round(1000 * median(values), 3) for name, values in times.items()}
