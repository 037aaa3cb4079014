"""Pipelines as samplers: labels and seeds in, uint8 pictures out, the same noise whatever the precision.

Picture i depends on ``labels[i]`` and ``seeds[i]`` only: each has a CPU generator of its own, so neither the batch size nor
the device changes its noise. Three kinds of diffusers pipelines are known: ``PixelDiTPipeline`` and ``DiTPipeline`` (labels
are class numbers), and any pipeline that takes ``prompt``, ``generator`` and ``callback_on_step_end`` (labels are prompts).
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dither.errors import BadModel, BadValue
from dither.evaluation.protocol import Label, OnStep, Pictures, Sampler
from dither.pictures import PIXELS, grid, save_npz, show_latents, to_uint8

__all__ = ["OnProgress", "default_labels", "grid", "sampler_for", "save_npz", "show_latents"]

OnProgress: TypeAlias = Callable[[int, int], None]
"""Called with the sampling steps done and their total, over all batches of one call."""

NULL_CLASS = 1000  # DiTPipeline knows no other
PROMPT_ARGUMENTS = ("prompt", "generator", "num_inference_steps", "guidance_scale", "callback_on_step_end")


class Draw(Protocol):
    """Draws one batch with a pipeline."""

    def __call__(
        self, labels: Sequence[Label], generators: list[torch.Generator], steps: int, guidance: float, on_step: OnStep
    ) -> Pictures:
        """uint8 (N, H, W, C)."""


@dataclass(frozen=True)
class PipelineSampler:
    """A pipeline with its settings; see ``sampler_for``."""

    draw: Draw
    steps: int
    guidance: float
    batch_size: int
    on_progress: OnProgress | None

    def __call__(self, labels: Sequence[Label], seeds: Sequence[int], on_step: OnStep | None = None) -> Pictures:
        """One picture a label, uint8 (N, H, W, C); ``on_step`` sees every step of every batch."""
        if len(labels) != len(seeds) or not labels:
            raise BadValue(f"{len(labels)} labels and {len(seeds)} seeds were given: a picture needs one of each.")
        starts = range(0, len(labels), self.batch_size)
        parts = []
        for start in starts:
            batch = slice(start, start + self.batch_size)
            watch = self._watcher(start // self.batch_size, len(starts), on_step)
            generators = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds[batch]]
            parts.append(self.draw(labels[batch], generators, self.steps, self.guidance, watch))
        return np.concatenate(parts)

    def _watcher(self, batch: int, batches: int, on_step: OnStep | None) -> OnStep:
        def watch(step: int, timestep: float, latents: Tensor) -> None:
            if on_step is not None:
                on_step(step, timestep, latents)
            if self.on_progress is not None:  # some schedulers take more steps than asked for
                self.on_progress(batch * self.steps + min(step + 1, self.steps), batches * self.steps)

        return watch


@dataclass(frozen=True)
class PixelDraw:
    """``PixelDiTPipeline``: classes to pictures, or to latents as they are."""

    pipeline: Any

    def __call__(
        self, labels: Sequence[Label], generators: list[torch.Generator], steps: int, guidance: float, on_step: OnStep
    ) -> Pictures:
        pixels = self.pipeline.transformer.config.in_channels in PIXELS
        images = self.pipeline(
            class_labels=_classes(labels),
            guidance_scale=guidance,
            generator=generators,
            num_inference_steps=steps,
            output_type="np" if pixels else "latent",
            callback_on_step_end=_callback(on_step),
        ).images
        return to_uint8(images) if pixels else show_latents(images)


@dataclass(frozen=True)
class LatentClassDraw:
    """``DiTPipeline``: it has no callback, so its scheduler's steps are watched."""

    pipeline: Any

    def __call__(
        self, labels: Sequence[Label], generators: list[torch.Generator], steps: int, guidance: float, on_step: OnStep
    ) -> Pictures:
        classes, known = _classes(labels), self.pipeline.transformer.config.num_embeds_ada_norm
        if guidance > 1 and known != NULL_CLASS:
            raise BadModel(f"DiTPipeline takes {NULL_CLASS} for the null class, but this transformer's is {known}.")
        if not all(0 <= label <= known for label in classes):
            raise BadValue(f"A class label of {classes} is not among this model's classes 0..{known - 1}.")
        with _watched(self.pipeline.scheduler, generators, on_step):
            images = self.pipeline(
                class_labels=classes,
                guidance_scale=guidance,
                generator=generators,
                num_inference_steps=steps,
                output_type="np",
            ).images
        return to_uint8(images)


@dataclass(frozen=True)
class PromptDraw:
    """Text-to-image pipelines."""

    pipeline: Any

    def __call__(
        self, labels: Sequence[Label], generators: list[torch.Generator], steps: int, guidance: float, on_step: OnStep
    ) -> Pictures:
        images = self.pipeline(
            prompt=[str(label) for label in labels],
            guidance_scale=guidance,
            generator=generators,
            num_inference_steps=steps,
            output_type="np",
            callback_on_step_end=_callback(on_step),
        ).images
        return to_uint8(images)


def sampler_for(
    pipeline: Any, steps: int, guidance: float, batch_size: int = 64, on_progress: OnProgress | None = None
) -> Sampler:
    """A sampler of this pipeline, whose own progress bars are switched off.

    Args:
        pipeline: a diffusers pipeline of one of the three kinds.
        steps: denoising steps.
        guidance: scale of classifier-free guidance; 1 is none.
        batch_size: pictures at a time.
        on_progress: called after every step.

    Raises:
        BadModel: a pipeline of another kind.
        BadValue: no steps, or an empty batch.
    """
    if steps < 1 or batch_size < 1:
        raise BadValue(f"Sampling needs at least 1 step and a batch of 1, got {steps} and {batch_size}.")
    draw = _draw_of(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return PipelineSampler(draw, steps, guidance, batch_size, on_progress)


def default_labels(pipeline: Any, n: int, given: Sequence[Label] = ()) -> list[Label]:
    """``n`` labels: those given, over and over, or else all classes.

    Raises:
        BadValue: a text-to-image pipeline without prompts.
    """
    labels = list(given)
    if not labels and isinstance(_draw_of(pipeline), PromptDraw):
        raise BadValue(f"{type(pipeline).__name__} samples from prompts, and none were given.")
    if not labels:
        labels = list(range(pipeline.transformer.config.num_embeds_ada_norm))
    return [labels[i % len(labels)] for i in range(n)]


def _draw_of(pipeline: Any) -> Draw:
    names = {kind.__name__ for kind in type(pipeline).__mro__}
    if "PixelDiTPipeline" in names:
        return PixelDraw(pipeline)
    if "DiTPipeline" in names:
        return LatentClassDraw(pipeline)
    if set(PROMPT_ARGUMENTS) <= set(inspect.signature(type(pipeline).__call__).parameters):
        return PromptDraw(pipeline)
    raise BadModel(
        f"dither cannot sample with {type(pipeline).__name__}: it is no class-conditional DiT pipeline and does not take "
        f"{', '.join(PROMPT_ARGUMENTS)}."
    )


def _classes(labels: Sequence[Label]) -> list[int]:
    for label in labels:
        if isinstance(label, str):
            raise BadValue(f"This pipeline's labels are class numbers, and {label!r} is text.")
    return [int(label) for label in labels]


def _callback(on_step: OnStep) -> Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor]]:
    def callback(_: Any, step: int, timestep: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
        on_step(step, float(timestep), state["latents"])
        return {}

    return callback


@contextmanager
def _watched(scheduler: Any, generators: list[torch.Generator], on_step: OnStep) -> Iterator[None]:
    """Calls ``on_step`` after every scheduler step, and gives stochastic schedulers the pictures' own generators.

    ``DiTPipeline`` passes no generator, so that a stochastic scheduler would draw from the global one.
    """
    plain, count = scheduler.step, 0
    draws = "generator" in inspect.signature(plain).parameters

    def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        extra = {"generator": generators * (len(sample) // len(generators))} if draws else {}  # both CFG halves
        result = plain(model_output, timestep, sample, *args, **{**kwargs, **extra})
        on_step(count, float(timestep), result.prev_sample[: len(generators)])
        count += 1
        return result

    scheduler.step = step
    try:
        yield
    finally:
        del scheduler.step
