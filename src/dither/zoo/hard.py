"""The same function, harder to quantize: channel outliers injected exactly. Synthetic, and to be called so.

Large diffusion transformers have a few input channels far larger than the rest (ViDiT-Q, arXiv 2406.02540; Q-DiT,
arXiv 2406.17343); a model small enough to ship has hardly any. A positive factor ``c`` per channel puts them there
without changing the output, because it cancels between a producer and its readers:

    adaLN     h = norm(x) * (1 + scale) + shift
              shift rows: W *= c, b *= c;    scale rows: W *= c, b = (1 + b) * c - 1;    readers' columns /= c
    values    V rows: W *= c, b *= c;        the output projection's columns /= c

It is the inverse of SmoothQuant's folding (arXiv 2211.10438), so methods that balance channels can undo it, as they can
with the outliers of real models.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor, nn

from dither.errors import BadModel


@dataclass(frozen=True)
class Outliers:
    """How many channels become outliers and how large.

    Attributes:
        fraction: share of the channels of each site that become outliers; at least one does.
        low, high: their factors are log-uniform between these.
        spread: every channel's factor is first log-uniform in [1 / spread, spread].
        seed: of the choice of channels and factors.
    """

    fraction: float = 0.04
    low: float = 8.0
    high: float = 64.0
    spread: float = 1.5
    seed: int = 0


@torch.no_grad()
def inject_outliers(transformer: DiTTransformer2DModel, outliers: Outliers) -> None:
    """Rewrites the weights of ``transformer`` in place; its outputs stay equal up to rounding.

    Raises:
        BadModel: the blocks have no adaLN-Zero, so nothing can absorb the factors.
    """
    model: Any = transformer  # nn.Module types every attribute as Tensor | Module
    kind = model.config.norm_type
    if kind != "ada_norm_zero":
        raise BadModel(f"Outliers can be injected into adaLN-Zero blocks only, and this model has norm_type {kind!r}.")
    generator = torch.Generator().manual_seed(outliers.seed)
    for block in model.transformer_blocks:
        attention = block.attn1
        _scale_adaln(block.norm1.linear, 0, [attention.to_q, attention.to_k, attention.to_v], outliers, generator)
        _scale_adaln(block.norm1.linear, 3, [block.ff.net[0].proj], outliers, generator)
        factors = _factors(attention.to_v.out_features, outliers, generator)
        _scale_rows(attention.to_v, slice(None), factors)
        _divide_columns(attention.to_out[0], factors)


def _factors(channels: int, o: Outliers, generator: torch.Generator) -> Tensor:
    """(channels,) positive factors in float64."""
    draw = torch.rand(2, channels, generator=generator, dtype=torch.float64)
    factors: Tensor = o.spread ** (2 * draw[0] - 1)
    chosen = torch.randperm(channels, generator=generator)[: max(1, round(o.fraction * channels))]
    factors[chosen] *= o.low * (o.high / o.low) ** draw[1, chosen]
    return factors


def _scale_adaln(
    linear: nn.Linear, chunk: int, readers: list[nn.Linear], o: Outliers, generator: torch.Generator
) -> None:
    """Scales the shift rows (``chunk`` of six) and the scale rows (the next chunk); divides the readers' columns."""
    width = linear.out_features // 6
    factors = _factors(width, o, generator)
    shift = slice(chunk * width, (chunk + 1) * width)
    scale = slice((chunk + 1) * width, (chunk + 2) * width)
    _scale_rows(linear, shift, factors)
    _scale_rows(linear, scale, factors)
    linear.bias[scale] = (linear.bias[scale].double() + factors - 1).to(
        linear.bias.dtype
    )  # b c + (c - 1) = (1 + b) c - 1
    for reader in readers:
        _divide_columns(reader, factors)


def _scale_rows(linear: nn.Linear, rows: slice, factors: Tensor) -> None:
    linear.weight[rows] = (linear.weight[rows].double() * factors[:, None]).to(linear.weight.dtype)
    if linear.bias is not None:
        linear.bias[rows] = (linear.bias[rows].double() * factors).to(linear.bias.dtype)


def _divide_columns(linear: nn.Linear, factors: Tensor) -> None:
    linear.weight.copy_((linear.weight.double() / factors).to(linear.weight.dtype))
