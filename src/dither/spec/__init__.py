"""What a quantized model is, as plain data: formats, layer specs, the plan, the recipe that found it. No torch here.

A *format* says how numbers are stored (``Int``, ``Nested``, ``Codebook``). A ``LinearSpec`` says what one linear computes:

    y = decode(weight) . act( rotate( pre_scale * x ) ) + bias            # x (..., K), y (..., N)

A ``Plan`` maps layer names to specs and is stored with the checkpoint: it is all that loading needs. A ``Recipe`` is
how the plan was found: provenance only. Everything here is frozen, compares by value, and turns into JSON and back
exactly, through closed tags (``{"kind": "int", ...}``): no import path, no evaluation.
"""

from dither.spec.formats import PER_ROW, PER_TENSOR, Act, Codebook, Format, Int, Nested
from dither.spec.plan import LinearSpec, LowRank, Plan, Rotation, Spec, Timed, View, Views
from dither.spec.recipe import Bits, Recipe
from dither.spec.tagged import fits, from_json, to_json

__all__ = [
    "PER_ROW",
    "PER_TENSOR",
    "Act",
    "Bits",
    "Codebook",
    "Format",
    "Int",
    "LinearSpec",
    "LowRank",
    "Nested",
    "Plan",
    "Recipe",
    "Rotation",
    "Spec",
    "Timed",
    "View",
    "Views",
    "fits",
    "from_json",
    "to_json",
]
