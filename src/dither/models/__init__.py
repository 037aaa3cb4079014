"""Model families: which linears a denoiser has, which sites fold, and how its calls are read.

A family is one file with one adapter, and one row in ``FAMILIES``; its file is imported only when a model of its class is
met. Every other torch module gets the generic adapter: linears found, nothing folded.
"""

from importlib import import_module
from typing import cast

from torch import nn

from dither.models.base import AdaLN, Adapter, Call, Fold, Kind, Layer, Modulation, Rows, Site, linear_at

__all__ = [
    "FAMILIES",
    "AdaLN",
    "Adapter",
    "Call",
    "Fold",
    "Kind",
    "Layer",
    "Modulation",
    "Rows",
    "Site",
    "adapter_for",
    "linear_at",
]

FAMILIES: dict[str, tuple[str, str]] = {
    "DiTTransformer2DModel": ("dither.models.dit", "DiT"),
    "PixArtTransformer2DModel": ("dither.models.pixart", "PixArt"),
}
"""Class name of the denoiser -> module and name of its adapter."""

GENERIC = ("dither.models.generic", "Generic")


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of the model's family, or the generic one."""
    names = [FAMILIES[base.__name__] for base in type(model).__mro__ if base.__name__ in FAMILIES]
    module, name = names[0] if names else GENERIC
    return cast(Adapter, getattr(import_module(module), name)())
