"""Measures tiles for the products of the denoisers that are timed: each shape with what follows it in a block."""

from typing import Any

import torch

from benchmarks.gpu.clock import Budget
from benchmarks.gpu.layers import ROWS, SHAPES, arguments, attempt
from dither.gpu import SIGNED, WHOLE
from dither.gpu.tuning import tune_product

AFTER = {"fc1": {"gelu": 1}, "flux fc1": {"gelu": 1}, "proj": {"gated": True}, "fc2": {"gated": True}, "qkv": {}}
"""By linear; a gate comes with a residual."""


def tuned(budget: Budget, reserve: float) -> list[dict[str, Any]]:
    """What was found, for 8-bit and 4-bit weights, in the time that the budget leaves beyond a reserve."""
    found: list[dict[str, Any]] = []
    for rows in ROWS:
        for name, (n, k) in SHAPES.items():
            for title, nibbles in (("int8", WHOLE), ("4 bits", SIGNED)):
                tile: Any = "n/a (no time was left)"
                if budget.left > reserve:
                    given = arguments(rows, n, k, nibbles, device="cuda", **AFTER[name])
                    tile = attempt(lambda given=given: str(tune_product(*given)))  # type: ignore[misc]
                found.append({"layer": name, "rows": rows, "weight": title, "tile": tile})
    torch.cuda.empty_cache()
    return found
