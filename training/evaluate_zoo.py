"""Compare two pipeline folders of the same data set: Frechet distance to real test images, and class accuracy.

    FD = |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))     (Dowson & Landau 1982; Heusel et al., arXiv 1706.08500)

in the feature space of the zoo's own network, so it is not FID and is comparable only within this table. Both models draw
the same labels from the same seeds. The floor is the distance of as many real training images.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

import diffusers
import numpy as np
import torch
from data import load
from PIL import Image
from scipy.linalg import sqrtm

from dither.zoo import PixelDiTPipeline
from dither.zoo.features import FeatureNetwork, RealStats, read_network, read_stats

BATCH = 100


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("models", nargs="+", help="NAME=FOLDER, each a pipeline folder")
    p.add_argument("--features", type=Path, required=True, help="a features/ folder")
    p.add_argument("--data", required=True, help="the data set, for the floor")
    p.add_argument("--json", type=Path, required=True)
    p.add_argument("--grids", type=Path, help="folder for one picture of samples a model")
    p.add_argument("-n", type=int, default=1000)
    p.add_argument("--steps", type=int, default=25)
    p.add_argument("--guidance", type=float, nargs="+", default=[1.5])
    p.add_argument("--seed", type=int, default=0)
    return p.parse_args()


def frechet(features: np.ndarray, real: RealStats) -> float:
    """The Frechet distance between features (N, D) and the statistics of real images."""
    f = features.astype(np.float64)
    sigma = np.cov(f, rowvar=False)
    root = sqrtm(sigma @ real.sigma).real
    return float(((f.mean(0) - real.mu) ** 2).sum() + np.trace(sigma + real.sigma - 2 * root))


def sample(folder: str, labels: list[int], a: argparse.Namespace, guidance: float) -> np.ndarray:
    """uint8 images (N, H, W, C)."""
    pipe = PixelDiTPipeline.from_pretrained(folder)
    pipe.transformer.float().eval()
    pipe.set_progress_bar_config(disable=True)
    parts = []
    for i in range(0, len(labels), BATCH):
        chosen = labels[i : i + BATCH]
        generators = [torch.Generator().manual_seed(a.seed + i + j) for j in range(len(chosen))]
        parts.append(pipe(chosen, guidance, generators, a.steps, output_type="np").images)
    return (np.concatenate(parts) * 255).round().astype(np.uint8)


def grid(images: np.ndarray, labels: list[int], path: Path) -> None:
    """One column a class, up to eight rows, three times enlarged."""
    columns = [images[np.array(labels) == c][:8] for c in range(max(labels) + 1)]
    picture = np.concatenate([np.concatenate(list(c)) for c in columns], axis=1)  # (8 H, classes W, C)
    Image.fromarray(picture.squeeze()).resize((picture.shape[1] * 3, picture.shape[0] * 3), 0).save(path)


def score(images: np.ndarray, labels: list[int], network: FeatureNetwork, real: RealStats) -> dict[str, object]:
    features, logits = network(images)
    right = logits.argmax(1) == np.array(labels)
    accuracy = {c: round(float(right[np.array(labels) == c].mean()), 3) for c in range(max(labels) + 1)}
    return {
        "fd": round(frechet(features, real), 4),
        "accuracy": round(float(right.mean()), 4),
        "accuracy_by_class": accuracy,
    }


def main() -> None:
    a = parse()
    torch.set_num_threads(2)
    network, real = read_network(a.features), read_stats(a.features)
    data = load(a.data)
    labels = [i % data.classes for i in range(a.n)]
    order = np.random.default_rng(a.seed).permutation(len(data.train.images))[: a.n]
    results: dict[str, object] = {
        "real_training_images": score(data.train.images[order], data.train.labels[order].tolist(), network, real)
    }
    for name, folder in (m.split("=", 1) for m in a.models):
        for guidance in a.guidance:
            images = sample(folder, labels, a, guidance)
            results[f"{name}, guidance {guidance}"] = score(images, labels, network, real)
            print(name, guidance, results[f"{name}, guidance {guidance}"], flush=True)
            if a.grids:
                grid(images, labels, a.grids / f"{name}_{guidance}.png")
    facts = {
        "what": "Frechet distance in the zoo's own feature space (not FID) and accuracy of its classifier",
        "results": results,
        "classifier_accuracy_on_real_test_images": real.accuracy,
        "n": a.n,
        "steps": a.steps,
        "seed": a.seed,
        "device": f"cpu, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
        "command": "python evaluate_zoo.py " + " ".join(_shorten(word) for word in sys.argv[1:]),
    }
    a.json.parent.mkdir(parents=True, exist_ok=True)
    a.json.write_text(json.dumps(facts, indent=1) + "\n")


def _shorten(word: str) -> str:
    """The argument without the folders of this machine."""
    name, equals, value = word.rpartition("=")
    return name + equals + (Path(value).name if Path(value).is_absolute() else value)


if __name__ == "__main__":
    main()
