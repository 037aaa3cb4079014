"""Arrays in an npz, read and written as streams: a zip whose members are npy files.

Nothing is unpickled, sizes are checked before anything is read, and a written file appears whole or not at all. Members are
stored, not compressed, with a fixed date: the same arrays give the same bytes.
"""

import os
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt

from dither.errors import BadValue

__all__ = [
    "check_size",
    "declared",
    "new_member",
    "outside",
    "read_array",
    "read_exactly",
    "read_header",
    "reading",
    "replacing",
    "write_header",
]

EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's earliest
LAST_LETTER = 0x10FFFF  # numpy keeps any 32 bits, and fails when they are looked at
Item = TypeVar("Item")


class _OutsideError(Exception):
    """An error of whoever makes the arrays, on its way past the one who writes them: no fault of the disk."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def outside(items: Iterable[Item]) -> Iterator[Item]:
    """The same items; an error of reading or writing while they are made passes `replacing` as it is."""
    try:
        yield from items
    except OSError as error:
        raise _OutsideError(error) from error


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
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
def new_member(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    """A stream that becomes the array `name`."""
    info = zipfile.ZipInfo(f"{name}.npy", EPOCH)
    info.external_attr = 0o644 << 16
    with archive.open(info, "w", force_zip64=True) as member:
        yield member


def write_header(member: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """A header of version 2.0 for an array in C order."""
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(member, described)


@contextmanager
def reading(path: Path) -> Iterator[zipfile.ZipFile]:
    """An open npz; whatever is wrong with it is one sentence that names it."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
        raise BadValue(f"{path} is not a whole npz file: {error}.") from error
    except OSError as error:
        raise BadValue(f"cannot read {path}: {error.strerror or error}.") from error


def read_header(path: Path, name: str, member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
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


def declared(path: Path, archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of a member, after its size was compared with them."""
    if f"{name}.npy" not in archive.namelist():
        raise BadValue(f"{path} holds no {name}.")
    with archive.open(f"{name}.npy") as member:
        shape, dtype, offset = read_header(path, name, member)
    check_size(path, archive, name, offset + int(np.prod(shape, dtype=object)) * dtype.itemsize)
    return shape, dtype


def check_size(path: Path, archive: zipfile.ZipFile, name: str, expected: int) -> None:
    """Raise BadValue unless a member has so many bytes, its header among them."""
    size = archive.getinfo(f"{name}.npy").file_size
    if size != expected:
        raise BadValue(f"{path}: {name} takes {size} bytes where its header asks for {expected}.")


def read_exactly(path: Path, name: str, member: IO[bytes], size: int) -> bytes:
    """So many bytes, or BadValue."""
    content = member.read(size)
    if len(content) != size:
        raise BadValue(f"{path}: {name} ends too early.")
    return content


def read_array(path: Path, archive: zipfile.ZipFile, name: str, kinds: str, limit: int) -> npt.NDArray[Any]:
    """A whole small array of one of these kinds of dtype, of at most `limit` bytes."""
    shape, dtype = declared(path, archive, name)
    if dtype.kind not in kinds or dtype.itemsize == 0:
        raise BadValue(f"{path}: {name} has dtype {dtype}, which it cannot have.")
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size > limit:
        raise BadValue(f"{path}: {name} takes {size} bytes, more than any honest file's.")
    with archive.open(f"{name}.npy") as member:
        read_header(path, name, member)
        content = read_exactly(path, name, member, size)
        member.read(1)  # the end: zipfile compares the checksum here
    array = np.frombuffer(content, dtype)
    if dtype.kind == "U" and array.view(np.dtype(np.uint32).newbyteorder(dtype.byteorder)).max(initial=0) > LAST_LETTER:
        raise BadValue(f"{path}: {name} holds what is no text.")
    return array.reshape(shape)
