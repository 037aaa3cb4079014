"""Rounds of reconstruction on what the quantized model itself draws (TCAQ-DM's PAR, arXiv 2412.16700, section 3.4).

Calls of the full-precision sampler are not those that the quantized one will make: its errors lead elsewhere. So after a
round over the whole model the calls are recorded anew, with the model as it then is, and learned from again. Until the last
round nothing is committed: layers are ``provisional``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from dither.errors import BadRecipe
from dither.models.base import Call, linear_at
from dither.nn import replace as put
from dither.stages.base import Job
from dither.stages.building import besides_weight, buffers_of, filled
from dither.stages.meanwhile import clocked

__all__ = ["drawn", "provisional"]


def drawn(job: Job, field: str) -> Sequence[Call]:
    """Denoiser calls that the model makes now. BadRecipe names the field if they are given, and nothing can be drawn."""
    before = job.calls
    with clocked(job):
        calls = job.record()
    if calls is before:
        raise BadRecipe(f"{field}: the calibration calls are given, so that the quantized model cannot draw its own")
    return calls


def provisional(job: Job, name: str, tensors: Mapping[str, Tensor], table: Mapping[str, Tensor]) -> None:
    """Let a layer run as it would be committed with these tensors, without finishing it.

    Args:
        job: whose model it is in.
        name: of the layer.
        tensors: of its weight format.
        table: ``act_scale`` and so on, of static inputs; without one they stay in full precision.
    """
    old, spec = linear_at(job.model, name), job.specs[name]
    act = None if spec.act is not None and spec.act.static and not table else spec.act
    buffers = {**besides_weight(old), **buffers_of(tensors), **table}
    new = filled(name, old, replace(spec, act=act), buffers, job.clock, old.bias)
    put(job.model, name, new.train(old.training))
