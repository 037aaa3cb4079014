"""``evaluate``: a quantized model beside its full-precision original, as one results dict that a report can show.

Everything measured comes from ``dither.evaluation``, which sees only callables; here they are made, and sizes, layers and
provenance are added.
"""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import diffusers
import torch

from dither import evaluation as paired
from dither._version import __version__
from dither.calibrate import record
from dither.checkpoint import Header, header_of
from dither.errors import BadModel, DitherError
from dither.evaluation import FeatureExtractor, RealStats
from dither.inspection import describe, size_on_disk, summary
from dither.quantization import sample_seeds
from dither.sampling import default_labels, sampler_for
from dither.sources import Source, open_source
from dither.stages import STAGES, Phase

__all__ = ["MEASURED", "device_name", "evaluate", "versions"]

Progress: TypeAlias = Callable[[str, int, int], None]
_SNR_SAMPLES = 8

MEASURED = (
    "psnr_db",
    "ssim",
    "fd",
    "class_accuracy",
    "noise_floor",
    "drift",
    "size",
    "layers",
    "kernels",
    "n",
    "seconds",
)
"""Parts of a results dict that hold numbers, which a condition can be about."""


def evaluate(
    quantized: str | Path | Source,
    against: str | Path | Source,
    *,
    n: int = 256,
    seed: int = 0,
    steps: int = 25,
    guidance: float = 1.5,
    batch_size: int = 64,
    labels: Sequence[int | str] = (),
    noise_floor: bool = True,
    images: int = 24,
    command: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Draw ``n`` pictures from both with the same seeds and compare them, and the layers, and the sizes.

    Args:
        quantized: a checkpoint of dither: a folder, or an opened Source.
        against: the full-precision model.
        n, seed, steps, guidance, labels: of the pictures; labels take turns, all classes by default.
        batch_size: pictures at a time; no result but the noise floor depends on it.
        noise_floor: also draw the full-precision pictures in another batch size, and with other seeds.
        images: pairs kept in the results.
        command: what to repeat to get these results.
        progress: told (what, done, total).

    Returns:
        The contents of ``eval.json``; see ``docs/results.md``.

    Raises:
        BadModel: one of them cannot be opened or sampled, or they are not the same kind.
        BadValue: pictures hold NaN, or the request makes no sense.
    """
    small = quantized if isinstance(quantized, Source) else open_source(str(quantized))
    header = _header(small)
    full = against if isinstance(against, Source) else open_source(str(against))
    _check_pair(small, full)
    tell = progress or _silent
    started = time.perf_counter()
    chosen = default_labels(full.pipeline, n, labels)
    features, real = _features(full)
    results = paired.evaluate(
        sampler_for(full.pipeline, steps, guidance, batch_size),
        sampler_for(small.pipeline, steps, guidance, batch_size),
        labels=chosen,
        seeds=sample_seeds(seed, n),
        batch_size=batch_size,
        features=features,
        real=real,
        noise_floor=noise_floor,
        images=images,
        progress=lambda done, total, _: tell("drawing pictures", done, total),
    )
    tell("measuring layers", 0, 1)
    layer_snr = _layer_snr(small, full, chosen[:_SNR_SAMPLES], seed, steps, guidance)
    tell("measuring layers", 1, 1)
    rows = describe(small.model, small.adapter)
    recipe = dict(header.recipe or {})
    return {
        "schema": 1,
        "kind": "eval",
        "model": full.name,
        "checkpoint": small.name,
        "bits": recipe.get("bits"),
        "recipe": recipe,
        **results,
        "layer_snr": layer_snr,
        "size": size_on_disk(small.model, small.weight_files, full.weight_bytes),
        **summary(rows),
        "seed": seed,
        "steps": steps,
        "guidance": guidance,
        "batch_size": batch_size,
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "command": command,
        "seconds": {"total": time.perf_counter() - started},
    }


@dataclass(frozen=True)
class ZooFeatures:
    """A feature network of the zoo under the name that is printed beside its distances."""

    network: Callable[[Any], tuple[Any, Any]]
    name: str

    def __call__(self, images: Any) -> tuple[Any, Any]:
        """Features (N, D) and logits (N, C) of uint8 pictures (N, H, W, C)."""
        return self.network(images)


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def _header(source: Source) -> Header:
    try:
        return header_of(source.model)
    except DitherError:
        raise BadModel(f"'{source.name}' is not quantized by dither: there is nothing to compare") from None


def _check_pair(small: Source, full: Source) -> None:
    for source in (small, full):
        if source.pipeline is None:
            raise BadModel(f"'{source.name}' has no pipeline to sample with, only a network")
    a, b = type(small.model).__name__, type(full.model).__name__
    if a != b:
        raise BadModel(f"'{small.name}' is a {a} and '{full.name}' a {b}: they cannot be compared")
    ours, theirs = ({k: v.shape for k, v in s.model.named_parameters() if k.endswith("bias")} for s in (small, full))
    for name in sorted(set(ours) & set(theirs)):
        if ours[name] != theirs[name]:
            raise BadModel(f"'{small.name}' and '{full.name}' differ in shape at '{name}': they cannot be compared")


def _features(full: Source) -> tuple[FeatureExtractor | None, RealStats | None]:
    """The zoo's feature network and real statistics, where the model is of the zoo."""
    if full.zoo is None:
        return None, None
    from dither import zoo

    network, stats = zoo.load_features(full.zoo)
    return ZooFeatures(network, f"zoo:{full.zoo.removesuffix('-hard')}"), RealStats(
        stats.mu, stats.sigma, stats.n, stats.accuracy
    )


def _layer_snr(
    small: Source, full: Source, labels: Sequence[Any], seed: int, steps: int, guidance: float
) -> dict[str, Any]:
    """Error of every block's and comparable layer's output at each step, on the full-precision trajectory."""
    sampler = sampler_for(full.pipeline, steps, guidance)
    calls = record(full.model, lambda: sampler(labels, sample_seeds(seed, len(labels))), limit=1000, seed=seed)
    timed = [(c.args, c.kwargs, round(1000 * float(full.adapter.noise_level(full.model, c)[0]), 1)) for c in calls]
    names = [*_comparable(small), *small.adapter.blocks(small.model)]
    order = {name: i for i, (name, _) in enumerate(full.model.named_modules())}
    with torch.no_grad():
        return paired.layer_snr(full.model, small.model, timed, sorted(names, key=order.__getitem__)).to_json()


def _comparable(small: Source) -> list[str]:
    """Quantized layers whose outputs mean the same in both models: not those that absorbed a channel scale."""
    header = header_of(small.model)
    tags = [s.get("stage") for s in (header.recipe or {}).get("stages", ())]
    transformed = any(tag in STAGES and STAGES[tag].phase == Phase.TRANSFORM for tag in tags)
    folds = {s.fold.linear for s in small.adapter.sites(small.model) if s.fold is not None} if transformed else set()
    return [name for name in header.plan.layers if name not in folds]


def device_name() -> str:
    """The device that runs the models here."""
    return f"CPU {platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def versions() -> dict[str, str]:
    """Of what produced the numbers."""
    return {
        "dither": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }
