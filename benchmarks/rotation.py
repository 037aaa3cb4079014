"""What an online rotation costs on the integer kernels: the linears of a DiT-XL/2 block with it and without, by turns.

Each number is the time of the layers with a transform of their input over that of the same layers without, within a round:
1.10 is a tenth more. q, k and v read one tensor, which is transformed once for the three. Every call gets another input
than the one before, because a layer knows the last input again.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import RESULTS, by_turns, command_of, environment, milliseconds, speedup, write_result
from dither.kernels import choose, named
from dither.nn import Clock, QLinear
from dither.numerics import encode, random_signs, rotate
from dither.spec import Act, Bits, Int, LinearSpec, Rotation

WIDTH = 1152
GROUPS: dict[str, tuple[tuple[int, int], ...]] = {
    "q, k, v": ((WIDTH, WIDTH),) * 3,
    "attention output": ((WIDTH, WIDTH),),
    "fc1": ((4 * WIDTH, WIDTH),),
    "fc2": ((WIDTH, 4 * WIDTH),),
}
"""Linears that read one tensor: their shapes (N, K)."""
WHOLE_BLOCK = "all six of a block"
GOAL = 1.10
SAME_CODES = 1e-5
"""Relative difference that the order of float32 sums explains between a linear's kernel and the reference."""
AS_EXACT = 1.2
"""A transformed layer may be this many times as far from full precision as a plain one: random inputs have no outliers,
so that a rotation gains nothing, and loses nothing."""


@dataclass(frozen=True)
class Transform:
    """What is done to an input before it is quantized.

    Args:
        scale: one factor a channel.
        block: of the rotation; 0: the whole width; None: none.
    """

    scale: bool = False
    block: int | None = None


PLAIN = "plain"
TRANSFORMS = {
    PLAIN: Transform(),
    "scale": Transform(scale=True),
    "rotation": Transform(block=0),
    "scale and rotation": Transform(scale=True, block=0),
    "rotation in blocks of 64": Transform(block=64),
    "rotation in blocks of 128": Transform(block=128),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 2048], help="tokens")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "rotation.json")
    given, usual = parser.parse_args(), parser.parse_args([])
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    with torch.no_grad():
        rows = list(measure(given.rows, given.rounds))
    result = {
        "method": f"{given.rounds} rounds in alternating order; median and quartiles of the ratios within a round",
        "layers": "DiT-XL/2's shapes, random weights, zero points on both sides, dynamic activations per token, "
        f"{choose(LinearSpec(Int(8, False), Act(Int(8, False))), (WIDTH, WIDTH), torch.device('cpu')).name}",
        "goal": {"times_plain": GOAL},
        "rows": rows,
    }
    write_result(
        given.output,
        {**environment(command_of("benchmarks.rotation", given, usual, ("rounds", "rows")), given.threads), **result},
    )


def measure(token_counts: Sequence[int], rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each width, number of tokens and group of linears; the last one is all of them."""
    for bits in ("w8a8", "w4a8"):
        layers = {
            t: {group: linears(group, how, Bits.parse(bits)) for group in GROUPS} for t, how in TRANSFORMS.items()
        }
        for tokens in token_counts:
            errors = {group: exactness({t: made[group] for t, made in layers.items()}) for group in GROUPS}
            for group in (*GROUPS, WHOLE_BLOCK):
                names = list(GROUPS) if group == WHOLE_BLOCK else [group]
                times = by_turns({t: calls({n: made[n] for n in names}, tokens) for t, made in layers.items()}, rounds)
                ratios = {t: speedup(times, PLAIN, t) for t in TRANSFORMS if t != PLAIN}
                yield {
                    "layers": group,
                    "bits": bits,
                    "tokens": tokens,
                    "times_plain": ratios,
                    "goal_met": {t: ratio["median"] <= GOAL for t, ratio in ratios.items()},
                    "relative_error": errors.get(group),
                    "median_ms_this_machine_shared": milliseconds(times),
                }
                sys.stderr.write(f"{group}, {bits}, {tokens} tokens: {ratios}\n")


def linears(group: str, how: Transform, bits: Bits) -> list[QLinear]:
    """The linears of a group under this transform. Weights and signs are the same for all transforms."""
    make, clock = torch.Generator().manual_seed(0), Clock()
    return [quantized(0.02 * torch.randn(shape, generator=make), how, bits, clock) for shape in GROUPS[group]]


def quantized(w: Tensor, how: Transform, bits: Bits, clock: Clock) -> QLinear:
    """A layer whose weight (N, K) undoes the transform of its input."""
    assert bits.act is not None
    n, k = w.shape
    rotation = None if how.block is None else Rotation(how.block or k)
    weight = Int(bits.weight, symmetric=False)
    spec = LinearSpec(weight, Act(Int(bits.act, symmetric=False)), 1 if how.scale else 0, rotation)
    tensors: dict[str, Tensor] = {}
    if how.scale:
        tensors["pre_scale"] = 0.8 + 0.4 * torch.rand(1, k, generator=torch.Generator().manual_seed(1))
        w = w / tensors["pre_scale"]
    if rotation is not None:
        tensors["rotation_signs"] = random_signs(k, 0)
        w = rotate(w.double(), tensors["rotation_signs"], rotation.block).float()
    tensors |= {f"weight_{name}": tensor for name, tensor in encode(w, weight).items()}
    return QLinear(spec, k, n, None, clock).load(tensors)


def exactness(layers: dict[str, list[QLinear]]) -> dict[str, float]:
    """Relative error of each transform's outputs to full precision's; AssertionError if a kernel computes something else."""
    errors = {}
    for name, group in layers.items():
        x = torch.randn(64, group[0].in_features, generator=torch.Generator().manual_seed(2))
        make, found = torch.Generator().manual_seed(0), []
        for layer in group:
            w = 0.02 * torch.randn(layer.shape, generator=make)
            got, kernel = layer(x), layer.kernel
            if layer.simulated:
                raise AssertionError(f"{name}: the layer runs on {kernel.name}")
            layer.kernel = named("reference")
            if distance(got, layer(x)) > SAME_CODES:
                raise AssertionError(f"{name}: {kernel.name} does not compute what the reference does")
            layer.kernel = kernel
            found.append(distance(got, x @ w.T))
        errors[name] = round(max(found), 5)
        if errors[name] > AS_EXACT * errors[PLAIN]:
            raise AssertionError(f"{name}: error {errors[name]} to full precision, and without it {errors[PLAIN]}")
    return errors


def distance(got: Tensor, want: Tensor) -> float:
    """``||got - want|| / ||want||``."""
    return float((got - want).norm() / want.norm())


def calls(groups: dict[str, list[QLinear]], tokens: int) -> Callable[[], None]:
    """One call of every layer; those of a group get the same tensor, and the next call another one."""
    widths = {layers[0].in_features for layers in groups.values()}
    inputs = cycle([{k: [torch.randn(tokens, k) for _ in groups] for k in widths} for _ in range(2)])

    def call() -> None:
        given = next(inputs)
        for i, layers in enumerate(groups.values()):
            for layer in layers:
                layer(given[layer.in_features][i])

    return call


if __name__ == "__main__":
    main()
