"""The arithmetic of channel balancing: which scale a channel gets, and how good a scale is.

With activation peaks a (K,), weight peaks w (K,) and SmoothQuant's alpha (arXiv 2211.10438, equation 4):

    s = a^alpha / w^(1 - alpha)        x' = x / s        W' = W s

alpha = 1 moves the whole range of the activation into the weight; alpha = 0 equalizes the weight. ViDiT-Q (arXiv
2406.02540) multiplies the activation by ``w^A / a^(1 - A)``, which is ``1 / s`` at ``A = 1 - alpha``: its alpha counts from
the other end. Recipes write that one as ``vidit_alpha``.

    error(s) = || Q_a(x / s) Q_w(W s)^T - x W^T ||^2        over sampled tokens x, both sides rotated if they will be
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dither.errors import BadRecipe
from dither.numerics import act_quantize, decode, dynamic_table, encode, fitting, random_signs, rotate
from dither.spec import PER_ROW, PER_TENSOR, Act, Bits, Float8, Format, Int

__all__ = ["Judge", "best_scale", "column_peaks", "judge_of", "share", "shares", "smoothing_scale"]

DEFAULT = 0.5


def share(stage: str, field: str, value: float) -> float:
    """A number in [0, 1], or BadRecipe that names the stage's field."""
    if not 0 <= value <= 1:
        raise BadRecipe(f"{stage}.{field} {value}: must lie in [0, 1]")
    return float(value)


def shares(stage: str, alpha: Sequence[float], vidit_alpha: Sequence[float]) -> tuple[float, ...]:
    """SmoothQuant's alphas from whichever of the two fields was given; one half if neither was."""
    if alpha and vidit_alpha:
        raise BadRecipe(
            f"{stage}.alpha {_text(alpha)} and {stage}.vidit_alpha {_text(vidit_alpha)}: give one of the two, "
            "vidit_alpha is 1 - alpha"
        )
    given = tuple(share(stage, "alpha", a) for a in alpha)
    return given or tuple(1 - share(stage, "vidit_alpha", a) for a in vidit_alpha) or (DEFAULT,)


def _text(values: Sequence[float]) -> str:
    return ", ".join(map(str, values))


def smoothing_scale(a: Tensor, w: Tensor, alpha: float) -> Tensor:
    """s (K,) of activation peaks a (K,) and weight peaks w (K,); 1 where a channel is dead on either side."""
    a = a.to(w.device)
    s = a.pow(alpha) / w.pow(1 - alpha)
    return torch.where((a > 0) & (w > 0) & torch.isfinite(s) & (s > 1e-5) & (s < 1e5), s, 1.0)


def column_peaks(weights: Sequence[Tensor]) -> Tensor:
    """(K,): largest magnitude of each input channel over all these weights (N, K)."""
    return torch.stack([w.float().abs().amax(0) for w in weights]).amax(0)


@dataclass(frozen=True)
class Judge:
    """What will be done to a layer, so that a scale can be judged by the error of the layer's output.

    Args:
        weight: format of the weight, or None.
        act: of the input, or None. A static range is imitated by the range of the sampled tokens.
        signs: of a rotation that comes after the scale, (K,) int8, or None.
        block: of that rotation.
    """

    weight: Format | None
    act: Act | None
    signs: Tensor | None = None
    block: int = 1

    def error(self, x: Tensor, w: Tensor, s: Tensor) -> float:
        """Squared error of x W^T, tokens x (n, K), W (N, K), scale s (K,)."""
        xs, ws = x / s, w * s
        if self.signs is not None:
            xs, ws = rotate(xs, self.signs, self.block), rotate(ws, self.signs, self.block)
        if self.weight is not None:
            ws = decode(encode(ws, self.weight), self.weight, (ws.shape[0], ws.shape[1]))
        if self.act is not None:
            one_range = self.act.static and self.act.grid.group == PER_ROW
            grid = replace(self.act.grid, group=PER_TENSOR) if one_range else self.act.grid
            xs = act_quantize(xs, grid, dynamic_table(xs, grid))
        return float((F.linear(xs, ws) - F.linear(x, w)).square().sum())


def judge_of(
    bits: Bits, weight: Int | Float8 | None, act: Act | None, block: int | None, seed: int, width: int
) -> Judge:
    """What later stages will do to a layer of this width; symmetric grids of these bits where nothing is said.

    A group size that does not divide the width is judged as the next one that does.
    """
    fmt = fitting(weight or (Float8() if bits.floating else Int(bits.weight)), width)
    inputs = act or (None if bits.act is None else Act(Float8() if bits.floating else Int(bits.act)))
    inputs = None if inputs is None else replace(inputs, grid=fitting(inputs.grid, width))
    if block is None:
        return Judge(fmt, inputs)
    return Judge(fmt, inputs, random_signs(width, seed), block or width)


def best_scale(
    parts: Sequence[tuple[Judge, Tensor]], alphas: Sequence[float], a: Tensor, w: Tensor, x: Tensor
) -> tuple[float | None, Tensor]:
    """Of these alphas' scales (K,), and of no scale at all (None), the one with the least output error.

    Args:
        parts: the readers' weights (N, K), and what is to be done to each.
        alphas: SmoothQuant's.
        a: activation peaks (K,).
        w: weight peaks (K,).
        x: sampled tokens (n, K).
    """
    choices: list[tuple[float | None, Tensor]] = [(None, torch.ones_like(w))]
    choices += [(alpha, smoothing_scale(a, w, alpha)) for alpha in alphas]
    tokens = x.to(w.device)
    errors = [sum(judge.error(tokens, weight, s) for judge, weight in parts) for _, s in choices]
    return choices[min(range(len(errors)), key=errors.__getitem__)]
