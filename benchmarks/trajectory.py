"""Do errors along a few trajectories rank quantized models as whole evaluations do? Spearman's rank correlation.

A search cannot draw a hundred pictures for each candidate. Here each quantized model is observed on 8 pictures, or on 16,
and every trajectory metric is set against PSNR, SSIM and the Frechet distance to full precision on 128 pictures of other
seeds. A correlation of 1: the metric puts the models in the same order as the whole evaluation does. Intervals resample
the models. Whole evaluations that ``quality.json`` holds are read from there, the others are drawn.

Each model is kept in a folder as soon as it is done, under what determines it, so that an interrupted run goes on.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

import dither
from benchmarks.common import RESULTS, environment, write_result
from dither import evaluation, zoo
from dither.evaluation.layers import decibel
from dither.evaluation.protocol import Float64, Label, OnStep, Pictures, Sampler
from dither.inspection import stored_dtype
from dither.measure import zoo_judges
from dither.measure.trajectory import Chunk, observe_pair
from dither.quantization import resolve_recipe, sample_seeds
from dither.recipes import recipe_to
from dither.sampling import default_labels, sampler_for
from dither.sources import Source, open_source

MODELS = ("digits", "fashion", "fashion-hard")
STEPS, GUIDANCE, BATCH, PICTURES = 25, 1.5, 64, 128
CHUNK = 8
CHUNKS = {"digits": 2, "fashion": 1, "fashion-hard": 1}
EVERY = 5
CLOSE = "w4a8"
FEWEST = 5
RESAMPLES = 2000
RECIPES = ("rtn", "rtn-clip", "smoothquant")
EXTRA = {"digits": ("w5a8", "w3a8", "w8", "w4"), "fashion": (), "fashion-hard": ()}
"""Widths besides those of ``quality.json``; drawing 128 pictures costs too much for the larger models."""

METRICS: dict[str, Callable[[Chunk], float]] = {
    "error": lambda c: _mean_log(c["picture/error"].sum(1)),
    "error_every_5th_step": lambda c: _mean_log(c["picture/error"][:, EVERY // 2 :: EVERY].sum(1)),
    "error_log_of_each_step": lambda c: _mean_log(c["picture/error"]),
    "error_conditional": lambda c: _mean_log(c["picture/conditional"].sum(1)),
    "x0_error": lambda c: _mean_log(_x0(c).sum(1)),
    "x0_error_every_5th_step": lambda c: _mean_log(_x0(c)[:, EVERY // 2 :: EVERY].sum(1)),
    "x0_snr_of_each_step": lambda c: _mean_log(_x0(c)),
    "x0_error_last_step": lambda c: _mean_log(_x0(c)[:, -1]),
    "drift_final": lambda c: _mean_log(c["picture/drift"][:, -1]),
    "drift_of_each_step": lambda c: _mean_log(c["picture/drift"]),
    "layer_snr": lambda c: -float(decibel(c["sum/layer_signal"], c["sum/layer_noise"]).mean()),
    "layer_snr_worst": lambda c: -float(decibel(c["sum/layer_signal"], c["sum/layer_noise"]).min()),
}
"""Each grows with damage."""
CALLS = {name: STEPS // EVERY if name.endswith("every_5th_step") else STEPS for name in METRICS}
"""Quantized denoiser calls a picture. Full precision answers once for all models."""
FULL: dict[str, Callable[[Mapping[str, float]], float]] = {
    "psnr_db": lambda row: -row["psnr_db"],
    "ssim": lambda row: -row["ssim"],
    "fd_to_full_precision": lambda row: row["fd_to_full_precision"],
}


@dataclass
class Remembered:
    """Full precision, which draws each request once and then repeats it."""

    sampler: Sampler
    drawn: dict[tuple[Any, ...], tuple[Pictures, list[tuple[int, float, torch.Tensor]]]] = field(default_factory=dict)

    def __call__(self, labels: Sequence[Label], seeds: Sequence[int], on_step: OnStep | None = None) -> Pictures:
        key = (tuple(labels), tuple(seeds))
        if key not in self.drawn:
            steps: list[tuple[int, float, torch.Tensor]] = []
            pictures = self.sampler(labels, seeds, lambda i, t, x: steps.append((i, t, x.clone())))
            self.drawn[key] = pictures, steps
        pictures, steps = self.drawn[key]
        for step in steps if on_step is not None else ():
            on_step(*step)
        return pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dither-trajectory")
    parser.add_argument("--reference", type=Path, default=RESULTS / "quality.json")
    parser.add_argument("--finished", action="store_true", help="write what the folder holds and measure nothing")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "trajectory.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    known = json.loads(given.reference.read_text(encoding="utf-8"))
    if (known["n"], known["steps"], known["guidance"]) != (PICTURES, STEPS, GUIDANCE) or known["seed"] == given.seed:
        parser.error(f"{given.reference.name} was drawn otherwise, or with the seeds of the trajectories")
    rows = {name: measure(name, known, given.seed, given.work, given.finished) for name in given.models}
    result = {
        "n": PICTURES,
        "pictures_observed": {name: [CHUNK * (i + 1) for i in range(CHUNKS[name])] for name in rows},
        "seed": {"whole_evaluation": known["seed"], "trajectory": given.seed},
        "steps": STEPS,
        "guidance": GUIDANCE,
        "reference": {key: known[key] for key in ("command", "date", "device", "versions")},
        "interval": f"95 %, percentiles of {RESAMPLES} resamples of the models",
        "correlations": [
            line
            for name in rows
            if rows[name]
            for among in ("", CLOSE)
            for line in correlations(name, rows[name], among)
        ],
        "rows": [full_precision(name, known) for name in rows] + [row for name in rows for row in rows[name]],
    }
    command = "python -m benchmarks.trajectory" + " --finished" * given.finished
    write_result(given.output, {**environment(command, given.threads), **result})


def full_precision(name: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Full precision against itself, as ``quality.json`` has it."""
    return next(row for row in known["rows"] if named(row) == name and row["recipe"] == "full precision")


def named(row: Mapping[str, Any]) -> str:
    """The zoo's name of a row's model."""
    return str(row["model"]).removeprefix("zoo:")


def measure(name: str, known: Mapping[str, Any], seed: int, work: Path, finished: bool) -> list[dict[str, Any]]:
    """A row for each quantized model: the whole evaluation and the metrics on few pictures."""
    full = open_source(f"zoo:{name}")
    sampler = Remembered(sampler_for(full.pipeline, STEPS, GUIDANCE, BATCH))
    rows = []
    for asked, whole in cases(name, known):
        kept = work / f"{digest(full, asked, seed)}.json"
        if not kept.is_file() and finished:
            continue
        if not kept.is_file():
            write_result(kept, observe(full, sampler, asked, None if whole else known["seed"], seed))
        found = json.loads(kept.read_text(encoding="utf-8"))
        source = {"whole_from": "quality.json"} if whole else {"whole_from": "drawn here"}
        rows.append({**asked, "whole": whole or found["whole"], **source, "observed": found["observed"]})
        print(name, asked["recipe"], asked["bits"], asked["switch"], file=sys.stderr, flush=True)
    return rows


def cases(name: str, known: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, float] | None]]:
    """What is quantized how, and the whole evaluation where it is known."""
    found: list[tuple[dict[str, Any], dict[str, float] | None]] = []
    for row in known["rows"]:
        if named(row) == name and row["recipe"] != "full precision" and "failed" not in row:
            asked = {"model": name, **{key: row[key] for key in ("recipe", "bits", "switch", "settings")}}
            found.append((asked, numbers(row["psnr_db"]["mean"], row["ssim"], row["fd"]["to_full_precision"])))
    for bits in EXTRA[name]:
        for recipe in RECIPES:
            found.append(({"model": name, "recipe": recipe, "bits": bits, "switch": "", "settings": []}, None))
    return found


def numbers(psnr: float, ssim: float, fd: float) -> dict[str, float]:
    return {"psnr_db": psnr, "ssim": ssim, "fd_to_full_precision": fd}


def digest(full: Source, asked: Mapping[str, Any], seed: int) -> str:
    """What determines a row: weights, recipe as it is, pictures, metrics."""
    recipe = recipe_to(resolve_recipe(asked["recipe"], asked["bits"], asked["settings"]))
    sampling = [seed, STEPS, GUIDANCE, BATCH, PICTURES, CHUNK, CHUNKS[asked["model"]], sorted(METRICS)]
    found = hashlib.sha256(json.dumps([asked, recipe, sampling]).encode())
    for file in full.weight_files:
        found.update(file.read_bytes())
    return found.hexdigest()[:20]


def observe(
    full: Source, sampler: Sampler, asked: Mapping[str, Any], whole_seed: int | None, seed: int
) -> dict[str, Any]:
    """Quantize, save, load, observe; and draw 128 pictures where nobody has: with ``whole_seed``."""
    assert full.zoo is not None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "packed"
        storage = stored_dtype(full.weight_files)
        pipe = zoo.load(full.zoo)
        dither.quantize(pipe, asked["recipe"], asked["bits"], settings=asked["settings"], storage=storage)
        dither.save(pipe, target, storage=storage)
        small = open_source(str(target))
        count = CHUNKS[full.zoo]
        labels, seeds = default_labels(full.pipeline, CHUNK * count), sample_seeds(seed, CHUNK * count)
        parts = [slice(CHUNK * i, CHUNK * (i + 1)) for i in range(count)]
        chunks = [observe_pair(small, full, labels[part], seeds[part], STEPS, GUIDANCE) for part in parts]
        whole = None if whole_seed is None else draw(full, small, sampler, whole_seed)
    return {
        "whole": whole,
        "observed": {
            str(CHUNK * (i + 1)): {name: metric(join(chunks[: i + 1])) for name, metric in METRICS.items()}
            for i in range(count)
        },
    }


def draw(full: Source, small: Source, sampler: Sampler, seed: int) -> dict[str, float]:
    """The whole evaluation."""
    assert full.zoo is not None
    features, real = zoo_judges(full.zoo)
    found = evaluation.evaluate(
        sampler,
        sampler_for(small.pipeline, STEPS, GUIDANCE, BATCH),
        labels=default_labels(full.pipeline, PICTURES),
        seeds=sample_seeds(seed, PICTURES),
        batch_size=BATCH,
        features=features,
        real=real,
        noise_floor=False,
        images=0,
    )
    return numbers(found["psnr_db"]["mean"], found["ssim"]["mean"], found["fd"]["to_full_precision"])


def join(chunks: Sequence[Chunk]) -> Chunk:
    """What the metrics need of several chunks: pictures appended, energies added."""
    pictures = {key: np.concatenate([c[key] for c in chunks]) for key in chunks[0] if key.startswith("picture/")}
    return pictures | {key: np.sum([c[key] for c in chunks], axis=0) for key in chunks[0] if key.startswith("sum/")}


def correlations(model: str, every: Sequence[Mapping[str, Any]], among: str) -> list[dict[str, Any]]:
    """Rank correlations over the quantized models of one zoo model, a line for each metric and number of pictures.

    All models, or those ``among`` one width: their order is harder to tell, and what a search at that width asks for.
    An order of fewer than five says nothing.
    """
    rows, lines = [row for row in every if among in ("", row["bits"])], []
    for n in rows[0]["observed"] if len(rows) >= FEWEST else ():
        for metric in METRICS:
            line = {"model": model, "among": among or "all", "models": len(rows), "metric": metric, "pictures": int(n)}
            cost = int(n) * CALLS[metric] / (PICTURES * STEPS)
            observed = np.array([row["observed"][n][metric] for row in rows])
            against = {
                name: spearman(observed, np.array([see(r["whole"]) for r in rows])) for name, see in FULL.items()
            }
            lines.append({**line, "cost": round(cost, 5), **against})
    return lines


def spearman(a: Float64, b: Float64) -> dict[str, Any]:
    """Rank correlation of two measurements of the same models, with its interval."""
    picks = np.random.default_rng(0).integers(0, len(a), (RESAMPLES, len(a)))
    sampled = _spearman(a[picks], b[picks])
    low, high = np.nanquantile(sampled, [0.025, 0.975])  # a sample of one model alone has no order
    whole = float(_spearman(a[None], b[None])[0])
    return {"spearman": round(whole, 4), "ci95": [round(float(low), 4), round(float(high), 4)]}


def _spearman(a: Float64, b: Float64) -> Float64:
    x, y = (rankdata(values, axis=1) for values in (a, b))  # (R, M)
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.asarray((x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1)))


def _x0(chunk: Chunk) -> Float64:
    """Relative squared error of the predicted picture (N, T)."""
    return np.asarray(10 ** (-chunk["picture/x0_db"] / 10))


def _mean_log(values: Float64) -> float:
    return float(np.log(np.maximum(values, np.finfo(np.float64).tiny)).mean())


if __name__ == "__main__":
    main()
