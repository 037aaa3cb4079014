"""Finished jobs on disk: one safetensors file a job, whole or not there at all, that knows whose result it is.

STORE/ab/KEY.safetensors      KEY = ``key_of(job)``, ab its first two digits; metadata {"shard": {"digest", "job"}} as JSON
STORE/.half/                  files being written, or left by runs that were killed

    digest = blake2b over (name, dtype, shape, bytes) of the arrays in the order of their names

Equal results give equal files, byte for byte. (The metadata is one entry because safetensors writes several in random
order.) Any number of processes may use one store at once: a file appears by ``os.replace``, so a reader sees all of it or
none, and two writers of one job write the same.
"""

import json
import os
import secrets
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dither.errors import DitherError
from dither.scale.jobs import Arrays, Job, canonical, key_of, tidy

__all__ = ["STALE_S", "ShardStore", "bytes_of"]

STALE_S = 3600.0
"""A half-written file that nobody touched for so many seconds belongs to a dead run."""
_META = "shard"
_HALF = ".half"
_SUFFIX = ".safetensors"


class ShardStore:
    """Results in a folder.

    Args:
        folder: made when it is absent.

    Attributes:
        damaged: path and reason of each file that ``get`` could not trust. They are computed again and overwritten.

    Raises:
        DitherError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: list[str] = []
        try:
            (folder / _HALF).mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise DitherError(f"cannot make the folder '{folder}': {e.strerror or e}") from None
        self._sweep()

    def path(self, job: Job) -> Path:
        """Where the job's result lies or will lie."""
        key = key_of(job)
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    def get(self, job: Job) -> dict[str, npt.NDArray[Any]] | None:
        """The result, or None: never computed, or damaged, which ``damaged`` then says."""
        path = self.path(job)
        if not path.is_file():
            return None
        try:
            return _read(path, canonical(job))
        except FileNotFoundError:
            return None  # another process removed it meanwhile
        except (_Damaged, SafetensorError, OSError) as e:
            self.damaged.append(f"{path}: {e}")
            return None

    def put(self, job: Job, arrays: Arrays) -> None:
        """Keep a result.

        Raises:
            DitherError: names the file that cannot be written, as on a full disk; nothing half-written stays.
        """
        path, arrays = self.path(job), tidy(arrays)
        half = self.folder / _HALF / f"{path.stem}.{os.getpid()}-{secrets.token_hex(4)}"
        shard = {"digest": _digest(arrays), "job": canonical(job)}
        meta = {_META: json.dumps(shard, sort_keys=True, separators=(",", ":"))}
        try:
            path.parent.mkdir(exist_ok=True)
            half.touch()
            rights = half.stat().st_mode
            save_file(arrays, half, meta)
            half.chmod(rights)  # safetensors lets only the owner read
            os.replace(half, path)
        except (OSError, SafetensorError) as e:  # a full disk reaches us as the second
            half.unlink(missing_ok=True)
            reason = e.strerror if isinstance(e, OSError) and e.strerror else e
            raise DitherError(f"cannot write '{path}': {reason}") from None
        except BaseException:  # Ctrl-C while a large file is written
            half.unlink(missing_ok=True)
            raise

    def _sweep(self) -> None:
        """Remove what killed runs left half-written. Others may sweep at the same time."""
        for half in (self.folder / _HALF).iterdir():
            try:
                if time.time() - half.stat().st_mtime > STALE_S:
                    half.unlink()
            except FileNotFoundError:
                continue


def bytes_of(array: npt.NDArray[Any]) -> memoryview:
    """The bytes of an array that lies row by row, with no copy."""
    return array.reshape(-1).view(np.uint8).data  # (nbytes,)


def _digest(arrays: Arrays) -> str:
    sums = blake2b(digest_size=16)
    for name in sorted(arrays):
        a = arrays[name]
        sums.update(json.dumps([name, a.dtype.name, list(a.shape)]).encode())
        sums.update(bytes_of(a))
    return sums.hexdigest()


class _Damaged(Exception):
    """A file that is no result of this job."""


def _read(path: Path, text: str) -> dict[str, npt.NDArray[Any]]:
    with safe_open(path, framework="np") as file:
        try:
            shard = json.loads((file.metadata() or {})[_META])
            digest, job = shard["digest"], shard["job"]
        except (KeyError, TypeError, ValueError, RecursionError):
            raise _Damaged("it does not say whose result it is") from None
        if job != text:
            raise _Damaged("it belongs to another job")
        try:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (TypeError, AttributeError) as e:  # a dtype that numpy has not
            raise _Damaged(str(e)) from None
    if _digest(arrays) != digest:
        raise _Damaged("its contents were changed")
    return arrays
