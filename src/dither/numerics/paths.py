"""The best paths of a trellis by native code, where there is any: the same as torch finds, many times faster."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int64, c_void_p
from itertools import pairwise

import torch
from torch import Tensor

from dither.native import library
from dither.spec import Trellis

__all__ = ["best_paths"]


def best_paths(x: Tensor, table: Tensor, fmt: Trellis, overlap: Tensor | None) -> Tensor | None:
    """Windows (S, T) int64 of the best path of each tile; None where torch has to find them.

    Args:
        x: (S, T) float32.
        table: value of each window, (2^L,) float32.
        fmt: k and L.
        overlap: what the last L - k bits are to be, (S,); None leaves them free.
    """
    if x.device.type != "cpu" or fmt.states < 2 * fmt.bits or (native := library("trellis")) is None:
        return None
    x, table = x.contiguous(), table.contiguous()
    ends = None if overlap is None else overlap.to(torch.int32).contiguous()
    path = torch.empty(x.shape, dtype=torch.int32)

    def run(part: tuple[int, int]) -> int:
        first, last = part
        at = None if ends is None else c_void_p(ends[first:].data_ptr())
        sizes = (c_int64(last - first), *map(c_int64, (x.shape[1], fmt.bits, fmt.states)))
        tensors = (c_void_p(table.data_ptr()), at, c_void_p(path[first:].data_ptr()))
        return int(native.dither_viterbi(c_void_p(x[first:].data_ptr()), *sizes, *tensors))

    if any(_run_all(run, _parts(len(x), torch.get_num_threads()))):
        raise MemoryError(f"no memory for the paths of {len(x)} tiles through 2^{fmt.states} states")
    return path.long()


def _run_all(run: Callable[[tuple[int, int]], int], parts: Sequence[tuple[int, int]]) -> list[int]:
    """In a thread each, as ctypes lets go of the interpreter; a lone part, as of one tile, needs none."""
    if len(parts) < 2:
        return [run(part) for part in parts]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(run, parts))


def _parts(count: int, threads: int) -> list[tuple[int, int]]:
    """Ranges of nearly equal length, none empty."""
    edges = [count * i // threads for i in range(threads + 1)]
    return [(a, b) for a, b in pairwise(edges) if a < b]
