"""Quantized diffusion transformers on CPUs: time against floating point and other libraries, and resident memory.

``python -m benchmarks.cpu`` measures everything; ``--only PART`` a part of it:

    layers   linears of DiT-XL/2 and FLUX, 2 to 4096 rows
    models   a block and a model of DiT-XL/2's width
    zoo      zoo:fashion, a call of the denoiser and whole pictures
    memory   DiT-XL/2 in fresh processes: loaded, called, and quantized in process

Times are ratios of candidates that take turns in one process. Each is held against full precision, and dither's against the
reference kernel, before any is timed; simulated layers are never timed.
"""
