"""Putting quantized linears, attentions and timestep tables into a model, empty and ready to be loaded, as a plan says."""

from typing import Any, cast

import torch
from diffusers.models.activations import GELU
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import CombinedTimestepLabelEmbeddings
from torch import Tensor, nn

from dither.clock import Clock, Read, start_clock
from dither.errors import BadCheckpoint, BadFormat
from dither.nn.activation import QActivation
from dither.nn.attention import QAttention, widths_of
from dither.nn.block import QBlock, takes
from dither.nn.borrowed import Borrowed, alike
from dither.nn.feed_forward import NativeGELU, QFeedForward
from dither.nn.linear import QLinear
from dither.nn.once import Embeddings, Once
from dither.nn.timed import TimedLinear, ViewedLinear
from dither.nn.timestep_table import put_table
from dither.spec import Plan, Spec, Timed, Views

__all__ = ["build", "embed_once", "fuse", "install", "lend", "packed_tensors", "replace"]


def build(
    spec: Spec,
    like: nn.Linear,
    clock: Clock | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """An empty module for this spec in place of ``like``, whose bias it keeps."""
    shared = clock or Clock()
    if isinstance(spec, Timed):
        made = [QLinear(v, like.in_features, like.out_features, None, shared, device, dtype) for v in spec.variants]
        return TimedLinear(made, spec.select, like.bias, shared)
    if isinstance(spec, Views):
        base = QLinear(spec.base, like.in_features, like.out_features, None, shared, device, dtype)
        return ViewedLinear(base, spec, like.bias, shared)
    return QLinear(spec, like.in_features, like.out_features, like.bias, shared, device, dtype)


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where ``name`` is."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, leaf, module)


def lend(model: nn.Module, name: str, owner: str) -> Borrowed:
    """Let the module of this name read the parameters of another. BadFormat if they are not alike."""
    module, other = model.get_submodule(name), model.get_submodule(owner)
    if not alike(module, other):
        raise BadFormat(f"'{name}' cannot share the parameters of '{owner}': {module} and {other}")
    made = Borrowed(other, owner).train(module.training)
    replace(model, name, made)
    return made


def fuse(model: nn.Module) -> None:
    """Put a ``QFeedForward`` in the place of every feed-forward part with a GELU and two quantized linears, a ``QBlock`` in
    that of every block that it knows, and let embedders that are the same answer once."""
    for name, module in list(model.named_modules()):
        if type(module) is not FeedForward or type(module.net[0]) is not GELU:
            continue
        if isinstance(module.net[0].proj, QLinear) and isinstance(module.net[2], QLinear):
            module.net[0] = NativeGELU(module.net[0])
            replace(model, name, QFeedForward(module))
    blocks = [(name, module) for name, module in model.named_modules() if name and takes(module)]
    for name, module in blocks:
        replace(model, name, QBlock(cast(Any, module)))
    embed_once(model)
    whole = getattr(model, "_no_split_modules", None)  # of diffusers: classes that must stay on one device
    if blocks and whole:
        cast(Any, model)._no_split_modules = [*whole, QBlock.__name__]


def embed_once(model: nn.Module) -> None:
    """Let embedders of timestep and label answer once in a call of a model, if any reads the parameters of another."""
    found = [(name, m) for name, m in model.named_modules() if type(m) is CombinedTimestepLabelEmbeddings]
    if not any(isinstance(part, Borrowed) for _, embedder in found for part in embedder.modules()):
        return
    once = Once()
    for name, embedder in found:
        replace(model, name, Embeddings(embedder, once))
    model.register_forward_pre_hook(once.begin)
    model.register_forward_hook(once.end)


def install(
    model: nn.Module,
    plan: Plan,
    read: Read,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Clock:
    """Put empty modules where the plan says, ready to be loaded, start the clock, and fuse what can run as one.

    BadCheckpoint names a bad layer.
    """
    clock = Clock(plan.time_edges, plan.branches)
    start_clock(model, clock, read)
    modules = dict(model.named_modules())
    for name, spec in plan.layers.items():
        linear = modules.get(name)
        if not isinstance(linear, nn.Linear):
            raise BadCheckpoint(f"the plan names layer '{name}', which the model does not have as a linear")
        replace(model, name, build(spec, linear, clock, device, dtype))
    for name, attention in plan.attention.items():
        module = modules.get(name)
        if module is None:
            raise BadCheckpoint(f"the plan names attention '{name}', which the model does not have")
        QAttention(attention, widths_of(module), clock, device).attach(module)
    for name, table in sorted(plan.timesteps.items(), key=lambda item: item[1].same_as != ""):  # what is read first
        if name not in modules:
            raise BadCheckpoint(f"the plan names the timestep embedder '{name}', which the model does not have")
        put_table(model, name, table, device, dtype)
    for name, owner in plan.shared.items():
        try:
            lend(model, name, owner)
        except (AttributeError, BadFormat) as e:  # no such module, or not alike
            raise BadCheckpoint(f"the plan says that '{name}' shares the parameters of '{owner}': {e}") from None
    fuse(model)
    return clock


def packed_tensors(model: nn.Module) -> dict[str, Tensor]:
    """``packed`` of every layer and every quantized activation, under the names of ``model.state_dict()``."""
    layers = ((name, m) for name, m in model.named_modules() if isinstance(m, QLinear | QActivation))
    return {f"{name}.{key}": tensor for name, layer in layers for key, tensor in layer.packed().items()}
