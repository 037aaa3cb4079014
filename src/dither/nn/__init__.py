"""Quantized linears as modules: plain buffers under a spec, in the places of a model's own linears."""

from dither.clock import Clock, Read
from dither.nn.install import build, install, packed_tensors, replace
from dither.nn.linear import QLinear, tensor_layout
from dither.nn.timed import TimedLinear, ViewedLinear
from dither.packed import PackedWeight

__all__ = [
    "Clock",
    "PackedWeight",
    "QLinear",
    "Read",
    "TimedLinear",
    "ViewedLinear",
    "build",
    "install",
    "packed_tensors",
    "replace",
    "tensor_layout",
]
