"""``python -m benchmarks.gpu``: ceilings, layers and whole denoisers on the NVIDIA GPU that is here, in at most nine minutes.

Every cell is checked before it is timed, and every time is a ratio to compiled bfloat16 of the same run. Peers that are not
installed, and cells that time was not left for, stay in the result with the reason. Without a GPU: one sentence, status 2.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, command_of, environment, write_result
from benchmarks.gpu.clock import Budget
from benchmarks.gpu.report import table, with_ratios
from dither.gpu import can_run
from dither.gpu.machine import LEAST, triton_version

MOST = 540.0
PARTS = ("ceilings", "layers", "denoisers")


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--budget", type=float, default=MOST, help="seconds that all may take")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--tune", action="store_true", help="measure tiles first, and keep them")
    given = parser.parse_args(words)
    if not 0 < given.budget <= MOST:
        parser.error(f"--budget {given.budget:g}: it takes more than 0 seconds, and at most {MOST:g}")
    return given


def refusal() -> str | None:
    """Why nothing can be measured here; None if it can."""
    if not torch.cuda.is_available():
        return "there is no CUDA device here, and speeds are measured on one"
    if not can_run(torch.device("cuda")):
        return f"kernels need Triton and a GPU of compute capability {LEAST[0]}.{LEAST[1]}: pip install 'dither[gpu]'"
    return None


def machine() -> dict[str, Any]:
    """The GPU by name, and what drives it."""
    return {
        "device": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "cuda": torch.version.cuda,
        "triton": triton_version(),
    }


def main(words: Sequence[str]) -> int:
    """Exit status: 2 where nothing can be measured."""
    given = parsed(words)
    if why := refusal():
        print(f"error: {why}", file=sys.stderr)
        return 2
    from benchmarks.gpu import denoisers, layers, tiles

    budget = Budget(given.budget)
    result: dict[str, Any] = {"baseline": "torch.compile of the same blocks in bfloat16, in the same run"}
    if given.tune:
        result["tiles"] = tiles.tuned(budget, reserve=0.8 * given.budget)
    if "ceilings" in given.parts:
        result["ceilings"] = layers.attempt(layers.ceilings)
    if "layers" in given.parts:
        result["layers"] = layers.measured(budget, reserve=0.65 * given.budget if "denoisers" in given.parts else 10.0)
    if "denoisers" in given.parts:
        result["denoisers"] = with_ratios(denoisers.measured(budget))
        print(table(result["denoisers"]))
    command = command_of("benchmarks.gpu", given, parsed([]), ["budget", "parts"]) + " --tune" * given.tune
    write_result(given.output, {**environment(command, torch.get_num_threads()), **machine(), **result})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
