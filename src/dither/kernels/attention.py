"""What computes an attention whose factors are quantized: native code where it can, else floating point, simulated.

``cpu_attention`` multiplies integers: q and k that have a range for each head, or for each token of each head; v with stored
ranges, of channels or coarser; A, the output of the softmax, uniform without a sign or in two regions. Everything else is
simulated: A in full precision or in powers of two, v with ranges for each token, whose scales stay inside the sum.
"""

from collections.abc import Mapping
from typing import TypeGuard

import torch
from torch import Tensor

from dither.kernels.native_attention import ATTENTION, RANGES
from dither.kernels.native_calls import TYPES, has_attention
from dither.kernels.reference import REFERENCE
from dither.spec import PER_ROW, Act, AttentionSpec, Grid, Int, TwoRegion

__all__ = ["CPU_ATTENTION", "attention_kernel", "attention_on_cpu", "is_integer"]

CPU_ATTENTION = "cpu_attention"


def attention_kernel(spec: AttentionSpec, heads: Mapping[str, int], device: torch.device) -> str:
    """Name of what computes it on a device: ``cpu_attention``, or ``reference``, which simulates.

    Args:
        spec: of the attention.
        heads: channels of a head, of q, k and v.
        device: that it runs on.
    """
    native = device.type == "cpu" and is_integer(spec, heads) and has_attention()
    return CPU_ATTENTION if native else REFERENCE.name


def is_integer(spec: AttentionSpec, heads: Mapping[str, int]) -> bool:
    """Whether both products are sums of integers that native code knows."""
    sides = all(_side(act, heads[name]) for name, act in (("q", spec.q), ("k", spec.k)))
    return sides and spec.v is not None and spec.v.static and _uniform(spec.v.grid) and _softmax(spec.probs)


def _uniform(grid: Grid) -> TypeGuard[Int]:
    return isinstance(grid, Int) and grid.bits > 1


def _side(act: Act | None, head: int) -> bool:
    """Whether a head has one range, or each of its tokens."""
    if act is None or not _uniform(act.grid):
        return False
    group = act.grid.group
    return group <= 0 or group % head == 0 if act.static else group == head


def _softmax(act: Act | None) -> bool:
    if act is None:
        return False
    if isinstance(act.grid, TwoRegion):
        return not act.grid.signed and act.grid.bits > 1
    return _uniform(act.grid) and not act.grid.symmetric and (act.static or act.grid.group == PER_ROW)


def attention_on_cpu(
    spec: AttentionSpec,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    tables: Mapping[str, Mapping[str, Tensor]],
) -> Tensor:
    """``cpu_attention``: (B, H, N, e) in the dtype of the query.

    Args:
        spec: one that ``is_integer``.
        query, key, value: (B, H, N, d), (B, H, M, d), (B, H, M, e).
        mask: of PyTorch's meaning, or None.
        scale: of the scores.
        tables: stored ranges of the parts that have them, (B or 1, groups), by name and tensor.
    """
    dtype = query.dtype
    if dtype not in TYPES:  # float16 has no instructions here
        query, key, value = query.float(), key.float(), value.float()
    if mask is not None:
        hidden = torch.zeros(mask.shape, device=mask.device)
        mask = hidden.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask.float()
    heads = query.shape[1]
    width = {"q": heads, "k": heads, "v": heads * value.shape[-1], "probs": 1}
    found = {
        f"{part[0]}_{name}": _spread(t, width[part]) for part, table in tables.items() for name, t in table.items()
    }
    y: Tensor = ATTENTION(query, key, value, mask, scale, _grids(spec), [found.get(name) for name in RANGES])
    return y.to(dtype)


def _grids(spec: AttentionSpec) -> list[int]:
    made = []
    for act in (spec.q, spec.k, spec.v):
        assert act is not None  # see is_integer
        assert isinstance(act.grid, Int)
        made += [act.grid.bits, int(act.grid.symmetric)]
    assert spec.probs is not None
    return [*made, spec.probs.grid.bits, int(isinstance(spec.probs.grid, TwoRegion))]


def _spread(t: Tensor, width: int) -> Tensor:
    """Ranges of groups (..., G) as those of what lies in them, (B or 1, width)."""
    rows = t.reshape(-1, t.shape[-1])
    return rows.repeat_interleave(width // rows.shape[1], dim=1)
