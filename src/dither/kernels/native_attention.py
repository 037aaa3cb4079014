"""Attention on quantized factors as an operator of torch on native code: see ``nn.attention`` for what it computes.

scores      s_q s_k [ sum a c - z_q sum c - z_k sum a + d z_q z_k ] scale + mask
outputs     s_v [ s_p (sum p c - ...) ]        of two regions a sum for each
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dither.errors import DitherError
from dither.kernels.native_calls import TYPES, address, fields, native, raised

__all__ = ["ATTENTION", "GRIDS", "RANGES"]

GRIDS = ("q_bits", "q_symmetric", "k_bits", "k_symmetric", "v_bits", "v_symmetric", "p_bits", "p_regions")
"""Numbers that say how factors become codes; those of A have no sign."""
RANGES = ("q_scale", "q_zero", "k_scale", "k_zero", "v_scale", "v_zero", "p_scale", "p_upper", "p_zero")
"""Tensors that do, any of which may be None. Scales are float32 and zero points uint8: of q and k (B or 1, H), of v
(B or 1, H e), of A (B or 1, 1). Where q, k or A have no scale, it is found for each row; v has one."""


def _factor(name: str) -> str:
    grid = " ".join(f"{name}_{part}" for part in ("bits", "symmetric", "regions"))
    return f"*{name} {name}_by_sample {name}_by_head {name}_by_token {grid} *{name}_scale *{name}_zero {name}_stride"


class _Attention(ctypes.Structure):
    """``dither::Attention``."""

    _fields_ = fields(
        f"{_factor('q')} {_factor('k')} {_factor('v')} p_bits p_symmetric p_regions *p_scale *p_upper *p_zero p_stride type "
        "*mask mask_by_sample mask_by_head mask_by_query samples heads queries keys width v_width .scale *out threads tiles"
    )


def attention_int8(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, grids: list[int], ranges: list[Tensor | None]
) -> Tensor:
    """``scaled_dot_product_attention`` whose factors become small integers: (B, H, N, e) in the dtype of q.

    Args:
        q, k, v: (B, H, N, d), (B, H, M, d) and (B, H, M, e), all float32 or all bfloat16.
        mask: float32, added to the scores; broadcasts to (B, H, N, M).
        scale: of the scores.
        grids: numbers of ``GRIDS``.
        ranges: tensors of ``RANGES``.

    Raises:
        DitherError: a tensor has not the shape or the dtype that the others say.
    """
    sizes = _sizes(q, k, v)
    told = dict(zip(GRIDS, grids, strict=True)) | sizes
    b, h, n, m, e = (sizes[name] for name in ("samples", "heads", "queries", "keys", "v_width"))
    y = q.new_empty(b, n, h, e)
    held = [x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v)]
    numbers: dict[str, Any] = {"p_symmetric": 0, "type": TYPES[q.dtype], "out": y.data_ptr(), "scale": scale}
    for name, x in zip("qkv", held, strict=True):
        places = zip(("by_sample", "by_head", "by_token"), x.stride(), strict=False)
        numbers |= {name: x.data_ptr(), f"{name}_regions": 0, **{f"{name}_{key}": far for key, far in places}}
    numbers |= _ranges(sizes, ranges, held)
    if mask is not None:
        numbers |= _mask(mask, (b, h, n, m), held)
    call = _Attention(**told, **numbers, threads=torch.get_num_threads(), tiles=1)
    empty = not (b and h and n)
    raised(0 if empty else native("attention").dither_attention(ctypes.byref(call)), "an attention", told)
    del held  # until now
    return y.transpose(1, 2)


def _sizes(q: Tensor, k: Tensor, v: Tensor) -> dict[str, int]:
    """Of the product; DitherError if the factors do not fit together."""
    fits = q.dtype in TYPES and q.dtype == k.dtype == v.dtype and q.ndim == k.ndim == v.ndim == 4
    if not fits or q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        said = (f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" for x in (q, k, v))
        raise DitherError(f"attention cannot run: its factors are {', '.join(said)}")
    (b, h, n, d), (m, e) = q.shape, v.shape[2:]
    return {"samples": b, "heads": h, "queries": n, "keys": m, "width": d, "v_width": e}


def _ranges(sizes: dict[str, int], ranges: Sequence[Tensor | None], held: list[Tensor]) -> dict[str, Any]:
    """Where ranges are, and how far those of one sample are from the next one's."""
    by_name = dict(zip(RANGES, ranges, strict=True))
    width = {"q": sizes["heads"], "k": sizes["heads"], "v": sizes["heads"] * sizes["v_width"], "p": 1}
    found: dict[str, Any] = {}
    for name, t in by_name.items():
        part, kind = name.split("_")
        if t is None:
            continue
        dtype = torch.uint8 if kind == "zero" else torch.float32
        scale = by_name[f"{part}_scale"]
        if t.dtype != dtype or tuple(t.shape) not in ((1, width[part]), (sizes["samples"], width[part])):
            said = f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}"
            raise DitherError(f"attention cannot run: {name} is {said} for {sizes}")
        if scale is None or scale.shape != t.shape:
            raise DitherError(
                f"attention cannot run: {name} is there for {t.shape[0]} samples, and {part}_scale is not"
            )
        held.append(t.contiguous())
        found |= {name: address(held[-1]), f"{part}_stride": width[part] if t.shape[0] > 1 else 0}
    return found


def _mask(mask: Tensor, shape: tuple[int, ...], held: list[Tensor]) -> dict[str, Any]:
    ends = zip(reversed(mask.shape), reversed(shape), strict=False)
    if mask.dtype != torch.float32 or mask.ndim > len(shape) or any(got not in (1, want) for got, want in ends):
        said = f"{str(mask.dtype).removeprefix('torch.')} {tuple(mask.shape)}"
        raise DitherError(f"attention cannot run: its mask is {said} for scores {shape}")
    wide = mask.expand(*mask.shape[:-1], shape[-1])
    full = (wide if wide.stride(-1) == 1 else wide.contiguous()).expand(shape)
    held.append(full)
    far = zip(("mask_by_sample", "mask_by_head", "mask_by_query"), full.stride(), strict=False)
    return {"mask": full.data_ptr(), **dict(far)}


def _like(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)


_LIBRARY = torch.library.Library("dither", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "attention_int8(Tensor q, Tensor k, Tensor v, Tensor? mask, float scale, int[] grids, Tensor?[] ranges) -> Tensor"
)
_LIBRARY.impl("attention_int8", attention_int8, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("dither::attention_int8", _like, lib=_LIBRARY)

ATTENTION = torch.ops.dither.attention_int8
"""``attention_int8``, as an operator."""
