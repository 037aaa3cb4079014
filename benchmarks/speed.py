"""Integer kernels against float32, bfloat16 and what torch itself has: how many times faster, by turns in one process.

Ratios are between modules that compute the same thing on the same machine at the same time. Layers that run simulated are
never timed.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, environment, run, write_result
from benchmarks.xl import last_json
from dither.kernels import means

CASES = "benchmarks.speed_cases"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "speed.json")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for threads in given.threads:
        command = [sys.executable, "-m", CASES, "--threads", str(threads), "--rounds", str(given.rounds)]
        rows += [{"threads": threads, **row} for row in last_json(run(command, threads))]
    result = {
        "baselines": "the same module in eager torch: float32, and bfloat16 with bfloat16 inputs; compiled by torch.compile; "
        "and with linears of torch.ao.quantization.quantize_dynamic, whose inputs have one range for all tokens",
        "method": f"{given.rounds} rounds in alternating order; median and quartiles of the ratios within a round",
        "kernels": "cpu_int8, modulation linears cpu_decode; without native code int8_mm and dequantize",
        "instructions": means(),
        "rows": rows,
    }
    write_result(given.output, {**environment("python -m benchmarks.speed", max(given.threads)), **result})


if __name__ == "__main__":
    main()
