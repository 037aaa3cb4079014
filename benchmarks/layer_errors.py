"""``python -m benchmarks.layer_errors``: error of each linear's output, by method, at equal nominal bits and without tuning:
what codes and the passing on of errors do.

    E |y^ - y|^2 / E |y - E y|^2      y^ = W' x + b'     inputs x of the full-precision model

Mean over the quantized linears. Lines are those of ``low_bit``.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dither
from benchmarks.common import RESULTS, command_of, environment, write_result
from benchmarks.components import Line
from benchmarks.low_bit import LINES
from dither.calibrate import observe
from dither.inspection import stored_dtype
from dither.models import Call, adapter_for
from dither.nn import QLinear
from dither.numerics import decode, encode, random_signs, rotate, unrotate
from dither.quantization import Calibration, denoiser_of, plan_ahead, record_calls, resolve_recipe
from dither.sources import open_source
from dither.spec import LinearSpec

CHOSEN = (
    "RTN", "GPTQ", "k-means", "universal words, rotated", "universal words, errors passed on", "+ rotations",
    "+ errors passed on",
)  # fmt: skip
BESIDE = "+ rotations"
BOTH = "+ rotations of outputs too"


class Moments:
    """Mean and second moments of one layer's inputs: a probe, in float64 and for no method's use."""

    def __init__(self) -> None:
        self.count = 0
        self.sum: Tensor | float = 0.0
        self.square: Tensor | float = 0.0

    def update(self, x: Tensor, rows: Tensor) -> None:
        """Read inputs (..., K)."""
        x = x.reshape(-1, x.shape[-1]).double()
        self.count += len(x)
        self.sum = self.sum + x.sum(0)
        self.square = self.square + x.T @ x

    def error(self, dw: Tensor, db: Tensor) -> float:
        """E |dW x + db|^2."""
        assert isinstance(self.sum, Tensor)
        assert isinstance(self.square, Tensor)
        h, m = self.square / self.count, self.sum / self.count
        return float(((dw @ h) * dw).sum() + 2 * db @ (dw @ m) + db.square().sum())

    def spread(self, w: Tensor) -> float:
        """E |W x - E W x|^2."""
        assert isinstance(self.sum, Tensor)
        return self.error(w, -(w @ (self.sum / self.count)))


def watched(model: nn.Module, calls: Sequence[Call]) -> dict[str, Moments]:
    """Moments of every linear's inputs."""
    found = {name: Moments() for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    timeless = [torch.zeros(1, dtype=torch.long)] * len(calls)
    observe(model, calls, {name: (moments,) for name, moments in found.items()}, timeless, lambda _: None)
    return found


def _parts(model: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    w = layer.dequantized() if isinstance(layer, QLinear) else layer.weight
    return w.detach().double(), torch.zeros(len(w)).double() if layer.bias is None else layer.bias.detach().double()


def row(model: str, line: Line, bits: str, seed: int, moments: Mapping[str, Moments]) -> dict[str, Any]:
    """One method."""
    full, made = open_source(model), open_source(model)
    exact, network = denoiser_of(full.pipeline), denoiser_of(made.pipeline)
    dither.quantize(
        made.pipeline, line.recipe, bits, settings=line.settings, seed=seed, storage=stored_dtype(made.weight_files)
    )
    errors = {}
    for name, module in network.named_modules():
        if isinstance(module, QLinear):
            (w, b), (was, bias) = _parts(network, name), _parts(exact, name)
            errors[name] = moments[name].error(w - was, b - bias) / moments[name].spread(was)
    return _told(model, bits, line.name, errors)


def both_sides(model: str, line: Line, bits: str, seed: int, moments: Mapping[str, Moments]) -> dict[str, Any]:
    """The line with outputs rotated as well, which nothing else in dither does: the weight is turned here, and back."""
    pipeline = open_source(model).pipeline
    exact, errors = denoiser_of(pipeline), {}
    kinds = {layer.name: layer.kind for layer in adapter_for(exact).layers(exact)}
    for name, spec in plan_ahead(pipeline, resolve_recipe(line.recipe, bits, line.settings), seed).promised.items():
        assert isinstance(spec, LinearSpec)
        assert spec.weight is not None
        w, b = _parts(exact, name)
        sides = {0: w.shape[0], 1: 0 if kinds[name] == "adaln" else w.shape[1]}  # the stage leaves inputs of modulation
        turned = w.float()
        for side, width in sides.items():
            turned = _turned(turned, side, width, seed, rotate)
        coded = decode(encode(turned, spec.weight), spec.weight, tuple(w.shape))
        for side, width in sides.items():
            coded = _turned(coded, side, width, seed, unrotate)
        errors[name] = moments[name].error(coded.double() - w, torch.zeros_like(b)) / moments[name].spread(w)
    return _told(model, bits, BOTH, errors)


def _told(model: str, bits: str, line: str, errors: Mapping[str, float]) -> dict[str, Any]:
    """A row of the result, from the errors of layers."""
    mean = sum(errors.values()) / len(errors)
    return {"model": model, "bits": bits, "line": line, "layers": len(errors), "mean": float(f"{mean:.4g}")}


def _turned(w: Tensor, side: int, width: int, seed: int, how: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
    if not width:
        return w
    signs = random_signs(width, seed + side)
    return how(w, signs, width) if side else how(w.T, signs, width).T


def measured(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for model in given.models:
        source = open_source(model)
        calls = record_calls(source.pipeline, seed=given.seed + 1)  # not those that methods calibrate on
        moments = watched(denoiser_of(source.pipeline), calls)
        for line in LINES:
            for bits in line.widths:
                if line.name in CHOSEN and bits in given.bits:
                    yield (found := row(model, line, bits, given.seed, moments))
                    print(*found.values(), file=sys.stderr, flush=True)
                if line.name == BESIDE and bits in given.bits:
                    yield (found := both_sides(model, line, bits, given.seed, moments))
                    print(*found.values(), file=sys.stderr, flush=True)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layer_errors", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["zoo:fashion"])
    parser.add_argument("--bits", nargs="+", default=["w2", "w3"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "layer_errors.json")
    return parser


def main(words: list[str]) -> None:
    given = options().parse_args(words)
    torch.set_num_threads(given.threads)
    command = command_of("benchmarks.layer_errors", given, options().parse_args([]), ("models", "bits", "seed"))
    result = {"calibration": vars(Calibration()) | {"prompts": []}, "seed": given.seed, "rows": list(measured(given))}
    write_result(given.output, {**environment(command, given.threads), **result})


if __name__ == "__main__":
    main(sys.argv[1:])
