"""Linears that read several tensors side by side, ``y = W [x_1; x_2]``, and how wide each of these is.

Their ranges may differ by far, as the tensors come from different places. From names and widths alone, of the models that
diffusers has:

    skip_linear                     the stream beside a skip connection as wide (U-ViT, UniDiffuser, HunyuanDiT)
    proj_out beside proj_mlp        attention beside the MLP's hidden states (single-stream blocks of FLUX, Chroma, Bria,
                                    HunyuanVideo, HunyuanImage, LongCat, Motif, Ovis)
    to_out beside to_qkv_mlp_proj   the same in one attention (FLUX.2)
"""

import re
from collections.abc import Mapping

from torch import nn

__all__ = ["parts_of"]

SKIP = re.compile(r"(^|_)skip(_|$)")
BESIDE_MLP = {"proj_out": "proj_mlp", "to_out": "to_qkv_mlp_proj"}
"""A linear that reads attention and MLP, and the one beside it that begins the MLP."""


def parts_of(name: str, linears: Mapping[str, nn.Linear]) -> tuple[int, ...]:
    """Widths of what a linear reads side by side, in order; nothing where it reads one tensor, or nobody knows.

    Args:
        name: of the linear.
        linears: of its model.
    """
    head, dot, leaf = name.rpartition(".")
    inputs, outputs = linears[name].in_features, linears[name].out_features
    if SKIP.search(leaf) and inputs > outputs and inputs % outputs == 0:
        return (outputs,) * (inputs // outputs)
    beside = BESIDE_MLP.get(leaf)
    if beside is not None and f"{head}{dot}{beside}" in linears and inputs > outputs:
        return (outputs, inputs - outputs)
    return ()
