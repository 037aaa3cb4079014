"""``QAttention``: the two products of an attention on quantized factors.

    A = probs( softmax( q(Q) k(K)^T scale + mask ) )        Y = A v(V)

A processor of diffusers projects, normalizes and rotates in its family's way and then calls
``torch.nn.functional.scaled_dot_product_attention``. While an attention runs, its ``QAttention`` computes that one call; all
else stays as it is. So every family that goes through it can be quantized, and none is written a second time.

Native code multiplies integers where the spec lets it (see ``kernels.attention``). Else it is simulated in floating point,
and always where something asks for gradients or looks at a factor; then queries go through in chunks so that no whole A need
exist.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from dither.clock import Clock
from dither.errors import BadModel, BadValue
from dither.kernels.attention import CPU_ATTENTION, attention_kernel, attention_on_cpu
from dither.kernels.reference import REFERENCE
from dither.nn.activation import QActivation
from dither.numerics import Layout, table_layout
from dither.spec import AttentionSpec

__all__ = [
    "PART",
    "QAttention",
    "Widths",
    "attention_layout",
    "attention_tensors",
    "detach",
    "products_of",
    "widths_of",
]

PART = "quantized"
"""Name of the ``QAttention`` among an attention's modules, a part of its tensors' names."""
_SCORES = 1 << 24
"""Scores in memory at a time: 64 MiB."""


@dataclass(frozen=True)
class Widths:
    """Channels of all heads side by side.

    Args:
        q, k, v: of each.
        heads: how many share them.
    """

    q: int
    k: int
    v: int
    heads: int

    @property
    def head(self) -> dict[str, int]:
        """Channels of one head of each."""
        return {"q": self.q // self.heads, "k": self.k // self.heads, "v": self.v // self.heads}

    @property
    def channels(self) -> dict[str, int]:
        """Of each part; probabilities have ranges that no width divides."""
        return {"q": self.q, "k": self.k, "v": self.v, "probs": 1}


def widths_of(attention: nn.Module) -> Widths:
    """What an attention's own linears say. BadModel if it has none for q, k or v."""
    parts = dict(attention.named_children())
    try:
        q, k, v = (int(cast(Any, parts[f"to_{x}"]).out_features) for x in "qkv")
        return Widths(q, k, v, int(cast(Any, attention).heads))
    except KeyError as e:
        raise BadModel(f"a {type(attention).__name__} has no linear {e}: were its projections fused?") from None


def attention_layout(spec: AttentionSpec, widths: Widths) -> Layout:
    """Every tensor of a ``QAttention``, as ``PART.NAME``; BadFormat where a group does not divide a width."""
    parts = ((name, spec.parts[name], width) for name, width in widths.channels.items())
    return {
        f"{name}.{key}": entry
        for name, act, width in parts
        if act is not None
        for key, entry in table_layout(act, width).items()
    }


def attention_tensors(name: str) -> str:
    """What the names of an attention's tensors begin with."""
    return f"{name}.{PART}."


class QAttention(nn.Module):
    """The quantizers of an attention, and what its products are computed by while it runs.

    Args:
        spec: what is rounded; None everywhere leaves the function as it is.
        widths: of q, k and v.
        clock: of the model.
        device: of empty tables.
    """

    q: QActivation
    k: QActivation
    v: QActivation
    probs: QActivation

    def __init__(
        self, spec: AttentionSpec, widths: Widths, clock: Clock, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.widths = widths
        for name, width in widths.channels.items():
            setattr(self, name, QActivation(spec.parts[name], width, clock, device))
        self._running: list[_Intercepted] = []
        self._hooks: list[RemovableHandle] = []

    @property
    def kernel(self) -> str:
        """Name of what computes the products here."""
        return attention_kernel(self.spec, self.widths.head, self._device())

    @property
    def simulated(self) -> bool:
        """Whether rounding is imitated in floating point here."""
        return self.kernel == REFERENCE.name

    def _device(self) -> torch.device:
        return next((t.device for t in self.buffers()), torch.device("cpu"))

    def load(self, tables: Mapping[str, Tensor]) -> "QAttention":
        """Take ``PART.NAME`` tensors as the tables of the parts."""
        for name, tensor in tables.items():
            part, _, key = name.partition(".")
            cast(QActivation, self.get_submodule(part)).load({key: tensor})
        return self

    def attach(self, attention: nn.Module) -> "QAttention":
        """Become a part of an attention, in place of one that it has: whenever it runs, its products are computed here."""
        detach(attention)
        attention.add_module(PART, self.train(attention.training))
        self._hooks = [
            attention.register_forward_pre_hook(self._begin),
            attention.register_forward_hook(self._end, always_call=True),
        ]
        return self

    def only_hooks(self, attention: nn.Module) -> bool:
        """Whether nothing but this is told when the attention runs."""
        return {*attention._forward_pre_hooks, *attention._forward_hooks} == {hook.id for hook in self._hooks}

    def _begin(self, attention: nn.Module, args: tuple[Any, ...]) -> None:
        self._running.append(_Intercepted(self.attend))
        self._running[-1].__enter__()  # type: ignore[no-untyped-call]

    def _end(self, attention: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen = self._running.pop()
        seen.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if output is not None and seen.count != 1:  # None: it failed
            raise BadModel(
                f"{type(attention).__name__} calls scaled_dot_product_attention {seen.count} times, not once: give the "
                "model its default attention processors"
            )

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """``scaled_dot_product_attention`` on quantized factors.

        Args:
            query: (B, H, N, d).
            key: (B, H, M, d).
            value: (B, H, M, e).
            attn_mask: of PyTorch's meaning: added, or bool where False hides; broadcasts to (B, H, N, M).
            dropout_p, is_causal, enable_gqa: must be off: a denoiser attends to everything, in all heads alike.
            scale: of the scores; 1 / sqrt(d) if None.

        Returns:
            (B, H, N, e).
        """
        if dropout_p or is_causal or enable_gqa:
            raise BadValue("quantized attention knows no dropout, no causal mask and no grouped heads")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if self._runs_on_integers(query, key, value, attn_mask):
            tables = {name: part.stored(query) for name, part in self._parts().items()}
            return attention_on_cpu(self.spec, query, key, value, attn_mask, scale, tables)
        q, k, v = (_by_head(part(side), x) for part, side, x in self._sides(query, key, value))
        rows = max(1, _SCORES // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
        parts = []
        for start in range(0, q.shape[2], rows):
            here = slice(start, start + rows)
            scores = (q[:, :, here] @ k.mT) * scale  # (B, H, n, M)
            if attn_mask is not None:
                mask = attn_mask if attn_mask.shape[-2] == 1 else attn_mask[..., here, :]
                scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
            parts.append(self.probs(scores.softmax(-1)).to(v.dtype) @ v)
        return torch.cat(parts, 2)

    def _parts(self) -> dict[str, QActivation]:
        return {"q": self.q, "k": self.k, "v": self.v, "probs": self.probs}

    def _runs_on_integers(self, *given: Tensor | None) -> bool:
        """Whether native code computes this call: not where gradients pass, or where a factor is looked at or replaced."""
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
            return False
        parts = self._parts().values()
        if any(type(p) is not QActivation or p._forward_hooks or p._forward_pre_hooks for p in parts):
            return False
        (query, *_) = given
        assert query is not None
        return attention_kernel(self.spec, self.widths.head, query.device) == CPU_ATTENTION

    def _sides(self, query: Tensor, key: Tensor, value: Tensor) -> Sequence[tuple[QActivation, Tensor, Tensor]]:
        """Each factor with its heads side by side, (B, N, H d)."""
        return [
            (part, x.transpose(1, 2).flatten(2), x) for part, x in ((self.q, query), (self.k, key), (self.v, value))
        ]


def products_of(attention: nn.Module) -> QAttention | None:
    """What computes an attention's products in its place, if something does."""
    found = dict(attention.named_children()).get(PART)
    return found if isinstance(found, QAttention) else None


def detach(attention: nn.Module) -> None:
    """Let an attention compute its products itself again."""
    old = products_of(attention)
    if old is not None:
        for hook in old._hooks:
            hook.remove()
        delattr(attention, PART)


def _by_head(x: Tensor, like: Tensor) -> Tensor:
    """(B, N, H d) as (B, H, N, d) like the other."""
    return x.reshape(*x.shape[:2], like.shape[1], like.shape[3]).transpose(1, 2)


class _Intercepted(TorchFunctionMode):
    """While inside, ``scaled_dot_product_attention`` is another function; ``count`` is how often it was called."""

    def __init__(self, instead: Callable[..., Tensor]) -> None:
        super().__init__()
        self.instead = instead
        self.count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self.count += 1
            return self.instead(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
