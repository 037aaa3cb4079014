"""The ``Gaussian`` format: one codebook for every weight that looks Gaussian, such as those behind rotations do.

    W (N, K) = s C[A]     A (N, K / d) indices of log2 k bits, packed     s (N, 1) bfloat16, a scale for each row

C (k, d) are the words of k-means on Gaussian sub-vectors of variance 1, as int8 of a 29th of a deviation. They are part of
the format and nobody stores them; being integers, a kernel that reads them multiplies int8 by int8.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from dither.errors import BadFormat
from dither.numerics.checks import require_finite, require_matrix
from dither.numerics.codebook import assign
from dither.numerics.deviation import UNIT, evened, refitted, stored_scale
from dither.numerics.integer import divisor
from dither.numerics.pack import pack, packed_width, unpack
from dither.spec import Gaussian

__all__ = [
    "WORDS",
    "decode_gaussian",
    "encode_gaussian",
    "gaussian_codes",
    "gaussian_indices",
    "gaussian_layout",
    "gaussian_values",
    "gaussian_words",
    "pack_gaussian",
    "recode_gaussian",
]

WORDS = Path(__file__).with_name("gaussian_words.json")
"""Made by ``training/gaussian_words.py``."""


def gaussian_layout(fmt: Gaussian, shape: Sequence[int]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Names, shapes and dtypes of the tensors that store a weight of ``shape`` (N, K)."""
    rows, count = require_matrix(shape)
    width = packed_width(_vectors(count, fmt), fmt.bits)
    return {"codes": ((rows, width), torch.uint8), "scale": ((rows, 1), torch.bfloat16)}


def encode_gaussian(w: Tensor, fmt: Gaussian) -> dict[str, Tensor]:
    """Quantize a weight (N, K) to the nearest words.

    Returns:
        ``codes`` uint8 (N, ceil(K / d b / 8)), ``scale`` bfloat16 (N, 1).

    Raises:
        BadFormat: not a matrix, or a sub-vector length that does not divide K.
        BadValue: NaN or infinity.
    """
    _, count = require_matrix(w.shape)
    _vectors(count, fmt)
    require_finite(w)
    w = w.detach().float()
    indices = gaussian_indices(evened(w), fmt)
    return pack_gaussian(indices, refitted(w, gaussian_values(indices, fmt)), fmt)


def gaussian_indices(x: Tensor, fmt: Gaussian) -> Tensor:
    """Nearest words (N, K / d) int64 of x (N, K), each row of variance 1."""
    points = x.float().mul(UNIT).reshape(-1, fmt.dim)
    return assign(points, gaussian_words(fmt).float().to(x.device))[0].view(len(x), -1)


def gaussian_values(indices: Tensor, fmt: Gaussian) -> Tensor:
    """x (N, K) float32 that words (N, K / d) stand for, of rows of variance 1."""
    return _values(indices, fmt).float().div_(UNIT)


def pack_gaussian(indices: Tensor, scale: Tensor, fmt: Gaussian) -> dict[str, Tensor]:
    """Stored tensors of chosen words (N, K / d) and of the deviation (N, 1) of each row."""
    return {"codes": pack(indices, fmt.bits, signed=False), "scale": stored_scale(scale)}


def recode_gaussian(w: Tensor, tensors: Mapping[str, Tensor], fmt: Gaussian) -> dict[str, Tensor]:
    """The words nearest to w (N, K) under the scales that are stored."""
    scale = tensors["scale"].float() * UNIT
    return {**tensors, "codes": pack(gaussian_indices(w / divisor(scale), fmt), fmt.bits, signed=False)}


def decode_gaussian(tensors: Mapping[str, Tensor], fmt: Gaussian, shape: Sequence[int]) -> Tensor:
    """The float32 weight (N, K) that the stored tensors stand for."""
    return gaussian_codes(tensors, fmt, shape).float().mul_(tensors["scale"].float())


def gaussian_codes(tensors: Mapping[str, Tensor], fmt: Gaussian, shape: Sequence[int]) -> Tensor:
    """The values (N, K) int8 that the codes name, before the rows' scales."""
    _, count = require_matrix(shape)
    return _values(unpack(tensors["codes"], fmt.bits, _vectors(count, fmt), signed=False), fmt)


@cache
def gaussian_words(fmt: Gaussian) -> Tensor:
    """C (k, d) int8. BadFormat where there are no such words."""
    known = json.loads(WORDS.read_text(encoding="utf-8"))
    found = known.get(f"{fmt.dim}x{fmt.size}")
    if found is None:
        raise BadFormat(f"{fmt}: the Gaussian codebooks that there are have {', '.join(known)} (length x words)")
    flat = torch.frombuffer(bytearray(base64.b64decode(found)), dtype=torch.int8)
    return flat.view(fmt.size, fmt.dim)


def _values(indices: Tensor, fmt: Gaussian) -> Tensor:
    """(N, K) int8 of the words (N, K / d)."""
    return gaussian_words(fmt).to(indices.device)[indices.long()].flatten(1)


def _vectors(count: int, fmt: Gaussian) -> int:
    """Sub-vectors of a row."""
    gaussian_words(fmt)
    if count % fmt.dim:
        raise BadFormat(f"sub-vector length {fmt.dim} does not divide the {count} input channels")
    return count // fmt.dim
