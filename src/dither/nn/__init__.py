"""Quantized linears and attentions, and timestep tables, as modules under a spec in the places of a model's own."""

from dither.clock import Clock, Read
from dither.nn.activation import QActivation
from dither.nn.attention import QAttention, Widths, attention_layout, attention_tensors, detach, widths_of
from dither.nn.block import QBlock
from dither.nn.borrowed import SHARABLE, Borrowed, alike, equal, shared_modules
from dither.nn.feed_forward import QFeedForward
from dither.nn.install import build, fuse, install, lend, packed_tensors, replace
from dither.nn.linear import QLinear, tensor_layout
from dither.nn.timed import TimedLinear, ViewedLinear
from dither.nn.timestep_table import (
    EMBEDDER,
    TimestepTable,
    embedding_width,
    put_table,
    table_tensor,
    timestep_tables,
)
from dither.packed import PackedWeight

__all__ = [
    "EMBEDDER",
    "SHARABLE",
    "Borrowed",
    "Clock",
    "PackedWeight",
    "QActivation",
    "QAttention",
    "QBlock",
    "QFeedForward",
    "QLinear",
    "Read",
    "TimedLinear",
    "TimestepTable",
    "ViewedLinear",
    "Widths",
    "alike",
    "attention_layout",
    "attention_tensors",
    "build",
    "detach",
    "embedding_width",
    "equal",
    "fuse",
    "install",
    "lend",
    "packed_tensors",
    "put_table",
    "replace",
    "shared_modules",
    "table_tensor",
    "tensor_layout",
    "timestep_tables",
    "widths_of",
]
