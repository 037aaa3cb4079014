"""``evaluate`` and ``compare``: quantized models beside their full-precision original, as results that a report can show.

    subjects    opened models and the digests that name them
    drawing     the work as jobs, and the worker that does them
    trajectory  two models side by side, step by step and layer by layer
    judges      which networks judge pictures
    gather      from finished jobs to a results dict
    comparison  all of these in order

What is measured comes from ``dither.evaluation``, which sees only pictures and callables.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dither.measure.comparison import Asked, Model, Progress, Running, compare, draw_shard
from dither.measure.drawing import device_name
from dither.measure.gather import versions
from dither.measure.judges import zoo_judges

__all__ = [
    "MEASURED",
    "Asked",
    "Model",
    "Progress",
    "Running",
    "compare",
    "device_name",
    "draw_shard",
    "evaluate",
    "versions",
    "zoo_judges",
]

MEASURED = (
    "psnr_db",
    "ssim",
    "lpips",
    "fd",
    "class_accuracy",
    "noise_floor",
    "drift",
    "trajectory",
    "size",
    "memory",
    "speed",
    "layers",
    "kernels",
    "n",
    "seconds",
)
"""Parts of a results dict that hold numbers, which a condition can be about."""


def evaluate(
    quantized: Model,
    against: Model,
    *,
    n: int = 256,
    seed: int = 0,
    steps: int = 25,
    guidance: float = 1.5,
    batch_size: int = 64,
    labels: Sequence[int | str] = (),
    noise_floor: int = 32,
    images: int = 24,
    store: str | Path | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Draw ``n`` pictures from both with the same seeds and compare them, and the layers, and the sizes.

    ``compare`` takes more options and several models.

    Args:
        quantized: a checkpoint of dither: a folder, or an opened Source.
        against: the full-precision model.
        n, seed, steps, guidance, labels: of the pictures; labels take turns, all classes by default.
        batch_size: pictures at a time.
        noise_floor: full-precision pictures that are also drawn in another batch size, and with other seeds.
        images: pairs kept in the results.
        store: folder of finished batches, to go on with after an interruption and to share between evaluations.
        command: what to repeat to get these results.
        progress: told (what, done, total).

    Returns:
        The contents of ``eval.json``; see ``docs/results.md``.

    Raises:
        BadModel: one of them cannot be opened or sampled, or they are not the same kind.
        BadValue: pictures hold NaN, or the request makes no sense.
    """
    asked = Asked(n, seed, steps, guidance, batch_size, tuple(labels), noise_floor, images=images)
    running = Running(store=None if store is None else Path(store), progress=progress or _silent)
    result: dict[str, Any] = compare([quantized], against, asked, running, command)["results"][0]
    return result


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""
