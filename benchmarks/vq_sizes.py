"""``python -m benchmarks.vq_sizes``: what DiT-XL/2 takes at 2 and 3 bits, as VQ4DiT (arXiv 2408.17131) counts, and all of it.

The paper counts indices, codebooks and biases of the blocks' linears, against their float32 weights and biases. A checkpoint
also holds everything else: here in float32 or float16, the embedders once, as original files have them, or in every
block, as diffusers does. Sizes follow from the formats' layouts; no weight is made. Beside them, what the calibration of
assignments holds for n candidates, as ``stages.codebooks`` has it.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from benchmarks.common import RESULTS, command_of, environment, write_result
from benchmarks.xl_steps import CONFIG
from dither.models import adapter_for
from dither.numerics import layout
from dither.recipes.vq4dit import WORDS
from dither.spec import Codebook, Format, Trellis

MIB = 1 << 20
FORMATS: dict[str, Format] = {
    "VQ4DiT, 2 bits": WORDS[2],
    "VQ4DiT, 3 bits": WORDS[3],
    "trellis, 2 bits": Trellis(2),
    "trellis, 3 bits": Trellis(3),
}
CANDIDATES = (1, 2, 3, 4)


def stored(fmt: Format, shape: tuple[int, int]) -> dict[str, int]:
    """Bytes of each tensor of a weight (N, K)."""
    return {name: math.prod(size) * dtype.itemsize for name, (size, dtype) in layout(fmt, shape).items()}


def rows() -> Iterator[dict[str, Any]]:
    """A row a format."""
    with torch.device("meta"):
        model = DiTTransformer2DModel(**CONFIG)
    linears = [model.get_submodule(x.name) for x in adapter_for(model).layers(model) if not x.keep]
    layers = [m for m in linears if isinstance(m, nn.Linear)]
    shapes = [(m.out_features, m.in_features) for m in layers]
    weights, biases = sum(n * k for n, k in shapes), sum(n for n, _ in shapes)
    everything = sum(p.numel() for p in model.parameters())
    embedders = sum(p.numel() for p in model.transformer_blocks[0].norm1.emb.parameters())
    again = (len(model.transformer_blocks) - 1) * embedders
    for name, fmt in FORMATS.items():
        parts: dict[str, int] = {}
        for shape in shapes:
            for key, size in stored(fmt, shape).items():
                parts[key] = parts.get(key, 0) + size
        quantized = sum(parts.values())
        rest = everything - weights
        found: dict[str, Any] = {
            "format": name,
            "linears": len(shapes),
            "weights": weights,
            "full_mib": mib(4 * (weights + biases)),
            "parts_mib": {key: mib(size) for key, size in parts.items()},
            "biases_mib": mib(4 * biases),
            "as_counted_mib": mib(quantized + 4 * biases),
            "as_counted_ratio": round(4 * (weights + biases) / (quantized + 4 * biases), 2),
            "bits_per_weight": round(8 * quantized / weights, 4),
            "checkpoint_mib": {
                "float32, embedders in every block": mib(quantized + 4 * rest),
                "float16, embedders in every block": mib(quantized + 2 * rest),
                "float16, embedders once": mib(quantized + 2 * (rest - again)),
            },
        }
        if isinstance(fmt, Codebook):
            vectors = weights // fmt.dim
            found["calibration_mib"] = {str(n): mib(9 * n * vectors if n > 1 else 0) for n in CANDIDATES}
        yield found


def mib(size: float) -> float:
    return round(size / MIB, 2)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vq_sizes", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "vq_sizes.json")
    return parser


def main(words: list[str]) -> None:
    given = options().parse_args(words)
    command = command_of("benchmarks.vq_sizes", given, options().parse_args([]), ())
    result = {"model": "DiT-XL/2 at 256 pixels, by its config", "rows": list(rows())}
    write_result(given.output, {**environment(command, 1), **result})


if __name__ == "__main__":
    main(sys.argv[1:])
