"""What each format means: encode, decode, pack; and the Hadamard rotations that weights and inputs share.

``formats`` is the entrance for anything that stores or loads a weight, ``acts`` for whatever rounds an activation. Kernels
and stages that need the arithmetic of one format (codes, grids, indices) take it from ``integer``, ``nested``,
``codebook`` and ``trellis``.
"""

from dither.numerics.acts import (
    Table,
    act_codes,
    act_quantize,
    act_values,
    dynamic_table,
    int_table,
    range_table,
    table_fault,
    table_layout,
)
from dither.numerics.codebook import assign, decode_codebook, encode_codebook, fit_codebook, unpack_indices
from dither.numerics.formats import Layout, decode, encode, layout, stored_bits, validate
from dither.numerics.hadamard import (
    hadamard_matrix,
    hadamard_order,
    hadamard_transform,
    random_signs,
    rotate,
    unrotate,
)
from dither.numerics.integer import (
    code_bounds,
    decode_int,
    dynamic_grid,
    encode_int,
    fake_quantize,
    fitting,
    from_codes,
    grid,
    grouped,
    groups,
    int_range,
    pack_int,
    to_codes,
    unpack_int,
)
from dither.numerics.nested import decode_nested, encode_nested, high_bits
from dither.numerics.pack import pack, packed_width, unpack
from dither.numerics.regions import split_table
from dither.numerics.trellis import (
    decode_trellis,
    encode_trellis,
    pack_trellis,
    trellis_bits,
    trellis_codes,
    trellis_from_bits,
)

__all__ = [
    "Layout",
    "Table",
    "act_codes",
    "act_quantize",
    "act_values",
    "assign",
    "code_bounds",
    "decode",
    "decode_codebook",
    "decode_int",
    "decode_nested",
    "decode_trellis",
    "dynamic_grid",
    "dynamic_table",
    "encode",
    "encode_codebook",
    "encode_int",
    "encode_nested",
    "encode_trellis",
    "fake_quantize",
    "fit_codebook",
    "fitting",
    "from_codes",
    "grid",
    "grouped",
    "groups",
    "hadamard_matrix",
    "hadamard_order",
    "hadamard_transform",
    "high_bits",
    "int_range",
    "int_table",
    "layout",
    "pack",
    "pack_int",
    "pack_trellis",
    "packed_width",
    "random_signs",
    "range_table",
    "rotate",
    "split_table",
    "stored_bits",
    "table_fault",
    "table_layout",
    "to_codes",
    "trellis_bits",
    "trellis_codes",
    "trellis_from_bits",
    "unpack",
    "unpack_indices",
    "unpack_int",
    "unrotate",
    "validate",
]
