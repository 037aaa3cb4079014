"""A quantized linear in a layer's place, from tensors under the names that stages give them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dither.errors import BadFormat, BadModel, BadRecipe
from dither.models.base import linear_at
from dither.nn import (
    Clock,
    QAttention,
    QLinear,
    TimedLinear,
    ViewedLinear,
    attention_layout,
    attention_tensors,
    tensor_layout,
    widths_of,
)
from dither.spec import AttentionSpec, LinearSpec, Timed, Views

__all__ = [
    "attended",
    "besides_weight",
    "buffers_of",
    "check_attended",
    "check_attention",
    "check_finished",
    "check_fits",
    "dense_of",
    "filled",
]

BRANCH = "lowrank_"
ONLINE = ("pre_scale", "rotation_signs", "time_bias")


def buffers_of(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as stages name them, under the names that a QLinear's buffers have."""
    return {k if k.startswith((BRANCH, *ONLINE)) else f"weight_{k}": v for k, v in kept.items()}


def besides_weight(linear: nn.Linear) -> dict[str, Tensor]:
    """What a layer has so far beside its weight: online transforms and a low-rank branch."""
    return {k: v for k, v in linear.named_buffers() if k in ONLINE or k.startswith(BRANCH)}


def dense_of(linear: nn.Linear) -> Tensor:
    """The weight (N, K) of a linear in full precision, not a copy; with an online transform it is no plain linear."""
    return linear.get_buffer("weight_dense") if isinstance(linear, QLinear) else linear.weight.data


def filled(
    name: str,
    old: nn.Linear,
    spec: LinearSpec,
    tensors: Mapping[str, Tensor],
    clock: Clock,
    bias: nn.Parameter | None,
) -> QLinear:
    """A QLinear in place of ``old`` with these buffers, on the device of its weight."""
    shape = (old.out_features, old.in_features)
    dtype = next((t.dtype for k, t in tensors.items() if k.endswith("_dense")), torch.float32)
    if missing := set(tensor_layout(spec, shape)) - set(tensors):
        raise BadRecipe(f"layer '{name}': the recipe never makes its '{min(missing)}'")
    device = next(t.device for k, t in tensors.items() if k.startswith("weight_"))
    new = QLinear(spec, shape[1], shape[0], bias, clock, "meta", dtype)
    return new.load({k: v.to(device).contiguous() for k, v in tensors.items()})


def attended(attention: nn.Module, spec: AttentionSpec, tables: Mapping[str, Tensor], clock: Clock) -> QAttention:
    """A QAttention with these tables (``PART.NAME``), in place of one that the attention has."""
    device = next(attention.parameters()).device
    new = QAttention(spec, widths_of(attention), clock, "meta").attach(attention)
    return new.load({key: tensor.to(device) for key, tensor in tables.items()})


def check_attention(model: nn.Module, name: str, spec: AttentionSpec) -> None:
    """BadFormat or BadModel names the attention whose channels do not fit a spec."""
    try:
        attention_layout(spec, widths_of(model.get_submodule(name)))
    except (BadFormat, BadModel) as e:
        raise type(e)(f"attention '{name}': {e}") from None


def check_fits(model: nn.Module, name: str, spec: LinearSpec) -> None:
    """BadFormat names the layer if its shape does not fit a format."""
    linear = linear_at(model, name)
    try:
        tensor_layout(spec, (linear.out_features, linear.in_features))
    except BadFormat as e:
        raise BadFormat(f"layer '{name}': {e}") from None


def check_attended(model: nn.Module, promised: Mapping[str, AttentionSpec]) -> None:
    """BadRecipe names an attention that was promised something that no stage did."""
    modules = dict(model.named_modules())
    for name, spec in promised.items():
        part = modules.get(attention_tensors(name)[:-1])
        if not isinstance(part, QAttention) or part.spec != spec:
            raise BadRecipe(f"attention '{name}' is to be quantized, but no stage (such as 'ranges') finished it")


def check_finished(model: nn.Module, specs: Mapping[str, LinearSpec], varied: Mapping[str, Views | Timed]) -> None:
    """BadRecipe names a layer that was promised something that no stage did."""
    for name, spec in varied.items():
        if not isinstance(model.get_submodule(name), TimedLinear | ViewedLinear):
            kind = "banks of weights" if isinstance(spec, Timed) else "nested weights"
            raise BadRecipe(f"layer '{name}' is to have {kind}, but no stage of the recipe (such as 'rtn') makes them")
    for name, plain in specs.items():
        if name in varied:
            continue
        module = linear_at(model, name)
        weight = module.spec.weight if isinstance(module, QLinear) else None
        if plain.weight is not None and weight is None:
            raise BadRecipe(f"layer '{name}' is to have {plain.weight} weights, but no stage of the recipe makes them")
        if not isinstance(module, QLinear) or module.spec != plain:
            raise BadRecipe(f"layer '{name}' is to be {plain}, but no stage (such as 'rtn' or 'ranges') finished it")
