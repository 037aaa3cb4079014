"""``QBlock``: a transformer block whose norms, gates and residuals run in the same calls as the linears beside.

    x <- x + gate Attention( norm(x) (1 + scale) + shift )       x <- x + gate FeedForward( norm(x) (1 + scale) + shift )

Written as operators, what lies around the linears reads and writes each activation a dozen times. Native code on CPUs, and
kernels of Triton on GPUs (a ``Fusion``), make q, k and v from one rounding of the modulated inputs, and gate and add outputs
before they are written. It is for the blocks of DiT and PixArt (``ada_norm_zero``, ``ada_norm_single``).

Where a linear has a hook, an adapter or another kernel, it runs as the module that it is, and what is around it by the same
device all the same: both give the same bits, but for sums of norms that ``docs/gpu.md`` names. Where norms have hooks,
gradients are asked for, or the block does what is not known here, it runs as diffusers' block does.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from dither.kernels.fusion import Around, Fusion, fusion_of
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
        fusion = self._fusion(x)
        if fusion is None or cross_attention_kwargs:
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
        found = None if context is not None or attention_mask is not None else _attended(self.attn1, fusion, x, around)
        if found is None:
            seen = fusion.modulate(x, shift, scale, before.eps)
            y = self.attn1(seen, encoder_hidden_states=context, attention_mask=attention_mask)
            found = fusion.gated(y, gate, x)
        x = found
        if self.attn2 is not None:
            seen = x if self.norm_type == "ada_norm_single" else self.norm2(x)
            x = x + self.attn2(seen, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask)
        around = Around(shift_ff, scale_ff, after.eps, gate_ff, x)
        ff = cast(nn.Module, self.ff)
        found = ff.together(fusion, x, around) if type(ff) is QFeedForward and is_unwatched((ff,)) else None
        return (
            fusion.gated(ff(fusion.modulate(x, shift_ff, scale_ff, after.eps)), gate_ff, x) if found is None else found
        )

    def _fusion(self, x: Tensor) -> Fusion | None:
        """The device, if it knows all that this call does around the linears."""
        if torch.is_grad_enabled() or x.ndim != 3 or self._chunk_size is not None:
            return None
        return fusion_of(x) if is_unwatched((self.norm1, *_norms(self))) else None

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


def _attended(attention: Attention, fusion: Fusion, x: Tensor, around: Around) -> Tensor | None:
    """Self-attention in three calls: q, k and v, their attention, and what follows; None where it runs as the module."""
    if not _is_self_attention(attention):
        return None
    linears = (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0])
    *readers, last = [integers(linear, fusion, x.dtype) for linear in linears]
    if last is None or any(linear is None for linear in readers):
        return None
    q, k, v = cast(list[QLinear], readers)
    products = products_of(attention)
    hooked = (attention,) if products is None or not products.only_hooks(attention) else ()
    alike = _read_alike(fusion, q, k, v)
    if not (alike or fusion.rereads) or not is_unwatched((*hooked, q, k, v, last, *attention.to_out)):
        return None
    together = [[q, k, v]] if alike else [[q], [k], [v]]
    before = Around(around.shift, around.scale, around.eps)
    made = [y for some in together for y in _run(some, fusion, x, before)]
    a, b, c = (t.view(*t.shape[:2], attention.heads, -1).transpose(1, 2) for t in made)  # (B, H, T, D / H)
    attend = nn.functional.scaled_dot_product_attention if products is None else products.attend
    y = attend(a, b, c).transpose(1, 2).flatten(2)
    return _run([last], fusion, y, Around(gate=around.gate, residual=around.residual))[0]


def _run(some: list[QLinear], fusion: Fusion, x: Tensor, around: Around) -> list[Tensor]:
    """Linears of one x that turn it, and round it, alike."""
    x, turn, around = turned(some[0], fusion, x, around)
    return fusion.linears([linear.call(x, linear.bias, fusion) for linear in some], turn, around)


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


def _read_alike(fusion: Fusion, one: QLinear, *others: QLinear) -> bool:
    """Whether they turn one tensor into the same codes."""
    return all(
        other.in_features == one.in_features
        and fusion.alike(one.spec, other.spec, one.in_features)
        and one.transforms_like(other)
        and one.ranges_like(other)
        for other in others
    )
