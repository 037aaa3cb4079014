"""The kernels themselves, in Triton's language: these files import ``triton``, and only launchers import them, when they run.

Each loads what it reads as float32 or int32 at once. That is exact on every GPU, and the one thing that Triton's interpreter
gets right for narrow floats. Division is IEEE division, so that codes are those of ``dither.numerics``.
"""
