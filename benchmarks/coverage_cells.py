"""The cells of ``coverage``: a population, a number of pictures, an interval, and the truth that it should hold."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from benchmarks import populations
from benchmarks.coverage_cell import Cell, inside
from benchmarks.coverage_guards import FEW_CHANGES, guard_cells
from benchmarks.populations import CHANGES, DIMENSION, Rng
from dither.evaluation import frechet, frechet_pairs, intervals, ranking
from dither.evaluation.sequences import ConfidenceSequence

FRECHET = ("frechet", "frechet_pairs")
LOOKS, LOOK = 64, 16  # a search that looks after every 16 pictures, 64 times
RECIPES = 6
NOTHING_TO_REAL = "a tenth too wide where nothing differs: influences then hold more noise than the distances do"
ALL_LOOKS = "wide on purpose: it holds at any number of looks, of which these are but some"


# Values per picture: shape, mean. PSNR is skewed to low values, SSIM ends at 1, differences of pairs are near normal.
VALUES: Mapping[str, tuple[str, Callable[[Rng, int], Any], float]] = {
    "psnr": ("symmetric", lambda rng, n: rng.normal(35, 4, n), 35.0),
    "psnr skewed": ("skewed to bad pictures", lambda rng, n: 40 - rng.gamma(2, 3, n), 34.0),
    "psnr hard": (
        "one in ten broken",
        lambda rng, n: np.where(rng.random(n) < 0.1, 15, 35) + rng.normal(0, 2, n),
        33.0,
    ),
    "ssim": ("near 1", lambda rng, n: rng.beta(18, 2, n), 0.9),
    "psnr difference": ("of two recipes", lambda rng, n: rng.gumbel(size=n) - rng.gumbel(size=n), 0.0),
}
WHAT = {"psnr": "mean PSNR", "ssim": "mean SSIM"}


def mean_cells() -> dict[str, Cell]:
    cells = {}
    for name, (case, sample, truth) in VALUES.items():
        # Of 16 pictures one in six sets holds no broken one: no interval can know of what was not seen.
        for n in (64, 256) if name == "psnr hard" else (16, 64, 256):

            def holds(truth: float, rng: Rng, sample: Any = sample, n: int = n) -> bool:
                return inside(intervals.bootstrap_mean_interval(sample(rng, n), seed=int(rng.integers(2**31))), truth)

            what = "paired difference of mean PSNR" if "difference" in name else WHAT[name.split()[0]]
            cells[f"{name}-{n}"] = Cell(what, case, n, holds, lambda truth=truth: truth, ("intervals",))
    for n in (64, 256):

        def clustered(truth: float, rng: Rng, n: int = n) -> bool:
            prompts = np.arange(n) // 4
            x = rng.gumbel(0, 3, n // 4)[prompts] + rng.normal(0, 1, n)
            return inside(intervals.cluster_interval(x, prompts.tolist(), seed=int(rng.integers(2**31))), truth)

        mean = 3 * float(np.euler_gamma)
        cells[f"cluster-{n}"] = Cell(
            "mean over prompts", "4 seeds a prompt", n, clustered, lambda mean=mean: mean, ("intervals",)
        )
    return cells


def accuracy_cells() -> dict[str, Cell]:
    cells = {}
    cases = (("1% change", 0.005, 0.005, 1024), ("5% change", 0.02, 0.03, 256), ("25% worse", 0.01, 0.25, 64))
    for case, gained, lost, enough in cases:
        for n in (64, 256, 1024):

            def holds(truth: float, rng: Rng, p: tuple[float, float] = (gained, lost), n: int = n) -> bool:
                up, down, _ = rng.multinomial(n, [*p, 1 - sum(p)])
                return inside(intervals.paired_proportion_interval(int(up), int(down), n), truth)

            cells[f"accuracy {case}-{n}"] = Cell(
                "class accuracy difference",
                case,
                n,
                holds,
                lambda d=gained - lost: d,
                ("intervals",),
                wide="" if n >= enough else FEW_CHANGES,
            )
    return cells


@cache
def paired_truth(change: str) -> float:
    return populations.paired_truth(CHANGES[change], np.random.default_rng(99))


@cache
def moments(change: str) -> Any:
    return populations.moments(CHANGES[change], np.random.default_rng(98))


def to_real_truth(change: str) -> tuple[float, Any]:
    """Difference of distances to the real pictures, and these as a Gaussian fit."""
    full, quantized, real = moments(change)
    if CHANGES[change].mixed:
        return 0.0, real
    return frechet.frechet_distance(*quantized, *real) - frechet.frechet_distance(*full, *real), real


def frechet_cells() -> dict[str, Cell]:
    cells = {}
    for change in CHANGES:
        for n in (64, 128, 256, 512):

            def paired(truth: float, rng: Rng, change: str = change, n: int = n) -> bool:
                return inside(frechet_pairs.paired_interval(*populations.draw(CHANGES[change], n, rng)), truth)

            def to_real(truth: Any, rng: Rng, change: str = change, n: int = n) -> bool:
                pair = populations.draw(CHANGES[change], n, rng)
                return inside(frechet_pairs.difference_interval(*pair, *truth[1])[1], truth[0])

            about = {"case": f"{change} changed", "n": n, "modules": FRECHET, "dimension": DIMENSION, "costly": True}
            cells[f"fd {change}-{n}"] = Cell(
                what="paired FD to full precision", holds=paired, truth=lambda c=change: paired_truth(c), **about
            )
            cells[f"dfd {change}-{n}"] = Cell(
                what="difference of FD to real pictures",
                holds=to_real,
                truth=lambda c=change: to_real_truth(c),
                wide=NOTHING_TO_REAL if CHANGES[change].mixed else "",
                **about,
            )
    return cells


def sequence_cells() -> dict[str, Cell]:
    shapes = {
        "normal": lambda rng, n: rng.normal(size=n),
        "skewed pairs": lambda rng, n: rng.gamma(2, 3, n) - 1.5 * rng.gamma(2, 2, n),
    }

    def holds(truth: float, rng: Rng, sample: Any) -> bool:
        sequence, x = ConfidenceSequence(), sample(rng, LOOK * LOOKS)
        for start in range(0, len(x), LOOK):
            sequence.add(x[start : start + LOOK])
            interval = sequence.interval()
            if interval is not None and not inside(interval, truth):
                return False
        return True

    return {
        f"sequence {name}": Cell(
            "confidence sequence, all looks",
            f"{name}, a look every {LOOK}",
            LOOK * LOOKS,
            lambda truth, rng, s=sample: holds(truth, rng, s),
            lambda: 0.0,
            ("sequences",),
            wide=ALL_LOOKS,
        )
        for name, sample in shapes.items()
    }


def ranking_cells() -> dict[str, Cell]:
    cells = {}
    for n in (64, 256):

        def means(truth: float, rng: Rng, n: int = n) -> bool:
            x = 40 - rng.gamma(2, 3, n) - rng.gamma(2, 0.5, (RECIPES, n))
            found = ranking.pairwise(x, seed=int(rng.integers(2**31)))
            return all(inside(pair.ci95, truth) for pair in found)

        cells[f"ranks psnr-{n}"] = Cell(
            "ranks by PSNR, all pairs at once",
            f"{RECIPES} equal recipes",
            n,
            means,
            lambda: 0.0,
            ("ranking",),
            costly=True,
        )
    for n in (128, 256):

        def distances(truth: float, rng: Rng, n: int = n) -> bool:
            full, recipes = populations.draw_recipes(CHANGES["slight"], 3, n, rng)
            found = ranking.pairwise_frechet([frechet_pairs.estimate_distance(full, x) for x in recipes])
            return all(inside(pair.ci95, truth) for pair in found)

        cells[f"ranks fd-{n}"] = Cell(
            "ranks by FD, all pairs at once",
            "3 equal recipes",
            n,
            distances,
            lambda: 0.0,
            (*FRECHET, "ranking"),
            DIMENSION,
            True,
        )
    return cells


CELLS: Mapping[str, Cell] = (
    mean_cells() | accuracy_cells() | frechet_cells() | guard_cells() | sequence_cells() | ranking_cells()
)
