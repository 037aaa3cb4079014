"""A user's stored samples of a class-conditional DiT as denoiser calls, such as Q-DiT calibrates from (arXiv 2406.17343).

An npz with the arrays

    x      (N, C, H, W)   floating: noisy latents, taken as float32
    t      (N,)           timesteps, 0 to 1000
    y      (N,)           integers: class labels; the number of classes is the null class
    batch  ()             an integer, may be left out: samples a call, at most (32)

Rows stay in their order. One call may hold any timesteps.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dither.errors import BadValue
from dither.evaluation.npzfile import read_array, reading
from dither.models.base import Call

__all__ = ["FAMILY", "MODEL", "read_samples"]

MODEL, FAMILY = "DiTTransformer2DModel", "dit"
BATCH = 32
LARGEST_BATCH = 4096
LAST_STEP = 1000
BYTES = 2**34
NUMBER_BYTES = 16  # of one timestep or label


def read_samples(path: Path) -> tuple[tuple[Call, ...], str, str]:
    """Calls, and class and family of the model that they are for.

    Raises:
        BadValue: not a whole npz, an array that is missing or does not fit, NaN or infinity; file and array are named.
    """
    with reading(path) as archive:
        x = read_array(path, archive, "x", "f", BYTES)
        if x.ndim != 4 or x.size == 0:
            raise BadValue(f"{path}: x must be latents (N, C, H, W), got shape {x.shape}.")
        t = _column(path, archive, "t", "fiu", len(x))
        y = _column(path, archive, "y", "iu", len(x))
        size = _batch(path, archive)
    with np.errstate(over="ignore"):  # told below
        latents = x.astype(np.float32)
    if not np.isfinite(latents).all():
        raise BadValue(f"{path}: x holds NaN, infinity, or values beyond float32.")
    if not (np.isfinite(t) & (t >= 0) & (t <= LAST_STEP)).all():  # also false for NaN
        raise BadValue(f"{path}: t must be timesteps from 0 to {LAST_STEP}.")
    if y.min() < 0 or y.max() >= 2**31:
        raise BadValue(f"{path}: y must be class numbers, got {y.min()} to {y.max()}.")
    times = t.astype(np.float32 if t.dtype.kind == "f" else np.int64)
    parts = [slice(start, start + size) for start in range(0, len(x), size)]
    return tuple(_call(latents[p], times[p], y[p].astype(np.int64)) for p in parts), MODEL, FAMILY


def _column(path: Path, archive: zipfile.ZipFile, name: str, kinds: str, count: int) -> npt.NDArray[Any]:
    column = read_array(path, archive, name, kinds, count * NUMBER_BYTES)
    if column.shape != (count,):
        raise BadValue(f"{path}: {name} of shape {column.shape} does not go with {count} samples.")
    return column


def _batch(path: Path, archive: zipfile.ZipFile) -> int:
    if "batch.npy" not in archive.namelist():
        return BATCH
    batch = read_array(path, archive, "batch", "iu", NUMBER_BYTES)
    if batch.shape != () or not 1 <= int(batch) <= LARGEST_BATCH:
        raise BadValue(f"{path}: batch must be one number from 1 to {LARGEST_BATCH}.")
    return int(batch)


def _call(x: npt.NDArray[Any], t: npt.NDArray[Any], y: npt.NDArray[Any]) -> Call:
    """As a sampler calls diffusers' DiT."""
    named = {"hidden_states": x, "timestep": t, "class_labels": y}
    return Call((), {**{k: torch.from_numpy(v.copy()) for k, v in named.items()}, "return_dict": False})
