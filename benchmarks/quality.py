"""Recipes, widths and switches on the zoo: how far quantized pictures are from full precision, and how many bits it took.

Every row goes the way a user goes: quantize, save, load, draw. Full precision is drawn once a model and compared with all
rows on the same labels and seeds. Each row is kept in a folder as soon as it is done, under what determines it, so that an
interrupted run goes on; results name no picture and keep no pixel.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dither
from benchmarks.common import RESULTS, environment, write_result
from dither import evaluation, zoo
from dither.evaluation.protocol import Label, OnStep, Pictures, Sampler
from dither.inspection import describe, size_on_disk, stored_dtype, summary
from dither.measure import ZooFeatures
from dither.quantization import Calibration, resolve_recipe, sample_seeds
from dither.recipes import recipe_to
from dither.sampling import default_labels, sampler_for
from dither.sources import Source, open_source

MODELS = ("digits", "fashion", "fashion-hard")
RECIPES = ("rtn", "rtn-clip", "smoothquant")
WIDTHS = ("w8a8", "w6a8", "w4a8", "w4a4")
STATIC = "assign.act.static=true"
SWITCHES = (
    ("static activations", "rtn", "w8a8", (STATIC,)),
    ("static, 10 time groups", "rtn", "w8a8", (STATIC, "assign.time_groups=10")),
    ("static, 10 time groups x 2 branches", "rtn", "w8a8", (STATIC, "assign.time_groups=10", "assign.branches=2")),
    ("asymmetric", "rtn", "w4a8", ("assign.weight.symmetric=false", "assign.act.grid.symmetric=false")),
    ("weight groups of 64", "rtn", "w4a8", ("assign.weight.group=64",)),
    ("modulation at 8 bits", "rtn", "w4a8", ("assign.adaln.bits=8",)),
    ("online scales too", "smoothquant", "w4a8", ("smooth.online=true",)),
    ("alpha searched", "smoothquant", "w4a8", ("smooth.search=[0.3,0.4,0.5,0.6,0.7,0.8]",)),
)
STEPS, GUIDANCE, BATCH = 25, 1.5, 64


@dataclass
class Remembered:
    """A sampler that draws each request once and then repeats it, steps included."""

    sampler: Sampler
    drawn: dict[tuple[tuple[Label, ...], tuple[int, ...]], Pictures] = field(default_factory=dict)
    steps: dict[tuple[tuple[Label, ...], tuple[int, ...]], list[tuple[int, float, torch.Tensor]]] = field(
        default_factory=dict
    )

    def __call__(self, labels: Sequence[Label], seeds: Sequence[int], on_step: OnStep | None = None) -> Pictures:
        key = (tuple(labels), tuple(seeds))
        if key not in self.drawn:
            seen = self.steps.setdefault(key, [])
            self.drawn[key] = self.sampler(labels, seeds, lambda i, t, x: seen.append((i, t, x.clone())))
        for step in self.steps[key] if on_step is not None else ():
            on_step(*step)
        return self.drawn[key]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dither-quality")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "quality.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = [row for name in given.models for row in measure(name, given.n, given.seed, given.work)]
    result = {
        "n": given.n,
        "seed": given.seed,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "calibration": vars(Calibration()) | {"prompts": []},
        "fd": "Frechet distance in the zoo's own feature network; not FID",
        "rows": rows,
    }
    write_result(given.output, {**environment("python -m benchmarks.quality", given.threads), **result})


def measure(name: str, n: int, seed: int, work: Path) -> list[dict[str, Any]]:
    """All rows of a model, full precision first."""
    full = open_source(f"zoo:{name}")
    sampler = Remembered(sampler_for(full.pipeline, STEPS, GUIDANCE, BATCH))
    plain = [("", recipe, bits, ()) for recipe in RECIPES for bits in WIDTHS]
    rows: list[dict[str, Any]] = []
    for switch, recipe, bits, settings in (*plain, *SWITCHES):
        asked = {"model": name, "recipe": recipe, "bits": bits, "switch": switch, "settings": list(settings)}
        kept = work / f"{digest(full, asked, n, seed)}.json"
        if not kept.is_file():
            write_result(kept, {**asked, **compare(full, sampler, recipe, bits, settings, n, seed)})
        rows.append(json.loads(kept.read_text(encoding="utf-8")))
        print(name, recipe, bits, switch, rows[-1]["psnr_db"]["mean"], file=sys.stderr, flush=True)
    floors = [row.pop("full_precision") for row in rows]
    return [{"model": name, "recipe": "full precision", "bits": "", "switch": "", **floors[0]}, *rows]


def digest(full: Source, asked: dict[str, Any], n: int, seed: int) -> str:
    """What determines a row: weights, recipe as it is, pictures."""
    recipe = recipe_to(resolve_recipe(asked["recipe"], asked["bits"], asked["settings"]))
    found = hashlib.sha256(json.dumps([asked, recipe, n, seed, STEPS, GUIDANCE, BATCH]).encode())
    for file in full.weight_files:
        found.update(file.read_bytes())
    return found.hexdigest()[:20]


def compare(
    full: Source, sampler: Sampler, recipe: str, bits: str, settings: Sequence[str], n: int, seed: int
) -> dict[str, Any]:
    """One row: quantize, save, load, draw, compare."""
    assert full.zoo is not None
    storage = stored_dtype(full.weight_files)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "packed"
        pipe = dither.quantize(zoo.load(full.zoo), recipe, bits, settings=settings, seed=seed, storage=storage)
        dither.save(pipe, target, storage=storage)
        small = open_source(str(target))
        size = size_on_disk(small.model, small.weight_files, full.weight_bytes)
        network, real = zoo.load_features(full.zoo)
        found = evaluation.evaluate(
            sampler,
            sampler_for(small.pipeline, STEPS, GUIDANCE, BATCH),
            labels=default_labels(full.pipeline, n),
            seeds=sample_seeds(seed, n),
            batch_size=BATCH,
            features=ZooFeatures(network, full.zoo),
            real=evaluation.RealStats(real.mu, real.sigma, real.n, real.accuracy),
            images=0,
        )
    layers = summary(describe(small.model, small.adapter))
    return {**numbers(found), **sizes(size, layers)}


def numbers(found: dict[str, Any]) -> dict[str, Any]:
    """What is kept of an evaluation, and of full precision in it."""
    fd, floor = found["fd"], found["noise_floor"]
    psnr, accuracy = found["psnr_db"], found["class_accuracy"]
    return {
        "psnr_db": {"mean": psnr["mean"], "ci95": psnr["ci95"], "worst": psnr["worst"]},
        "ssim": found["ssim"]["mean"],
        "fd": {key: fd[key] for key in ("to_full_precision", "to_full_precision_se", "to_real")},
        "class_accuracy": accuracy["quantized"],
        "full_precision": {
            "psnr_db": {"other_batch_size": floor["psnr_db"], "other_seeds": floor["other_seeds_psnr_db"]},
            "noise_floor_pictures": floor["n"],
            "fd": {"noise_floor": fd["noise_floor"], "to_real": fd["full_precision_to_real"]},
            "class_accuracy": accuracy["full_precision"],
        },
    }


def sizes(size: dict[str, Any], layers: dict[str, Any]) -> dict[str, Any]:
    """Bytes and kernels of a row."""
    counts = {key: layers["layers"][key] for key in ("quantized", "total", "simulated")}
    return {"size": size, "layers": counts, "kernels": layers["kernels"]}


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
