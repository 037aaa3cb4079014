"""``python -m benchmarks.regions``: what two regions do to the values themselves, before any picture is drawn.

    softmax    error of  A V  when A is rounded          relative: ||A' V - A V||^2 / ||A V||^2
    GELU       error of  x W^T  when x is rounded        of the feed-forward block's second linear

on values that the models' own samplers make, in full precision but for what is rounded. One row a way of rounding:

    overlapping    as both releases compute it: x' = Q2(clamp(x, split, 1)) + Q1(clamp(x, 0, split)), so that values above the
                   split are off by it; the split of least error
    disjoint       the regions share nothing; the upper one ends at 1
    calibrated     disjoint, and the upper one ends at the largest probability of the layer
    shift          calibrated, with a power of two between the steps
    one range      unsigned integers, one range a layer
    per row        unsigned integers, a range for each row, found as the model runs
    log2           powers of two below the largest value
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import RESULTS, command_of, environment, write_result
from dither.calibrate import observe
from dither.models import adapter_for
from dither.models.attentions import attentions_of
from dither.models.base import linear_at
from dither.nn import Clock, QAttention, attention_tensors, widths_of
from dither.numerics import Table, act_quantize, dynamic_table, range_table
from dither.quantization import Calibration, record_calls
from dither.spec import AttentionSpec, Grid, Int, Log2, TwoRegion
from dither.stages.splits import SPLITS, best_split
from dither.zoo import load

MODELS = ("fashion", "fashion-hard")
BITS = (8, 6)
CALLS = 8
SAMPLES = 8


class Kept:
    """A probe that keeps everything: calls are few."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def update(self, x: Tensor, rows: Tensor) -> None:
        """Take in one call's input."""
        self.parts.append(x.detach().clone())


def overlapping(x: Tensor, bits: int) -> Tensor:
    """As released, with the split of least error of x itself."""
    most = (1 << bits - 1) - 1

    def of(split: float) -> Tensor:
        low, high = x.clamp(0, split), x.clamp(split, 1)
        return torch.round(low / (split / most)) * (split / most) + torch.round(high * most) / most

    return min((of(0.5**i) for i in range(SPLITS)), key=lambda y: float((y - x).square().sum()))


def by_table(grid: Grid, make: Callable[[Tensor], Table]) -> Callable[[Tensor], Tensor]:
    return lambda x: act_quantize(x, grid, make(x))


def ends(grid: Grid) -> Callable[[Tensor], Table]:
    """Ranges of the whole tensor."""
    return lambda x: range_table(x.amin().reshape(1, 1), x.amax().reshape(1, 1), grid)


def split(grid: TwoRegion, top: float = 0.0) -> Callable[[Tensor], Table]:
    return lambda x: best_split(x, torch.tensor(top) if top else x.amax(), grid)


def softmax_ways(bits: int) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """x -> x rounded; x are probabilities (..., M)."""
    two, shift, one = TwoRegion(bits), TwoRegion(bits, shift=True), Int(bits, False)
    return {
        "overlapping": lambda x: overlapping(x, bits),
        "disjoint": by_table(two, split(two, 1.0)),
        "calibrated": by_table(two, split(two)),
        "shift": by_table(shift, split(shift)),
        "one range": by_table(one, ends(one)),
        "per row": by_table(one, lambda x: dynamic_table(x, one)),
        "log2": by_table(Log2(bits), ends(Log2(bits))),
    }


def gelu_ways(bits: int) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """x -> x rounded; x are values behind a GELU (..., K)."""
    two, one = TwoRegion(bits, signed=True), Int(bits, False)
    return {
        "disjoint": by_table(two, ends(two)),
        "one range": by_table(one, ends(one)),
        "per row": by_table(one, lambda x: dynamic_table(x, one)),
        "two regions per row": by_table(two, lambda x: dynamic_table(x, two)),
    }


def share(got: Tensor, want: Tensor) -> float:
    """Squared error over squared size."""
    return float((got - want).double().square().sum() / want.double().square().sum())


def measured(name: str, seed: int) -> list[dict[str, Any]]:
    """Rows of a model: the mean and the worst over its layers."""
    pipe = load(name)
    model, adapter = pipe.transformer, adapter_for(pipe.transformer)
    calls = record_calls(pipe, calibration=Calibration(samples=SAMPLES, calls=CALLS), seed=seed)
    attentions = [a.name for a in attentions_of(model)]
    for attention in attentions:
        module = model.get_submodule(attention)
        QAttention(AttentionSpec(), widths_of(module), Clock()).attach(module)
    second = [layer.name for layer in adapter.layers(model) if layer.kind == "fc2"]
    places = [f"{attention_tensors(a)}{part}" for a in attentions for part in ("probs", "v")]
    kept = {place: Kept() for place in (*places, *second)}
    rows = [torch.zeros(len(adapter.noise_level(model, call)), dtype=torch.int64) for call in calls]
    observe(model, calls, {place: (probe,) for place, probe in kept.items()}, rows, lambda _: None)
    found = []
    for bits in BITS:
        for word, way in softmax_ways(bits).items():
            losses = []
            for attention in attentions:
                head = attention_tensors(attention)
                a = torch.cat(kept[f"{head}probs"].parts)  # (B, H, N, M)
                v = torch.cat(kept[f"{head}v"].parts).unflatten(2, (a.shape[1], -1)).transpose(1, 2)  # (B, H, M, d)
                losses.append(share(way(a) @ v, a @ v))
            found.append(row(name, "softmax", word, bits, losses))
        for word, way in gelu_ways(bits).items():
            losses = []
            for layer in second:
                x, w = torch.cat(kept[layer].parts), linear_at(model, layer).weight
                losses.append(share(way(x) @ w.T, x @ w.T))
            found.append(row(name, "GELU", word, bits, losses))
    return found


def row(model: str, of: str, way: str, bits: int, losses: list[float]) -> dict[str, Any]:
    mean = sum(losses) / len(losses)
    return {
        "model": f"zoo:{model}", "of": of, "way": way, "bits": bits, "layers": len(losses),
        "mean": float(f"{mean:.4g}"), "worst": float(f"{max(losses):.4g}"),
    }  # fmt: skip


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regions", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "regions.json")
    return parser


def main(words: list[str]) -> None:
    given = options().parse_args(words)
    torch.set_num_threads(given.threads)
    torch.set_grad_enabled(False)
    command = command_of("benchmarks.regions", given, options().parse_args([]), ("seed",))
    rows = [found for model in MODELS for found in measured(model, given.seed)]
    calibration = {"samples": SAMPLES, "calls": CALLS, "steps": Calibration().steps, "seed": given.seed}
    write_result(given.output, {**environment(command, given.threads), "calibration": calibration, "rows": rows})


if __name__ == "__main__":
    main(sys.argv[1:])
