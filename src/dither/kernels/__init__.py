"""Kernels: what runs a quantized linear. See ``table`` for how one is chosen, ``reference`` for what is right."""

from dither.kernels.cpu import CPU_DECODE, CPU_INT8, NATIVE
from dither.kernels.float8 import SCALED_MM
from dither.kernels.fusion import FUSIONS
from dither.kernels.gpu import TRITON, TRITON_DECODE, TRITON_INT8
from dither.kernels.int8 import INT8_MM
from dither.kernels.native_calls import means
from dither.kernels.reference import DEQUANTIZE, REFERENCE
from dither.kernels.table import KERNELS, Inputs, Kernel, choose, is_simulated, named

__all__ = ["KERNELS", "Inputs", "Kernel", "choose", "is_simulated", "means", "named"]

KERNELS[:] = [CPU_INT8, TRITON_INT8, INT8_MM, SCALED_MM, CPU_DECODE, TRITON_DECODE, DEQUANTIZE, REFERENCE]
FUSIONS[:] = [TRITON, NATIVE]
