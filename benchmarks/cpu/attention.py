"""Attention by itself, and attentions of a model whose products are quantized."""

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from dither.clock import Clock
from dither.nn import QAttention, Widths, widths_of
from dither.numerics import range_table
from dither.spec import Act, AttentionSpec, Int, TwoRegion

__all__ = ["ONE_REGION", "TWO_REGIONS", "Attend", "attentions", "products", "put_attention", "simulate"]

ONE_REGION, TWO_REGIONS = "one region", "two regions"
HALF = 127
FINER = 16
"""The lower region of the softmax has steps this many times finer."""


class Attend(nn.Module):
    """Queries, keys and values of one tensor, which lie as linears leave them, and their attention.

    Args:
        heads: how many share the channels.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, T, H d) each, to the same."""
        a, b, c = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(a, b, c).transpose(1, 2).flatten(2)


def attentions(module: nn.Module) -> list[nn.Module]:
    """Those of a case's module."""
    return [m for m in module.modules() if isinstance(m, Attend | Attention)]


def put_attention(module: nn.Module, regions: str, inputs: tuple[Tensor, ...]) -> None:
    """Quantize the products of all attentions to 8 bits: q, k and the softmax of one region find ranges for each row; v has
    one for each channel, of the values that it has with these inputs.
    """
    found: dict[nn.Module, Tensor] = {}
    for attention in attentions(module):
        own = QAttention(AttentionSpec(), _widths(attention, inputs), Clock()).attach(attention)
        own.v.register_forward_pre_hook(lambda _, args, a=attention: found.update({a: args[0].flatten(0, 1)}))
    module(*inputs)
    for attention, v in found.items():
        widths = _widths(attention, inputs)
        probs = Act(Int(8, symmetric=False)) if regions == ONE_REGION else Act(TwoRegion(8), static=True)
        q, k = (Act(Int(8, group=widths.head[name])) for name in "qk")
        spec = AttentionSpec(q, k, Act(Int(8, group=1), static=True), probs)
        tables = {"v.scale": range_table(v.amin(0), v.amax(0), Int(8))["scale"][None]}
        if regions == TWO_REGIONS:
            tables |= {"probs.upper": torch.tensor([[1 / HALF]]), "probs.scale": torch.tensor([[1 / HALF / FINER]])}
        QAttention(spec, widths, Clock()).load(tables).attach(attention)


def _widths(attention: nn.Module, inputs: tuple[Tensor, ...]) -> Widths:
    if isinstance(attention, Attend):
        return Widths(*(x.shape[2] for x in inputs), attention.heads)
    return widths_of(attention)


def products(module: nn.Module) -> list[QAttention]:
    """Quantized ones of its attentions."""
    return [own for own in module.modules() if isinstance(own, QAttention)]


def simulate(module: nn.Module) -> None:
    """Let products run in floating point, as where a factor is looked at."""
    for own in products(module):
        own.q.register_forward_pre_hook(lambda *_: None)
