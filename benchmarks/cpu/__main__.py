"""``python -m benchmarks.cpu``: measures the parts that are asked for, a process for each number of threads.

Finished rows are kept under ``--work``, so that the same command goes on after an interruption.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, command_of, environment, write_result

PARTS = ("layers", "models", "zoo", "attention", "memory")
TIMED = PARTS[:4]
ROUNDS = 7


def main() -> None:
    given = parsed(sys.argv[1:])
    for part in given.only:
        started = time.monotonic()
        target = given.output / f"cpu_{part}.json"
        if part in TIMED:
            write_result(target, {**provenance(given, part), **timed(given, part)})
        else:
            from benchmarks.cpu.memory import measured

            write_result(target, {**provenance(given, part), **measured(given.work, max(given.threads), given.blocks)})
        print(f"{part}: {(time.monotonic() - started) / 60:.1f} minutes", file=sys.stderr)


def parsed(words: list[str]) -> argparse.Namespace:
    """Options, with the committed results' as defaults."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--cases", default="", help="of the timed parts, only cases whose name contains this")
    parser.add_argument("--blocks", type=int, default=28, help="of memory's model: fewer, to try it")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dither-cpu")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args(words)
    if given.rounds < 2:
        parser.error("--rounds: quartiles need at least 2")
    return given


def provenance(given: argparse.Namespace, part: str) -> dict[str, Any]:
    """What repeats this part, and where it was measured."""
    options = ("threads", "rounds", "cases") if part in TIMED else ("threads", "blocks")
    words = command_of("benchmarks.cpu", given, parsed([]), options).split(" ", 3)
    command = " ".join([*words[:3], "--only", part, *words[3:]])
    return environment(command, max(given.threads))


def timed(given: argparse.Namespace, part: str) -> dict[str, Any]:
    """All rows of a part, those of one thread first."""
    found: dict[str, Any] = {}
    rows = []
    work = given.work / f"{part}-{given.rounds}-rounds"
    for threads in given.threads:
        target = work / f"{threads}-threads.json"
        command = [sys.executable, "-m", "benchmarks.cpu.process", part, str(target)]
        command += ["--threads", str(threads), "--rounds", str(given.rounds), "--cases", given.cases]
        subprocess.run(command, env=alone(threads), check=True)
        found = json.loads(target.read_text(encoding="utf-8"))
        rows += [row for row in found["rows"] if given.cases in row["case"]]
    shutil.rmtree(work)
    return {
        "baselines": "the same module in eager torch: float32, and bfloat16 with bfloat16 inputs",
        "method": f"{given.rounds} rounds in alternating order; median and quartiles of the ratios within a round",
        "instructions": found["instructions"],
        "peers": found["peers"],
        "rows": rows,
    }


def alone(threads: int) -> dict[str, str]:
    """Environment of a process of this many threads, whose waiting ones leave the others the CPU."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}


if __name__ == "__main__":
    main()
