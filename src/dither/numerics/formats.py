"""The one entrance to every format: what it stores, how a weight becomes that, and what that means.

    layout(fmt, (N, K))            names, shapes and dtypes, declared before there is any data
    encode(w, fmt)                 a weight (N, K) as exactly those tensors
    decode(tensors, fmt, (N, K))   the float32 weight that they stand for; this *defines* the format
    validate(tensors, fmt, (N, K)) refuses tensors that no ``encode`` could have written
    recode(w, tensors, fmt)        codes for another weight, with scales and all else as they are: cheap, for training
    stored_bits(fmt, (N, K))       what all of that takes, codes and scales and codebooks together

A new format is a dataclass in ``spec``, a file here, and one line in the table below.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dither.errors import BadCheckpoint, BadFormat
from dither.numerics.checks import require_matrix
from dither.numerics.codebook import (
    codebook_layout,
    decode_codebook,
    encode_codebook,
    recode_codebook,
    unpack_indices,
)
from dither.numerics.float8 import decode_float8, encode_float8, float8_fault, float8_layout, recode_float8
from dither.numerics.gaussian import decode_gaussian, encode_gaussian, gaussian_layout, recode_gaussian
from dither.numerics.integer import decode_int, encode_int, int_fault, int_layout, recode_int, scale_fault
from dither.numerics.nested import decode_nested, encode_nested, nested_layout
from dither.numerics.trellis import decode_trellis, encode_trellis, recode_trellis, trellis_layout
from dither.spec import Codebook, Float8, Format, Gaussian, Int, Nested, Trellis

__all__ = ["FormatOps", "Layout", "decode", "encode", "layout", "recode", "stored_bits", "validate"]

Layout: TypeAlias = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Tensor name to shape and dtype."""


@dataclass(frozen=True)
class FormatOps:
    """What the table holds for a format type.

    Args:
        layout: (fmt, shape) -> Layout.
        encode: (w, fmt) -> tensors.
        decode: (tensors, fmt, shape) -> float32 weight.
        fault: (tensors, fmt, shape) -> (tensor name, what is wrong with its values), or None.
        recode: (w, tensors, fmt) -> tensors.
    """

    layout: Callable[[Any, Sequence[int]], Layout]
    encode: Callable[[Tensor, Any], dict[str, Tensor]]
    decode: Callable[[Mapping[str, Tensor], Any, Sequence[int]], Tensor]
    fault: Callable[[Mapping[str, Tensor], Any, Sequence[int]], tuple[str, str] | None]
    recode: Callable[[Tensor, Mapping[str, Tensor], Any], dict[str, Tensor]]


def layout(fmt: Format, shape: Sequence[int]) -> Layout:
    """Names, shapes and dtypes of the tensors that store a weight of ``shape`` (N, K).

    Raises:
        BadFormat: the format cannot hold that shape.
    """
    return _ops(fmt).layout(fmt, shape)


def encode(w: Tensor, fmt: Format) -> dict[str, Tensor]:
    """Quantize a weight (N, K), rounding to nearest, into the tensors of ``layout``.

    Raises:
        BadFormat: the format cannot hold that shape.
        BadValue: NaN or infinity.
    """
    return _ops(fmt).encode(w, fmt)


def decode(tensors: Mapping[str, Tensor], fmt: Format, shape: Sequence[int]) -> Tensor:
    """The float32 weight (N, K) that the tensors stand for."""
    return _ops(fmt).decode(tensors, fmt, shape)


def recode(w: Tensor, tensors: Mapping[str, Tensor], fmt: Format) -> dict[str, Tensor]:
    """The same tensors with codes for another weight (N, K), near the one that they stand for.

    Codes are the nearest under the scales, zeros and words that are stored; those of a ``Trellis`` are the best that single
    changes of the stored ones lead to.
    """
    return _ops(fmt).recode(w, tensors, fmt)


def validate(tensors: Mapping[str, Tensor], fmt: Format, shape: Sequence[int], layer: str = "") -> None:
    """Check names, shapes, dtypes and values of stored tensors before anything trusts them.

    Args:
        layer: put before the tensor's name in the error, if given.

    Raises:
        BadCheckpoint: with the name of the tensor at fault.
        BadFormat: the format cannot hold that shape.
    """
    where = f"{layer}." if layer else ""
    wanted = layout(fmt, shape)
    for name in sorted(set(wanted) ^ set(tensors)):
        what = "is missing" if name in wanted else "does not belong to it"
        raise BadCheckpoint(f"tensor '{where}{name}' of the format {fmt} {what}")
    for name, (size, dtype) in wanted.items():
        found = tensors[name]
        if tuple(found.shape) != size or found.dtype != dtype:
            raise BadCheckpoint(
                f"tensor '{where}{name}' is {_words(found.shape, found.dtype)}: {fmt} stores {_words(size, dtype)}"
            )
    if fault := _ops(fmt).fault(tensors, fmt, shape):
        raise BadCheckpoint(f"tensor '{where}{fault[0]}' of the format {fmt} {fault[1]}")


def stored_bits(fmt: Format, shape: Sequence[int]) -> int:
    """Bits that a weight of ``shape`` (N, K) takes, all tensors counted."""
    return sum(8 * torch.Size(size).numel() * dtype.itemsize for size, dtype in layout(fmt, shape).values())


def _words(shape: Sequence[int], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {tuple(shape)}"


def _int_fault(tensors: Mapping[str, Tensor], fmt: Int, shape: Sequence[int]) -> tuple[str, str] | None:
    return int_fault(tensors, fmt)


def _float8_fault(tensors: Mapping[str, Tensor], fmt: Float8, shape: Sequence[int]) -> tuple[str, str] | None:
    return float8_fault(tensors)


def _nested_fault(tensors: Mapping[str, Tensor], fmt: Nested, shape: Sequence[int]) -> tuple[str, str] | None:
    return int_fault(tensors, fmt.whole)


def _recode_nested(w: Tensor, tensors: Mapping[str, Tensor], fmt: Nested) -> dict[str, Tensor]:
    return recode_int(w, tensors, fmt.whole)


def _codebook_fault(tensors: Mapping[str, Tensor], fmt: Codebook, shape: Sequence[int]) -> tuple[str, str] | None:
    if not bool(torch.isfinite(tensors["codebook"]).all()):
        return "codebook", "holds values that are infinite or NaN"
    _, count = require_matrix(shape)
    if int(unpack_indices(tensors, fmt, count).max()) >= fmt.size:
        return "codes", f"names codewords beyond the {fmt.size} there are"
    return scale_fault(tensors) if fmt.row_scale else None


def _gaussian_fault(tensors: Mapping[str, Tensor], fmt: Gaussian, shape: Sequence[int]) -> tuple[str, str] | None:
    return scale_fault(tensors)


def _trellis_fault(tensors: Mapping[str, Tensor], fmt: Trellis, shape: Sequence[int]) -> tuple[str, str] | None:
    return scale_fault(tensors)


_TABLE: dict[type[Any], FormatOps] = {
    Int: FormatOps(int_layout, encode_int, decode_int, _int_fault, recode_int),
    Float8: FormatOps(float8_layout, encode_float8, decode_float8, _float8_fault, recode_float8),
    Nested: FormatOps(nested_layout, encode_nested, decode_nested, _nested_fault, _recode_nested),
    Codebook: FormatOps(codebook_layout, encode_codebook, decode_codebook, _codebook_fault, recode_codebook),
    Gaussian: FormatOps(gaussian_layout, encode_gaussian, decode_gaussian, _gaussian_fault, recode_gaussian),
    Trellis: FormatOps(trellis_layout, encode_trellis, decode_trellis, _trellis_fault, recode_trellis),
}


def _ops(fmt: Format) -> FormatOps:
    ops = _TABLE.get(type(fmt))
    if ops is None:
        raise BadFormat(f"{fmt!r} is not a format; known are {', '.join(sorted(t.__name__ for t in _TABLE))}")
    return ops
