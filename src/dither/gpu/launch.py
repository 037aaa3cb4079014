"""What every operator on Triton needs: a name that graphs know, a device, and words for memory that is not there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dither.errors import DitherError
from dither.gpu.machine import is_interpreted

__all__ = ["INNER", "NARROW", "OPTIONS", "launch", "memory_for", "operator", "require"]

NARROW = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes of inputs and outputs."""
OPTIONS = {"enable_fp_fusion": False}
"""Of the compiler: an expression gives the same bits in every kernel that it is part of, and those that torch gives."""
INNER = 1 << 15
"""Inputs of a linear at most: a row must fit one program, and its sums 32 bits."""
_OPS = torch.library.Library("dither", "FRAGMENT")  # type: ignore[no-untyped-call]


def operator(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define ``dither::schema``. On the CPU it runs in Triton's interpreter, or refuses.

    Args:
        schema: name, arguments and results.
        run: does the work.
        fake: shapes and dtypes of the results, for graphs.
    """
    name = schema[: schema.index("(")]
    _OPS.define(schema)  # type: ignore[no-untyped-call]
    _OPS.impl(name, run, "CUDA")  # type: ignore[no-untyped-call]
    _OPS.impl(name, run, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"dither::{name}", fake, lib=_OPS)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    where: Tensor,
    warps: int,
    stages: int,
    registers: int | None = None,
    /,
    **arguments: Any,
) -> None:
    """Run a kernel on the device of a tensor; arguments by name. Nothing happens where the grid is empty.

    Args:
        registers: of a thread, at most; None: as many as the compiler likes, who may spill some so that more programs fit.
    """
    if not where.is_cuda:
        if 0 not in grid:
            kernel[grid](**arguments)
        return
    with torch.cuda.device(where.device):
        if 0 not in grid:
            kernel[grid](**arguments, num_warps=warps, num_stages=stages, maxnreg=registers, **OPTIONS)


@contextmanager
def memory_for(what: str, where: Tensor) -> Iterator[None]:
    """Say what there was no memory for. DitherError also where a kernel of Triton would have to run on the CPU."""
    if not where.is_cuda and not is_interpreted():
        raise DitherError(f"{what} cannot run on '{where.device}': kernels of Triton need a CUDA device")
    try:
        yield
    except torch.OutOfMemoryError as e:
        raise DitherError(
            f"the GPU has no memory left for {what}: make batches smaller, or store weights in fewer bits ({e})"
        ) from e


def require(holds: bool, what: str, name: str, tensor: Tensor | None) -> None:
    """Refuse a tensor before a kernel reads memory that is not there."""
    if not holds:
        found = "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        raise DitherError(f"{what} cannot run: {name} is {found}")
