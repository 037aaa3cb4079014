"""Timestep embedders that see whole timesteps alone: what they give is a finite set of vectors (TFMQ-DM, arXiv 2311.16503).

    emb = linear_2(silu(linear_1(sinusoids(t)))),      t in 0 .. T - 1

DiT of diffusers has one in each block, PixArt one for all. Models that take noise levels of any value have none.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.models.embeddings import (
    CombinedTimestepLabelEmbeddings,
    PixArtAlphaCombinedTimestepSizeEmbeddings,
    TimestepEmbedding,
)
from torch import Tensor, nn

__all__ = ["embedders_of", "embedding_at"]

FAMILIES = ("DiTTransformer2DModel", "PixArtTransformer2DModel")
"""Denoisers whose samplers count time in whole steps."""
EMBEDDERS = (CombinedTimestepLabelEmbeddings, PixArtAlphaCombinedTimestepSizeEmbeddings)


def embedders_of(model: nn.Module) -> Sequence[str]:
    """Names of the modules that embed the timestep, in order of registration; those that are tables already are left out."""
    if not any(base.__name__ in FAMILIES for base in type(model).__mro__):
        return []
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, EMBEDDERS) and isinstance(module.timestep_embedder, TimestepEmbedding)
    ]


def embedding_at(model: nn.Module, name: str, steps: Tensor) -> Tensor:
    """What the timestep alone contributes there, (T, D) at these timesteps (T,), in the dtype of the embedder's weights."""
    module = cast(Any, model.get_submodule(name))
    weight = module.timestep_embedder.linear_1.weight
    with torch.no_grad():
        return cast(Tensor, module.timestep_embedder(module.time_proj(steps.to(weight.device)).to(weight.dtype)))
