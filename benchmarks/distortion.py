"""``python -m benchmarks.distortion``: error of every weight format on sources of variance 1, beside what no code goes below.

A weight of independent Gaussian or Laplacian values is encoded as any other, and squared errors are averaged. ``rotated`` is
the Laplacian source behind a Hadamard rotation, as ``rotate`` puts it before a format. The bound is 4^-b for Gaussian values;
Shannon's lower bound, (e / pi) 4^-b, for Laplacian ones. True bits count scales and codebooks too.
"""

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import RESULTS, command_of, environment, write_result
from dither.numerics import decode, encode, random_signs, rotate, stored_bits, unrotate
from dither.recipes.vq4dit import WORDS
from dither.spec import Format, Gaussian, Int, Trellis

SHAPE = (256, 1024)
FEW = 32
"""Rows that take the longest search of all."""
BITS = (2, 3, 4)
SOURCES = ("Gaussian", "Laplacian", "rotated")


def formats(bits: int) -> Mapping[str, Format]:
    """Whatever stores a weight in about so many bits, by name; VQ4DiT's shapes at 2 and 3 bits."""
    words = WORDS[bits]
    return {
        "integers, a scale a row": Int(bits),
        "integers, groups of 64": Int(bits, symmetric=False, group=64),
        f"k-means, {words.size} words of {words.dim}": words,
        f"universal words, {words.size} of {words.dim}": Gaussian(words.dim, words.size),
        **{f"trellis, {states} bits of state": Trellis(bits, states) for states in (8, 12, 16)},
    }


def source(name: str, seed: int) -> Tensor:
    """(N, K) of variance 1."""
    make = torch.Generator().manual_seed(seed)
    if name == "Gaussian":
        return torch.randn(SHAPE, generator=make)
    uniform = torch.rand(SHAPE, generator=make, dtype=torch.float64) - 0.5
    return (-uniform.sign() * torch.log1p(-2 * uniform.abs()) / math.sqrt(2)).float()


def error(w: Tensor, fmt: Format, turned: bool) -> Tensor:
    """Mean squared error of each row, (N,)."""
    signs = random_signs(w.shape[1], 0)
    x = rotate(w, signs, w.shape[1]) if turned else w
    y = decode(encode(x, fmt), fmt, x.shape)
    back = unrotate(y, signs, w.shape[1]) if turned else y
    return (back - w).double().square().mean(1)


def bound(name: str, bits: int) -> float:
    return 4.0**-bits * (1 if name == "Gaussian" else math.e / math.pi)


def measured(seed: int) -> list[dict[str, Any]]:
    """A row a format and source."""
    found = []
    for bits in BITS:
        for word, fmt in formats(bits).items():
            for name in SOURCES:
                errors = error(source(name, seed)[: FEW if fmt == Trellis(bits, 16) else None], fmt, name == "rotated")
                found.append(row(name, word, bits, stored_bits(fmt, SHAPE) / math.prod(SHAPE), errors))
                print(*found[-1].values(), file=sys.stderr)
    return found


def row(name: str, way: str, bits: int, true_bits: float, errors: Tensor) -> dict[str, Any]:
    return {
        "source": name, "format": way, "bits": bits, "rows": len(errors), "true_bits": round(true_bits, 4),
        "mse": float(f"{errors.mean():.4g}"), "standard_error": float(f"{errors.std() / len(errors) ** 0.5:.2g}"),
        "bound": float(f"{bound(name, bits):.4g}"),
    }  # fmt: skip


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distortion", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "distortion.json")
    return parser


def main(words: list[str]) -> None:
    given = options().parse_args(words)
    torch.set_num_threads(given.threads)
    command = command_of("benchmarks.distortion", given, options().parse_args([]), ("seed",))
    result = {"shape": list(SHAPE), "seed": given.seed, "rows": measured(given.seed)}
    write_result(given.output, {**environment(command, given.threads), **result})


if __name__ == "__main__":
    main(sys.argv[1:])
