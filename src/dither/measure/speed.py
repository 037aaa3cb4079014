"""Time and memory of one denoiser call, quantized against full precision.

Clock times on a shared machine drift by factors, so both models take turns in one process, in another order each round, and
only the ratio within a round counts. A model with a simulated layer gets no ratio: fake quantization is never speed.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from dither.calibrate import record, replay
from dither.evaluation.protocol import Label
from dither.inspection import describe
from dither.sampling import sampler_for
from dither.sources import Source

__all__ = ["median_interval", "memory", "speed", "take_turns"]

ROUNDS = 11


def speed(
    small: Source, full: Source, labels: Sequence[Label], seeds: Sequence[int], guidance: float
) -> dict[str, Any]:
    """How many times faster a denoiser call of these pictures is, with a 95% interval of the median ratio of rounds."""
    rows = describe(small.model, small.adapter)
    simulated = sum(bool(row["simulated"]) for row in rows)
    found: dict[str, Any] = {
        "ratio": None,
        "ci95": None,
        "rounds": ROUNDS,
        "batch_size": len(labels),
        "against": str(next(full.model.parameters()).dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "reason": None,
    }
    if simulated:
        return {**found, "reason": f"{simulated} layers run simulated: their time says nothing"}
    sampler = sampler_for(full.pipeline, 1, guidance, len(labels))
    call = record(full.model, lambda: sampler(labels, seeds), limit=1)[0]
    ratios = take_turns(lambda: replay(full.model, call), lambda: replay(small.model, call), ROUNDS)
    return {**found, "ratio": float(np.median(ratios)), "ci95": list(median_interval(ratios))}


def take_turns(a: Callable[[], object], b: Callable[[], object], rounds: int) -> list[float]:
    """Time of ``a`` over time of ``b`` in each round; each goes first in every other round, and once unmeasured."""
    a(), b()
    ratios = []
    for i in range(rounds):
        seconds = {}
        for name, run in (("a", a), ("b", b)) if i % 2 else (("b", b), ("a", a)):
            started = time.perf_counter()
            run()
            seconds[name] = time.perf_counter() - started
        ratios.append(seconds["a"] / seconds["b"])
    return ratios


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Interval of the median from order statistics: it assumes no distribution, and covers at least ``level``."""
    ordered = sorted(values)
    n = len(ordered)
    below = int(stats.binom.ppf((1 - level) / 2, n, 0.5))  # P(fewer than this many values lie below the median)
    low = max(0, below - 1)
    return ordered[low], ordered[n - 1 - low]


def memory(small: nn.Module, full: nn.Module) -> dict[str, Any]:
    """Bytes of all tensors of both networks as they are loaded."""
    ours, theirs = (sum(t.numel() * t.element_size() for t in _tensors(model)) for model in (small, full))
    return {"weight_bytes": ours, "full_precision_weight_bytes": theirs, "ratio": theirs / ours}


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    """Each storage once: some models share tensors."""
    return list({t.untyped_storage().data_ptr(): t for t in (*model.parameters(), *model.buffers())}.values())
