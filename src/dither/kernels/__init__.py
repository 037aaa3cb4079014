"""Kernels: what runs a quantized linear. See ``table`` for how one is chosen, ``reference`` for what is right."""

from dither.kernels.int8 import INT8_MM
from dither.kernels.reference import DEQUANTIZE, REFERENCE
from dither.kernels.table import KERNELS, Inputs, Kernel, choose, is_simulated, named

__all__ = ["KERNELS", "Inputs", "Kernel", "choose", "is_simulated", "named"]

KERNELS[:] = [INT8_MM, DEQUANTIZE, REFERENCE]
