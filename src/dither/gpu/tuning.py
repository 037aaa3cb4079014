"""Measures the tiles of a product on the GPU that is here, and keeps the fastest; see ``tuner``.

Extra tiles are tried that are not among the defaults: they are right for every shape, but spill registers in some epilogues.
"""

import math
from typing import Any

from dither.errors import DitherError
from dither.gpu.products import Product
from dither.gpu.tiles import Tile
from dither.gpu.tuner import tune

__all__ = ["EXTRA", "tune_product"]

EXTRA = (Tile(128, 256, 128, 8, 3), Tile(128, 128, 128, 8, 4), Tile(128, 64, 128, 4, 3), Tile(64, 128, 128, 4, 4))
"""Of the plain product."""


def tune_product(*arguments: Any) -> Tile:
    """The fastest tile for a call of ``int8_product`` with these arguments, measured now, and taken for its like from now on.

    Raises:
        DitherError: there is no GPU here, or no tile can run.
    """
    product = Product.of(*(*arguments[:13], None, None, 8, *arguments[13:]))  # no codes of the output
    if not product.out.is_cuda:
        raise DitherError(f"tiles cannot be measured on '{product.out.device}': it takes a CUDA device")
    extra = EXTRA if product.kernel.__name__ == "multiply" else ()
    times = {tile: _seconds(product, tile) for tile in (*product.tiles, *extra)}
    if not any(map(math.isfinite, times.values())):
        raise DitherError(f"no tile runs {product.key}")
    return tune(product.key, times, times.__getitem__)


def _seconds(product: Product, tile: Tile) -> float:
    """Median of repeated runs; infinite where the GPU has no room for the tile."""
    import triton
    from triton.runtime.errors import OutOfResources

    try:
        found: float = triton.testing.do_bench(lambda: product.start(tile), warmup=5, rep=20, return_mode="median")
    except OutOfResources:
        return math.inf
    return found / 1e3
