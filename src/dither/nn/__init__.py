"""Quantized linears and attentions as modules: plain buffers under a spec, in the places of a model's own."""

from dither.clock import Clock, Read
from dither.nn.activation import QActivation
from dither.nn.attention import QAttention, Widths, attention_layout, attention_tensors, detach, widths_of
from dither.nn.install import build, install, packed_tensors, replace
from dither.nn.linear import QLinear, tensor_layout
from dither.nn.timed import TimedLinear, ViewedLinear
from dither.packed import PackedWeight

__all__ = [
    "Clock",
    "PackedWeight",
    "QActivation",
    "QAttention",
    "QLinear",
    "Read",
    "TimedLinear",
    "ViewedLinear",
    "Widths",
    "attention_layout",
    "attention_tensors",
    "build",
    "detach",
    "install",
    "packed_tensors",
    "replace",
    "tensor_layout",
    "widths_of",
]
