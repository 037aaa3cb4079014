"""The tuner: measured tile sizes, kept in a file, for those who want more than ``tiles`` gives.

    <cache>/dither/gpu/tiles.json      key: kernel, GPU, Triton's version, rows in powers of two, N, K, epilogue

Nothing is measured while a model runs: ``tune`` is called on purpose, and what it found is read from then on. The file is
written whole under another name and then renamed. One that cannot be read is said in one line, and not used.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from dither.gpu.tiles import Tile
from dither.native import cache_folder

__all__ = ["Key", "cache_file", "forget", "measured", "tune"]

_log = logging.getLogger("dither")


@dataclass(frozen=True)
class Key:
    """What a measured tile is good for.

    Args:
        kernel: name of the kernel.
        gpu: name of the device.
        triton: version of Triton, whose code differs.
        rows: M, rounded up to a power of two.
        n, k: N and K.
        epilogue: what follows the product, in words.
    """

    kernel: str
    gpu: str
    triton: str
    rows: int
    n: int
    k: int
    epilogue: str

    def __str__(self) -> str:
        return "|".join(map(str, (self.kernel, self.gpu, self.triton, self.rows, self.n, self.k, self.epilogue)))


def cache_file() -> Path:
    """Where measured tiles are kept."""
    return cache_folder().parent / "gpu" / "tiles.json"


@lru_cache(maxsize=4096)
def measured(key: Key) -> Tile | None:
    """The tile that was measured to be fastest; None where nothing was."""
    return _read(cache_file()).get(str(key))


def tune(key: Key, tiles: Iterable[Tile], seconds: Callable[[Tile], float]) -> Tile:
    """Measure tiles, and keep the fastest.

    Args:
        key: what they are measured for.
        tiles: to be tried.
        seconds: how long a tile takes; infinite for one that cannot run.
    """
    timed = [(seconds(tile), i, tile) for i, tile in enumerate(tiles)]  # of equals the first
    best = min(timed)[2]
    file = cache_file()
    forget()  # another process may have written meanwhile
    _write(file, {**_read(file), str(key): best})
    forget()
    return best


def forget() -> None:
    """Read the file anew at the next look."""
    measured.cache_clear()
    _read.cache_clear()


@lru_cache
def _read(file: Path) -> Mapping[str, Tile]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {str(key): _tile(value) for key, value in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as e:
        _log.warning("measured tile sizes in '%s' cannot be read, defaults are used: %s", file, e)
        return {}


def _tile(value: Mapping[str, int]) -> Tile:
    """A tile of a file. ValueError if it is none that a kernel could have."""
    tile = Tile(**value)
    sizes, counts = (tile.m, tile.n, tile.k, tile.warps), asdict(tile).values()
    if not all(type(v) is int and v > 0 for v in counts) or any(v & (v - 1) for v in sizes):
        raise ValueError(f"{tile} is no tile")
    if max(tile.m, tile.n, tile.k) > 512 or min(tile.m, tile.n, tile.k) < 16 or tile.warps > 32 or tile.stages > 8:
        raise ValueError(f"{tile} is beyond what a GPU holds")
    return tile


def _write(file: Path, tiles: Mapping[str, Tile]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, part = tempfile.mkstemp(prefix="tiles-", suffix=".part", dir=file.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            json.dump({key: asdict(tile) for key, tile in sorted(tiles.items())}, out, indent=1)
        os.replace(part, file)
    finally:
        Path(part).unlink(missing_ok=True)
