"""What a linear costs: true bits as stored, and bit operations while it runs.

    bits     8 x bytes of codes, scales and zero points of the weight, as the checkpoint stores them
    BitOps   of M tokens, W (N, K) with weights of b_w bits and inputs of b_a bits, in G groups along K

        M N K b_w b_a                      products of codes
      + M N G 2 * 32 * 32                  each group's sum times the scale of its weights and of its inputs, in float32
      + M N G 32 (b_w + b_a) asymmetric    zero points times sums of the other side's codes

Q-DiT (arXiv 2406.17343) limits BitOps in its paper and the mean group size in its code; that a narrower group costs more
shows only if the rescaling counts. A weight whose input stays in full precision is decoded first, and multiplied in float32:
M N K 32 * 32 whatever the groups are.
"""

from dither.numerics import groups, stored_bits
from dither.spec import Act, Int, LinearSpec

__all__ = ["bit_operations", "weight_bits"]

FLOAT = 32


def weight_bits(spec: LinearSpec, shape: tuple[int, int]) -> int:
    """Bits that the weight (N, K) takes in the checkpoint; the low-rank branch and online scales are left out."""
    assert spec.weight is not None
    return stored_bits(spec.weight, shape)


def bit_operations(spec: LinearSpec, shape: tuple[int, int], tokens: float) -> float:
    """Bit operations of one sample with this many input rows."""
    (n, k), fmt, act = shape, spec.weight, spec.act
    if act is None or not isinstance(fmt, Int):
        return tokens * n * k * FLOAT * FLOAT
    count = max(groups(k, fmt.group), groups(k, act.grid.group))
    each = 2 * FLOAT * FLOAT + _zero_points(fmt, act)
    return tokens * n * (k * fmt.bits * act.grid.bits + count * each)


def _zero_points(fmt: Int, act: Act) -> int:
    """Of one group of one output: each side's zero point times the sum of the other side's codes."""
    weight = 0 if fmt.symmetric else fmt.bits * FLOAT
    return weight + (act.grid.bits * FLOAT if isinstance(act.grid, Int) and not act.grid.symmetric else 0)
