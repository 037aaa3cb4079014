"""A weight whose rounding is learned: AdaRound's soft quantization (arXiv 2004.10568, section 3.2).

    W^ = s (clip(floor(W / s) + h + z, lo, hi) - z)        h = clip(1.2 sigmoid(a) - 0.1, 0, 1)

a begins where h is the fraction of W / s, so that the soft weight begins at W. Each weight settles for the code below it or
the one above; ``codes`` are what is left then, and nothing soft ever leaves the stage that trains it. Counted from the
lowest code, the formula is W^ = low + step h, with a step of 0 where clipping leaves no choice.
"""

import torch
from torch import Tensor

from dither.numerics import code_bounds, from_codes, grouped, pack_int
from dither.spec import Int

__all__ = ["SoftRounding"]

STRETCH = 1.2
MARGIN = 0.1
"""The sigmoid is stretched by a tenth on both sides, so that h reaches 0 and 1 (Louizos et al., arXiv 1712.01312)."""

FIRMNESS = 0.8
"""How far earlier choices reach from 1/2 to 0 and 1, where no gradient would be left."""


class SoftRounding:
    """The rounding of one weight.

    Args:
        weight: (N, K).
        scale: of its grid, (N, G) or (1, 1).
        zero: of its grid, or None where that is symmetric.
        fmt: of the grid.
        before: codes (N, K) that were learned earlier, which it begins at; None: it begins at the weight itself.
    """

    def __init__(
        self, weight: Tensor, scale: Tensor, zero: Tensor | None, fmt: Int, before: Tensor | None = None
    ) -> None:
        self.fmt, self.scale, self.zero = fmt, scale, zero
        offset, step = _spacing(scale, zero, fmt)  # (N, G, 1)
        lo, hi = code_bounds(fmt)
        position = grouped(weight.float(), fmt.group) / torch.where(step == 0, torch.inf, step) + offset  # (N, G, g)
        below = position.floor()
        free = (below >= lo) & (below < hi)
        self._below = below.clamp(lo, hi).flatten(-2).to(torch.int16)
        self._free = free.flatten(-2)
        self.low = (step * (below.clamp(lo, hi) - offset)).flatten(-2)  # (N, K)
        self.step = (step * free).flatten(-2)
        fraction = (position - below).flatten(-2)
        self.nearest = self._codes(fraction > 1 / 2)
        self.first = self.nearest if before is None else before
        self.alpha = torch.logit((fraction + MARGIN) / STRETCH).requires_grad_()
        if before is not None:
            self.settle(before, FIRMNESS)

    def choice(self) -> Tensor:
        """h (N, K), in [0, 1]: how much of the step upwards each weight takes."""
        return torch.sigmoid(self.alpha).mul(STRETCH).sub(MARGIN).clamp(0, 1)

    def soft(self, h: Tensor) -> Tensor:
        """The weight (N, K) float32 for such a choice."""
        return torch.addcmul(self.low, self.step, h)

    def codes(self) -> Tensor:
        """Codes (N, K) with every choice made, as ``numerics.to_codes`` gives them."""
        with torch.no_grad():
            return self._codes(self.choice() > 1 / 2)

    def value(self, codes: Tensor) -> Tensor:
        """The weight (N, K) float32 that codes stand for."""
        return from_codes(codes, self.scale, self.zero, self.fmt)

    def stored(self) -> dict[str, Tensor]:
        """``codes()`` and their grid, as a layer stores them."""
        return pack_int(self.codes(), self.scale, self.zero, self.fmt)

    def settle(self, codes: Tensor, firmness: float = 1.0) -> None:
        """Let every choice be what such codes have, or as firmly as that."""
        chosen = (codes.to(torch.int16) > self._below).float()
        h = (chosen - 1 / 2) * firmness + 1 / 2
        with torch.no_grad():
            self.alpha.copy_(torch.logit((h + MARGIN) / STRETCH))

    def _codes(self, up: Tensor) -> Tensor:
        signed = self.fmt.symmetric and self.fmt.bits > 1
        return (self._below + (up & self._free)).to(torch.int8 if signed else torch.uint8)


def _spacing(scale: Tensor, zero: Tensor | None, fmt: Int) -> tuple[Tensor | float, Tensor]:
    """The code of 0 and the distance of neighbours, (N, G, 1) each: a code q stands for distance * (q - code of 0)."""
    scale = scale.float().unsqueeze(-1)
    if zero is not None:
        return zero.float().unsqueeze(-1), scale
    return (0.5, 2 * scale) if fmt.bits == 1 else (0.0, scale)
