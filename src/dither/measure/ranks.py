"""Ranks of several results, as far as their pictures can tell them apart: all intervals hold at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dither.evaluation.frechet_pairs import estimate_distance, needed_samples
from dither.evaluation.judge import Judge
from dither.evaluation.ranking import Difference, pairwise, pairwise_frechet, ranks_of

__all__ = ["compared", "ranks"]


def compared(model: str, results: Sequence[dict[str, Any]], judges: Sequence[Judge], command: str) -> dict[str, Any]:
    """The contents of a comparison file."""
    whole = {"schema": 2, "kind": "compare", "model": model, "results": list(results)}
    return {**whole, **ranks(judges), "command": command}


def ranks(judges: Sequence[Judge]) -> dict[str, Any]:
    """``ranks`` and ``pairs`` of a comparison file.

    ``ranks[METRIC][i]`` is [best, worst], the ranks that result i may have; ``pairs`` lists every difference, result a minus
    result b, with its interval. Only results of the same pictures are compared: where jobs failed, those that all have.
    A Frechet distance is ranked by the first features, where there are pictures enough.
    """
    if len(judges) < 2:
        return {"ranks": {}, "pairs": []}
    shared = set.intersection(*(set(judge.seeds) for judge in judges))
    rows = [[row for row, seed in enumerate(judge.seeds) if seed in shared] for judge in judges]
    if len(shared) < 2:
        return {"ranks": {}, "pairs": []}
    psnr = np.stack([judge.psnr()[row] for judge, row in zip(judges, rows, strict=True)])  # (K, N)
    ssim = np.stack([judge.ssim()[row] for judge, row in zip(judges, rows, strict=True)])
    found = {"psnr_db": (pairwise(psnr), True), "ssim": (pairwise(ssim), True)}
    tables = [judge.tables()[0] for judge in judges if judge.tables()]
    if tables and len(shared) >= needed_samples(tables[0].full().features.shape[1]):
        estimates = [
            estimate_distance(table.full().features[row], table.quantized().features[row])
            for table, row in zip(tables, rows, strict=True)
        ]
        found["fd"] = (pairwise_frechet(estimates), False)
    return {
        "ranks": {
            metric: [list(range_) for range_ in ranks_of(pairs, len(judges), higher_is_better=higher)]
            for metric, (pairs, higher) in found.items()
        },
        "pairs": [_row(metric, pair) for metric, (pairs, _) in found.items() for pair in pairs],
    }


def _row(metric: str, pair: Difference) -> dict[str, Any]:
    return {
        "metric": metric,
        "a": pair.a,
        "b": pair.b,
        "difference": pair.difference,
        "ci95": list(pair.ci95),
        "distinguishable": pair.distinguishable,
    }
