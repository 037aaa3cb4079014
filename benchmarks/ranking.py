"""Does a measure of quality put weight-only rtn at 8, 6, 5, 4 and 3 bits in the right order?

The order is known beforehand: fewer bits are worse. A measure that cannot find it with n pictures cannot choose between
recipes with n pictures either. Every picture is drawn once and kept in a work folder; then subsets of the pictures play the
part of small evaluations, and the share of them that find the order is counted.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

import dither
from benchmarks.common import RESULTS, environment, write_result
from benchmarks.ranking_subsets import MEASURES, Drawn, find_order, paired_fd
from dither import zoo
from dither.evaluation.frechet import fit_gaussian, frechet_distance, influence, paired_influence, standard_error
from dither.evaluation.image import mean_squared_error, psnr, ssim
from dither.evaluation.intervals import bootstrap_mean_interval
from dither.evaluation.protocol import Float64, RealStats, Sampler
from dither.quantization import resolve_recipe, sample_seeds
from dither.recipes import recipe_to
from dither.sampling import default_labels, sampler_for

MODELS = ("fashion", "fashion-hard")
WIDTHS = ("w8", "w6", "w5", "w4", "w3")
"""Best first: the order to be found."""
SIZES = (64, 128, 256, 512)
RECIPE, STEPS, GUIDANCE, CHUNK = "rtn", 25, 1.5, 64
Chunk: TypeAlias = Mapping[str, npt.NDArray[Any]]


def draw(model: str, n: int, seed: int, work: Path) -> dict[str, list[Chunk]]:
    """Pictures (N, H, W, C), features (N, D) and predicted classes (N,) by width in chunks; '' is full precision."""
    network, _ = zoo.load_features(model)
    labels, seeds = default_labels(zoo.load(model), n), sample_seeds(seed, n)
    made_of = {bits: determined_by(model, bits) for bits in ("", *WIDTHS)}
    samplers: dict[str, Sampler] = {}
    found: dict[str, list[Chunk]] = {bits: [] for bits in made_of}
    for start in range(0, n, CHUNK):  # all widths of a chunk first: what is there is always a prefix of every row
        part = slice(start, start + CHUNK)
        for bits, what in made_of.items():
            kept = work / f"{digest({**what, 'labels': labels[part], 'seeds': seeds[part]})}.npz"
            if not kept.is_file():
                samplers[bits] = samplers.get(bits) or opened(model, bits, seed)
                pictures = samplers[bits](labels[part], seeds[part])
                features, logits = network(pictures)
                keep(kept, {"pictures": pictures, "features": features, "classes": logits.argmax(axis=1)})
                sys.stderr.write(f"{model} {bits or 'full precision'} {start + len(pictures)}/{n}\n")
            with np.load(kept) as arrays:
                found[bits].append(dict(arrays))
    return found


def determined_by(model: str, bits: str) -> dict[str, Any]:
    """What a row's pictures depend on, but for labels and seeds."""
    weights = hashlib.blake2b(digest_size=16)
    for file in sorted(zoo.path(model).glob("transformer/*")):
        weights.update(file.read_bytes())
    recipe = recipe_to(resolve_recipe(RECIPE, bits)) if bits else None
    return {"model": model, "weights": weights.hexdigest(), "recipe": recipe, "steps": STEPS, "guidance": GUIDANCE}


def opened(model: str, bits: str, seed: int) -> Sampler:
    """The model at this width, quantized in memory."""
    pipe = zoo.load(model)
    if bits:
        dither.quantize(pipe, RECIPE, bits, seed=seed)
    return sampler_for(pipe, STEPS, GUIDANCE, CHUNK)


def digest(made_of: Mapping[str, Any]) -> str:
    """Name of what these determine."""
    return hashlib.blake2b(json.dumps(made_of, sort_keys=True).encode(), digest_size=16).hexdigest()


def keep(path: Path, arrays: Chunk) -> None:
    """An npz, moved into place whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(f".{os.getpid()}.writing")
    with half.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(half, path)


def drawn_of(model: str, chunks: Mapping[str, Sequence[Chunk]]) -> Drawn:
    """What the measures see."""
    pictures, features = (
        {name: joined(parts, key) for name, parts in chunks.items()} for key in ("pictures", "features")
    )
    real = zoo.load_features(model)[1]
    full = pictures[""]
    return Drawn(
        labels=np.asarray(default_labels(zoo.load(model), len(full))),
        full=features[""].astype(np.float64),
        quantized=[features[bits].astype(np.float64) for bits in WIDTHS],
        psnr=[psnr(mean_squared_error(full, pictures[bits])) for bits in WIDTHS],
        ssim=[ssim(full, pictures[bits]) for bits in WIDTHS],
        real=RealStats(real.mu, real.sigma, real.n, real.accuracy),
    )


def joined(parts: Sequence[Chunk], key: str) -> npt.NDArray[Any]:
    """One array of all chunks."""
    return np.concatenate([part[key] for part in parts])


def everything(drawn: Drawn, right: Mapping[str, Float64]) -> list[dict[str, Any]]:
    """Every measure with all pictures, full precision first. `right` (N,) is 1 where the class asked for was seen."""
    real, every = drawn.real, np.arange(len(drawn.labels))
    rows = [{"bits": "full precision", "fd_to_real": distance(drawn.full, real), "accuracy": float(right[""].mean())}]
    paired = paired_fd(drawn, every, every)
    for i, bits in enumerate(WIDTHS):
        features = drawn.quantized[i]
        row = {
            "bits": bits,
            "psnr": {"mean": float(drawn.psnr[i].mean()), "ci95": bootstrap_mean_interval(drawn.psnr[i])},
            "ssim": {"mean": float(drawn.ssim[i].mean()), "ci95": bootstrap_mean_interval(drawn.ssim[i])},
            "fd_paired": {"value": paired[i], "se": standard_error(paired_influence(drawn.full, features))},
            "fd_to_real": distance(features, real),
            "accuracy": float(right[bits].mean()),
        }
        rows.append(row)
    return rows


def distance(features: Float64, real: RealStats) -> dict[str, float]:
    """To real pictures, with its standard error."""
    value = frechet_distance(*fit_gaussian(features), real.mu, real.sigma)
    return {"value": value, "se": standard_error(influence(features, real.mu, real.sigma))}


def analysed(model: str, chunks: Mapping[str, Sequence[Chunk]], subsets: int, seed: int) -> dict[str, Any]:
    """What the result says of a model."""
    drawn = drawn_of(model, chunks)
    right = {name: (joined(parts, "classes") == drawn.labels).astype(np.float64) for name, parts in chunks.items()}
    total = len(drawn.labels)
    return {
        "model": f"zoo:{model}",
        "rows": everything(drawn, right),
        "found": {
            name: [find_order(drawn, of, n, subsets, seed) for n in SIZES if n <= largest(name, total)]
            for name, of in MEASURES.items()
        },
    }


def largest(measure: str, total: int) -> int:
    """Pictures of the largest subsets. Other seeds need as many again; subsets of more than 2/3 hardly differ."""
    return total // 2 if measure == "fd_unpaired" else 2 * total // 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=1024, help="pictures a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--subsets", type=int, default=200)
    parser.add_argument("--draw-only", action="store_true", help="fill the work folder and write no result")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dither-ranking")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "ranking.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    drawn = {model: draw(model, given.n, given.seed, given.work) for model in given.models}
    if given.draw_only:
        return
    result = {
        "n": given.n,
        "seed": given.seed,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "recipe": "rtn, weights only; modulation never under 4 bits",
        "order": list(WIDTHS),
        "features": "the zoo's own feature network; FD in them is not FID",
        "subsets": given.subsets,
        "models": [analysed(model, chunks, given.subsets, given.seed) for model, chunks in drawn.items()],
    }
    command = f"python -m benchmarks.ranking -n {given.n}"
    write_result(given.output, {**environment(command, given.threads), **result})


if __name__ == "__main__":
    main()
