"""What a quantized model is, as plain data: formats, layer specs, the plan, the recipe that found it. No torch here.

A *format* says how a weight is stored (``Int``, ``Float8``, ``Nested``, ``Codebook``, ``Gaussian``, ``Trellis``), a *grid*
how an activation is rounded (``Int``, ``Float8``, ``TwoRegion``, ``Log2``). A ``LinearSpec`` says what one linear computes,
an ``AttentionSpec`` what attention's products read, a ``TableSpec`` that a timestep embedder is a table of its outputs:

    y = decode(weight) . act( rotate( pre_scale * x ) ) + bias + time_bias            # x (..., K), y (..., N)

A ``Plan`` maps layer names to specs and is stored with the checkpoint: it is all that loading needs. A ``Recipe`` is
how the plan was found: provenance only. Everything here is frozen, compares by value, and turns into JSON and back
exactly, through closed tags (``{"kind": "int", ...}``): no import path, no evaluation.
"""

from dither.spec.formats import (
    PER_ROW,
    PER_TENSOR,
    Act,
    Codebook,
    Float8,
    Format,
    Gaussian,
    Grid,
    Int,
    Log2,
    Nested,
    Trellis,
    TwoRegion,
)
from dither.spec.plan import AttentionSpec, LinearSpec, LowRank, Plan, Rotation, Spec, TableSpec, Timed, View, Views
from dither.spec.recipe import Bits, Recipe
from dither.spec.tagged import fits, from_json, to_json

__all__ = [
    "PER_ROW",
    "PER_TENSOR",
    "Act",
    "AttentionSpec",
    "Bits",
    "Codebook",
    "Float8",
    "Format",
    "Gaussian",
    "Grid",
    "Int",
    "LinearSpec",
    "Log2",
    "LowRank",
    "Nested",
    "Plan",
    "Recipe",
    "Rotation",
    "Spec",
    "TableSpec",
    "Timed",
    "Trellis",
    "TwoRegion",
    "View",
    "Views",
    "fits",
    "from_json",
    "to_json",
]
