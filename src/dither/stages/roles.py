"""What each linear does for a picture, and with which linears of its block it is measured (ViDiT-Q, arXiv 2406.02540).

A *unit* is one part of one block. Its role says what a wrong unit spoils, and so by what it is judged:

    part        linears                                          role        judged by
    self        self-attention: q, k, v, output                  visual      how the picture looks
    ffn         feed-forward, and whatever has no name           visual
    cross       cross-attention: q, k, v, output                 content     whether it shows what was asked for
    adaln       modulation                                       content
    temporal    attention along time                             temporal    whether frames follow from each other

A model without cross-attention gets its condition by modulation alone, so that is its content.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dither.models.base import Layer

__all__ = ["CONTENT", "ROLES", "TEMPORAL", "VISUAL", "Unit", "units_of"]

CONTENT, VISUAL, TEMPORAL = ROLES = ("content", "visual", "temporal")
ROLE_OF = {"self": VISUAL, "ffn": VISUAL, "cross": CONTENT, "adaln": CONTENT, "temporal": TEMPORAL}
ALONG_TIME = re.compile(r"(^|[._])temp(oral)?([._]|$)")
ATTENTION = ("qkv", "attn_out")


@dataclass(frozen=True)
class Unit:
    """Linears that are quantized together while their effect is measured.

    Args:
        name: of the block and the part, or of a layer alone.
        role: what they do for a picture.
        layers: their names, in call order.
    """

    name: str
    role: str
    layers: tuple[str, ...]


def units_of(layers: Iterable[Layer], by_layer: bool = False) -> tuple[Unit, ...]:
    """The units of these layers in the order of their first ones; each layer alone if ``by_layer``."""
    known = tuple(layers)
    crossing = {x.name.rpartition(".")[0] + "." for x in known if x.kind in ("cross_q", "cross_kv")}
    found: dict[str, tuple[str, list[str]]] = {}
    for layer in known:
        part = _part(layer, crossing)
        alone = by_layer or not layer.block
        name = layer.name if alone else f"{layer.block}.{part}"
        found.setdefault(name, (ROLE_OF[part], []))[1].append(layer.name)
    return tuple(Unit(name, role, tuple(names)) for name, (role, names) in found.items())


def _part(layer: Layer, crossing: Iterable[str]) -> str:
    if layer.kind == "adaln":
        return "adaln"
    if layer.kind in ("cross_q", "cross_kv"):
        return "cross"
    if layer.kind not in ATTENTION:
        return "ffn"
    if any(layer.name.startswith(attention) for attention in crossing):  # names tell the two kinds of outputs not apart
        return "cross"
    return "temporal" if ALONG_TIME.search(layer.name) else "self"
