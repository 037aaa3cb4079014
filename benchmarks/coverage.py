"""Does a 95% interval hold in 95% of the cases? Simulated for every interval that results print.

Each cell draws samples of one population many times, takes the interval as the results do, and counts how often it holds
the truth. A coverage of 92 to 98% counts as right. Cells that are refused for too few pictures say so. Blocks of repeats
are kept in a folder, under what determines them, so that an interrupted run goes on.

The populations are not those that the intervals were chosen on, except for two things seen here: that paired Frechet
distances of 2 pictures a dimension, and recall of 128 pictures, held 92% only. How much wider they became was then decided
on the others.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, environment, write_result

THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
BLOCK = 50  # repeats kept at a time
RIGHT = (0.92, 0.98)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=800, help="of costly cells; cheap ones get twice as many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="cells whose name holds this; nothing is written to the results")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dither-coverage")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "coverage.json")
    given = parser.parse_args()
    os.environ.update(THREADS)  # before numpy is loaded, here and in the workers
    rows = measure(given.repeats, given.seed, given.processes, given.work, given.only)
    if given.only:
        print(json.dumps(rows, indent=1))
        return
    result = {"level": 0.95, "right": list(RIGHT), "seed": given.seed, "rows": rows}
    write_result(given.output, {**environment("python -m benchmarks.coverage", 1), **result})


def measure(repeats: int, seed: int, processes: int, work: Path, only: str = "") -> list[dict[str, Any]]:
    """Rows of all cells, in their order."""
    from benchmarks.coverage_cells import CELLS

    work.mkdir(parents=True, exist_ok=True)
    cells = {name: cell for name, cell in CELLS.items() if only in name}
    blocks = [(name, block) for name, cell in cells.items() for block in range(_repeats(cell.costly, repeats) // BLOCK)]
    hits: dict[str, list[bool]] = {name: [] for name in cells}
    refused: dict[str, str] = {}
    for done, (name, found) in enumerate(_run(blocks, seed, processes, work)):
        hits[name] += found["hits"]
        refused |= {name: found["refused"]} if found["refused"] else {}
        print(f"{done + 1}/{len(blocks)} {name}", file=sys.stderr, flush=True)
    return [row(cell.about(), hits[name], refused.get(name)) for name, cell in cells.items()]


def row(about: Mapping[str, Any], hits: Sequence[bool], refused: str | None) -> dict[str, Any]:
    """Coverage of a cell, with its own 95% Monte Carlo interval (Wilson)."""
    from scipy import stats

    if refused is not None:
        empty = {"repeats": 0, "coverage": None, "low": None, "high": None, "right": None}
        return {**about, **empty, "reason": refused}
    interval = stats.binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    coverage = sum(hits) / len(hits)
    return {
        **about,
        "repeats": len(hits),
        "coverage": round(coverage, 4),
        "low": round(float(interval.low), 4),
        "high": round(float(interval.high), 4),
        "right": RIGHT[0] <= coverage and (coverage <= RIGHT[1] or about["reason"] is not None),
    }


def _repeats(costly: bool, repeats: int) -> int:
    return max(BLOCK, repeats if costly else 2 * repeats)


def _run(
    blocks: Sequence[tuple[str, int]], seed: int, processes: int, work: Path
) -> Iterable[tuple[str, dict[str, Any]]]:
    one = partial(_block, seed=seed, work=work)
    if processes == 1:
        yield from map(one, blocks)
        return
    with get_context("spawn").Pool(processes, _quietly) as pool:
        yield from pool.imap(one, blocks)


def _quietly() -> None:
    os.nice(max(0, 10 - os.nice(0)))


def _block(which: tuple[str, int], *, seed: int, work: Path) -> tuple[str, dict[str, Any]]:
    """Some repeats of a cell, computed or read."""
    import numpy as np

    from benchmarks.coverage_cells import CELLS
    from dither.errors import BadValue

    name, block = which
    determined = json.dumps([name, block, BLOCK, seed, _code(CELLS[name].modules)])
    kept = work / f"{hashlib.sha256(determined.encode()).hexdigest()[:20]}.json"
    if kept.is_file():
        return name, json.loads(kept.read_text(encoding="utf-8"))
    found: dict[str, Any] = {"hits": [], "refused": None}
    try:
        truth = CELLS[name].truth()
        for repeat in range(block * BLOCK, (block + 1) * BLOCK):
            key = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
            found["hits"].append(bool(CELLS[name].holds(truth, np.random.default_rng([seed, key, repeat]))))
    except BadValue as too_few:
        found = {"hits": [], "refused": str(too_few)}
    half = kept.with_suffix(f".{os.getpid()}")
    half.write_text(json.dumps(found), encoding="utf-8")
    os.replace(half, kept)
    return name, found


def _code(modules: Sequence[str]) -> str:
    """Changes with the code that decides a block: the measurements' and that of the cells."""
    import dither.evaluation

    room = Path(dither.evaluation.__file__).parent
    names = ("coverage_cell", "coverage_cells", "coverage_guards", "populations")
    here = [Path(__file__).with_name(f"{name}.py") for name in names]
    files = [*(room / f"{name}.py" for name in modules), *here]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


if __name__ == "__main__":
    main()
