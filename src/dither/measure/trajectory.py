"""A quantized model on the full-precision trajectory: errors of its outputs, layers and activations, step by step.

One chunk of pictures is sampled twice, in full precision and quantized, from the same noise. Each time full precision
calls its denoiser, the quantized one answers the same call: so T steps cost T calls of full precision and 2 T quantized
ones, and layers' outputs are kept for one call only. What guidance makes of the quantized answers is asked of the pipeline
itself, by sampling once more with a denoiser that only repeats them: nothing here knows how a pipeline combines rows.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dither.calibrate import replay
from dither.checkpoint import header_of
from dither.errors import BadModel, BadValue
from dither.evaluation.drift import drift
from dither.evaluation.layers import RangeMeter, SnrMeter, decibel, first_tensor, inputs, outputs
from dither.evaluation.protocol import Float64, Label
from dither.evaluation.trajectory import energies, relative_error
from dither.measure.curves import Chunk, summarize
from dither.measure.x0 import clean_rules
from dither.models import Call
from dither.sampling import sampler_for
from dither.sources import Source
from dither.stages import STAGES, Phase

__all__ = ["Chunk", "observe_pair", "summarize"]


@dataclass(frozen=True)
class _Step:
    """One step of a scheduler: the state before, the guided output, the state after; each (N, ...)."""

    timestep: float
    state: Tensor
    output: Tensor
    after: Tensor


@dataclass(frozen=True)
class _Answer:
    """What both denoisers returned to one call; ``unconditional`` (B,) marks rows of the empty condition."""

    step: int
    level: float
    unconditional: Tensor
    full: Tensor
    quantized: Any


def observe_pair(
    small: Source,
    full: Source,
    labels: Sequence[Label],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> Chunk:
    """Everything about one chunk of pictures, on both models; ``summarize`` joins chunks.

    Args:
        small: the quantized model.
        full: what it was made from.
        labels, seeds: one of each per picture; memory is bounded by their number.
        steps, guidance: of the sampler.

    Raises:
        BadModel: the scheduler takes its steps in a way that nobody knows.
        BadValue: NaN or infinity, named with where it appeared.
    """
    n = len(labels)
    sampler = sampler_for(full.pipeline, steps, guidance, n)
    snr, ranges = SnrMeter(_compared(small, full)), RangeMeter(_in_order(full, header_of(small.model).plan.layers))
    with _watched(full.pipeline, n) as seen, _followed(full, small, snr, ranges, seen) as answers:
        sampler(labels, seeds)
    with _watched(full.pipeline, n) as forced, _repeating(full.model, answers):
        sampler(labels, seeds)
    with _watched(small.pipeline, n) as free:
        sampler_for(small.pipeline, steps, guidance, n)(labels, seeds)
    if not seen:
        raise BadModel(f"the pipeline of '{full.name}' takes no step with its scheduler: there is no trajectory")
    if not len(seen) == len(forced) == len(free):
        raise BadModel(f"'{small.name}' and '{full.name}' take different numbers of steps: they cannot be compared")
    return {
        **_of_outputs(full, seen, forced, n, answers),
        **_of_states(seen, free),
        **_of_layers(snr, ranges),
        **_about(full, seen, answers, snr, ranges),
    }


def _of_outputs(
    full: Source, seen: Sequence[_Step], forced: Sequence[_Step], n: int, answers: Sequence[_Answer]
) -> Chunk:
    """Teacher-forced errors (N, T) of the guided output, its predicted picture, and each branch where it is known."""
    found = {"picture/error": _table([relative_error(a.output, b.output) for a, b in zip(seen, forced, strict=True)])}
    rules, _ = _rules(full, seen)
    if rules:
        pictures = [
            energies(rule(a.state, a.output), rule(a.state, b.output))
            for rule, a, b in zip(rules, seen, forced, strict=True)
        ]
        found["picture/x0_db"] = _table([decibel(*pair) for pair in pictures])
    for name, empty in (("conditional", False), ("unconditional", True)):
        rows = [_branch(answer, empty, seen[answer.step].state) for answer in answers]
        rows = [pair for pair in rows if len(pair[0])]
        if [len(pair[0]) for pair in rows] == [n] * len(seen):  # else the family does not tell which rows they are
            found[f"picture/{name}"] = _table([relative_error(*pair) for pair in rows])
    return found


def _branch(answer: _Answer, empty: bool, state: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of one branch, in full precision and quantized, without a learned variance."""
    rows = answer.unconditional == empty
    both = (answer.full, first_tensor(answer.quantized, "denoiser").cpu())
    return _mean_only(both[0][rows], state), _mean_only(both[1][rows], state)


def _of_states(seen: Sequence[_Step], free: Sequence[_Step]) -> Chunk:
    """Distance of the states that both models reach on their own, (N, T)."""
    pairs = [drift(a.after, b.after) for a, b in zip(seen, free, strict=True)]
    return {"picture/drift": _table([p[0] for p in pairs]), "picture/cosine": _table([p[1] for p in pairs])}


def _of_layers(snr: SnrMeter, ranges: RangeMeter) -> Chunk:
    signal, noise = snr.result()
    low, high, square, count = ranges.result()
    return {
        "sum/layer_signal": signal,
        "sum/layer_noise": noise,
        "min/low": low,
        "max/high": high,
        "sum/square": square,
        "sum/count": count,
    }


def _about(full: Source, seen: Sequence[_Step], answers: Sequence[_Answer], snr: SnrMeter, ranges: RangeMeter) -> Chunk:
    """Names and axes. Safetensors hold numbers only, so that text becomes bytes."""
    levels = {answer.step: round(answer.level, 6) for answer in reversed(answers)}  # a step's first call decides
    about = {
        "timesteps": [step.timestep for step in seen],
        "noise_levels": [levels[i] for i in range(len(seen))],
        "snr_layers": list(snr.layers),
        "range_layers": list(ranges.layers),
        "x0_reason": _rules(full, seen)[1],
    }
    return {"same/about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)}


def _rules(full: Source, seen: Sequence[_Step]) -> Any:
    return clean_rules(_scheduler(full.pipeline), [step.timestep for step in seen])


def _table(columns: Sequence[Float64]) -> Float64:
    return np.stack(columns, axis=1)  # (N, T)


def _compared(small: Source, full: Source) -> tuple[str, ...]:
    """Quantized layers whose outputs mean the same in both models, and all blocks.

    Layers that absorbed a channel scale do not.
    """
    header = header_of(small.model)
    tags = [s.get("stage") for s in (header.recipe or {}).get("stages", ())]
    transformed = any(tag in STAGES and STAGES[tag].phase == Phase.TRANSFORM for tag in tags)
    folds = {s.fold.linear for s in small.adapter.sites(small.model) if s.fold is not None} if transformed else set()
    comparable = [name for name in header.plan.layers if name not in folds]
    return _in_order(full, [*comparable, *small.adapter.blocks(small.model)])


def _in_order(full: Source, names: Iterable[str]) -> tuple[str, ...]:
    """In the order of the network."""
    wanted = set(names)
    return tuple(name for name, _ in full.model.named_modules() if name in wanted)


@contextmanager
def _followed(
    full: Source, small: Source, snr: SnrMeter, ranges: RangeMeter, seen: Sequence[_Step]
) -> Iterator[list[_Answer]]:
    """Let the quantized denoiser answer each call that full precision answers, and compare their layers."""
    answers: list[_Answer] = []

    def follow(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call, step = Call(args, kwargs), len(seen)
        with outputs(small.model, snr.layers, snr.quantized):
            answer = replay(small.model, call)
        level = float(full.adapter.noise_level(full.model, call)[0])
        snr.end_call(step, 1000 * level)
        first, other = first_tensor(output, "denoiser"), first_tensor(answer, "denoiser")
        _check_finite(first, full.name, step)
        _check_finite(other, small.name, step)
        unconditional = full.adapter.branch(full.model, call).bool().cpu()
        answers.append(_Answer(step, level, unconditional, first.cpu().clone(), answer))

    with (
        outputs(full.model, snr.layers, snr.full_precision),
        inputs(full.model, ranges.layers, lambda name, x: ranges.see(len(seen), name, x)),
    ):
        handle = full.model.register_forward_hook(follow, with_kwargs=True)
        try:
            yield answers
        finally:
            handle.remove()


@contextmanager
def _repeating(model: nn.Module, answers: Sequence[_Answer]) -> Iterator[None]:
    """Inside, the denoiser computes nothing and returns the recorded quantized answers, one a call."""
    before = vars(model).get("forward")  # offloading sets it on the instance, too
    left = iter(answers)

    def repeat(*_args: Any, **_kwargs: Any) -> Any:
        return next(left).quantized

    model.forward = repeat
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before


@contextmanager
def _watched(pipeline: Any, n: int) -> Iterator[list[_Step]]:
    """The steps of the pipeline's scheduler, of the first ``n`` rows: some pipelines step both halves of guidance."""
    scheduler, seen = _scheduler(pipeline), list[_Step]()
    plain: Callable[..., Any] = scheduler.step
    signature = inspect.signature(plain)
    if not {"model_output", "timestep", "sample"} <= set(signature.parameters):
        raise BadModel(f"the steps of {type(scheduler).__name__} are not of the form (model_output, timestep, sample)")

    @wraps(plain)
    def step(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        state = given["sample"][:n].detach().to("cpu", copy=True)
        output = _mean_only(given["model_output"][:n].detach().to("cpu", copy=True), state)
        result = plain(*args, **kwargs)
        timestep = float(torch.as_tensor(given["timestep"]).flatten()[0])  # one for all, or one a row
        seen.append(_Step(timestep, state, output, result[0][:n].detach().to("cpu", copy=True)))
        return result

    scheduler.step = step
    try:
        yield seen
    finally:
        vars(scheduler).pop("step", None)  # a sampler that watches the scheduler as well may have removed it


def _scheduler(pipeline: Any) -> Any:
    return pipeline.scheduler


def _mean_only(output: Tensor, state: Tensor) -> Tensor:
    """Without the channels of a learned variance, which come second."""
    twice = output.ndim == state.ndim > 1 and output.shape[1] == 2 * state.shape[1]
    return output[:, : state.shape[1]] if twice else output


def _check_finite(output: Tensor, name: str, step: int) -> None:
    if not bool(torch.isfinite(output).all()):
        raise BadValue(f"the denoiser of '{name}' returns NaN or infinite values at step {step}")
