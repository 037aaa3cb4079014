"""How far the quantized trajectory strays from the full-precision one, step by step, from the same noise.

    relative_t = |x_t^Q - x_t^FP| / |x_t^FP|        cosine_t = <x_t^Q, x_t^FP> / (|x_t^Q| |x_t^FP|)

averaged over pictures. Both samplers run freely, so errors compound (or are contracted) as they do in use. This is
the cheapest and most sensitive sign of damage: it is visible before any picture is finished.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from dither.errors import BadValue
from dither.evaluation.protocol import Float64

__all__ = ["DriftMeter", "drift"]


def drift(reference: torch.Tensor, latents: torch.Tensor) -> tuple[Float64, Float64]:
    """Relative distance and cosine of each picture's latents (N, ...) and those of full precision, both (N,)."""
    x = reference.detach().flatten(1).double()  # (N, latent size)
    y = latents.detach().to(x.device).flatten(1).double()
    norm_x, norm_y = x.norm(dim=1), y.norm(dim=1)
    tiny = torch.finfo(torch.float64).tiny
    relative = (y - x).norm(dim=1) / norm_x.clamp_min(tiny)
    cosine = (x * y).sum(dim=1) / (norm_x * norm_y).clamp_min(tiny)
    return relative.cpu().numpy(), cosine.cpu().numpy()


@dataclass
class _Step:
    timestep: float
    relative: float = 0.0
    cosine: float = 0.0
    pictures: int = 0


@dataclass
class DriftMeter:
    """Collects drift over batches. Holds the latents of one full-precision batch at a time, and two sums a step.

    For each batch: sample with `on_step=meter.full_precision`, then with `on_step=meter.quantized`, then call
    `meter.end_batch()`. A sampler may split a batch further, as long as both split it alike.
    """

    _reference: list[tuple[int, float, torch.Tensor]] = field(default_factory=list)
    _seen: int = 0
    _steps: dict[int, _Step] = field(default_factory=dict)

    def full_precision(self, step: int, timestep: float, latents: torch.Tensor) -> None:
        """Keep the latents (N, ...) of a full-precision step."""
        _check_finite(latents, "full-precision", step)
        self._reference.append((step, float(timestep), latents.detach().to("cpu", torch.float32, copy=True)))

    def quantized(self, step: int, timestep: float, latents: torch.Tensor) -> None:
        """Compare the latents (N, ...) of the same step of the quantized sampler."""
        _check_finite(latents, "quantized", step)
        if self._seen >= len(self._reference):
            raise BadValue(f"the quantized sampler takes more steps than the full-precision one ({self._seen}).")
        reference_step, reference_timestep, reference = self._reference[self._seen]
        if (reference_step, reference_timestep) != (step, float(timestep)) or reference.shape != latents.shape:
            raise BadValue(
                f"samplers differ: step {reference_step} at timestep {reference_timestep:g} with latents "
                f"{tuple(reference.shape)} against step {step} at {float(timestep):g} with {tuple(latents.shape)}."
            )
        relative, cosine = drift(reference, latents.detach().to("cpu", torch.float32))
        totals = self._steps.setdefault(step, _Step(reference_timestep))
        totals.relative += float(relative.sum())
        totals.cosine += float(cosine.sum())
        totals.pictures += len(latents)
        self._seen += 1

    def end_batch(self) -> None:
        """Forget the batch's latents; raise BadValue when the samplers took different numbers of steps."""
        if self._seen != len(self._reference):
            raise BadValue(
                f"the quantized sampler took {self._seen} steps where the full-precision one took "
                f"{len(self._reference)}."
            )
        self._reference.clear()
        self._seen = 0

    def result(self) -> dict[str, Any] | None:
        """`{steps, timesteps, relative, cosine}`, one value a step; None where the samplers report no steps."""
        if not self._steps:
            return None
        steps = sorted(self._steps.items())
        return {
            "steps": [index for index, _ in steps],
            "timesteps": [step.timestep for _, step in steps],
            "relative": [step.relative / step.pictures for _, step in steps],
            "cosine": [step.cosine / step.pictures for _, step in steps],
        }


def _check_finite(latents: torch.Tensor, whose: str, step: int) -> None:
    if not torch.isfinite(latents).all():
        raise BadValue(f"the {whose} model produced NaN or infinite latents at step {step}.")
