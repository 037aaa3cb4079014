"""Weight files of a folder, and a check of safetensors files before a loader meets them.

A safetensors file is an 8-byte little-endian length, a JSON header of that length with ``data_offsets`` for each tensor, and
the data; so its exact size follows from its header, and a truncated copy is found without reading the data.
"""

import json
import math
from pathlib import Path
from typing import Any

from dither.errors import BadModel

__all__ = ["check_safetensors", "weight_files_in"]

WEIGHTS = "diffusion_pytorch_model"
HEADER_LIMIT = 100_000_000
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
BITS |= {"F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
BITS |= {"F32": 32, "I32": 32, "U32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64}


def weight_files_in(folder: Path) -> tuple[Path, ...]:
    """The files that diffusers reads from a model folder: shards, one safetensors file, or else an old pickle.

    Raises:
        BadModel: there are none, or a shard of the index is missing.
    """
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    if index.is_file():
        return _shards(index)
    single = folder / f"{WEIGHTS}.safetensors"
    if single.is_file():
        return (single,)
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise BadModel(f"{folder} holds no weights: no .safetensors and no .bin file.")
    return tuple(files)


def check_safetensors(file: Path) -> None:
    """Raises BadModel, naming the file, unless the header is sound and the file has exactly the size that it implies."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(HEADER_LIMIT, size - 8):
            raise BadModel(f"{file} is truncated or no safetensors file: its header does not fit into {size} bytes.")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise BadModel(f"{file} is no safetensors file: its header is not JSON.") from error
    if not isinstance(header, dict):
        raise BadModel(f"{file} is no safetensors file: its header is not a JSON object.")
    spans = sorted(_span(file, name, entry) for name, entry in header.items() if name != "__metadata__")
    end = 0
    for first, last, name in spans:
        if first != end:
            raise BadModel(f"{file} was tampered with: the data of {name!r} starts at {first}, not at {end}.")
        end = last
    if size != 8 + length + end:
        what = "truncated" if size < 8 + length + end else "longer than its header says"
        raise BadModel(f"{file} is {what}: it has {size} bytes, and its header promises {8 + length + end}.")


def _span(file: Path, name: str, entry: Any) -> tuple[int, int, str]:
    """First and last-plus-one byte of a tensor's data."""
    try:
        (first, last), shape, dtype = entry["data_offsets"], entry["shape"], entry["dtype"]
        sound = 0 <= first <= last and (last - first) * 8 == math.prod(shape) * BITS.get(dtype, -1)
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise BadModel(f"{file} was tampered with: its header's entry of {name!r} contradicts itself.")
    return int(first), int(last), name


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadModel(f"{index} is not an index of shards.") from error
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise BadModel(f"{index} names the shard {name!r}, which is not a file beside it.")
    return tuple(index.parent / name for name in names)
