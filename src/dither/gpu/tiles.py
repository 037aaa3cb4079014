"""Tile sizes of the products, and which one serves a shape without tuning.

Defaults are those that compile without spilled registers for every architecture from sm_80 on, with every epilogue; tests
hold them to that. They are not tuned: see ``tuner``.
"""

from dataclasses import dataclass

__all__ = ["DEFAULTS", "GROUPED", "NIBBLES", "Tile", "block", "default_tile", "rows_at_once"]


@dataclass(frozen=True)
class Tile:
    """How a product is cut.

    Args:
        m, n, k: rows, outputs and inputs of a tile, powers of two; of ``multiply_nibbles``, ``k`` counts pairs of inputs.
        warps: of a program.
        stages: tiles in flight.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int


DEFAULTS = (Tile(128, 128, 128, 8, 3), Tile(64, 128, 128, 4, 3), Tile(64, 64, 128, 4, 4))
NIBBLES = (Tile(128, 128, 64, 8, 3), Tile(64, 128, 64, 4, 3), Tile(64, 64, 64, 4, 4))
GROUPED = (Tile(64, 128, 64, 8, 3), Tile(64, 64, 128, 8, 3))
"""Of each kernel, from large to small."""


def default_tile(tiles: tuple[Tile, ...], m: int, n: int, processors: int) -> Tile:
    """The largest tile that still gives every processor one, or the smallest."""
    return next((t for t in tiles if -(-m // t.m) * -(-n // t.n) >= processors), tiles[-1])


def block(size: int) -> int:
    """The power of two that holds a row of this size, at least 16."""
    return max(16, 1 << (size - 1).bit_length())


def rows_at_once(size: int) -> int:
    """Rows of this size that one program takes: of short ones several."""
    return max(1, 2048 // block(size))
