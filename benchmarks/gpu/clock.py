"""Time on a GPU: of a captured graph that is replayed, and of plain calls; and how much of the budget is left."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Budget:
    """Seconds that all may take, from now on."""

    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)


@dataclass(frozen=True)
class Time:
    """Milliseconds of one call: median, and quartiles' distance."""

    median: float
    spread: float

    def told(self) -> dict[str, float]:
        return {"ms": round(self.median, 5), "iqr": round(self.spread, 5)}


def of(milliseconds: list[float]) -> Time:
    low, middle, high = statistics.quantiles(milliseconds, n=4, method="inclusive")
    return Time(middle, high - low)


def replayed(call: Callable[[], Any], rounds: int = 20, inner: int = 1) -> Time:
    """A CUDA graph of ``inner`` calls, replayed: what launching costs is not in it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(inner):
            call()
    graph.replay()
    torch.cuda.synchronize()
    return of([_between(graph.replay) / inner for _ in range(rounds)])


def called(call: Callable[[], Any], rounds: int = 7) -> Time:
    """Plain calls, with what launching them costs."""
    call()
    return of([_between(call) for _ in range(rounds)])


def _between(call: Callable[[], Any]) -> float:
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    call()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last))
