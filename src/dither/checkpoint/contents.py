"""What the files of a checkpoint must hold, checked before a model is touched.

Names, shapes and dtypes come from the plan and the model's own skeleton; values are refused when no ``encode`` could have
written them; and every tensor has a digest, SHA-256 over dtype, shape and bytes, in the metadata of its safetensors file.
Digests find damage and mix-ups. They are no signature: who can rewrite the file can rewrite them.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from dither.checkpoint.header import plan_digest
from dither.errors import BadCheckpoint, BadFormat, BadModel
from dither.nn import (
    EMBEDDER,
    Borrowed,
    attention_layout,
    attention_tensors,
    embedding_width,
    table_tensor,
    tensor_layout,
    widths_of,
)
from dither.numerics import Layout, hadamard_order, table_fault, table_layout, validate
from dither.spec import AttentionSpec, Format, LinearSpec, Plan, Spec, Timed, Views

__all__ = ["DIGESTS", "PLAN", "Expected", "check_tensors", "check_values", "digest", "expected_tensors", "metadata_of"]

DIGESTS = "dither.digests"
PLAN = "dither.plan"
"""Keys of the safetensors metadata: digest of each tensor (JSON), digest of the plan."""
_DIGEST = 16  # hexadecimal digits kept of each tensor's digest

_DTYPES = {
    torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64", torch.bool: "BOOL",
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.complex64: "C64",
}  # fmt: skip
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}

Expected: TypeAlias = dict[str, tuple[tuple[int, ...], torch.dtype | None]]
"""Tensor name to shape and dtype; None: floating point of any width."""


class Described(Protocol):
    """Tensors of a checkpoint, described without reading them."""

    @property
    def place(self) -> Mapping[str, Any]:
        """By name."""

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and safetensors dtype."""


def digest(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor, shortened."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    head = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    found = hashlib.sha256(head.encode())
    found.update(flat.numpy().data)
    return found.hexdigest()[:_DIGEST]


def metadata_of(tensors: Mapping[str, Tensor], plan: Plan) -> dict[str, str]:
    """Metadata of a safetensors file that holds (some of) these tensors."""
    return {DIGESTS: json.dumps({k: digest(v) for k, v in tensors.items()}), PLAN: plan_digest(plan)}


def expected_tensors(model: nn.Module, plan: Plan) -> Expected:
    """Every tensor of the quantized model, from a skeleton that may still be dense or already be quantized.

    Raises:
        BadCheckpoint: the plan names a layer that the model does not have as a linear, or a format that does not fit it.
    """
    state = model.state_dict()
    out: Expected = {k: (tuple(v.shape), None if v.is_floating_point() else v.dtype) for k, v in state.items()}
    modules = dict(model.named_modules())
    for name, spec in plan.layers.items():
        linear = modules.get(name)
        if not name or not isinstance(linear, nn.Linear):
            raise BadCheckpoint(f"the plan names layer '{name}', which the model does not have as a linear")
        _check_select(name, spec, plan)
        out = {k: v for k, v in out.items() if not k.startswith(f"{name}.")}
        if linear.bias is not None:
            out[f"{name}.bias"] = (tuple(linear.bias.shape), None)
        shape = (linear.out_features, linear.in_features)
        for view in spec.specs if isinstance(spec, Views) else ():
            _layout(name, view, shape, plan)
        for prefix, stored in _stored(name, spec):
            for key, entry in _layout(name, stored, shape, plan).items():
                out[f"{prefix}.{key}"] = entry
    for name, attention in plan.attention.items():
        module = modules.get(name)
        if module is None:
            raise BadCheckpoint(f"the plan names attention '{name}', which the model does not have")
        head = attention_tensors(name)
        out = {k: v for k, v in out.items() if not k.startswith(head)}
        out |= {f"{head}{key}": entry for key, entry in _attention_layout(name, attention, module, plan).items()}
    return _with_shared(_with_tables(out, modules, plan), modules, plan)


def _with_shared(expected: Expected, modules: Mapping[str, nn.Module], plan: Plan) -> Expected:
    """The same without the parameters of modules that read those of others."""
    for name, owner in plan.shared.items():
        for part in (name, owner):
            if not any(key.startswith(f"{part}.") for key in expected) and not isinstance(modules.get(part), Borrowed):
                raise BadCheckpoint(f"the plan shares parameters of '{part}', which has none")
    heads = tuple(f"{name}." for name in plan.shared)
    return {k: v for k, v in expected.items() if not k.startswith(heads)} if heads else expected


def _with_tables(expected: Expected, modules: Mapping[str, nn.Module], plan: Plan) -> Expected:
    """The same with tables in the place of timestep embedders."""
    widths: dict[str, int] = {}
    for name in plan.timesteps:
        if name not in modules:
            raise BadCheckpoint(f"the plan names the timestep embedder '{name}', which the model does not have")
        if inside := [layer for layer in plan.layers if layer.startswith(f"{name}.{EMBEDDER}.")]:
            raise BadCheckpoint(f"the plan names layer '{inside[0]}', which the timestep table of '{name}' replaces")
        try:
            widths[name] = embedding_width(modules[name])
        except BadModel as e:
            raise BadCheckpoint(f"timestep embedder '{name}': {e}") from None
    for name, table in plan.timesteps.items():
        if table.same_as and widths[table.same_as] != widths[name]:
            raise BadCheckpoint(
                f"timestep embedder '{name}' gives {widths[name]} channels, and the table of '{table.same_as}' has "
                f"{widths[table.same_as]}"
            )
        expected = {k: v for k, v in expected.items() if not k.startswith((f"{name}.{EMBEDDER}.", table_tensor(name)))}
        if not table.same_as:
            expected[table_tensor(name)] = ((table.rows, widths[name]), None)
    return expected


def _attention_layout(name: str, spec: AttentionSpec, module: nn.Module, plan: Plan) -> Layout:
    for part, act in spec.parts.items():
        if act is not None and act.rows not in (1, plan.rows):
            raise BadCheckpoint(
                f"attention '{name}': the table of {part} has {act.rows} rows, but the plan's clock has {plan.rows}"
            )
    try:
        return attention_layout(spec, widths_of(module))
    except (BadFormat, BadModel) as e:
        raise BadCheckpoint(f"attention '{name}': {e}") from None


def check_tensors(reader: "Described", expected: Expected, ignore: Sequence[str] = ()) -> None:
    """Every expected tensor is there in its shape and dtype, and no other. BadCheckpoint names the first that is not."""
    names = {name for name in reader.place if name in expected or not any(re.search(p, name) for p in ignore)}
    if missing := sorted(set(expected) - names):
        raise BadCheckpoint(f"tensor '{missing[0]}' is missing ({len(missing)} in all)")
    if extra := sorted(names - set(expected)):
        raise BadCheckpoint(f"tensor '{extra[0]}' is unknown to the model and its plan ({len(extra)} in all)")
    for name, (shape, dtype) in expected.items():
        size, kind = reader.describe(name)
        wanted = _FLOATS if dtype is None else {_DTYPES[dtype]}
        if size != shape or kind not in wanted:
            want = "floating point" if dtype is None else _DTYPES[dtype]
            raise BadCheckpoint(
                f"tensor '{name}' is {kind} {list(size)}; the model and its plan need {want} {list(shape)}"
            )


def check_values(plan: Plan, shape_of: Mapping[str, tuple[int, int]], read: Callable[[str], Tensor]) -> None:
    """Values of every quantized layer, one layer at a time, of attentions and of timestep tables.

    Args:
        plan: of the checkpoint.
        shape_of: layer name to (N, K).
        read: tensor of this name.
    """
    for name, spec in plan.layers.items():
        for prefix, variant in _stored(name, spec):
            names = tensor_layout(variant, shape_of[name])
            _check_layer(prefix, variant, shape_of[name], {k: read(f"{prefix}.{k}") for k in names})
    for name, attention in plan.attention.items():
        for part, act in attention.static.items():
            head = f"{attention_tensors(name)}{part}."
            if fault := table_fault(
                {key: read(head + key) for key in table_layout(act, max(1, act.grid.group))}, act.grid
            ):
                raise BadCheckpoint(f"tensor '{head}{fault[0]}' {fault[1]}")
    for name, steps in plan.timesteps.items():
        if not steps.same_as:
            _require(read(table_tensor(name)), -math.inf, math.inf, table_tensor(name))


def _stored(name: str, spec: Spec) -> list[tuple[str, LinearSpec]]:
    """Every linear that a layer stores, by the prefix of its tensors' names."""
    if isinstance(spec, Timed):
        return [(f"{name}.variants.{i}", v) for i, v in enumerate(spec.variants)]
    return [(f"{name}.base", spec.base)] if isinstance(spec, Views) else [(name, spec)]


def _check_select(name: str, spec: Spec, plan: Plan) -> None:
    if isinstance(spec, Timed | Views) and len(spec.select) != plan.rows:
        raise BadCheckpoint(f"layer '{name}' selects for {len(spec.select)} rows, but the plan's clock has {plan.rows}")


def _layout(name: str, spec: LinearSpec, shape: tuple[int, int], plan: Plan) -> Expected:
    """Tensors of one linear, after its spec was held against its shape and the plan's clock."""
    n, k = shape
    rows = {"activation table": spec.act.rows if spec.act else 1}
    rows |= {"pre-scale table": spec.pre_scale or 1, "table of biases": spec.time_bias or 1}
    for table, count in rows.items():
        if count not in (1, plan.rows):
            raise BadCheckpoint(f"layer '{name}': the {table} has {count} rows, but the plan's clock has {plan.rows}")
    if spec.lowrank is not None and not 1 <= spec.lowrank.rank <= min(n, k):
        raise BadCheckpoint(f"layer '{name}': rank {spec.lowrank.rank} is not in 1 to {min(n, k)}")
    if spec.act is not None and spec.act.grid.group > 0 and k % spec.act.grid.group:
        raise BadCheckpoint(f"layer '{name}': activation group {spec.act.grid.group} does not divide {k} inputs")
    if (rotation := spec.rotation) is not None and (rotation.block < 1 or k % rotation.block):
        raise BadCheckpoint(f"layer '{name}': rotation block {rotation.block} does not divide {k} inputs")
    try:
        if rotation is not None:
            hadamard_order(rotation.block)
        found = tensor_layout(spec, shape)
    except BadFormat as e:
        raise BadCheckpoint(f"layer '{name}': {e}") from None
    return {key: (size, None if key.endswith("_dense") else dtype) for key, (size, dtype) in found.items()}


def _check_layer(prefix: str, spec: LinearSpec, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> None:
    n, k = shape
    matrices: list[tuple[str, Format | None, tuple[int, int]]] = [("weight", spec.weight, shape)]
    if spec.lowrank is not None:
        low = spec.lowrank
        matrices += [("lowrank_a", low.weight, (low.rank, k)), ("lowrank_b", low.weight, (n, low.rank))]
    for part, fmt, size in matrices:
        own = {key.removeprefix(f"{part}_"): t for key, t in tensors.items() if key.startswith(f"{part}_")}
        if fmt is None:
            _require(own["dense"], -math.inf, math.inf, f"{prefix}.{part}_dense")
        else:
            validate(own, fmt, size, f"{prefix}.{part}")
    if spec.act is not None and spec.act.static:
        table = {key.removeprefix("act_"): t for key, t in tensors.items() if key.startswith("act_")}
        if fault := table_fault(table, spec.act.grid):
            raise BadCheckpoint(f"tensor '{prefix}.act_{fault[0]}' {fault[1]}")
    for key in ("pre_scale", "time_bias"):
        if key in tensors:
            _require(tensors[key], -math.inf, math.inf, f"{prefix}.{key}")
    if "rotation_signs" in tensors:
        _require(tensors["rotation_signs"].abs(), 1, 1, f"{prefix}.rotation_signs")


def _require(tensor: Tensor, low: float, high: float, name: str) -> None:
    least, most = (float(v) for v in torch.aminmax(tensor.float()))
    if not (low <= least and most <= high and math.isfinite(least) and math.isfinite(most)):  # also false for NaN
        raise BadCheckpoint(f"tensor '{name}' holds values that are infinite, NaN or out of range")
