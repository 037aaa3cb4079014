"""The attentions of a model: whatever diffusers computes one in, of any family."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention as DiffusersAttention
from torch import nn

__all__ = ["Attention", "attentions_of"]


@dataclass(frozen=True)
class Attention:
    """One attention.

    Args:
        name: as in ``model.named_modules()``.
        heads: how many share its channels.
    """

    name: str
    heads: int


def attentions_of(model: nn.Module) -> Sequence[Attention]:
    """Every attention of the model, in order of registration."""
    return [
        Attention(name, int(cast(Any, module).heads))
        for name, module in model.named_modules()
        if isinstance(module, DiffusersAttention | AttentionModuleMixin)
    ]
