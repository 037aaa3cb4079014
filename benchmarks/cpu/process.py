"""What ``benchmarks.cpu`` runs in a fresh process for each part and number of threads: rows of the result, one by one."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import write_result
from benchmarks.cpu.attention_sizes import attention_cases
from benchmarks.cpu.layers import layer_cases
from benchmarks.cpu.models import model_cases, zoo_cases
from benchmarks.cpu.peers import PEERS
from benchmarks.cpu.turns import Case, Ready, measure, ready
from dither.kernels import means

__all__ = ["CASES", "rows"]

CASES: Mapping[str, Callable[[], Iterator[Case]]] = {
    "layers": layer_cases,
    "models": model_cases,
    "zoo": zoo_cases,
    "attention": attention_cases,
}
"""Parts that are timed, and their cases."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=CASES)
    parser.add_argument("target", type=Path, help="a result of rows; those that it has already are kept")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # what is compiled must not run eagerly without a word
    found = json.loads(given.target.read_text(encoding="utf-8"))["rows"] if given.target.exists() else []
    cases = (case for case in CASES[given.part]() if given.cases in case.name)
    with torch.no_grad():
        for row in rows(cases, given.rounds, {row["case"] for row in found}):
            found.append({"threads": given.threads, **row})
            write_result(given.target, {"instructions": means(), "peers": peers(), "rows": found})


def rows(cases: Iterator[Case], rounds: int, done: set[str]) -> Iterator[dict[str, Any]]:
    """A row for each case that is not done; cases of one module share its candidates."""
    made: tuple[Case, Ready] | None = None
    for case in cases:
        if case.name in done:
            continue
        started = time.monotonic()
        if made is None or made[0].module is not case.module:
            made = None  # before the next ones take memory
            made = case, ready(case)
        built = time.monotonic()
        yield measure(case, made[1], rounds)
        now = time.monotonic()
        sys.stderr.write(f"{case.name}: {built - started:.0f} s to build and check, {now - built:.0f} s by turns\n")


def peers() -> dict[str, Any]:
    """What is asked of each, and the versions of its packages that are installed."""
    return {peer.name: {"how": peer.how, "versions": peer.versions()} for peer in PEERS}


if __name__ == "__main__":
    main()
