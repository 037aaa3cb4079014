"""``save`` and ``load`` for whatever was quantized: a pipeline, a model of diffusers, any torch module."""

from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import nn

from dither import checkpoint
from dither.errors import BadCheckpoint, DitherError
from dither.integrations.diffusers import ClockReader, save_pipeline
from dither.models import adapter_for
from dither.quantization import denoiser_of, stored_as
from dither.sources import open_source

__all__ = ["load", "save"]


def save(target: Any, directory: str | Path, *, storage: torch.dtype | None = None) -> None:
    """Write what ``quantize`` returned into a new folder, which appears whole or not at all.

    Args:
        target: the pipeline, or the module.
        directory: must not exist, or be empty.
        storage: dtype of what stays in full precision; None keeps the one it has.

    Raises:
        DitherError: not quantized, the folder is not empty, or it cannot be written.
    """
    model = denoiser_of(target)
    header = checkpoint.header_of(model)
    dtype = storage or next(p.dtype for p in model.parameters() if p.is_floating_point())
    with stored_as(model, dtype):
        if target is model and not isinstance(model, ConfigMixin):
            checkpoint.save(model, directory, header)
        else:
            save_pipeline(target, directory)


def load(directory: str | Path, model: nn.Module | None = None, *, dtype: torch.dtype = torch.float32) -> Any:
    """The pipeline or model that ``save`` wrote. No full-precision copy of a packed layer is ever made.

    Args:
        directory: written by ``save``.
        model: a freshly built instance, for modules that are not of diffusers; loaded in place.
        dtype: of what is in full precision, for models of diffusers.

    Raises:
        BadModel, BadCheckpoint: it is missing, damaged, or does not fit.
    """
    if model is not None:
        checkpoint.load_into(model, directory, ClockReader(adapter_for(model), model))
        return model
    source = open_source(str(directory), dtype)
    try:
        checkpoint.header_of(source.model)
    except DitherError:
        raise BadCheckpoint(f"'{directory}' is not quantized: load it with diffusers") from None
    is_pipeline = (Path(directory) / "model_index.json").is_file()
    return source.pipeline if is_pipeline else source.model
