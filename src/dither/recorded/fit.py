"""Whether a model can make these calls, asked before it is changed.

Names, nesting, dtypes and shapes decide what a model makes of a call, so of calls that are alike in these the first is
made and stands for the others. A DiT takes latents of any size and fails at a label that it does not have: both are checked
in every call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dither.calibrate import replay
from dither.errors import BadValue
from dither.models import Adapter, Call, adapter_for
from dither.models.base import batch_of
from dither.models.calls import argument, latents_in
from dither.recorded.file import SAMPLES, CallFile, read_calls
from dither.recorded.samples import FAMILY

__all__ = ["check_fit", "open_calls"]


def open_calls(path: str | Path, model: nn.Module) -> CallFile:
    """A file of calls that this model can make.

    Raises:
        BadValue: the file is not sound, or its calls are another model's; both are named.
    """
    found = read_calls(path)
    mine, family = type(model).__name__, adapter_for(model).family
    if (found.model or mine, found.family or family) != (mine, family):
        hint = ": 'dither record' or dither.save_calls writes a file for it" if _is_npz(found) else ""
        raise BadValue(f"'{path}' holds calls of {found.model}, and this model is {mine}{hint}")
    if _is_npz(found):  # arrays have no dtype of the model's
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        found = replace(found, calls=tuple(_with_latents(call, dtype) for call in found.calls))
    check_fit(found.calls, model, f"'{path}'")
    return found


def _with_latents(call: Call, dtype: torch.dtype | None) -> Call:
    """The call of a DiT with its latents in this dtype."""
    return replace(call, kwargs={**call.kwargs, "hidden_states": call.kwargs["hidden_states"].to(dtype)})


def _is_npz(found: CallFile) -> bool:
    return found.path.suffix.lower() == SAMPLES


def check_fit(calls: Sequence[Call], model: nn.Module, where: str) -> None:
    """Raises BadValue unless a model can make these calls.

    Args:
        calls: at least one.
        model: the denoiser; left as it is.
        where: they come from, for the message.
    """
    if not calls:
        raise BadValue(f"{where} holds no denoiser call")
    adapter = adapter_for(model)
    made: set[Any] = set()
    for i, call in enumerate(calls):
        try:
            _read(call, model, adapter)
            kind = _kind((call.args, call.kwargs), batch_of(call))
            if kind not in made:
                replay(model, call)
                made.add(kind)
        except Exception as e:  # a model fails in its own way at what it does not know
            reason = " ".join(str(e).split()).removesuffix(".") or type(e).__name__
            raise BadValue(f"{where} does not fit {type(model).__name__}: denoiser call {i}: {reason}") from e


def _read(call: Call, model: nn.Module, adapter: Adapter) -> None:
    """What stages read of a call."""
    batch = batch_of(call)
    for name, value in (("noise level", adapter.noise_level(model, call)), ("branch", adapter.branch(model, call))):
        if value.shape != (batch,):
            raise BadValue(f"it has a batch of {batch}, but a {name} of shape {tuple(value.shape)}")
    if adapter.family == FAMILY:
        _check_dit(call, model)


def _check_dit(call: Call, model: nn.Module) -> None:
    config, state, labels = cast(Any, model).config, latents_in(model, call), argument(call, "class_labels", 2)
    wanted = (config.in_channels, config.sample_size, config.sample_size)
    if tuple(state.shape[1:]) != wanted:
        raise BadValue(f"its latents are {tuple(state.shape[1:])}, and the model draws {wanted}")
    known = config.num_embeds_ada_norm
    if isinstance(labels, Tensor) and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= known:
        raise BadValue(
            f"it has labels {int(labels.min())} to {int(labels.max())}, and the model has classes 0 to {known - 1}"
        )


def _kind(value: Any, batch: int) -> Any:
    """What calls that a model treats alike have in common."""
    if isinstance(value, Tensor):
        return value.dtype, value.ndim, value.ndim > 0 and value.shape[0] == batch, tuple(value.shape[1:])
    if isinstance(value, list | tuple):
        return type(value), tuple(_kind(v, batch) for v in value)
    if isinstance(value, Mapping):
        return tuple((key, _kind(v, batch)) for key, v in value.items())
    return value if isinstance(value, bool | str) else type(value)
