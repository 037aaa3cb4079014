"""Errors of a denoiser along the full-precision sampling trajectory: the cheapest and most sensitive sign of damage.

    e_t     = |f_q(x_t, t) - f(x_t, t)|^2 / |f(x_t, t)|^2       teacher-forced: x_t is full precision's own state
    x0_t    = a_t x_t + b_t f(x_t, t)                           the picture that the denoiser predicts at t
    SNR_t   = 10 log10( |x0_t|^2 / |x0_t^q - x0_t|^2 )          dB, teacher-forced as well
    guidance amplification_t = e_t of the guided output / e_t of the conditional rows
    amplification            = |x_end^q - x_end|^2 / |x_end|^2 / sum_t e_t, where x^q runs freely

Guidance amplification 1: guidance passes relative errors on as they are, as when both branches err alike. Branches that
err independently, and as much, give g^2 + (g - 1)^2 at scale g (2.5 at 1.5): guidance multiplies their difference.
Amplification above 1: what each step adds grows on its way to the picture; below 1, later steps contract it.

The predicted picture (Ho et al., arXiv 2006.11239; v: Salimans & Ho, 2202.00512; flow: Liu et al., 2209.03003):

    epsilon, x_t = alpha x0 + sigma eps:   x0 = (x_t - sigma eps) / alpha
    v = alpha eps - sigma x0:              x0 = alpha x_t - sigma v
    flow, x_t = (1 - s) x0 + s eps:        x0 = x_t - s v

``make_targets`` and ``score`` are the same errors for a search: full precision answers some recorded calls once, and a
candidate is one number a picture after one replay of those calls. Everything here is per picture, in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from dither.errors import BadValue
from dither.evaluation.layers import Call, first_tensor
from dither.evaluation.protocol import Float64

__all__ = [
    "Clean",
    "Combine",
    "Scores",
    "Target",
    "amplification",
    "energies",
    "from_epsilon",
    "from_flow",
    "from_sample",
    "from_v",
    "guidance_amplification",
    "guide",
    "make_targets",
    "relative_error",
    "score",
]

Combine: TypeAlias = Callable[[Tensor], Tensor]
"""The rows that a denoiser returns (B, ...) -> the output that the sampler uses, one row a picture (N, ...)."""

TINY = float(np.finfo(np.float64).tiny)


def energies(reference: Tensor, output: Tensor) -> tuple[Float64, Float64]:
    """Of each picture: |reference|^2 and |output - reference|^2, both (N,).

    Raises:
        BadValue: the shapes differ, or a value is NaN or infinite.
    """
    if reference.shape != output.shape:
        raise BadValue(f"outputs of shapes {tuple(reference.shape)} and {tuple(output.shape)} cannot be compared.")
    x = reference.detach().flatten(1).double()  # (N, size)
    y = output.detach().to(x.device).flatten(1).double()
    signal, noise = x.square().sum(1), (y - x).square().sum(1)
    if not bool(torch.isfinite(signal + noise).all()):
        raise BadValue("the outputs of a denoiser hold NaN or infinite values.")
    return signal.cpu().numpy(), noise.cpu().numpy()


def relative_error(reference: Tensor, output: Tensor) -> Float64:
    """|output - reference|^2 / |reference|^2 of each picture (N,)."""
    signal, noise = energies(reference, output)
    return np.asarray(noise / np.maximum(signal, TINY))


def guide(rows: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance u + g (c - u) over rows (B, ...), of which ``unconditional`` (B,) is true for u.

    Without unconditional rows the rows are the output. Rows of a branch are in the order of the pictures.
    """
    u, c = rows[unconditional], rows[~unconditional]
    if not len(u):
        return rows
    if len(u) != len(c):
        raise BadValue(f"{len(c)} conditional and {len(u)} unconditional rows cannot be paired.")
    return u + guidance * (c - u)


def guidance_amplification(guided: Float64, conditional: Float64) -> Float64:
    """Relative error of the guided output over that of the conditional rows, both (N, T), pooled over pictures: (T,).

    1 where neither has any error.
    """
    return _ratio(guided.mean(axis=0), conditional.mean(axis=0))


def amplification(final_drift: Float64, errors: Float64) -> float:
    """Relative squared drift of the final states (N,) over the summed errors (N, T), pooled; 1 without any error."""
    return float(_ratio(final_drift.mean(), errors.sum(axis=1).mean()))


def _ratio(a: Float64, b: Float64) -> Float64:
    return np.asarray(np.where(b > 0, a / np.where(b > 0, b, 1.0), 1.0))


@dataclass(frozen=True)
class Clean:
    """x0 = ``state`` x + ``output`` f(x): how the clean picture follows from a state and the denoiser's output there."""

    state: float
    output: float

    def __call__(self, x: Tensor, f: Tensor) -> Tensor:
        """The predicted picture (N, ...)."""
        return self.state * x.double() + self.output * f.to(x.device).double()


def from_epsilon(alpha: float, sigma: float) -> Clean:
    """Noise prediction, x = alpha x0 + sigma eps. BadValue where nothing of x0 is left in x."""
    if alpha <= 0:
        raise BadValue(f"a noise prediction says nothing about the picture at alpha {alpha:g}.")
    return Clean(1 / alpha, -sigma / alpha)


def from_v(alpha: float, sigma: float) -> Clean:
    """Velocity prediction v = alpha eps - sigma x0, with alpha^2 + sigma^2 = 1."""
    return Clean(alpha, -sigma)


def from_flow(level: float) -> Clean:
    """Flow matching, x = (1 - level) x0 + level eps and v = eps - x0."""
    return Clean(1.0, -level)


def from_sample() -> Clean:
    """The denoiser predicts the picture itself."""
    return Clean(0.0, 1.0)


@dataclass(frozen=True)
class Target:
    """What full precision answered to one recorded call, for candidates to be compared with.

    Args:
        call: arguments of the denoiser and the timestep.
        output: (N, ...), guided.
        signal: |output|^2 (N,).
        clean: how many times a squared error of the output counts in the predicted picture, over |x0|^2 (N,);
            None where the schedule is unknown.
    """

    call: Call
    output: Tensor
    signal: Float64
    clean: Float64 | None


@dataclass(frozen=True)
class Scores:
    """One number a picture for a search to lower; natural logarithms, so that differences are ratios of errors.

    Args:
        log_error: log of sum_t e_t, (N,).
        log_x0_error: log of sum_t |x0^q - x0|^2 / |x0|^2, (N,); None where the schedule is unknown.
    """

    log_error: Float64
    log_x0_error: Float64 | None


def make_targets(
    network: Callable[..., object],
    calls: Sequence[Call],
    combine: Combine,
    states: Sequence[Tensor] = (),
    rules: Sequence[Clean] = (),
) -> tuple[Target, ...]:
    """Full precision's answers to recorded calls, made once for any number of candidates.

    Args:
        network: the full-precision denoiser.
        calls: on its own trajectory, all of the same pictures.
        combine: rows of an answer to the guided output, such as ``lambda rows: guide(rows, unconditional, 1.5)``.
        states, rules: x_t (N, ...) and the rule of the predicted picture of each call; leave out both for none.
    """
    if not calls or len(states) != len(rules) or len(rules) not in (0, len(calls)):
        raise BadValue(f"{len(calls)} calls, {len(states)} states and {len(rules)} rules do not belong together.")
    targets = []
    for i, call in enumerate(calls):
        output = combine(_answer(network, call))
        signal, _ = energies(output, output)
        clean = None
        if rules:
            picture, _ = energies(rules[i](states[i], output), rules[i](states[i], output))
            clean = rules[i].output ** 2 / np.maximum(picture, TINY)
        targets.append(Target(call, output, signal, clean))
    return tuple(targets)


def score(network: Callable[..., object], targets: Sequence[Target], combine: Combine) -> Scores:
    """A candidate's error on the targets, per picture; it costs one call of ``network`` for each target.

    The change of the predicted picture is ``b_t`` times that of the output, since both start from the same state.
    """
    error = np.zeros_like(targets[0].signal)  # (N,)
    clean = np.zeros_like(error)
    for target in targets:
        _, noise = energies(target.output, combine(_answer(network, target.call)))
        error += noise / np.maximum(target.signal, TINY)
        if target.clean is not None:
            clean += noise * target.clean
    known = all(target.clean is not None for target in targets)
    return Scores(_log(error), _log(clean) if known else None)


def _answer(network: Callable[..., object], call: Call) -> Tensor:
    """First tensor of what the network returns."""
    args, kwargs, _ = call
    with torch.no_grad():
        answer = network(*args, **kwargs)
    return first_tensor(answer, "denoiser")


def _log(error: Float64) -> Float64:
    """A candidate without any error gets the log of the smallest number, not minus infinity."""
    return np.asarray(np.log(np.maximum(error, TINY)))
