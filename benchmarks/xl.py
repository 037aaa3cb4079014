"""DiT-XL/2 and a model of PixArt-Sigma's size, quantized whole: minutes, peak memory, bytes; then the packed file, loaded.

Through the real command line, or through ``dither.quantize(run=...)`` with random calls, as for a model without a pipeline.

Weights are random, so nothing here speaks of quality. Each step is a process of its own, and its peak is what the kernel
counted (``ru_maxrss``): everything resident, Python, torch and mapped files included.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, Finished, bytes_in, command_of, environment, run, write_result

SOURCES = {"diffusers": "dit-xl-2", "half": "dit-xl-2-half", "facebook": "dit-xl-2.pt", "pixart": "pixart-sigma"}
CALIBRATION = ("--samples", "2", "--steps", "4", "--calls", "4")
OWN_CALLS = None
"""Instead of the command line's options: the API, with calls of one's own."""
RUNS: tuple[tuple[str, str, str, tuple[str, ...] | None], ...] = (
    ("diffusers", "w8a8", "rtn", ()),
    ("diffusers", "w4a8", "rtn", ()),
    ("facebook", "w8a8", "rtn", ()),
    ("facebook", "w4a8", "rtn", ()),
    ("diffusers", "w8a8", "smoothquant", CALIBRATION),
    ("diffusers", "w4a8", "vidit-q", CALIBRATION),
    ("diffusers", "w4a8", "gptq", CALIBRATION),
    ("pixart", "w4a8", "vidit-q", OWN_CALLS),
    ("half", "w2", "dither", ("--set", "gptq=off", "--set", "tune=off")),
    ("half", "w2", "dither", (*CALIBRATION, "--set", "tune=off")),
)
QUANTIZE_GOAL, LOAD_GOAL = 1.5, 0.5
BLOCKS = 28
CLI = "from dither.cli import main; main()"
STEPS = "benchmarks.xl_steps"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="folder for about 7 GB of files; a temporary one by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="fewer, to try the script")
    parser.add_argument("--only", help="run only rows whose 'layout bits recipe options' contains this")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "xl.json")
    given, usual = parser.parse_args(), parser.parse_args([])
    if given.work is not None:
        given.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="dither-xl-", dir=given.work))
    try:
        result = measure(work, given.threads, given.blocks, given.only or "")
    finally:
        shutil.rmtree(work)
    write_result(
        given.output,
        {**environment(command_of("benchmarks.xl", given, usual, ("only", "blocks")), given.threads), **result},
    )


def measure(work: Path, threads: int, blocks: int, only: str) -> dict[str, Any]:
    """All rows, with the sizes of the originals."""
    originals, rows = {}, []
    for layout, name in SOURCES.items():
        runs = [r for r in RUNS if r[0] == layout and only in " ".join((*r[:3], *(r[3] or ())))]
        if not runs:
            continue
        source = work / name
        originals[layout] = original(source, layout, threads, blocks)
        for _, bits, recipe, options in runs:
            rows.append(row(source, originals[layout], layout, bits, recipe, options, threads))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        shutil.rmtree(source) if source.is_dir() else source.unlink()
    return {
        "model": "DiT-XL/2 (diffusers, half, facebook) and PixArt-Sigma's size at 256 pixels (pixart), random weights",
        "reference": "float32 bytes of the parameters as loaded: in diffusers every block owns a copy of the embedders, "
        "which a facebook file stores once",
        "memory": "ru_maxrss of a fresh process: Python, torch and mapped files included",
        "goals": {"quantize_peak_ratio": QUANTIZE_GOAL, "load_peak_ratio": LOAD_GOAL},
        "originals": originals,
        "rows": rows,
    }


def original(source: Path, layout: str, threads: int, blocks: int) -> dict[str, int]:
    """Writes the original; its parameters, also as diffusers holds them, and bytes on the disk."""
    command = [*step("make", source), "--layout", layout, "--blocks", str(blocks)]
    parameters = last_json(run(command, threads))["parameters"]
    embedders = 1001 * 1152 + (256 + 1) * 1152 + (1152 + 1) * 1152
    loaded = parameters + ((blocks - 1) * embedders if layout == "facebook" else 0)
    file_bytes = bytes_in(source) if source.is_dir() else source.stat().st_size
    return {"parameters": parameters, "float32_bytes_as_loaded": 4 * loaded, "file_bytes": file_bytes}


def row(
    source: Path,
    full: dict[str, int],
    layout: str,
    bits: str,
    recipe: str,
    options: tuple[str, ...] | None,
    threads: int,
) -> dict[str, Any]:
    """Quantize, then load what was written."""
    packed = source.with_name("packed")
    arguments = [str(source), "-o", str(packed), "--recipe", recipe, "--bits", bits]
    made = api(arguments, layout, threads) if options is OWN_CALLS else cli([*arguments, *options], threads)
    loading = run(step("load", packed), threads)
    loaded = last_json(loading)
    shutil.rmtree(packed)
    reference, size = full["float32_bytes_as_loaded"], made.size
    return {
        "layout": layout,
        "bits": bits,
        "recipe": recipe,
        "command": made.command.replace(f"{source.parent}/", ""),
        "quantize": {
            "minutes": round(made.seconds / 60, 2),
            **against(made.peak_bytes, reference, QUANTIZE_GOAL),
            "settings": [word for word in options or () if "=" in word],
            "file_bytes": size["file_bytes"],
            "file_ratio": round(full["file_bytes"] / size["file_bytes"], 2),
            "bits_per_weight": round(size["bits_per_weight"], 3),
            **loaded["rotations"],
        },
        "load": {
            "seconds": round(loaded["seconds"], 1),
            **against(loaded["peak_bytes"], reference, LOAD_GOAL),
            "peak_ratio_with_one_call": round(loading.peak_bytes / reference, 3),
            "peak_bytes_before": loaded["peak_before_bytes"],
            "finite": loaded["finite"],
            "same_bits": None if made.digest is None else loaded["digest"] == made.digest,
        },
    }


@dataclass(frozen=True)
class Made:
    """A quantized model.

    Args:
        command: that made it.
        seconds, peak_bytes: from opening the original to the last byte written.
        size: as ``dither inspect`` has it.
        digest: of its answer to a call, before it was saved; None where only the command line knows it.
    """

    command: str
    seconds: float
    peak_bytes: int
    size: dict[str, Any]
    digest: str | None


def cli(arguments: Sequence[str], threads: int) -> Made:
    """``dither quantize``, which draws pictures to calibrate with."""
    report = Path(arguments[0]).with_name("report.json")
    done = run([sys.executable, "-c", CLI, "quantize", *arguments, "--json", str(report)], threads)
    size = json.loads(report.read_text(encoding="utf-8"))["size"]
    return Made(" ".join(["dither quantize", *arguments]), done.seconds, done.peak_bytes, size, None)


def api(arguments: Sequence[str], layout: str, threads: int) -> Made:
    """``dither.quantize(run=...)`` and ``dither.save``."""
    done = last_json(run([sys.executable, "-m", STEPS, "quantize", *arguments, "--layout", layout], threads))
    command = " ".join(["python -m", STEPS, "quantize", *arguments, "--layout", layout])
    return Made(command, done["seconds"], done["peak_bytes"], done["size"], done["digest"])


def against(peak: int, reference: int, goal: float) -> dict[str, Any]:
    """A peak as a ratio, and whether it keeps below the goal."""
    return {"peak_bytes": peak, "peak_ratio": round(peak / reference, 3), "goal_met": peak <= goal * reference}


def step(name: str, path: Path) -> list[str]:
    """Command of a step."""
    return [sys.executable, "-m", STEPS, name, str(path)]


def last_json(done: Finished) -> dict[str, Any]:
    """What a step printed last."""
    found: dict[str, Any] = json.loads(done.output.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
