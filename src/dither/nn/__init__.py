"""Quantized linears and attentions, and timestep tables, as modules under a spec in the places of a model's own."""

from dither.clock import Clock, Read
from dither.nn.activation import QActivation
from dither.nn.attention import QAttention, Widths, attention_layout, attention_tensors, detach, widths_of
from dither.nn.install import build, install, packed_tensors, replace
from dither.nn.linear import QLinear, tensor_layout
from dither.nn.timed import TimedLinear, ViewedLinear
from dither.nn.timestep_table import (
    EMBEDDER,
    BorrowedTable,
    TimestepTable,
    embedding_width,
    put_table,
    table_tensor,
    timestep_tables,
)
from dither.packed import PackedWeight

__all__ = [
    "EMBEDDER",
    "BorrowedTable",
    "Clock",
    "PackedWeight",
    "QActivation",
    "QAttention",
    "QLinear",
    "Read",
    "TimedLinear",
    "TimestepTable",
    "ViewedLinear",
    "Widths",
    "attention_layout",
    "attention_tensors",
    "build",
    "detach",
    "embedding_width",
    "install",
    "packed_tensors",
    "put_table",
    "replace",
    "table_tensor",
    "tensor_layout",
    "timestep_tables",
    "widths_of",
]
