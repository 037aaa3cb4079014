"""Attention alone, at the sizes of DiT-XL/2, FLUX and the zoo."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.cpu.attention import Attend
from benchmarks.cpu.turns import Case

__all__ = ["SIZES", "Size", "attention_cases"]

WAYS = ("float32", "bfloat16", "int8", "int8, two regions")


@dataclass(frozen=True)
class Size:
    """An attention.

    Args:
        name: whose it is.
        samples, heads, tokens, width: of its factors.
    """

    name: str
    samples: int
    heads: int
    tokens: int
    width: int


SIZES = (
    Size("zoo:fashion", 32, 3, 64, 64),
    Size("DiT-XL/2, 256 pixels", 2, 16, 256, 72),
    Size("DiT-XL/2, 512 pixels", 2, 16, 1024, 72),
    Size("FLUX, 512 pixels", 1, 24, 1536, 128),
)


def attention_cases(sizes: tuple[Size, ...] = SIZES) -> Iterator[Case]:
    """A case for each size."""
    for size in sizes:
        shape = (size.samples, size.tokens, size.heads * size.width)
        inputs = [tuple(torch.randn(shape) for _ in range(3)) for _ in range(2)]
        name = f"{size.name}: {size.samples} x {size.heads} heads of {size.width}, {size.tokens} tokens"
        yield Case(name, "attention", Attend(size.heads).eval(), inputs, WAYS, peers=False)
