"""What is in a model: layers, formats, kernels, true bits. Bytes of what is saved are read from the disk.

    bits_per_weight              8 x bytes of the quantized linears as stored / their original weight count
    model_bits_per_weight        8 x bytes of the denoiser's files / its parameter count, what is shared counted once
    running_bits_per_weight      mean width of the weight codes that run, over the weights and over the noise levels
    running_bits_per_activation  the same of the inputs, over the quantized linears whose inputs always are quantized

Codes, scales, zero points, codebooks, signs, online scales, low-rank branches and biases all count as stored. Only widths of
codes count as running: nothing is smaller for a layer that reads 4 of the 8 bits it stores.
"""

from dither.inspection.rows import describe, plan_rows, reasons, stays, summary
from dither.inspection.sizes import estimate, size_on_disk, stored_dtype

__all__ = ["describe", "estimate", "plan_rows", "reasons", "size_on_disk", "stays", "stored_dtype", "summary"]
