"""``python -m benchmarks.luck``: how much of a difference at few bits is the luck of rounding?

Intervals over pictures say nothing of it: they hold for one set of rounded weights. Here the same recipe is run with other
seeds, so with other signs in its rotations and other calibration noise, and drawn on the same pictures each time. What
differs between seeds is luck, and two recipes differ only by more than that.
"""

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import dither
from benchmarks.common import RESULTS, command_of, environment, write_result
from benchmarks.quality.row import Pictures
from benchmarks.vidit_q import JUDGED, SEARCH
from dither.inspection import stored_dtype
from dither.measure import Asked, Running, compare
from dither.sources import open_source

MODEL, BITS, SEEDS = "zoo:fashion", "w4a8", 4
LIKE_RECIPE = (
    'smooth.weight={"kind":"int","bits":4,"symmetric":false}',
    'smooth.act={"kind":"act","grid":{"kind":"int","bits":8,"symmetric":false}}',
)
"""Grids that the search judges with: those that the recipe will assign."""
RUNS = {"vidit-q": (), "vidit-q, alpha searched": (SEARCH, JUDGED, *LIKE_RECIPE)}


def main() -> int:
    """Always 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.luck", description=__doc__)
    parser.add_argument("-n", type=int, default=64, help="pictures a run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "luck.json")
    given, usual = parser.parse_args(), parser.parse_args([])
    torch.set_num_threads(given.threads)
    pictures = Pictures(n=given.n, steps=10)
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for name, settings in RUNS.items():
            values = [psnr(settings, seed, pictures, Path(work)) for seed in range(SEEDS)]
            rows.append(
                {"run": name, "settings": list(settings), "psnr_db": values, "mean": mean(values), "sd": stdev(values)}
            )
            sys.stderr.write(f"{name}: {values}\n")
    asked = {"model": MODEL, "bits": BITS, "quantize_seeds": list(range(SEEDS)), **asdict(pictures)}
    write_result(
        given.output,
        {**environment(command_of("benchmarks.luck", given, usual, ("n",)), given.threads), **asked, "rows": rows},
    )
    return 0


def psnr(settings: tuple[str, ...], seed: int, pictures: Pictures, work: Path) -> float:
    """Mean PSNR to full precision of a model that was quantized with this seed, on the same pictures as all others."""
    full = open_source(MODEL)
    storage = stored_dtype(full.weight_files)
    dither.quantize(full.pipeline, "vidit-q", BITS, settings=settings, seed=seed, storage=storage)
    target = Path(tempfile.mkdtemp(dir=work)) / "packed"
    dither.save(full.pipeline, target, storage=storage)
    what = Asked(**asdict(pictures), trajectory=0, images=0, speed=False)
    found: dict[str, Any] = compare([target], MODEL, what, Running(store=work / "shards"))["results"][0]
    return float(found["psnr_db"]["mean"])


if __name__ == "__main__":
    sys.exit(main())
