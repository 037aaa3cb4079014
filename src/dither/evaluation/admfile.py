"""The files of ADM's evaluator: pictures in an npz, and the statistics of a reference set. Streamed, in constant memory.

Layout: a zip whose members are npy files. ``arr_0`` holds uint8 pictures (N, H, W, C), or videos (N, F, H, W, C);
``arr_1``, if there, the labels. ``seeds``, and ``settings``, JSON text of how the samples were drawn, are ours: other
readers pass over them. Members are stored, not compressed, and have version 2.0 headers, so a reader can stream
50 000 pictures of 256 x 256 (9.8 GB) without holding them. A reference file holds ``mu`` and
``sigma`` of the pooled features, ``mu_s`` and ``sigma_s`` of the spatial ones (for sFID), and some pictures in ``arr_0``.

Nothing is unpickled, sizes are checked before anything is read, and a written file appears whole or not at all. The same
pictures give the same bytes.
"""

import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dither.errors import BadValue
from dither.evaluation.npzfile import (
    check_size,
    declared,
    new_member,
    outside,
    read_array,
    read_exactly,
    read_header,
    reading,
    replacing,
    write_header,
)
from dither.evaluation.protocol import Float64, Label, Pictures

__all__ = ["PictureFile", "ReferenceStats", "open_pictures", "read_reference", "write_npz"]

STATISTICS_BYTES = 2**30  # a covariance of 2048 dimensions takes 32 MiB
LABEL_BYTES = 4096  # of one label
SETTINGS_BYTES = 2**22  # a scheduler's take 8 KiB, and 100 KiB where it lists its noise levels
CHANNELS = (1, 3, 4)


def write_npz(
    path: str | Path,
    batches: Iterable[Pictures],
    count: int,
    shape: tuple[int, ...],
    labels: Sequence[Label] | None = None,
    seeds: Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write `count` pictures that come in batches (n, H, W, C), or videos (n, F, H, W, C), and what belongs to them.

    Args:
        path: the file.
        batches: uint8.
        count: of all batches together.
        shape: of one sample, (H, W, C) or (F, H, W, C).
        labels, seeds: one of each a sample.
        settings: how all were drawn, such as steps and guidance, as JSON.

    Raises:
        BadValue: batches of another dtype or shape, or more or fewer pictures than `count`; labels or seeds that do not
            fit; a folder that is not there or a disk that is full. Then no file is left, and an older one stays.
    """
    path = Path(path)
    if count < 1 or len(shape) not in (3, 4) or min(shape) < 1:
        raise BadValue(
            f"{path.name} needs at least one picture (H, W, C) or video (F, H, W, C), got {count} of shape {tuple(shape)}."
        )
    beside = _beside(count, labels, seeds, settings)
    with replacing(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        with new_member(archive, "arr_0") as member:
            write_header(member, np.dtype(np.uint8), (count, *shape))
            written = 0
            for batch in outside(batches):
                written += _checked_batch(batch, shape, count - written)
                member.write(np.ascontiguousarray(batch).data)
            if written != count:
                raise BadValue(f"{path.name} needs {count} pictures, but only {written} came.")
        for name, array in beside.items():
            with new_member(archive, name) as member:
                write_header(member, array.dtype, array.shape)
                member.write(array.tobytes())


@dataclass(frozen=True)
class PictureFile:
    """Pictures or videos in a file.

    Attributes:
        path: the file.
        count: of samples, N.
        shape: of one, (H, W, C) or (F, H, W, C).
        labels, seeds: (N,), where it has them.
        settings: how they were drawn, where it says so.
    """

    path: Path
    count: int
    shape: tuple[int, ...]
    labels: npt.NDArray[Any] | None
    seeds: npt.NDArray[np.int64] | None
    settings: Mapping[str, Any] | None = None

    @property
    def frames(self) -> int | None:
        """Of each video; None for pictures."""
        return self.shape[0] if len(self.shape) == 4 else None

    @property
    def kind(self) -> str:
        """What it holds, in a word."""
        return "pictures" if self.frames is None else "videos"

    @property
    def sample_bytes(self) -> int:
        """Size of one sample."""
        return math.prod(self.shape)

    def batches(self, size: int) -> Iterator[Pictures]:
        """Yield the samples in order, `size` at a time (n, ...); the last batch checks the file's checksum."""
        if size < 1:
            raise BadValue(f"a batch needs at least 1 picture, got {size}.")
        with reading(self.path) as archive, archive.open("arr_0.npy") as member:
            _, dtype, offset = read_header(self.path, "arr_0", member)
            check_size(self.path, archive, "arr_0", offset + self.count * self.sample_bytes)
            for start in range(0, self.count, size):
                n = min(size, self.count - start)
                content = read_exactly(self.path, "arr_0", member, n * self.sample_bytes)
                yield np.frombuffer(bytearray(content), dtype).reshape(n, *self.shape)  # torch wants it writable
            member.read(1)  # the end: zipfile compares the checksum here


@dataclass(frozen=True)
class ReferenceStats:
    """A reference set: fits of pooled and, where there, spatial features, and some of its pictures."""

    mu: Float64  # (D,)
    sigma: Float64  # (D, D)
    mu_s: Float64 | None  # (S,)
    sigma_s: Float64 | None  # (S, S)
    pictures: PictureFile | None


def open_pictures(path: str | Path) -> PictureFile:
    """Check a file of pictures or videos and read everything but these.

    Raises:
        BadValue: not a zip, truncated, no ``arr_0``, another dtype or shape, pickled objects, labels that do not fit,
            settings that are no JSON object.
    """
    path = Path(path)
    with reading(path) as archive:
        shape, dtype = declared(path, archive, "arr_0")
        if dtype != np.uint8 or len(shape) not in (4, 5) or min(shape) < 1 or shape[-1] not in CHANNELS:
            raise BadValue(
                f"{path}: arr_0 must be uint8 (N, H, W, 1, 3 or 4), or with frames (N, F, H, W, 1, 3 or 4), got {dtype} "
                f"of shape {shape}."
            )
        labels = _read_beside(path, archive, "arr_1", shape[0], "iuU")
        seeds = _read_beside(path, archive, "seeds", shape[0], "iu")
        settings = _read_settings(path, archive)
    whole = None if seeds is None else seeds.astype(np.int64)
    return PictureFile(path, shape[0], shape[1:], labels, whole, settings)


def read_reference(path: str | Path) -> ReferenceStats:
    """Read the statistics of a reference set; its pictures are opened, not read."""
    path = Path(path)
    with reading(path) as archive:
        names = set(archive.namelist())
        mu, sigma = _read_fit(path, archive, "mu", "sigma")
        spatial = "mu_s.npy" in names or "sigma_s.npy" in names
        mu_s, sigma_s = _read_fit(path, archive, "mu_s", "sigma_s") if spatial else (None, None)
    pictures = open_pictures(path) if "arr_0.npy" in names else None
    if pictures is not None and pictures.frames is not None:
        raise BadValue(f"{path}: arr_0 of a reference must be pictures, and these are videos of {pictures.shape}.")
    return ReferenceStats(mu, sigma, mu_s, sigma_s, pictures)


def _beside(
    count: int, labels: Sequence[Label] | None, seeds: Sequence[int] | None, settings: Mapping[str, Any] | None
) -> Mapping[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    if labels is not None:
        named = any(isinstance(label, str) for label in labels)
        arrays["arr_1"] = np.array([str(label) for label in labels] if named else labels, None if named else np.int64)
    if seeds is not None:
        arrays["seeds"] = np.asarray(seeds, dtype=np.int64)
    for name, array in arrays.items():
        if array.shape != (count,):
            raise BadValue(f"{name} of shape {array.shape} does not go with {count} pictures.")
    if settings is not None:
        arrays["settings"] = np.array(json.dumps(_plain(settings), sort_keys=True, allow_nan=False))
    return arrays


def _plain(value: Any) -> Any:
    """JSON has no infinity, and some schedulers' settings have: there it is text."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _checked_batch(batch: Pictures, shape: tuple[int, ...], left: int) -> int:
    if batch.dtype != np.uint8 or batch.shape[1:] != tuple(shape):
        raise BadValue(f"pictures must be uint8 (n, {', '.join(map(str, shape))}), got {batch.dtype} {batch.shape}.")
    if len(batch) > left:
        raise BadValue(f"more pictures came than were announced: {len(batch)} where {left} were left.")
    return len(batch)


def _read_beside(path: Path, archive: zipfile.ZipFile, name: str, count: int, kinds: str) -> npt.NDArray[Any] | None:
    if f"{name}.npy" not in archive.namelist():
        return None
    array = read_array(path, archive, name, kinds, count * LABEL_BYTES)
    if array.shape != (count,):
        raise BadValue(f"{path}: {name} of shape {array.shape} does not go with {count} pictures.")
    return array


def _read_settings(path: Path, archive: zipfile.ZipFile) -> Mapping[str, Any] | None:
    if "settings.npy" not in archive.namelist():
        return None
    text = read_array(path, archive, "settings", "U", SETTINGS_BYTES)
    try:
        settings = json.loads(str(text[()])) if text.shape == () else None
        json.dumps(settings, allow_nan=False)  # Python reads NaN and 1e999, which are no JSON
    except (ValueError, RecursionError) as error:
        raise BadValue(f"{path}: settings are no JSON: {error}.") from error
    if not isinstance(settings, Mapping):
        raise BadValue(f"{path}: settings must be one JSON object.")
    return settings


def _read_fit(path: Path, archive: zipfile.ZipFile, mean: str, covariance: str) -> tuple[Float64, Float64]:
    mu = read_array(path, archive, mean, "f", STATISTICS_BYTES)
    sigma = read_array(path, archive, covariance, "f", STATISTICS_BYTES)
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise BadValue(f"{path}: {mean} and {covariance} must be (D,) and (D, D), got {mu.shape} and {sigma.shape}.")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise BadValue(f"{path}: {mean} or {covariance} contains NaN or infinite values.")
    scale = np.abs(sigma).max(initial=0)
    if (np.abs(sigma - sigma.T) > 1e-4 * scale).any() or (np.diag(sigma) < 0).any():
        raise BadValue(f"{path}: {covariance} is not a covariance.")
    return mu.astype(np.float64), sigma.astype(np.float64)
