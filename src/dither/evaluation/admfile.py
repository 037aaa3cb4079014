"""The files of ADM's evaluator: pictures in an npz, and the statistics of a reference set. Streamed, in constant memory.

Layout: a zip whose members are npy files. ``arr_0`` holds uint8 pictures (N, H, W, C); ``arr_1``, if there, the labels;
``seeds`` is ours, and other readers pass over it. Members are stored, not compressed, and have version 2.0 headers, so
a reader can stream 50 000 pictures of 256 x 256 (9.8 GB) without holding them. A reference file holds ``mu`` and
``sigma`` of the pooled features, ``mu_s`` and ``sigma_s`` of the spatial ones (for sFID), and some pictures in ``arr_0``.

Nothing is unpickled, sizes are checked before anything is read, and a written file appears whole or not at all. The same
pictures give the same bytes.
"""

import os
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from dither.errors import BadValue
from dither.evaluation.protocol import Float64, Label, Pictures

__all__ = ["PictureFile", "ReferenceStats", "open_pictures", "read_reference", "write_npz"]

EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's earliest: the same pictures give the same bytes
STATISTICS_BYTES = 2**30  # a covariance of 2048 dimensions takes 32 MiB
LABEL_BYTES = 4096  # of one label


def write_npz(
    path: str | Path,
    batches: Iterable[Pictures],
    count: int,
    shape: tuple[int, int, int],
    labels: Sequence[Label] | None = None,
    seeds: Sequence[int] | None = None,
) -> None:
    """Write `count` pictures of `shape` (H, W, C) that come in batches (n, H, W, C), and what belongs to each.

    Raises:
        BadValue: batches of another dtype or shape, or more or fewer pictures than `count`; labels or seeds that do not
            fit; a folder that is not there or a disk that is full. Then no file is left, and an older one stays.
    """
    path = Path(path)
    if count < 1 or len(shape) != 3 or min(shape) < 1:
        raise BadValue(f"{path.name} needs at least one picture (H, W, C), got {count} of shape {tuple(shape)}.")
    beside = _beside(count, labels, seeds)
    with _replacing(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        with _member(archive, "arr_0") as member:
            _write_header(member, np.dtype(np.uint8), (count, *shape))
            written = 0
            for batch in _outside(batches):
                written += _checked_batch(batch, shape, count - written)
                member.write(np.ascontiguousarray(batch).data)
            if written != count:
                raise BadValue(f"{path.name} needs {count} pictures, but only {written} came.")
        for name, array in beside.items():
            with _member(archive, name) as member:
                _write_header(member, array.dtype, array.shape)
                member.write(array.tobytes())


@dataclass(frozen=True)
class PictureFile:
    """Pictures in a file: `count` of `shape` (H, W, C), with labels and seeds (N,) where it has them."""

    path: Path
    count: int
    shape: tuple[int, int, int]
    labels: npt.NDArray[Any] | None
    seeds: npt.NDArray[np.int64] | None

    def batches(self, size: int) -> Iterator[Pictures]:
        """Yield the pictures in order, `size` at a time (n, H, W, C); the last batch checks the file's checksum."""
        if size < 1:
            raise BadValue(f"a batch needs at least 1 picture, got {size}.")
        with _reading(self.path) as archive, archive.open("arr_0.npy") as member:
            _, dtype, offset = _read_header(self.path, "arr_0", member)
            _check_size(self.path, archive, "arr_0", offset + self.count * self._bytes())
            for start in range(0, self.count, size):
                n = min(size, self.count - start)
                content = _read_exactly(self.path, "arr_0", member, n * self._bytes())
                yield np.frombuffer(bytearray(content), dtype).reshape(n, *self.shape)  # torch wants it writable
            member.read(1)  # the end: zipfile compares the checksum here

    def _bytes(self) -> int:
        height, width, channels = self.shape
        return height * width * channels


@dataclass(frozen=True)
class ReferenceStats:
    """A reference set: fits of pooled and, where there, spatial features, and some of its pictures."""

    mu: Float64  # (D,)
    sigma: Float64  # (D, D)
    mu_s: Float64 | None  # (S,)
    sigma_s: Float64 | None  # (S, S)
    pictures: PictureFile | None


def open_pictures(path: str | Path) -> PictureFile:
    """Check a file of pictures and read everything but the pictures.

    Raises:
        BadValue: not a zip, truncated, no ``arr_0``, another dtype or shape, pickled objects, labels that do not fit.
    """
    path = Path(path)
    with _reading(path) as archive:
        shape, dtype = _declared(path, archive, "arr_0")
        if dtype != np.uint8 or len(shape) != 4 or min(shape) < 1 or shape[3] not in (1, 3, 4):
            raise BadValue(f"{path}: arr_0 must be uint8 (N, H, W, 1, 3 or 4), got {dtype} of shape {shape}.")
        labels = _read_beside(path, archive, "arr_1", shape[0], "iuU")
        seeds = _read_beside(path, archive, "seeds", shape[0], "iu")
    count, height, width, channels = shape
    return PictureFile(
        path, count, (height, width, channels), labels, None if seeds is None else seeds.astype(np.int64)
    )


def read_reference(path: str | Path) -> ReferenceStats:
    """Read the statistics of a reference set; its pictures are opened, not read."""
    path = Path(path)
    with _reading(path) as archive:
        names = set(archive.namelist())
        mu, sigma = _read_fit(path, archive, "mu", "sigma")
        spatial = "mu_s.npy" in names or "sigma_s.npy" in names
        mu_s, sigma_s = _read_fit(path, archive, "mu_s", "sigma_s") if spatial else (None, None)
    return ReferenceStats(mu, sigma, mu_s, sigma_s, open_pictures(path) if "arr_0.npy" in names else None)


def _beside(count: int, labels: Sequence[Label] | None, seeds: Sequence[int] | None) -> Mapping[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    if labels is not None:
        named = any(isinstance(label, str) for label in labels)
        arrays["arr_1"] = np.array([str(label) for label in labels] if named else labels, None if named else np.int64)
    if seeds is not None:
        arrays["seeds"] = np.asarray(seeds, dtype=np.int64)
    for name, array in arrays.items():
        if array.shape != (count,):
            raise BadValue(f"{name} of shape {array.shape} does not go with {count} pictures.")
    return arrays


def _checked_batch(batch: Pictures, shape: tuple[int, int, int], left: int) -> int:
    if batch.dtype != np.uint8 or batch.shape[1:] != tuple(shape):
        raise BadValue(f"pictures must be uint8 (n, {', '.join(map(str, shape))}), got {batch.dtype} {batch.shape}.")
    if len(batch) > left:
        raise BadValue(f"more pictures came than were announced: {len(batch)} where {left} were left.")
    return len(batch)


class _OutsideError(Exception):
    """An error of whoever makes the pictures, on its way past the one who writes them: no fault of the disk."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _outside(batches: Iterable[Pictures]) -> Iterator[Pictures]:
    try:
        yield from batches
    except OSError as error:
        raise _OutsideError(error) from error


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A stream whose content becomes `path` at the end; any failure, Ctrl-C too, leaves nothing behind."""
    if not path.parent.is_dir():
        raise BadValue(f"there is no folder {path.parent} to write {path.name} into.")
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            yield stream
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        temporary = None
    except _OutsideError as passing:
        raise passing.error from None
    except OSError as error:
        raise BadValue(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    """Temporary files are private; the finished file is as any other."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _member(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    info = zipfile.ZipInfo(f"{name}.npy", EPOCH)
    info.external_attr = 0o644 << 16
    with archive.open(info, "w", force_zip64=True) as member:
        yield member


def _write_header(member: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(member, described)


@contextmanager
def _reading(path: Path) -> Iterator[zipfile.ZipFile]:
    """An open npz; whatever is wrong with it is one sentence that names it."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
        raise BadValue(f"{path} is not a whole npz file: {error}.") from error
    except OSError as error:
        raise BadValue(f"cannot read {path}: {error.strerror or error}.") from error


def _read_header(path: Path, name: str, member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and the number of bytes of the header; objects would have to be unpickled and are refused."""
    try:
        version = np.lib.format.read_magic(member)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran_order, dtype = reader(member)
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, tokenize.TokenError) as error:
        raise BadValue(f"{path}: {name} has no npy header of version 1.0 or 2.0.") from error
    if dtype.hasobject:
        raise BadValue(f"{path}: {name} holds pickled objects, which are not read.")
    if fortran_order and len(shape) > 1:
        raise BadValue(f"{path}: {name} is in Fortran order, where C order is needed.")
    return shape, dtype, member.tell()


def _declared(path: Path, archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of a member, after its size was compared with them."""
    if f"{name}.npy" not in archive.namelist():
        raise BadValue(f"{path} holds no {name}.")
    with archive.open(f"{name}.npy") as member:
        shape, dtype, offset = _read_header(path, name, member)
    _check_size(path, archive, name, offset + int(np.prod(shape, dtype=object)) * dtype.itemsize)
    return shape, dtype


def _check_size(path: Path, archive: zipfile.ZipFile, name: str, expected: int) -> None:
    size = archive.getinfo(f"{name}.npy").file_size
    if size != expected:
        raise BadValue(f"{path}: {name} takes {size} bytes where its header asks for {expected}.")


def _read_exactly(path: Path, name: str, member: IO[bytes], size: int) -> bytes:
    content = member.read(size)
    if len(content) != size:
        raise BadValue(f"{path}: {name} ends too early.")
    return content


def _read_array(path: Path, archive: zipfile.ZipFile, name: str, kinds: str, limit: int) -> npt.NDArray[Any]:
    shape, dtype = _declared(path, archive, name)
    if dtype.kind not in kinds or dtype.itemsize == 0:
        raise BadValue(f"{path}: {name} has dtype {dtype}, which it cannot have.")
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size > limit:
        raise BadValue(f"{path}: {name} takes {size} bytes, more than any honest file's.")
    with archive.open(f"{name}.npy") as member:
        _read_header(path, name, member)
        content = _read_exactly(path, name, member, size)
        member.read(1)  # the end: zipfile compares the checksum here
    return np.frombuffer(content, dtype).reshape(shape)


def _read_beside(path: Path, archive: zipfile.ZipFile, name: str, count: int, kinds: str) -> npt.NDArray[Any] | None:
    if f"{name}.npy" not in archive.namelist():
        return None
    array = _read_array(path, archive, name, kinds, count * LABEL_BYTES)
    if array.shape != (count,):
        raise BadValue(f"{path}: {name} of shape {array.shape} does not go with {count} pictures.")
    return array


def _read_fit(path: Path, archive: zipfile.ZipFile, mean: str, covariance: str) -> tuple[Float64, Float64]:
    mu = _read_array(path, archive, mean, "f", STATISTICS_BYTES)
    sigma = _read_array(path, archive, covariance, "f", STATISTICS_BYTES)
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise BadValue(f"{path}: {mean} and {covariance} must be (D,) and (D, D), got {mu.shape} and {sigma.shape}.")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise BadValue(f"{path}: {mean} or {covariance} contains NaN or infinite values.")
    scale = np.abs(sigma).max(initial=0)
    if (np.abs(sigma - sigma.T) > 1e-4 * scale).any() or (np.diag(sigma) < 0).any():
        raise BadValue(f"{path}: {covariance} is not a covariance.")
    return mu.astype(np.float64), sigma.astype(np.float64)
