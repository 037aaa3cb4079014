"""Folders that appear whole or not at all, and safetensors files read with every failure named."""

import errno
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dither.checkpoint.contents import DIGESTS, PLAN, digest
from dither.errors import BadCheckpoint, DitherError

__all__ = [
    "CONFIG",
    "Reader",
    "atomic_folder",
    "opened",
    "read_json",
    "weight_files",
    "write_json",
    "write_shards",
]

CONFIG = "config.json"
STEMS = ("model", "diffusion_pytorch_model")
"""Of weight files and their index: ours, and diffusers'."""


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` to write into; it becomes ``target`` when the block ends well.

    Files reach the disk before the rename. Whatever goes wrong, Ctrl-C included, leaves nothing behind.

    Raises:
        DitherError: the target exists and is not an empty folder, or the disk is full or cannot be written.
    """
    target = target.expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DitherError(f"output folder '{target}' exists and is not an empty folder")
    partial = target.parent / f".{target.name}.{secrets.token_hex(4)}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        for file in partial.rglob("*.safetensors"):
            _order_header(file)
        _settle(partial)
        os.replace(partial, target)
        _sync(target.parent)
    except (OSError, SafetensorError) as e:
        raise DitherError(f"'{target}' cannot be written: {_reason(e)}; nothing was kept") from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _reason(e: Exception) -> str:
    full = f"(os error {errno.ENOSPC})" in str(e) or (isinstance(e, OSError) and e.errno == errno.ENOSPC)
    if full:
        return "no space is left on the disk"
    return e.strerror if isinstance(e, OSError) and e.strerror else str(e)


def _order_header(file: Path) -> None:
    """Sort a file's metadata, which safetensors writes in random order: the same model gives the same bytes."""
    with file.open("r+b") as f:
        size = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(size))
        if "__metadata__" not in header:
            return
        metadata = dict(sorted(header.pop("__metadata__").items()))
        text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise DitherError(f"'{file}' has a header that does not fit its place")
        f.seek(8)
        f.write(text.ljust(size))  # the format pads with spaces


def _settle(folder: Path) -> None:
    """Ordinary access rights (some writers of files make them private), and all bytes on the disk."""
    rights = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(rights)
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    if path.is_dir() and sys.platform == "win32":  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_shards(
    tensors: Mapping[str, Tensor], folder: Path, metadata: Mapping[str, str], max_shard_size: int | str
) -> None:
    """One safetensors file, or several and their index, in the naming of diffusers and transformers."""
    split = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern=f"{STEMS[0]}{{suffix}}.safetensors", max_shard_size=max_shard_size
    )
    for file, names in split.filename_to_tensors.items():
        save_file({k: tensors[k] for k in names}, folder / file, metadata={"format": "pt", **metadata})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / f"{STEMS[0]}.safetensors.index.json", index)


def write_json(path: Path, data: Any) -> None:
    """Sorted, readable JSON."""
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """A JSON file. Raises BadCheckpoint naming the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:  # ValueError: not JSON, not UTF-8
        raise BadCheckpoint(f"'{path}' is not readable JSON: {e}") from None
    except OSError as e:
        raise BadCheckpoint(f"'{path}' cannot be read: {e.strerror}") from None


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder, from its index when there is one. Folders of diffusers are read as well."""
    for stem in STEMS:
        if (folder / f"{stem}.safetensors.index.json").is_file():
            return _indexed(folder / f"{stem}.safetensors.index.json")
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"]
    raise BadCheckpoint(f"'{folder / STEMS[0]}.safetensors' is missing")


def _indexed(path: Path) -> list[Path]:
    index = read_json(path)
    table = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
        raise BadCheckpoint(f"'{path}' has no valid 'weight_map'")
    files = sorted(set(table.values()))
    if bad := [f for f in files if Path(f).name != f or not f.endswith(".safetensors")]:
        raise BadCheckpoint(f"'{path}' names '{bad[0]}', which is not a safetensors file in its folder")
    return [path.parent / f for f in files]


class Reader:
    """Tensors by name over several open safetensors files, each read when asked for.

    Args:
        files: path and open handle.
    """

    def __init__(self, files: Sequence[tuple[Path, Any]]) -> None:
        self.files = tuple(files)
        self.place: dict[str, tuple[Path, Any]] = {}
        for path, handle in files:
            for name in handle.keys():  # noqa: SIM118  (a handle is no mapping)
                if name in self.place:
                    raise BadCheckpoint(f"tensor '{name}' is in '{self.place[name][0]}' and again in '{path}'")
                self.place[name] = (path, handle)

    def __call__(self, name: str) -> Tensor:
        """The tensor of this name."""
        path, handle = self.place[name]
        with named(path):
            return handle.get_tensor(name)  # type: ignore[no-any-return]

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and safetensors dtype, without reading values."""
        path, handle = self.place[name]
        with named(path):
            part = handle.get_slice(name)
            return tuple(part.get_shape()), part.get_dtype()

    def verify(self, plan_digest: str, required: bool) -> None:
        """Hold digests of tensors and plan against the files' metadata.

        Args:
            plan_digest: of the plan in config.json.
            required: files without digests are refused; else they are taken (another writer may have dropped them).
        """
        tables = {path: _digests(path, handle, plan_digest, required) for path, handle in self.files}
        for name, (path, _) in self.place.items():
            table = tables[path]
            if table is not None and table.get(name) != digest(self(name)):
                raise BadCheckpoint(
                    f"tensor '{name}' in '{path}' does not match its digest: the file was damaged or changed"
                )


def _digests(path: Path, handle: Any, plan_digest: str, required: bool) -> Mapping[str, Any] | None:
    metadata = handle.metadata() or {}
    if DIGESTS not in metadata or PLAN not in metadata:
        if required:
            raise BadCheckpoint(f"'{path}' has no digests: it was not written by dither")
        return None
    if metadata[PLAN] != plan_digest:
        raise BadCheckpoint(f"'{path}' belongs to another plan than the one in its {CONFIG}")
    try:
        table = json.loads(metadata[DIGESTS])
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise BadCheckpoint(f"'{path}' has an unreadable table of digests")
    return table


@contextmanager
def opened(files: Sequence[Path]) -> Iterator[Reader]:
    """Open all files of a checkpoint. Raises BadCheckpoint naming the file that is missing or damaged."""
    with ExitStack() as stack:
        handles = []
        for path in files:
            with named(path):
                handles.append((path, stack.enter_context(safe_open(path, framework="pt"))))
        yield Reader(handles)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn what reading a safetensors file can raise into BadCheckpoint with its name."""
    try:
        yield
    except FileNotFoundError:
        raise BadCheckpoint(f"'{path}' is missing") from None
    except (SafetensorError, OSError, RuntimeError, ValueError) as e:
        raise BadCheckpoint(f"'{path}' is truncated or damaged: {e}") from None
