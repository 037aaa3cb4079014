"""``python -m benchmarks.nested``: one set of 8-bit codes read at two widths, or a bank for each?

For every linear of a zoo model that is quantized: squared error of what is read, over that of a bank of the same width that
was rounded to a grid of its own; the median over layers. Banks store the codes of both widths, nested codes the wide ones.
"""

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import RESULTS, environment, write_result
from dither.numerics import decode, encode
from dither.sources import open_source
from dither.spec import Format, Int, Nested
from dither.stages.nesting import encode_for

MODEL = "zoo:fashion"
WIDE = 8
NARROW = (2, 3, 4, 5, 6)


def main() -> int:
    """Always 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nested", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "nested.json")
    given = parser.parse_args()
    source = open_source(MODEL)
    weights = [
        source.model.get_submodule(layer.name).weight.data.float()
        for layer in source.adapter.layers(source.model)
        if not layer.keep
    ]
    rows = [row(weights, bits, symmetric) for symmetric in (False, True) for bits in NARROW]
    threads = torch.get_num_threads()
    result = {"model": MODEL, "layers": len(weights), "wide": WIDE, "rows": rows}
    write_result(given.output, {**environment("python -m benchmarks.nested", threads), **result})
    return 0


def row(weights: list[Tensor], bits: int, symmetric: bool) -> dict[str, Any]:
    """One narrow width."""
    whole = Int(WIDE, symmetric=symmetric)
    ratios: dict[str, list[float]] = {"narrow": [], "wide": []}
    for w in weights:
        shared = encode_for(w, whole, (bits, WIDE))
        for name, fmt in (("narrow", Int(bits, symmetric=symmetric)), ("wide", whole)):
            read: Format = Nested(whole, bits) if name == "narrow" else whole
            ratios[name].append(error(w, shared, read) / error(w, encode(w, fmt), fmt))
    return {
        "bits": bits,
        "symmetric": symmetric,
        "narrow_error_ratio": round(median(ratios["narrow"]), 3),
        "wide_error_ratio": round(median(ratios["wide"]), 3),
        "code_bits_nested": WIDE,
        "code_bits_banks": WIDE + bits,
    }


def error(w: Tensor, tensors: dict[str, Tensor], fmt: Format) -> float:
    """Squared error of a stored weight."""
    return float((decode(tensors, fmt, (w.shape[0], w.shape[1])) - w).double().square().sum())


if __name__ == "__main__":
    sys.exit(main())
