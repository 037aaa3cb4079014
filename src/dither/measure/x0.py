"""How the predicted picture follows from a state and the denoiser's output, for the schedulers of diffusers.

Three conventions, told apart by the scheduler's class and its ``prediction_type``:

    alphas_cumprod   x = sqrt(a) x0 + sqrt(1 - a) eps, a = alphas_cumprod[t]          DDIM, DDPM
    sigmas           x = (x0 + s eps) / sqrt(1 + s^2), s = sigmas[i]                  DPM-Solver, UniPC, DEIS
                     x = x0 + s eps                                                   Euler
    flow             x = (1 - s) x0 + s eps                                           flow matching

A scheduler that is not listed is not guessed at: there is then no predicted picture, and a reason why.
"""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

from dither.errors import BadValue
from dither.evaluation.trajectory import Clean, from_epsilon, from_flow, from_sample, from_v

__all__ = ["clean_rules"]


def clean_rules(scheduler: Any, timesteps: Sequence[float]) -> tuple[tuple[Clean, ...], str | None]:
    """The rule of the predicted picture at each step of a scheduler that has just sampled, or none and the reason.

    Args:
        scheduler: of diffusers, with its timesteps set.
        timesteps: of its steps, in order.
    """
    name = type(scheduler).__name__
    if name not in _CONVENTIONS:
        return (), f"how {name} scales its states is not known"
    try:
        return tuple(_CONVENTIONS[name](scheduler, i, t) for i, t in enumerate(timesteps)), None
    except BadValue as error:
        return (), str(error)


def _by_alphas(scheduler: Any, _: int, timestep: float) -> Clean:
    a = float(scheduler.alphas_cumprod[int(timestep)])
    return _preserving(scheduler, sqrt(a), sqrt(1 - a))


def _by_sigmas(scheduler: Any, i: int, _: float) -> Clean:
    s = float(scheduler.sigmas[i])
    if scheduler.config.use_flow_sigmas or _kind(scheduler) == "flow_prediction":
        return _flow(scheduler, s)
    return _preserving(scheduler, 1 / sqrt(1 + s * s), s / sqrt(1 + s * s))


def _exploding(scheduler: Any, i: int, _: float) -> Clean:
    """The model sees x / sqrt(1 + s^2): its velocity is that of the scaled state."""
    s = float(scheduler.sigmas[i])
    if _kind(scheduler) == "v_prediction":
        return Clean(1 / (1 + s * s), -s / sqrt(1 + s * s))
    return _preserving(scheduler, 1.0, s)


def _flow_matching(scheduler: Any, i: int, _: float) -> Clean:
    return from_flow(float(scheduler.sigmas[i]))


def _flow(scheduler: Any, level: float) -> Clean:
    if _kind(scheduler) != "flow_prediction":
        raise BadValue(f"{type(scheduler).__name__} mixes flow sigmas and the prediction type '{_kind(scheduler)}'")
    return from_flow(level)


def _preserving(scheduler: Any, alpha: float, sigma: float) -> Clean:
    kind = _kind(scheduler)
    if kind == "epsilon":
        return from_epsilon(alpha, sigma)
    if kind == "v_prediction":
        return from_v(alpha, sigma)
    if kind == "sample":
        return from_sample()
    raise BadValue(f"the prediction type '{kind}' of {type(scheduler).__name__} is not known")


def _kind(scheduler: Any) -> str:
    return str(scheduler.config.prediction_type)


_CONVENTIONS: dict[str, Callable[[Any, int, float], Clean]] = {
    "DDIMScheduler": _by_alphas,
    "DDPMScheduler": _by_alphas,
    "DPMSolverMultistepScheduler": _by_sigmas,
    "DPMSolverSinglestepScheduler": _by_sigmas,
    "UniPCMultistepScheduler": _by_sigmas,
    "DEISMultistepScheduler": _by_sigmas,
    "EulerDiscreteScheduler": _exploding,
    "EulerAncestralDiscreteScheduler": _exploding,
    "FlowMatchEulerDiscreteScheduler": _flow_matching,
}
