"""Reading and rewriting recorded calls, whatever mixture of positional and keyword arguments they were made with."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dither.errors import BadValue
from dither.models.base import Call

__all__ = ["argument", "latents_in", "level_in", "replace_first", "steps_at", "to_batch"]


def argument(call: Call, name: str, position: int) -> Any:
    """The argument that the called function knows by this name and position; None when it was not given."""
    if name in call.kwargs:
        return call.kwargs[name]
    return call.args[position] if position < len(call.args) else None


def latents_in(model: nn.Module, call: Call) -> Tensor:
    """``hidden_states`` (B, C, H, W) of a call of an image denoiser of diffusers."""
    state = argument(call, "hidden_states", 0)
    if not isinstance(state, Tensor) or state.ndim != 4:
        raise BadValue(f"A call of {type(model).__name__} came without hidden_states (B, C, H, W).")
    return state


def level_in(model: nn.Module, call: Call, position: int, training_steps: int) -> Tensor:
    """``timestep / training_steps`` of each sample of a call of an image denoiser, (B,); ``position`` is the timestep's."""
    timestep = argument(call, "timestep", position)
    if timestep is None:
        raise BadValue(f"A call of {type(model).__name__} came without a timestep.")
    return to_batch(timestep, len(latents_in(model, call))).div(training_steps).clamp(0, 1)


def steps_at(levels: Tensor, training_steps: int, embedder: nn.Module) -> Tensor:
    """The timesteps of normalized noise levels, float; whole ones where a table stands in the embedder's place."""
    steps = levels.mul(training_steps)
    return steps.round().clamp(0, training_steps - 1) if isinstance(embedder, nn.Identity) else steps


def to_batch(value: Any, batch: int) -> Tensor:
    """A number, (), (1,), (B,) or (B, ...) as float32 (B,) on the CPU; of more than one number a sample, the largest.

    Per-token timesteps (image-to-video models give clean tokens timestep 0) are of the last kind: the largest one is
    the noise level of what is being generated.
    """
    flat = torch.as_tensor(value).detach().float().cpu()
    if flat.ndim == 0 or flat.numel() == 1:
        return flat.reshape(1).expand(batch)
    if flat.shape[0] != batch:
        raise BadValue(f"A denoiser call has a batch of {batch}, but a timestep or label of shape {tuple(flat.shape)}.")
    return flat.reshape(batch, -1).amax(1)


def replace_first(call: Call, name: str, value: Any) -> Call:
    """The call with its first positional argument replaced, or the keyword of this name where there is none."""
    if call.args:
        return replace(call, args=(value, *call.args[1:]))
    return replace(call, kwargs={**call.kwargs, name: value})
