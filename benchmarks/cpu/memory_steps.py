"""What the memory part runs in fresh processes: a model is loaded and called, or quantized in process and saved."""

import argparse
import gc
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel

import dither
from benchmarks.common import bytes_in, resident
from benchmarks.cpu.memory import DTYPES, WIDTHS
from benchmarks.xl_steps import answer
from dither.inspection import size_on_disk
from dither.spec import Act, Bits, Format, Int, Recipe, Trellis
from dither.stages import Assign, Rtn, Share, describe
from dither.weightfile import weight_files_in

__all__ = ["FORMATS", "loaded", "quantized"]

FORMATS: Mapping[str, Format] = {"W8": Int(8), "W4": Int(4), "W2": Trellis(2, states=8)}
"""Of all linears, modulation's too. Windows of 8 bits are found in minutes; they take the room that those of 12 bits take."""


def loaded(folder: Path, what: str) -> dict[str, Any]:
    """Memory before a model is loaded, after it, and after a guided call."""
    found = {"before": asdict(resident())}
    kind: Any = DiTTransformer2DModel
    model = kind.from_pretrained(folder, torch_dtype=DTYPES[what]) if what in DTYPES else dither.load(folder)
    found["loaded"] = asdict(resident())
    finite = bool(torch.isfinite(answer(model, 500)).all())
    gc.collect()
    return {**found, "called": asdict(resident()), "finite": finite, "file_bytes": bytes_in(folder)}


def quantized(source: Path, target: Path, what: str) -> dict[str, Any]:
    """Memory of a process that loads float32, calls it, quantizes it where it is, calls it again; then saves it."""
    found = {"before": asdict(resident())}
    model = DiTTransformer2DModel.from_pretrained(source)
    answer(model, 500)
    found["float32"] = asdict(resident())
    weight = FORMATS[what]
    stages = (Assign(weight=weight, act=Act(Int(8)), adaln=weight, fit=True), Rtn(), Share())
    dither.quantize(model, Recipe("memory", "", Bits(int(what[1:]), 8), describe(stages)))
    gc.collect()
    found["quantized"] = asdict(resident())
    answer(model, 500)
    found["called"] = asdict(resident())
    dither.save(model, target)
    size = size_on_disk(model, weight_files_in(target), bytes_in(source))
    return {**found, "file_bytes": size["file_bytes"], "model_bits_per_weight": size["model_bits_per_weight"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["load", "quantize"])
    parser.add_argument("what", choices=[*DTYPES, *WIDTHS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", type=Path, help="where quantize saves")
    given = parser.parse_args()
    result = (
        loaded(given.folder, given.what) if given.step == "load" else quantized(given.folder, given.target, given.what)
    )
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
