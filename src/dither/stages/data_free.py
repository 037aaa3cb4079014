"""What a modulated site looks like, from the modulation alone: no picture is sampled.

A LayerNorm without weights gives every token mean 0 and variance 1 over its channels. With adaLN on top, channel c is

    x_c = (1 + scale_c) n_c + shift_c        n_c about N(0, 1)

and scale and shift follow from noise level and class. The largest magnitude that the channel reaches is then about

    a_c = max over (level, class) of  |shift_c| + z |1 + scale_c|

Not seen from here: channels that stand out in the residual stream itself, so that n_c is wider than the others.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dither.models.base import Modulation

__all__ = ["levels_between", "modulated_peaks", "modulated_tokens"]

PEAK = 3.0
"""z: standard deviations that count as a channel's peak. Only the weight of scale against shift depends on it."""


def levels_between(low: float, high: float, count: int) -> Tensor:
    """Midpoints (count,) of equal parts of this range of the noise level."""
    return low + (high - low) * (torch.arange(count) + 0.5) / count


def modulated_peaks(model: nn.Module, modulation: Modulation, levels: Tensor) -> Tensor:
    """a (K,) float32 over every class and these noise levels (L,); memory is that of one level's classes."""
    peaks = []
    for i in range(len(levels)):
        scale, shift = modulation(model, levels[i : i + 1])  # (classes, K)
        peaks.append((shift.abs() + PEAK * (1 + scale).abs()).amax(0))
    return torch.stack(peaks).amax(0)


def modulated_tokens(model: nn.Module, modulation: Modulation, levels: Tensor, count: int, seed: int) -> Tensor:
    """About ``count`` tokens (n, K) float32 as the site would see them, from random classes and normal noise."""
    make = torch.Generator().manual_seed(seed)
    share = -(-count // len(levels))
    tokens = []
    for i in range(len(levels)):
        scale, shift = (m.cpu() for m in modulation(model, levels[i : i + 1]))
        pick = torch.randint(len(scale), (share,), generator=make)
        noise = torch.randn(share, scale.shape[1], generator=make)
        tokens.append(F.layer_norm(noise, noise.shape[1:]) * (1 + scale[pick]) + shift[pick])
    return torch.cat(tokens)[:count]
