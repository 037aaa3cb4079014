"""Layers alone, at the widths of DiT-XL/2 and FLUX."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.cpu.turns import Case
from benchmarks.cpu.ways import repeat_a_square

__all__ = ["SHAPES", "Shape", "Stack", "layer_cases"]

FEW = 16
"""Rows up to which reading weights, not multiplying, takes the time."""
PEER_ROWS = (2, 512)
COLD = 128 << 20
"""Bytes of float32 weights that layers of few rows have together, so that none is still in the caches when its turn comes:
in a model it is not either."""
FEWEST_COPIES = 2
ACTS = (
    "W8A8", "W8A8, rotated", "W8A8 in bfloat16", "W4A8", "W4A8, rotated", "W4A8, groups of 128", "W3A8, trellis",
    "W2A8, trellis", "W2A8, trellis, rotated", "W2A8, universal words",
)  # fmt: skip
WEIGHTS_ALONE = (
    "W8, weights alone", "W4, weights alone", "W4 in groups of 128, weights alone", "W2 trellis, weights alone",
    "W2 universal words, weights alone",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A linear.

    Args:
        model, role: whose it is.
        inputs, outputs: widths.
        rows: numbers of tokens to try.
    """

    model: str
    role: str
    inputs: int
    outputs: int
    rows: tuple[int, ...]


_XL, _FLUX = (16, 256, 512, 4096), (16, 256, 512)
SHAPES = (
    Shape("DiT-XL/2", "modulation", 1152, 6912, (2,)),
    Shape("DiT-XL/2", "attention", 1152, 1152, _XL),
    Shape("DiT-XL/2", "fc1", 1152, 4608, _XL),
    Shape("DiT-XL/2", "fc2", 4608, 1152, _XL),
    Shape("FLUX", "attention", 3072, 3072, _FLUX),
    Shape("FLUX", "fc1", 3072, 12288, _FLUX),
    Shape("FLUX", "fc2", 12288, 3072, _FLUX),
    Shape("FLUX", "single block", 15360, 3072, _FLUX),
)


class Stack(nn.Module):
    """Linears of one input, each with weights of its own in memory; one of them is a linear.

    Args:
        inputs, outputs: widths.
        copies: how many.
    """

    def __init__(self, inputs: int, outputs: int, copies: int) -> None:
        super().__init__()
        self.of = nn.ModuleList([nn.Linear(inputs, outputs) for _ in range(copies)])

    def forward(self, x: Tensor) -> Tensor:
        """x (M, K) to (M, N), the sum of all."""
        first, *rest = self.of
        y: Tensor = first(x)
        for linear in rest:
            y = y + linear(x)
        return y


def layer_cases(shapes: tuple[Shape, ...] = SHAPES) -> Iterator[Case]:
    """A case for each shape and number of rows."""
    for shape in shapes:
        for rows in shape.rows:
            yield case_of(shape, rows)


def case_of(shape: Shape, rows: int) -> Case:
    """One shape at one number of rows."""
    few = rows <= FEW
    copies = max(FEWEST_COPIES, -(-COLD // (4 * shape.inputs * shape.outputs))) if few else 1
    module = Stack(shape.inputs, shape.outputs, copies).eval()
    repeat_a_square(module)
    peers = rows in PEER_ROWS
    acts = [name for name in ACTS if not few or "rotated" not in name]  # copies would share one rotated input
    ways = ["float32", "bfloat16", *(["float32, compiled", "bfloat16, compiled"] if peers else [])]
    ways += [*(acts if rows > min(FEW, 2) else []), *(WEIGHTS_ALONE if few else [])]
    return Case(
        name=f"{shape.model} {shape.role}, {shape.inputs} -> {shape.outputs}, {rows} rows",
        group="layers",
        module=module,
        inputs=[(torch.randn(rows, shape.inputs),) for _ in range(2)],
        ways=ways,
        peers=peers,
        facts={
            "model": shape.model,
            "role": shape.role,
            "shape": [rows, shape.inputs, shape.outputs],
            "copies": copies,
        },
    )
