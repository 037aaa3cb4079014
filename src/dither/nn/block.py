"""``QBlock``: a transformer block whose norms, gates and residuals run in native code, in one call with the linears beside.

    x <- x + gate Attention( norm(x) (1 + scale) + shift )       x <- x + gate FeedForward( norm(x) (1 + scale) + shift )

Written as operators, what lies around the linears reads and writes each activation a dozen times. In native code q, k and v
are made from one rounding of the modulated inputs, and outputs are gated and added before they leave the caches. It is for
the blocks of DiT and PixArt (``ada_norm_zero``, ``ada_norm_single``).

Where a linear has a hook, an adapter or another kernel, it runs as the module that it is, and what is around it in native
code all the same: both give the same bits. Where norms have hooks, gradients are asked for, or the block does what is not
known here, it runs as diffusers' block does.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from dither.kernels.cpu import Around, linears, rounds_alike
from dither.kernels.native_calls import TYPES, means
from dither.kernels.native_ops import OPS
from dither.nn.attention import PART, products_of
from dither.nn.feed_forward import QFeedForward, integers, is_unwatched, turned
from dither.nn.linear import QLinear

__all__ = ["QBlock", "takes"]

_NORMS = ("ada_norm_zero", "ada_norm_single")


def takes(block: nn.Module) -> bool:
    """Whether a ``QBlock`` can stand for this module."""
    if type(block) is not BasicTransformerBlock or block.norm_type not in _NORMS or block.pos_embed is not None:
        return False
    return all(_is_plain(norm) for norm in _norms(block)) and any(isinstance(m, QLinear) for m in block.modules())


class QBlock(BasicTransformerBlock):
    """In place of a block of diffusers, with the modules and settings that it has.

    Args:
        whole: the other, for which ``takes`` holds.
    """

    def __init__(self, whole: BasicTransformerBlock) -> None:
        nn.Module.__init__(self)  # not the block's: there are modules already
        self.__dict__.update(whole.__dict__)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """(B, T, D), as of diffusers' block."""
        x = hidden_states
        if not self._fits(x) or cross_attention_kwargs:
            whole = cast(Any, super()).forward
            y: Tensor = whole(
                x, attention_mask, encoder_hidden_states, encoder_attention_mask, timestep, cross_attention_kwargs,
                class_labels, added_cond_kwargs,
            )  # fmt: skip
            return y
        shift, scale, gate, shift_ff, scale_ff, gate_ff = self._modulation(x, timestep, class_labels)
        before, after = _norms(self)
        context = encoder_hidden_states if self.only_cross_attention else None
        around = Around(shift, scale, before.eps, gate, x)
        found = None if context is not None or attention_mask is not None else _attended(self.attn1, x, around)
        if found is None:
            y = self.attn1(_modulated(x, around), encoder_hidden_states=context, attention_mask=attention_mask)
            found = OPS.gated(y, gate, x)
        x = found
        if self.attn2 is not None:
            seen = x if self.norm_type == "ada_norm_single" else self.norm2(x)
            x = x + self.attn2(seen, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask)
        around = Around(shift_ff, scale_ff, after.eps, gate_ff, x)
        found = self.ff.together(x, around) if type(self.ff) is QFeedForward and is_unwatched((self.ff,)) else None
        return OPS.gated(self.ff(_modulated(x, around)), gate_ff, x) if found is None else found

    def _fits(self, x: Tensor) -> bool:
        """Whether native code knows all that this call does around the linears."""
        if torch.is_grad_enabled() or x.ndim != 3 or x.dtype not in TYPES or x.device.type != "cpu" or means() is None:
            return False
        return self._chunk_size is None and is_unwatched((self.norm1, *_norms(self)))

    def _modulation(self, x: Tensor, timestep: Tensor | None, labels: Tensor | None) -> Sequence[Tensor]:
        """Shift, scale and gate of attention, and those of the feed-forward part, (B, D) float32 each."""
        if self.norm_type == "ada_norm_single":
            assert timestep is not None  # the model's own
            made = self.scale_shift_table[None] + timestep.reshape(x.shape[0], 6, -1)
            return made.float().unbind(1)
        norm = self.norm1
        made = norm.linear(norm.silu(norm.emb(timestep, labels, hidden_dtype=x.dtype)))
        return cast(Tensor, made).float().chunk(6, dim=1)


def _norms(block: Any) -> tuple[Any, Any]:
    """Layer norms before attention and before the feed-forward part."""
    if block.norm_type == "ada_norm_single":
        return block.norm1, block.norm2
    return block.norm1.norm, block.norm3


def _is_plain(norm: nn.Module) -> bool:
    """Over the last axis, with nothing learned."""
    return type(norm) is nn.LayerNorm and norm.weight is None and norm.bias is None and len(norm.normalized_shape) == 1


def _modulated(x: Tensor, around: Around) -> Tensor:
    y: Tensor = OPS.modulate(x, around.shift, around.scale, around.eps)
    return y


def _attended(attention: Attention, x: Tensor, around: Around) -> Tensor | None:
    """Self-attention in three calls: q, k and v, their attention, and what follows; None where it runs as the module."""
    if not _is_self_attention(attention):
        return None
    found = [integers(linear) for linear in (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0])]
    *readers, last = found
    if any(linear is None for linear in found):
        return None
    q, k, v = cast(list[QLinear], readers)
    assert last is not None
    products = products_of(attention)
    hooked = (attention,) if products is None or not products.only_hooks(attention) else ()
    if not _read_alike(q, k, v) or not is_unwatched((*hooked, q, k, v, last, *attention.to_out)):
        return None
    seen, turn, before = turned(q, x, Around(around.shift, around.scale, around.eps))
    made = linears([linear.inputs(seen, linear.bias, linear.ways[0]) for linear in (q, k, v)], turn, before)
    a, b, c = (t.view(*t.shape[:2], attention.heads, -1).transpose(1, 2) for t in made)  # (B, H, T, D / H)
    attend = nn.functional.scaled_dot_product_attention if products is None else products.attend
    y = attend(a, b, c).transpose(1, 2).flatten(2)
    y, turn, behind = turned(last, y, Around(gate=around.gate, residual=around.residual))
    return linears([last.inputs(y, last.bias, last.ways[0])], turn, behind)[0]


def _is_self_attention(attention: Attention) -> bool:
    """Whether it does nothing besides its four linears and the attention between them."""
    if type(attention) is not Attention or not isinstance(attention.processor, AttnProcessor2_0):
        return False
    parts = ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross")
    known = {"to_q", "to_k", "to_v", "to_out", PART, *parts}
    if any(name not in known for name, part in attention.named_children() if part is not None):
        return False
    plain = all(getattr(attention, name) is None for name in parts) and not attention.residual_connection
    return plain and attention.rescale_output_factor == 1


def _read_alike(one: QLinear, *others: QLinear) -> bool:
    """Whether they turn one tensor into the same codes."""
    inputs = one.in_features
    return all(
        other.in_features == inputs and one.transforms_like(other) and rounds_alike(one.spec, other.spec, inputs)
        for other in others
    )
