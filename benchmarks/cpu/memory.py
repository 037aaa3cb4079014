"""Resident memory of DiT-XL/2 in fresh processes: float32 and bfloat16 loaded, packed checkpoints loaded, and quantizing in
process.

Weights are random. Nothing here is a time.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import run, write_result
from benchmarks.xl import last_json, step

__all__ = ["DTYPES", "WIDTHS", "measured", "net", "times_less"]

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WIDTHS = ("W8", "W4", "W2")
STEPS = "benchmarks.cpu.memory_steps"


def measured(work: Path, threads: int, blocks: int) -> dict[str, Any]:
    """A row for each way to have the model in memory, and one for each width of quantizing in process.

    Rows are kept in ``work``, where an interrupted run goes on.
    """
    folder = work / f"memory-{blocks}-blocks"
    kept, source = folder / "rows.json", folder / "float32"
    if not kept.exists():
        shutil.rmtree(source, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        made = last_json(run([*step("make", source), "--layout", "copies", "--blocks", str(blocks)], threads))
        write_result(kept, {"parameters": made["parameters"], "loaded": [], "quantized_in_process": []})
    found = json.loads(kept.read_text(encoding="utf-8"))
    for what in (*DTYPES, *WIDTHS)[len(found["loaded"]) :]:
        add(found, what, source, threads)
        write_result(kept, found)
        sys.stderr.write(f"memory, {what}: {net(found['loaded'][-1], 'called') / 1e6:.0f} MB\n")
    shutil.rmtree(folder)
    full = found["loaded"][0]
    return {
        "model": f"DiT-XL/2 of diffusers with {blocks} blocks, random weights; all blocks have copies of one embedder",
        "memory": "smaps_rollup of a fresh process: rss is anonymous and file together; before is Python, torch and dither",
        **found,
        "loaded": [{**row, "times_less_than_float32": times_less(full, row)} for row in found["loaded"]],
    }


def add(found: dict[str, Any], what: str, source: Path, threads: int) -> None:
    """The rows of one dtype or width."""
    if what in DTYPES:
        found["loaded"].append({"what": what, **process("load", what, source, threads)})
        return
    packed = source.with_name(what)
    shutil.rmtree(packed, ignore_errors=True)
    found["quantized_in_process"].append(
        {"what": what, **process("quantize", what, source, threads, "--target", str(packed))}
    )
    found["loaded"].append({"what": what, **process("load", what, packed, threads)})
    shutil.rmtree(packed)


def process(name: str, what: str, folder: Path, threads: int, *options: str) -> dict[str, Any]:
    """What a step printed."""
    return last_json(run([sys.executable, "-m", STEPS, name, what, str(folder), *options], threads))


def net(row: Mapping[str, Any], moment: str, kind: str = "rss") -> int:
    """Bytes of the model: those of the process less those that it had before."""
    found: int = row[moment][kind] - row["before"][kind]
    return found


def times_less(full: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, float]:
    """How many times less memory than float32, of the model and of the whole process, after a call."""
    whole = full["called"]["rss"] / row["called"]["rss"]
    return {"model": round(net(full, "called") / net(row, "called"), 2), "process": round(whole, 2)}
