"""What an error of the denoiser does to the final picture: weights of recorded calls for objectives that follow a trajectory.

Steps of a sampler are linear in the sample and in the denoiser's output where nothing is clipped, those with memory too.
So the effect of an error at step i is the last sample of a whole loop that starts at zero and gets 1 there, and elsewhere

    out_j = r_j x_j        r_j: how the denoiser of Gaussian data of variance v answers a change of its input

That network is known in closed form for x = a x0 + s n:

    x0* = v a x / (v a^2 + s^2)        n* = s x / (v a^2 + s^2)        v-prediction: a n* - s x0*        flow: n* - x0*

Without an answer (r = 0; v infinite, where noise is predicted) errors of early steps seem to count by up to 1 / a, a hundred
times too much, and a stochastic sampler, which washes them out, is ranked backwards. In guided sampling, u + g (c - u), an
error of a conditional row counts g times and one of an unconditional row g - 1 times:

    weight = (effect * g)^2  or  (effect * (g - 1))^2,  over the mean of all samples of all calls
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from torch import Tensor

from dither.errors import BadValue
from dither.models.base import Call
from dither.stages.base import Job

__all__ = ["Effects", "Weigh", "alike", "effects", "row_weights"]

Weigh: TypeAlias = Callable[[Job, Sequence[Call]], Sequence[Tensor]]
"""What the error of each sample of each call counts, (B,) each."""

FLOWS = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)


@dataclass(frozen=True)
class Effects:
    """Of an error of the denoiser's output on the final sample, by noise level.

    Args:
        levels: normalized noise levels of a sampler's steps, ascending (L,) float64.
        sizes: |final| of an error of size 1 of the guided output, (L,) float64; the root mean square where a sampler calls
            the denoiser several times at a level.
        guidance: scale of classifier-free guidance; 1 or less is none.
    """

    levels: Tensor
    sizes: Tensor
    guidance: float

    def at(self, level: Tensor, branch: Tensor) -> Tensor:
        """Effect of an error of each row of the network's own output, (B,) float64; linear between known levels.

        Args:
            level: normalized noise level of each row, (B,).
            branch: 1 where a row is unconditional, (B,).
        """
        place = level.double()
        right = torch.searchsorted(self.levels, place).clamp(max=len(self.levels) - 1)
        left = (right - 1).clamp(min=0)
        low, high = self.levels[left], self.levels[right]
        share = torch.where(high > low, (place - low) / (high - low), 1.0).clamp(0, 1)
        found = self.sizes[left].lerp(self.sizes[right], share)
        if self.guidance <= 1:
            return found
        return found * torch.where(branch.bool(), self.guidance - 1, self.guidance)


def effects(scheduler: Any, steps: int, guidance: float, variance: float = 1.0) -> Effects:
    """Effects of errors at each step of a sampler.

    Args:
        scheduler: of diffusers; it is left as it is.
        steps: that it takes.
        guidance: scale of classifier-free guidance.
        variance: v of the data; latents have about 1. ``math.inf``: a noise predictor that does not answer errors.

    Raises:
        BadValue: no steps, a variance that is not positive, or a scheduler whose steps cannot be looked at alone.
    """
    if steps < 1 or not variance > 0:
        raise BadValue(f"effects of errors need at least 1 step and a positive variance, got {steps} and {variance}")
    own, name = copy.deepcopy(scheduler), type(scheduler).__name__
    own.register_to_config(clip_sample=False, thresholding=False)  # clips are not linear
    try:
        own.set_timesteps(steps)
    except ValueError as e:
        raise BadValue(f"effects of errors: {name} cannot take {steps} steps: {e}") from None
    sizes = _finals(own, variance).abs()  # (S,)
    at = (own.timesteps.double() / own.config.num_train_timesteps).clamp(0, 1)
    levels = torch.tensor(sorted(set(at.tolist())), dtype=torch.float64)
    means = torch.stack([sizes[at == level].square().mean().sqrt() for level in levels])
    return Effects(levels, means, guidance)


def alike(job: Job, calls: Sequence[Call]) -> list[Tensor]:
    """All samples of all calls count the same, (B,) each."""
    return [torch.ones(len(job.rows(call))) for call in calls]


def row_weights(job: Job, calls: Sequence[Call], variance: float = 1.0) -> list[Tensor]:
    """Weight of each sample of each call, (B,) float32: squared effects, with mean 1 over all of them.

    Args:
        job: by whose sampler calls are weighed.
        calls: of its denoiser.
        variance: as of ``effects``.

    Raises:
        BadRecipe: nothing tells how pictures are drawn.
        BadValue: the sampler's steps cannot be looked at alone.
    """
    model, adapter = job.model, job.adapter
    rows = [(adapter.noise_level(model, call), adapter.branch(model, call)) for call in calls]
    how = job.sampling()
    table = effects(how.scheduler, how.steps, how.guidance, variance)
    squares = [table.at(level, branch).square() for level, branch in rows]
    mean = torch.cat(squares).mean()
    if not mean > 0:
        raise BadValue(f"errors at the recorded noise levels have no effect with {type(how.scheduler).__name__}")
    return [(square / mean).float() for square in squares]


def _finals(scheduler: Any, variance: float) -> Tensor:
    """Last sample after an error of 1 at each step, (S,) float64, less what it is without any."""
    flow, times = isinstance(scheduler, FLOWS), scheduler.timesteps
    answers = [_answer(scheduler, t.reshape(1), flow, variance) for t in times]
    rows = len(times) + 2  # the last two get no error, and must come out the same
    x = torch.zeros(rows, 1, 1, 1, dtype=torch.float64)
    draws = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": [torch.Generator().manual_seed(0) for _ in range(rows)]} if draws else {}  # the same noise
    for i, (t, answer) in enumerate(zip(times, answers, strict=True)):
        if not flow:
            scheduler.scale_model_input(x, t)  # as pipelines do: some schedulers find their step in it
        out = answer * x
        out[i] += 1
        x = scheduler.step(out, t, x, **extra).prev_sample
    name = type(scheduler).__name__
    if not bool(torch.isfinite(x).all()):
        raise BadValue(f"effects of errors: {len(times)} steps of {name} end in NaN or infinity")
    if not torch.equal(x[-1], x[-2]):
        raise BadValue(
            f"effects of errors: {name} draws noise that no generator rules, so that two runs of it cannot be compared"
        )
    return (x[:-2] - x[-1]).flatten()


def _answer(scheduler: Any, t: Tensor, flow: bool, variance: float) -> Tensor:
    """r of the module docstring at timestep t (1,), (1, 1, 1, 1)."""
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    mix = scheduler.scale_noise if flow else lambda x, t, noise: scheduler.add_noise(x, noise, t)
    a, s = mix(one, t, zero), mix(zero, t, one)
    x0, noise = (part / (a * a + s * s / variance) for part in (a, s / variance))
    predicts = "flow_prediction" if flow else scheduler.config.get("prediction_type")
    found: dict[str | None, Tensor] = {
        "epsilon": noise,
        "sample": x0,
        "v_prediction": (a * noise - s * x0) / torch.hypot(a, s),
        "flow_prediction": noise - x0,
    }
    if predicts not in found:
        raise BadValue(
            f"effects of errors: {type(scheduler).__name__} predicts {predicts!r}, and known are {', '.join(map(str, found))}"
        )
    return found[predicts]
