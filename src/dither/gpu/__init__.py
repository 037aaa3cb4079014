"""Kernels for NVIDIA GPUs, in Triton, as operators of torch: ``jit`` holds the kernels, the files here start them.

Importing this needs no Triton, and starts nothing.
"""

from dither.gpu.around import beside, int8_beside, parts_of, tile_of
from dither.gpu.inputs import int8_rows
from dither.gpu.machine import can_run, is_interpreted, multiplies_float8, scales_rows
from dither.gpu.products import RANKS, SIGNED, UNSIGNED, WHOLE, int8_product, int8_product_codes
from dither.gpu.weights import INTEGERS, MOST_ROWS, TRELLIS, WORDS, Stored, few_rows, int8_weight

__all__ = [
    "INTEGERS",
    "MOST_ROWS",
    "RANKS",
    "SIGNED",
    "TRELLIS",
    "UNSIGNED",
    "WHOLE",
    "WORDS",
    "Stored",
    "beside",
    "can_run",
    "few_rows",
    "int8_beside",
    "int8_product",
    "int8_product_codes",
    "int8_rows",
    "int8_weight",
    "is_interpreted",
    "multiplies_float8",
    "parts_of",
    "scales_rows",
    "tile_of",
]
